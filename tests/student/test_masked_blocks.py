"""From left to right to block by block: what is new in the model, what it is opened as again, and what cannot become one."""

from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.check.models import TOKENIZER, family_of, fresh
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.masked_blocks import Blocks
from limbeck.model.masked_blocks import MaskedBlocks as Role
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role, given
from limbeck.signals import Row, dense
from limbeck.student.linearize import Linearize
from limbeck.student.lora import Lora
from limbeck.student.masked_blocks import MaskedBlocks

TINY = Path(limbeck.__file__).parent / "recipes/models/tiny_llama.json"
ROWS = [Row(t, {"text": t}) for t in ("ice floats on", "water")]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_mask_is_one_more_row_the_mean_of_all_and_nothing_else_changes(family):
    role = family_of(family, dtype=torch.float32)
    before = {name: x.clone() for name, x in role.module.state_dict().items()}
    after = MaskedBlocks(length=8)(role)
    assert isinstance(after, Role) and after.blocks == Blocks(8, len(TOKENIZER), True) and after.vocab == len(TOKENIZER)
    assert after.tokenizer is role.tokenizer and after.module.config.vocab_size == len(TOKENIZER) + 1
    table = role.anatomy.path("embedding") + ".weight"
    for name, x in after.module.state_dict().items():
        assert torch.equal(x[: len(before[name])], before[name])
        if name == table:
            torch.testing.assert_close(x[-1], before[name].mean(0))
    tied = after.module.get_output_embeddings().weight is after.module.get_input_embeddings().weight
    assert tied == (family == "gpt2")


def test_it_is_opened_again_as_what_it_is_and_says_the_same(tmp_path: Path):
    after = MaskedBlocks(length=8, shift=1)(as_role(open_pretrained(f"config:{TINY}")))
    checks = Safetensors()(Parcel(after, tmp_path, {}, ()))
    assert "stock transformers" in checks[0]["name"] and "block by block" in (tmp_path / "README.md").read_text()
    opened = open_pretrained(f"path:{tmp_path}")
    again = as_role(opened)
    assert isinstance(again, Role) and again.blocks == Blocks(8, len(TOKENIZER), True, 1) and again.shift == 1
    with torch.no_grad():
        one, other = (dense(role.says(role.view(ROWS), ("logits",), {})["logits"]) for role in (after.eval(), again))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert isinstance(given(opened.module, tokenizer=TOKENIZER), Role)


def test_an_entry_of_the_tokenizer_may_be_the_mask_but_not_the_end_of_a_text_nor_one_that_is_not_there():
    assert MaskedBlocks(mask="<0x01>")(fresh()).module.config.vocab_size == len(TOKENIZER)
    for name, got in (("</s>", "the end of a text"), ("[MASK]", "none of this name")):
        with pytest.raises(Refused, match=got) as error:
            MaskedBlocks(mask=name)(fresh())
        assert error.value.slug == "mask"


def test_what_cannot_fill_in_blocks_is_refused():
    once = MaskedBlocks()(fresh())
    cases = {
        "fills in masked blocks": lambda: MaskedBlocks()(once),
        "other modules": lambda: MaskedBlocks()(Linearize(keep=(0,))(fresh())),
        "causal language model": lambda: MaskedBlocks()(family_of("bert", dtype=torch.float32)),
        "a model without adapters": lambda: MaskedBlocks()(Lora()(fresh())),
        "from left to right": lambda: Linearize()(once),
    }
    for words, make in cases.items():
        with pytest.raises(Refused, match=words):
            make()
