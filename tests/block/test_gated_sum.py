"""The sum is held against a loop over positions and channels, of what its two mixers say when each is made and run by itself."""

import math

import pytest
import torch

from limbeck.block.base import Attention, Shape, module_of
from limbeck.block.discrete_mamba2 import DiscreteMamba2
from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.block.gated_sum import GatedSum
from limbeck.block.grouped_attention import GroupedAttention
from limbeck.block.linear_attention import LinearAttention
from limbeck.block.no_mixer import NoMixer
from limbeck.block.self_value import SelfValue
from limbeck.block.sliding_window import SlidingWindow

SHAPE = Shape(width=10, heads=4, kv_heads=2, head_dim=4, scale=0.3, bias=True, out_bias=True, rotary=True)
LENGTH = 11
EXACT = {"rtol": 1e-10, "atol": 1e-10}
NEAR = SlidingWindow(window=3, sinks=1)
NARROW = DiscreteMamba2(state=3, head_dim=2, conv=2)
SUMS = {
    "state and window": GatedSum(second=NEAR),
    "window and state": GatedSum(first=NEAR, second=GatedDeltaNet(conv=3)),
    "narrower values first": GatedSum(first=NARROW, second=NEAR),
    "narrower values second": GatedSum(first=NEAR, second=NARROW),
    "one of its own kind": GatedSum(first=GatedSum(first=SelfValue(), second=NEAR), second=LinearAttention()),
    "nothing and a window": GatedSum(first=NoMixer(), second=NEAR),
    "two of a kind": GatedSum(first=NEAR, second=SlidingWindow(window=5, sinks=0)),
}


def drawn(mixer, rows=2):
    torch.manual_seed(0)
    module = module_of(mixer.spec(SHAPE), 0).double().requires_grad_(False)
    for p in module.parameters():
        p += 0.3 * torch.randn_like(p)
    return module, torch.randn(rows, LENGTH, SHAPE.width, dtype=torch.float64)


def rope_at(places):
    angles = places.double()[..., None] * torch.tensor([1.0, 0.3, 1.0, 0.3], dtype=torch.float64)
    return angles.cos(), angles.sin()


def positions(x):
    return torch.arange(x.shape[1]).expand(x.shape[:2])


def alone(mixer, module, name):
    """One of the two, made by itself, with the weights it has in the sum."""
    single = module_of(getattr(mixer, name).spec(SHAPE), 0).double().requires_grad_(False)
    single.load_state_dict({key.removeprefix(f"{name}."): x for key, x in module.state_dict().items() if key.startswith(f"{name}.")})
    return single


def share(gate, u):
    """Of the first, in each channel of a position."""
    scores = [sum(w * a for w, a in zip(line, u, strict=True)) + b for line, b in zip(gate.weight.tolist(), gate.bias.tolist(), strict=True)]
    return [1 / (1 + math.exp(-score)) for score in scores]


def by_loops(gate, x, first, second):
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for c, g in enumerate(share(gate, x[b, t].tolist())):
                out[b, t, c] = g * first[b, t, c].item() + (1 - g) * second[b, t, c].item()
    return out


def expected(mixer, module, x):
    """Of rows without padding."""
    first, second = (alone(mixer, module, name).mix(x, rope_at(positions(x)), None, None)[0] for name in ("first", "second"))
    return by_loops(module.gate, x, first, second)


def read(module, x, rope, mask, sizes):
    """What is said of all positions, read in pieces, single ones as steps; and all states."""
    said, states, i = [], [], 0
    for size in sizes:
        here = slice(i, i + size)
        run = module.step if size == 1 and states else module.mix
        y, state = run(x[:, here], (rope[0][:, here], rope[1][:, here]), None if mask is None else mask[:, here], states[-1] if states else None)
        said.append(y)
        states.append(state)
        i += size
    assert i == x.shape[1]
    return torch.cat(said, 1), states


FORMS = {"at once": (LENGTH,), "in steps": (1,) * LENGTH, "in pieces": (4, 1, 3, 1, 2)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", SUMS)
def test_it_is_a_share_of_the_first_and_the_rest_of_the_second(case, form):
    mixer = SUMS[case]
    module, x = drawn(mixer)
    y, _ = read(module, x, rope_at(positions(x)), None, FORMS[form])
    torch.testing.assert_close(y, expected(mixer, module, x), **EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", SUMS)
def test_rows_padded_on_the_left_are_what_they_are_alone(case, form):
    mixer, pads = SUMS[case], (0, 1, 6)
    module, x = drawn(mixer, rows=3)
    mask = torch.stack([torch.arange(LENGTH) >= pad for pad in pads])
    x[~mask] *= 5.0  # to be heard where it is not masked
    y, _ = read(module, x, rope_at((mask.long().cumsum(1) - 1).clamp(min=0)), mask, FORMS[form])
    for b, pad in enumerate(pads):
        torch.testing.assert_close(y[b : b + 1, pad:], expected(mixer, module, x[b : b + 1, pad:]), **EXACT)


@pytest.mark.parametrize("case", SUMS)
def test_its_matrices_are_those_of_the_first_and_then_those_of_the_second(case):
    mixer, pads = SUMS[case], (0, 4)
    module, x = drawn(mixer)
    mask = torch.stack([torch.arange(LENGTH) >= pad for pad in pads])
    rope = rope_at((mask.long().cumsum(1) - 1).clamp(min=0))
    matrix, values = module.materialize(x, rope, mask)
    pairs = [alone(mixer, module, name).materialize(x, rope, mask) for name in ("first", "second")]
    wide, head = max(each.shape[-1] for _, each in pairs), 0
    mixed = torch.zeros(*matrix.shape[:3], wide, dtype=x.dtype)
    for one, each in pairs:
        for j in range(one.shape[1]):
            torch.testing.assert_close(matrix[:, head], one[:, j], **EXACT)
            torch.testing.assert_close(values[:, head, :, : each.shape[-1]], each[:, j], **EXACT)
            assert (values[:, head, :, each.shape[-1] :] == 0).all()
            for t in range(LENGTH):
                for s in range(t + 1):
                    mixed[:, head, t, : each.shape[-1]] += one[:, j, t, s, None] * each[:, j, s]
            head += 1
    assert matrix.shape[1] == values.shape[1] == head and values.shape[-1] == wide
    y = module.output(mixed, x)
    for b, pad in enumerate(pads):
        torch.testing.assert_close(y[b : b + 1, pad:], expected(mixer, module, x[b : b + 1, pad:]), **EXACT)


def test_its_state_is_those_of_both_and_does_not_grow():
    mixer = SUMS["state and window"]
    module, x = drawn(mixer)
    rope = rope_at(positions(x))
    _, states = read(module, x, rope, None, FORMS["in pieces"])
    for state in states:
        assert {name: part.shape for name, part in state.items()} == {name: part.shape for name, part in states[0].items()}
    for name in ("first", "second"):
        single = alone(mixer, module, name)
        for key, part in read(single, x, rope, None, FORMS["in pieces"])[1][-1].items():
            torch.testing.assert_close(states[-1].pop(f"{name}.{key}"), part, **EXACT)
    assert not states[-1]
    assert mixer.constant and not GatedSum(second=GroupedAttention()).constant and not GatedSum(first=GroupedAttention()).constant


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scores, of_first", [(0.0, 0.5), (800.0, 1.0), (-800.0, 0.0)])
def test_a_gate_at_0_gives_the_mean_and_one_far_up_or_down_one_of_both(scores, of_first, form):
    mixer = SUMS["state and window"]
    module, x = drawn(mixer)
    module.gate.weight.zero_()
    module.gate.bias.fill_(scores)
    first, second = (alone(mixer, module, name).mix(x, rope_at(positions(x)), None, None)[0] for name in ("first", "second"))
    y, _ = read(module, x, rope_at(positions(x)), None, FORMS[form])
    torch.testing.assert_close(y, {0.5: (first + second) / 2, 1.0: first, 0.0: second}[of_first], **EXACT)
    assert (first - second).abs().min() > 1e-6  # they can be told apart


def test_each_channel_has_a_share_of_its_own():
    mixer = SUMS["state and window"]
    module, x = drawn(mixer)
    module.gate.weight.zero_()
    module.gate.bias.copy_(torch.tensor([800.0, -800.0] * 5))
    first, second = (alone(mixer, module, name).mix(x, rope_at(positions(x)), None, None)[0] for name in ("first", "second"))
    y = module.mix(x, rope_at(positions(x)), None, None)[0]
    torch.testing.assert_close(y[..., ::2], first[..., ::2], **EXACT)
    torch.testing.assert_close(y[..., 1::2], second[..., 1::2], **EXACT)


@pytest.mark.parametrize("start", [0.5, 0.8])
def test_it_begins_with_one_share_everywhere_and_each_as_it_begins_alone(start):
    draw = torch.Generator().manual_seed(0)
    sizes = {"query": (16, 10), "key": (8, 10), "value": (8, 10), "output": (10, 16)}
    weights = {name: torch.randn(size, generator=draw, dtype=torch.float64) for name, size in sizes.items()}
    biases = {name: torch.randn(size[0], generator=draw, dtype=torch.float64) for name, size in sizes.items()}
    taught = Attention(SHAPE, weights, biases, {})
    mixer = GatedSum(first=LinearAttention(), second=NEAR, start=start)
    module, x = drawn(mixer)
    copied = mixer.begin(module, taught)
    said, names = [], {}
    for name in ("first", "second"):
        single = alone(mixer, module, name)
        names |= {f"{name}.{key}": part for key, part in getattr(mixer, name).begin(single, taught).items()}
        said.append(single.mix(x, rope_at(positions(x)), None, None)[0])
    torch.testing.assert_close(module.mix(x, rope_at(positions(x)), None, None)[0], start * said[0] + (1 - start) * said[1], **EXACT)
    assert copied == names


def test_by_hand():
    """The first says x, the second the mean of the last two; the share at x is 3^x of 3^x + 1."""
    shape = Shape(width=1, heads=1, kv_heads=1, head_dim=1, scale=1.0, bias=False, out_bias=False, rotary=False)
    mixer = GatedSum(first=SlidingWindow(window=1, sinks=0), second=SlidingWindow(window=2, sinks=0))
    module = module_of(mixer.spec(shape), 0).double().requires_grad_(False)
    for part in (module.first, module.second):
        for name, weight in (("q_proj", 0), ("k_proj", 0), ("v_proj", 1), ("o_proj", 1)):
            getattr(part, name).weight.fill_(weight)
    module.gate.weight.fill_(math.log(3))
    module.gate.bias.zero_()
    x = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)[None, :, None]
    y = module.mix(x, None, None, None)[0]
    # shares 1/2, 3/4, 1/4, 9/10; the second says 0, 1/2, 0, 1/2
    assert y.flatten().tolist() == pytest.approx([0, 7 / 8, -1 / 4, 1.85], abs=1e-12)
