"""A scorer of pairs made from encoders: what is kept, what is new, and what cannot be one."""

from typing import Any

import pytest
import torch

from limbeck.check.models import family_of, ranker_of
from limbeck.errors import Refused
from limbeck.model.anatomy import anatomy
from limbeck.model.ranker import BiEncoder, CrossEncoder
from limbeck.model.text import Text
from limbeck.signals import Row
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.score_head import ScoreHead
from limbeck.text.bytes_tokenizer import ByteTokenizer

ROWS = [Row(t, {"query": "who", "text": t}) for t in ("me", "somebody else")]


def encoder(make: Any = Text, kind: str = "BertModel") -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 258}
    module = getattr(transformers, kind)(transformers.BertConfig(**sizes, max_position_embeddings=64)).eval()
    return make(module, ByteTokenizer(), anatomy(module))


@pytest.mark.parametrize("make, kind", [(Text, "BertModel"), (BiEncoder, "BertModel"), (Text, "BertForMaskedLM")])
def test_every_weight_of_the_encoder_is_kept_and_the_head_alone_is_new(make, kind):
    role = encoder(make, kind)
    body = role.module.get_submodule(role.anatomy.path("body"))
    before = {name: x.clone() for name, x in body.state_dict().items()}
    after = ScoreHead()(role)
    assert isinstance(after, CrossEncoder) and type(after.module).__name__ == "BertForSequenceClassification"
    now = after.module.state_dict()
    assert all(torch.equal(now[f"bert.{name}"], x) for name, x in before.items())
    new = {name for name in now if name.removeprefix("bert.") not in before}
    pooled = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} if kind == "BertForMaskedLM" else set()
    assert new == {"classifier.weight", "classifier.bias"} | pooled and after.origins == dict.fromkeys(new, "new")
    assert after.module.config.num_labels == 1 and after.module.config.architectures == ["BertForSequenceClassification"]


def test_after_blocks_were_dropped_the_rest_scores():
    after = ScoreHead()(DropBlocks(keep=(0, 2))(encoder(BiEncoder)))
    assert after.num_layers == 2
    with torch.no_grad():
        scores = after.says(after.view(ROWS), ("score",), {})["score"]
        plain = [after.module(**inputs(after, row)).logits[0, 0] for row in ROWS]
    torch.testing.assert_close(scores, torch.stack(plain))


def inputs(role: Any, row: Row) -> dict[str, torch.Tensor]:
    view = role.view([row])
    return {"input_ids": view.inputs["ids"][None], "token_type_ids": view.inputs["segment"][None]}


def test_the_seed_draws_the_head_wherever_the_stream_of_the_process_stands():
    torch.manual_seed(1)
    one = ScoreHead()(encoder()).module.classifier.weight
    torch.manual_seed(2)
    again, other = (ScoreHead(seed=seed)(encoder()).module.classifier.weight for seed in (0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_it_reads_no_further_than_the_encoder_did():
    role = encoder(lambda module, tokenizer, found: BiEncoder(module, tokenizer, found, 20))
    assert ScoreHead()(role).longest == 20


@pytest.mark.parametrize("make", [lambda: family_of("llama"), lambda: ranker_of(0)])
def test_causal_models_and_models_that_score_already_are_refused(make):
    with pytest.raises(Refused, match="an encoder") as caught:
        ScoreHead()(make())
    assert caught.value.where == "student.surgery  score_head"
