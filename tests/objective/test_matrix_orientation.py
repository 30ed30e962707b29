"""Distances of matrices that mix positions: against a plain loop, and what must not change them."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.block import _gated_delta_net
from limbeck.block.discrete_mamba2 import DiscreteMamba2
from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.block.gated_sum import GatedSum
from limbeck.block.linear_attention import LinearAttention
from limbeck.check.models import Trial, family_of
from limbeck.errors import Refused
from limbeck.forward.layerwise import Layerwise
from limbeck.model.base import Models, clone
from limbeck.model.mixing import picked
from limbeck.numerics import Streams
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.objective.matrix_orientation import MatrixOrientation
from limbeck.signals import Signals
from limbeck.student.linearize import Linearize

Say = Callable[..., Signals]
POS = (3, 1, 4)
HEADS = 2


def matrices(seed: int = 0, past: int = 6, pos: tuple[int, ...] = POS) -> Tensor:
    """Lower-triangular matrices of rows, zeros up to `past`."""
    draw = torch.Generator().manual_seed(seed)
    out = torch.zeros(sum(pos), HEADS, past, dtype=torch.float64)
    for start, num in zip((sum(pos[:i]) for i in range(len(pos))), pos, strict=True):
        out[start : start + num, :, :num] = torch.randn(HEADS, num, num, generator=draw, dtype=torch.float64).tril().transpose(0, 1)
    return out


def by_loop(a: Tensor, b: Tensor, pos: tuple[int, ...] = POS) -> list[float]:
    """The definition, with plain numbers: one row, head and entry after the other."""
    out, start = [], 0
    for num in pos:
        norms = []
        for head in range(HEADS):
            squares = [(a[t, head, s].item() - b[t, head, s].item()) ** 2 for t in range(start, start + num) for s in range(num)]
            norms.append(math.sqrt(sum(squares)))
        out.append(sum(norms) / HEADS)
        start += num
    return out


def test_every_row_equals_a_plain_loop_and_layers_are_summed(say: Say) -> None:
    student, teacher = ({"mixing.1": matrices(seed), "mixing.3": matrices(seed + 1)} for seed in (0, 5))
    found = MatrixOrientation(layers=(1, 3)).values(say(student, pos=POS), say(teacher, pos=POS))
    expected = [sum(both) for both in zip(*(by_loop(student[name], teacher[name]) for name in student), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    loss = MatrixOrientation(layers=(1, 3))({"student": say(student, pos=POS), "teacher": say(teacher, pos=POS)})
    assert loss.count == 3 and loss.total.item() == pytest.approx(sum(expected))


def test_the_value_by_hand(say: Say) -> None:
    student = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [4.0, 1.0]]], dtype=torch.float64)  # position, head, past
    teacher = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [1.0, 5.0]]], dtype=torch.float64)
    found = MatrixOrientation(layers=(1,)).values(say({"mixing.1": student}, pos=(2,)), say({"mixing.1": teacher}, pos=(2,)))
    assert found.tolist() == [(0 + 5) / 2]  # one head alike, the other off by 3 and 4


def test_zeros_behind_the_longest_row_change_nothing_on_either_side(say: Say) -> None:
    a, b = matrices(0), matrices(1)
    whole = MatrixOrientation().values(say({"mixing.-1": a}, pos=POS), say({"mixing.-1": b}, pos=POS))
    for one, other in ((a[..., :4], b), (a, b[..., :4])):
        assert torch.equal(MatrixOrientation().values(say({"mixing.-1": one}, pos=POS), say({"mixing.-1": other}, pos=POS)), whole)


def test_of_matrices_that_are_alike_it_is_zero_with_a_zero_gradient_also_beside_others_that_are_not(say: Say) -> None:
    student, teacher = matrices(0).requires_grad_(), matrices(0)
    teacher[:3, 0] += 1.0  # the first head of the first row
    found = MatrixOrientation().values(say({"mixing.-1": student}, pos=POS), say({"mixing.-1": teacher}, pos=POS))
    found.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all() and found[1:].tolist() == [0, 0]
    assert student.grad[:3, 0].ne(0).all() and not student.grad[:3, 1].any() and not student.grad[3:].any()


def test_rows_of_no_length_are_zeros_and_none_at_all_is_connected(say: Say) -> None:
    a, b = matrices(0, pos=(3, 0)).requires_grad_(), matrices(1, pos=(3, 0))
    found = MatrixOrientation().values(say({"mixing.-1": a}, pos=(3, 0)), say({"mixing.-1": b}, pos=(3, 0)))
    assert found[0] > 0 and found[1] == 0 and found.requires_grad


def test_low_precision_is_compared_in_float32(say: Say) -> None:
    a, b = torch.full((1, 1, 1), 1.0).bfloat16(), torch.full((1, 1, 1), 1.0078125).bfloat16()
    found = MatrixOrientation().values(say({"mixing.-1": a}), say({"mixing.-1": b}))
    assert found.dtype == torch.float32 and found.item() == pytest.approx(0.0078125)


def test_other_numbers_of_heads_are_refused_before_training() -> None:
    models = Models({"student": family_of("llama", 0), "teacher": family_of("llama", 1, heads=4, kv_heads=2, width=32)})
    with pytest.raises(Refused) as caught:
        Trial(models=models, objective=(MatrixOrientation(layers=(2,)),))
    assert (caught.value.slug, caught.value.where) == ("heads", "matrix_orientation.layers")
    assert (caught.value.expected, caught.value.got) == ("equally many heads in mixing.2", "2 of the student and 4 of the teacher")


def gradient(layers: tuple[int, ...], **turn: Any) -> Tensor:
    return Trial(width=16, objective=(MatrixOrientation(layers=layers),), forward="layerwise", **turn).whole[0]


def test_layer_by_layer_all_at_once_gives_the_gradients_of_one_layer_after_the_other() -> None:
    torch.testing.assert_close(gradient((1, 2)), gradient((1,)) + gradient((2,)), rtol=1e-6, atol=1e-12)


def test_only_what_decides_who_is_heard_gets_a_gradient() -> None:
    trial = Trial(width=16, objective=(MatrixOrientation(layers=(1, 2)),), forward="layerwise", only=("*.self_attn.*",))
    pieces = trial.whole[0].split([p.numel() for _, p in trial.parameters()])
    assert {name.split(".")[-2]: bool(g.any()) for (name, _), g in zip(trial.parameters(), pieces, strict=True)} == {
        "q_proj": True,
        "k_proj": True,
        "v_proj": False,
        "o_proj": False,
    }


class Sampled:
    """Blocks of four heads: attention for the teacher, and in the student's places mixers of the kinds that write their matrices out."""

    def __init__(self, mixer: Any, heads: int | None):
        student, teacher = (family_of("llama", seed, heads=4, kv_heads=2, width=32) for seed in (0, 1))
        models = Models({"student": student if mixer is None else Linearize(mixer=mixer)(student), "teacher": teacher})
        self.trial = Trial(models=models, objective=(MatrixOrientation(layers=(1, 2)),), forward=Layerwise(heads=heads), only=("*.self_attn.*",))

    def of(self, *drawn: float) -> tuple[Tensor, float]:
        """Gradient and sum with these numbers drawn."""
        self.trial.batch = self.trial.batch.with_inputs("student", head_draw=torch.tensor(drawn).expand(len(self.trial.batch.keys), -1))
        found, (loss,) = self.trial.gradients()
        return found, loss.total.item()


@pytest.mark.parametrize("mixer", [None, DiscreteMamba2(), GatedDeltaNet(), LinearAttention(), GatedSum.example()], ids=str)
def test_the_mean_over_all_pairs_of_heads_is_that_of_all_heads_in_value_and_gradient(mixer: Any) -> None:
    if isinstance(mixer, GatedSum):  # its two mixers have four heads each, attention has four: not to be compared
        with pytest.raises(Refused, match="equally many heads"):
            Sampled(mixer, 2)
        return
    gradient, (whole,) = Sampled(mixer, None).trial.gradients()
    trial = Sampled(mixer, 2)
    # the first of 4 heads by quarters, the second of the 3 that are left by thirds: each ordered pair once
    each = [trial.of((i + 0.5) / 4, (j + 0.5) / 3) for i, j in itertools.product(range(4), range(3))]
    torch.testing.assert_close(sum(g for g, _ in each) / 12, gradient, rtol=1e-6, atol=1e-12)
    assert sum(x for _, x in each) / 12 == pytest.approx(whole.total.item(), rel=1e-10)
    assert len({round(x, 9) for _, x in each}) == 6  # six pairs, each in both orders


def test_each_set_of_heads_is_drawn_as_often_as_any_other_and_anew_for_each_window() -> None:
    batch = Trial(width=16, objective=(MatrixOrientation(layers=(1,)),), forward="layerwise").batch
    drawn = [Layerwise(heads=2).draw(batch, Streams(0), (0, 0, step)).view("teacher").inputs["head_draw"] for step in range(600)]
    assert all(torch.equal(x, x[:1].expand_as(x)) and x.shape == (10, 2) for x in drawn)
    num = Counter(tuple(picked(x[0])(4)) for x in drawn)
    # 600 draws of 6 pairs: each 100 times, standard deviation sqrt(600 * 1/6 * 5/6) = 9.1; within four of them
    assert len(num) == 6 and all(abs(times - 100) < 37 for times in num.values())


@pytest.mark.parametrize("how", [{"micro": 3}, {"layout": "padded"}, {"shares": 2}], ids=str)
def test_how_a_window_is_cut_does_not_change_which_heads_are_compared(how: dict[str, Any]) -> None:
    trial = Sampled(GatedDeltaNet(), 2).trial
    torch.testing.assert_close(trial.gradients(**how)[0], trial.whole[0], rtol=1e-6, atol=1e-12)


def test_matrices_of_other_heads_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    distance = MatrixOrientation.distance

    def compared(self: MatrixOrientation, a: Tensor, b: Tensor, *more: Any) -> Tensor:
        made.extend((x.shape[1],) for x in (a, b))
        return distance(self, a, b, *more)

    monkeypatch.setattr(MatrixOrientation, "distance", compared)
    own = vars(_gated_delta_net.GatedDeltaNet)["as_matrix"].__func__

    def noted(q: Tensor, *more: Any) -> Tensor:
        made.append((q.shape[2],))
        return own(q, *more)

    monkeypatch.setattr(_gated_delta_net.GatedDeltaNet, "as_matrix", staticmethod(noted))
    trial = Sampled(GatedDeltaNet(), 1).trial
    made.clear()
    trial.gradients()
    assert set(made) == {(1,)}


def test_heads_that_are_not_there_and_heads_of_nothing_are_refused() -> None:
    with pytest.raises(Refused, match="at most 4 heads") as caught:
        Sampled(GatedDeltaNet(), 5).trial.gradients()
    assert (caught.value.slug, caught.value.got) == ("heads", "5")
    with pytest.raises(Refused, match="an objective that compares matrices of heads"):
        Trial(width=16, objective=(HiddenMSE(layers=(1,)),), forward=Layerwise(heads=1))


def test_steps_against_it_bring_the_matrices_together() -> None:
    models = Models({"student": clone(family_of("llama", 0)), "teacher": family_of("llama", 1)})
    turn = {"objective": (MatrixOrientation(layers=(1, 2)),), "forward": "layerwise", "only": ("*.self_attn.*",), "optimiser": {"lr": 0.02}}
    loop = Trial(models=models, **turn).loop(turn)
    values = [loop.take(0, loop.running[0])[0] for _ in range(12)]
    means = [value["sum"] / value["count"] for value in values]
    assert means[-1] < 0.7 * means[0]
