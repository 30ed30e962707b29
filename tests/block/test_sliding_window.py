"""A window is held against plain loops over rows, positions, heads and keys, in double precision."""

import math

import pytest
import torch

from limbeck.block.base import Shape, module_of
from limbeck.block.sliding_window import SlidingWindow

SHAPE = Shape(width=10, heads=6, kv_heads=3, head_dim=4, scale=0.3, bias=True, out_bias=True, rotary=True)
ONE = Shape(width=1, heads=1, kv_heads=1, head_dim=1, scale=1.0, bias=True, out_bias=False, rotary=True)
SPEEDS = (1.0, 0.3)
"""Angle of each pair of channels at position 1."""
LENGTH = 12
FORMS = {
    "at once": ((LENGTH,), False),
    "in steps": ((1,) * LENGTH, True),
    "in pieces": ((2, 1, 5, 1, 3), False),
    "by turns": ((4, 1, 1, 5, 1), True),
}
"""Lengths of the pieces that a row is read in, and whether single positions are steps."""
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def drawn(mixer, shape=SHAPE, rows=2, length=LENGTH):
    torch.manual_seed(0)
    module = module_of(mixer.spec(shape), 0).double().requires_grad_(False)
    for p in module.parameters():
        p += 0.5 * torch.randn_like(p)
    return module, torch.randn(rows, length, shape.width, dtype=torch.float64)


def rope_at(places, speeds=SPEEDS):
    """Cosine and sine of positions [B, T], as transformers lays them out."""
    angles = places.double()[..., None] * torch.tensor(speeds, dtype=torch.float64).repeat(2)
    return angles.cos(), angles.sin()


def positions(x):
    return torch.arange(x.shape[1]).expand(x.shape[:2])


def read(module, x, rope, mask, sizes, stepping):
    """What is said of all positions, read in pieces, each from the state after the one before it; and the last state."""
    said, state, i = [], None, 0
    for size in sizes:
        here = slice(i, i + size)
        run = module.step if stepping and size == 1 and state is not None else module.mix
        angles = None if rope is None else (rope[0][:, here], rope[1][:, here])
        y, state = run(x[:, here], angles, None if mask is None else mask[:, here], state)
        said.append(y)
        i += size
    assert i == x.shape[1]
    return torch.cat(said, 1), state


def mapped(linear, row):
    """Every position of a row."""
    lines, bias = linear.weight.tolist(), [0.0] * linear.out_features if linear.bias is None else linear.bias.tolist()
    return [[sum(w * a for w, a in zip(line, u, strict=True)) + b for line, b in zip(lines, bias, strict=True)] for u in row]


def split(u, size):
    return [u[i : i + size] for i in range(0, len(u), size)]


def normed(u, norm, eps):
    if eps is None:
        return u
    length = math.sqrt(sum(a * a for a in u) / len(u) + eps)
    return [a / length * w for a, w in zip(u, norm.weight.tolist(), strict=True)]


def turned(u, place, speeds):
    u, half = list(u), len(speeds)
    for i, speed in enumerate(speeds):
        c, s = math.cos(place * speed), math.sin(place * speed)
        u[i], u[i + half] = u[i] * c - u[i + half] * s, u[i + half] * c + u[i] * s
    return u


def of_row(m, row, window, sinks, shape, speeds):
    """What is said of a row that stands alone, [t, d], and how much each position hears of each, [heads, t, s]."""
    q, k, v = ([split(u, shape.head_dim) for u in mapped(p, row.tolist())] for p in (m.q_proj, m.k_proj, m.v_proj))
    q = [[turned(normed(u, m.q_norm, shape.norm_eps), t, speeds) for u in heads] for t, heads in enumerate(q)]
    k = [[turned(normed(u, m.k_norm, shape.norm_eps), t, speeds) for u in heads] for t, heads in enumerate(k)]
    out, weights = [], [[[0.0] * len(row) for _ in row] for _ in range(shape.heads)]
    for t in range(len(row)):
        said = []
        for j in range(shape.heads):
            mine = j // (shape.heads // shape.kv_heads)
            heard = {}
            for s in range(t + 1):
                if t - s < window or s < sinks:
                    heard[s] = math.exp(shape.scale * sum(a * b for a, b in zip(q[t][j], k[s][mine], strict=True)))
            total = sum(heard.values())
            o = [0.0] * shape.head_dim
            for s, weight in heard.items():
                weights[j][t][s] = weight / total
                o = [a + weight / total * b for a, b in zip(o, v[s][mine], strict=True)]
            said += o
        out.append(said)
    return torch.tensor(mapped(m.o_proj, out), dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def by_loops(m, x, mixer, shape=SHAPE, speeds=SPEEDS):
    return torch.stack([of_row(m, row, mixer.window, mixer.sinks, shape, speeds)[0] for row in x])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sinks", [0, 1, 4, 30])
@pytest.mark.parametrize("window", [1, 3, 30])
def test_every_form_is_the_rule_as_it_is_written(window, sinks, form):
    mixer = SlidingWindow(window=window, sinks=sinks)
    module, x = drawn(mixer)
    y, _ = read(module, x, rope_at(positions(x)), None, *FORMS[form])
    torch.testing.assert_close(y, by_loops(module, x, mixer), **EXACT)


SHAPES = {
    "norms": (Shape(10, 6, 3, 4, 0.3, False, False, True, norm_eps=0.1), SPEEDS, SPEEDS),
    "one key head": (Shape(10, 6, 1, 4, 0.3, True, False, True), SPEEDS, SPEEDS),
    "as many key heads": (Shape(10, 3, 3, 4, 0.3, False, True, True), SPEEDS, SPEEDS),
    "half of the channels turned": (SHAPE, (0.7,), (0.7,)),
    "nothing turned": (Shape(10, 6, 3, 4, 0.3, True, True, False), SPEEDS, ()),
    "no angles": (SHAPE, None, ()),
}
"""Sizes, angles that the module is given, and angles that queries and keys are turned by."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", SHAPES)
def test_sizes_norms_and_angles_are_heeded(case, form):
    shape, given, speeds = SHAPES[case]
    mixer = SlidingWindow(window=3, sinks=2)
    module, x = drawn(mixer, shape)
    rope = None if given is None else rope_at(positions(x), given)
    torch.testing.assert_close(read(module, x, rope, None, *FORMS[form])[0], by_loops(module, x, mixer, shape, speeds), **EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window, sinks", [(1, 0), (3, 0), (3, 1), (3, 4), (30, 2)])
def test_rows_padded_on_the_left_are_what_they_are_alone(window, sinks, form):
    mixer = SlidingWindow(window=window, sinks=sinks)
    module, x = drawn(mixer, rows=4)
    pads = (0, 1, 6, 11)
    mask = torch.stack([torch.arange(LENGTH) >= pad for pad in pads])
    x[~mask] *= 5.0  # to be heard where it is not masked
    rope = rope_at((mask.long().cumsum(1) - 1).clamp(min=0))
    y, _ = read(module, x, rope, mask, *FORMS[form])
    assert y.isfinite().all()
    for b, pad in enumerate(pads):
        alone = x[b : b + 1, pad:]
        torch.testing.assert_close(y[b : b + 1, pad:], by_loops(module, alone, mixer), **EXACT)
        torch.testing.assert_close(y[b : b + 1, pad:], module.mix(alone, rope_at(positions(alone)), None, None)[0], **EXACT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window, sinks", [(1, 0), (3, 0), (3, 1), (3, 4), (30, 2)])
def test_padding_after_text_pushes_nothing_out_of_the_window(window, sinks, form):
    """As where a second turn of a chat was padded on the left: what counts are positions, not places in memory."""
    mixer = SlidingWindow(window=window, sinks=sinks)
    module, x = drawn(mixer, rows=4)
    mask = torch.ones(4, LENGTH, dtype=torch.bool)
    mask[0, 4:7], mask[1, :2], mask[1, 5:10], mask[2, 1:11] = False, False, False, False
    x[~mask] *= 5.0
    rope = rope_at((mask.long().cumsum(1) - 1).clamp(min=0))
    y, _ = read(module, x, rope, mask, *FORMS[form])
    for row in range(4):
        alone = x[row, mask[row]][None]
        torch.testing.assert_close(y[row, mask[row]][None], by_loops(module, alone, mixer), **EXACT)


def test_so_it_is_in_long_rows_and_in_the_matrix():
    mixer = SlidingWindow(window=3, sinks=1)
    module, x = drawn(mixer, rows=2, length=150)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[0, 60:66], mask[1, 30:101] = False, False
    rope = rope_at((mask.long().cumsum(1) - 1).clamp(min=0))
    y, matrix = module.mix(x, rope, mask, None)[0], module.output(torch.matmul(*module.materialize(x, rope, mask)), x)
    for row in range(2):
        wanted = by_loops(module, x[row, mask[row]][None], mixer)
        torch.testing.assert_close(y[row, mask[row]][None], wanted, **EXACT)
        torch.testing.assert_close(matrix[row, mask[row]][None], wanted, **EXACT)


@pytest.mark.parametrize("window", [3, 70])
@pytest.mark.parametrize("sizes, stepping", [((150,), False), ((20, 1, 68, 1, 60), True)])
def test_long_rows_are_read_in_parts_without_a_seam(window, sizes, stepping):
    """Padding is longer than a part."""
    mixer, shape, pads = SlidingWindow(window=window, sinks=3), Shape(4, 2, 1, 2, 0.3, True, True, True), (0, 75)
    module, x = drawn(mixer, shape, length=150)
    mask = torch.stack([torch.arange(150) >= pad for pad in pads])
    y, _ = read(module, x, rope_at((mask.long().cumsum(1) - 1).clamp(min=0), (0.1,)), mask, sizes, stepping)
    for b, pad in enumerate(pads):
        torch.testing.assert_close(y[b : b + 1, pad:], by_loops(module, x[b : b + 1, pad:], mixer, shape, (0.1,)), **EXACT)


def test_its_matrix_holds_how_much_each_position_hears_of_each():
    mixer = SlidingWindow(window=3, sinks=2)
    module, x = drawn(mixer, rows=3)
    pads = (0, 4, 11)
    mask = torch.stack([torch.arange(LENGTH) >= pad for pad in pads])
    matrix, values = module.materialize(x, rope_at((mask.long().cumsum(1) - 1).clamp(min=0)), mask)
    y = module.output(matrix @ values, x)
    assert matrix.isfinite().all() and y.isfinite().all()
    for b, pad in enumerate(pads):
        said, weights = of_row(module, x[b, pad:], 3, 2, SHAPE, SPEEDS)
        torch.testing.assert_close(matrix[b, :, pad:, pad:], weights, **EXACT)
        assert (matrix[b, :, pad:, :pad] == 0).all()
        torch.testing.assert_close(y[b, pad:], said, **EXACT)


@pytest.mark.parametrize("window, sinks", [(1, 0), (3, 0), (3, 4), (30, 2)])
def test_its_state_has_one_size_and_it_is_the_one_that_is_said(window, sinks):
    mixer = SlidingWindow(window=window, sinks=sinks)
    module, x = drawn(mixer, length=90)
    rope, kept = rope_at(positions(x)), []
    for num in (1, 4, 80):
        _, state = read(module, x[:, :num], (rope[0][:, :num], rope[1][:, :num]), None, (num,), False)
        kept.append(state)
    for t in range(80, 90):
        _, state = module.step(x[:, t : t + 1], (rope[0][:, t : t + 1], rope[1][:, t : t + 1]), None, state)
        kept.append(state)
    for state in kept:
        assert {name: part.shape for name, part in state.items()} == {name: part.shape for name, part in kept[0].items()}
        held = sum(part.untyped_storage().nbytes() for part in state.values())  # not a part of something larger
        assert held == 2 * mixer.state_bytes(SHAPE, 90, itemsize=8)


def by_hand(window, sinks, x):
    """A query is 1, the score of a key the logarithm of 2 to the power x, and its value x."""
    module = module_of(SlidingWindow(window=window, sinks=sinks).spec(ONE), 0).double().requires_grad_(False)
    for part, weight, bias in (("q_proj", 0, 1), ("k_proj", math.log(2), 0), ("v_proj", 1, 0)):
        getattr(module, part).weight.fill_(weight)
        getattr(module, part).bias.fill_(bias)
    module.o_proj.weight.fill_(1)
    x = torch.tensor(x, dtype=torch.float64)[None, :, None]
    y = module.mix(x, None, None, None)[0]
    torch.testing.assert_close(read(module, x, None, None, (1,) * x.shape[1], True)[0], y, **EXACT)
    return y.flatten().tolist()


def test_by_hand():
    x = [1, 0, 2, 3]  # weights 2, 1, 4, 8
    assert by_hand(1, 0, x) == pytest.approx(x, abs=1e-12)
    assert by_hand(2, 0, x) == pytest.approx([1, 2 / 3, 8 / 5, 32 / 12], abs=1e-12)
    assert by_hand(2, 1, x) == pytest.approx([1, 2 / 3, 10 / 7, 34 / 14], abs=1e-12)
    assert by_hand(3, 0, x) == pytest.approx([1, 2 / 3, 10 / 7, 32 / 13], abs=1e-12)
    assert by_hand(4, 0, x) == by_hand(1, 4, x) == pytest.approx([1, 2 / 3, 10 / 7, 34 / 15], abs=1e-12)


def test_by_hand_with_quarter_turns():
    """A query is (1, 0), a key (0, log 2): their product is log 2 times the sine of the angle between them. Weights are 1, 2, 1, 1/2."""
    shape = Shape(width=1, heads=1, kv_heads=1, head_dim=2, scale=0.5, bias=True, out_bias=False, rotary=True)
    module = module_of(SlidingWindow(window=4, sinks=0).spec(shape), 0).double().requires_grad_(False)
    for part in (module.q_proj, module.k_proj, module.v_proj, module.o_proj):
        part.weight.zero_()
        if part.bias is not None:
            part.bias.zero_()
    module.q_proj.bias[0], module.k_proj.bias[1] = 1, math.log(2) / shape.scale
    module.v_proj.weight[0], module.o_proj.weight[0, 0] = 1, 1
    x = torch.tensor([6.0, 3.0, 5.0, 2.0], dtype=torch.float64)[None, :, None]
    y = module.mix(x, rope_at(positions(x), (math.pi / 2,)), None, None)[0]
    assert y.flatten().tolist() == pytest.approx([6, 15 / 3, 17 / 4, 18 / 4.5], abs=1e-12)
