"""A mixer in both directions: what reversing does, what each position sees, and that it does not decode."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from limbeck.block.base import module_of
from limbeck.block.bidirectional import Bidirectional
from limbeck.block.discrete_mamba2 import DiscreteMamba2
from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.block.gated_sum import GatedSum
from limbeck.block.sliding_window import SlidingWindow
from limbeck.check.block import heard, made, taught

MIXERS: dict[str, Any] = {
    "gated_delta_net": GatedDeltaNet(),
    "with convolution": GatedDeltaNet(conv=3),
    "sliding_window": SlidingWindow(window=5, sinks=0),
    "discrete_mamba2": DiscreteMamba2(),
}


@pytest.mark.parametrize("name", MIXERS)
def test_reversing_a_row_reverses_what_comes_out_where_both_directions_share_one_mixer(name: str) -> None:
    module, _ = made(Bidirectional(mixer=MIXERS[name]))
    x, rope = heard()
    with torch.no_grad():
        y, back = module.mix(x, rope, None, None)[0], module.mix(x.flip(1), rope, None, None)[0]
        torch.testing.assert_close(back.flip(1), y, rtol=1e-9, atol=1e-9)
        alone = made(MIXERS[name])[0]
        assert not torch.allclose(alone.mix(x.flip(1), rope, None, None)[0].flip(1), alone.mix(x, rope, None, None)[0])  # one direction does not


def test_with_weights_of_its_own_for_each_direction_reversing_exchanges_them() -> None:
    module, copied = made(Bidirectional(shared=False))
    x, rope = heard()
    with torch.no_grad():
        y = module.mix(x, rope, None, None)[0]
        assert not torch.allclose(module.mix(x.flip(1), rope, None, None)[0].flip(1), y)
        module.ahead, module.back = module.back, module.ahead
        torch.testing.assert_close(module.mix(x.flip(1), rope, None, None)[0].flip(1), y, rtol=1e-9, atol=1e-9)
    assert {key.partition(".")[0] for key in copied} == {"ahead", "back"}


def test_a_window_in_both_directions_is_the_mean_of_attention_to_the_left_and_to_the_right() -> None:
    """By a loop over positions, with rotary angles that to the right turn as they do to the left: nothing of the block's own code."""
    begun = taught(0, torch.float64)[0]
    module: Any = module_of(Bidirectional(mixer=SlidingWindow(window=4, sinks=0)).spec(begun.shape), 0).double()
    Bidirectional(mixer=SlidingWindow(window=4, sinks=0)).begin(module, begun)
    x, (cos, sin) = heard(rows=1, length=9)
    shape, part = begun.shape, module.ahead

    def turned(v: torch.Tensor, t: int, way: int) -> torch.Tensor:
        one, two = v.chunk(2, -1)
        return v * cos[0, t] + way * torch.cat([-two, one], -1) * sin[0, t]

    q, k, v = (p(x[0]).unflatten(-1, (-1, shape.head_dim)) for p in (part.q_proj, part.k_proj, part.v_proj))
    k, v = (y.repeat_interleave(shape.heads // y.shape[1], 1) for y in (k, v))
    out = torch.zeros(9, shape.heads, shape.head_dim, dtype=torch.float64)
    for t in range(9):
        for h in range(shape.heads):
            for way, sees in ((1, range(max(0, t - 3), t + 1)), (-1, range(t, min(9, t + 4)))):
                scores = torch.stack([turned(q[t, h], t, way) @ turned(k[s, h], s, way) * shape.scale for s in sees]).softmax(0)
                out[t, h] += sum(w * v[s, h] for w, s in zip(scores, sees, strict=True)) / 2
    expected = part.o_proj(out.flatten(1))
    with torch.no_grad():
        torch.testing.assert_close(module.mix(x, (cos, sin), None, None)[0][0], expected, rtol=1e-9, atol=1e-9)


def test_each_position_sees_all_of_its_row_and_none_of_another() -> None:
    module, _ = made(Bidirectional())
    x, rope = heard(rows=2)
    x = x.clone().requires_grad_()
    slope = torch.autograd.grad(module.mix(x, rope, None, None)[0][0, 10].sum(), x)[0]
    assert bool((slope[0].abs().sum(-1) > 0).all()) and not slope[1].any()


def test_hidden_positions_in_the_middle_are_passed_over_as_if_they_were_not_there() -> None:
    module, _ = made(Bidirectional())
    x, rope = heard(rows=1)
    mask = torch.ones(1, x.shape[1], dtype=torch.bool)
    mask[0, 5:9] = False
    with torch.no_grad():
        y = module(x, rope, token_mask=mask)[0]
        short = module(x[:, mask[0]], tuple(angle[:, mask[0]] for angle in rope))[0]
        torch.testing.assert_close(y[:, mask[0]], short, rtol=1e-9, atol=1e-9)


def test_it_does_not_decode_and_says_so() -> None:
    module, _ = made(Bidirectional())
    x, rope = heard(rows=1)
    cached = lambda: module(x, rope, past_key_values=object())  # noqa: E731
    for run in (cached, lambda: module.step(x[:, :1], rope, None, {}), lambda: module.mix(x, rope, None, {})):
        with pytest.raises(ValueError, match="looks ahead"):
            run()


def test_a_mixer_that_looks_ahead_does_not_stand_in_another_one() -> None:
    with pytest.raises(ValidationError, match="one that looks back alone"):
        Bidirectional(mixer=Bidirectional())
    with pytest.raises(ValidationError, match="around both"):
        GatedSum(first=Bidirectional())


def test_its_parameters_are_those_of_one_mixer_where_it_is_shared() -> None:
    shape = taught(0, torch.float32)[0].shape
    blocks = GatedDeltaNet(), Bidirectional(), Bidirectional(shared=False)
    sizes = [sum(p.numel() for p in module_of(block.spec(shape), 0).parameters()) for block in blocks]
    assert sizes[0] == sizes[1] and sizes[2] == 2 * sizes[0] and math.isclose(Bidirectional().flops(shape, 8), 2 * GatedDeltaNet().flops(shape, 8))
