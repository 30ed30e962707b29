"""Nothing in the place of attention or of the MLP: the residual stream passes."""

import pytest
import torch

from limbeck.check.models import family_of
from limbeck.student.replace_parts import ReplaceParts

IDS = torch.arange(40, 58).view(2, 9)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("part, others", [("mixer", ("output",)), ("mlp", ("down",))])
def test_without_a_part_the_model_says_what_it_says_where_that_part_says_zero(family, part, others):
    role, zeroed = family_of(family), family_of(family)
    with torch.no_grad():
        for name in others:
            zeroed.anatomy.weight(zeroed.module, name, 1).zero_()
            bias = zeroed.anatomy.bias(zeroed.module, name, 1)
            if bias is not None:
                bias.zero_()
        expected = zeroed.module(IDS).logits
        blocks = [{}, {part: f"no_{part}"}, *({} for _ in range(role.num_layers - 2))]
        gone = ReplaceParts.model_validate({"blocks": blocks})(role)
        torch.testing.assert_close(gone.module(IDS).logits, expected, rtol=1e-10, atol=1e-10)
    assert not [name for name, _ in gone.module.named_parameters() if name.startswith(gone.anatomy.path(part, 1) + ".")]


def test_without_both_a_block_passes_on_what_it_hears_bit_for_bit():
    role = family_of("llama")
    blocks = [{}, {"mixer": "no_mixer", "mlp": "no_mlp"}]
    block = ReplaceParts.model_validate({"blocks": blocks})(role).module.model.layers[1]
    x = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), x) and not list(block.parameters())
