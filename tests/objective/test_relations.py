"""Relations between positions: against a plain loop, and what must and must not change them."""

import math
from collections.abc import Callable

import pytest
import torch

from limbeck.errors import Refused
from limbeck.objective.relations import Relations
from limbeck.signals import Signals

Say = Callable[..., Signals]
NAMES = ("query.-1", "key.-1", "value.-1")


def parts(widths: tuple[int, int, int] = (12, 12, 12), num: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(num, width, generator=g, dtype=torch.float64) for name, width in zip(NAMES, widths, strict=True)}


def each(
    objective: Relations, say: Say, student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor], pos: tuple[int, ...] = (3, 4)
) -> torch.Tensor:
    return objective.values(say(student, pos=pos), say(teacher, pos=pos))


def by_loop(
    student: dict[str, torch.Tensor], teacher: dict[str, torch.Tensor], heads: int, causal: bool, pos: tuple[int, ...] = (3, 4)
) -> list[float]:
    """The definition, with plain numbers: one row, head and position after the other."""

    def relation(x: torch.Tensor, head: int, i: int, start: int, end: int) -> list[float]:
        width = x.shape[1] // heads
        vectors = x[:, head * width : (head + 1) * width].tolist()
        others = range(start, i + 1 if causal else end)
        scores = [math.exp(sum(a * b for a, b in zip(vectors[i], vectors[j], strict=True)) / math.sqrt(width)) for j in others]
        return [s / sum(scores) for s in scores]

    out, start = [], 0
    for length in pos:
        for i in range(start, start + length):
            total = 0.0
            for name in NAMES:
                for head in range(heads):
                    p, q = (relation(x[name], head, i, start, start + length) for x in (teacher, student))
                    total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / heads
            out.append(total)
        start += length
    return out


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_every_position_equals_a_plain_loop(heads: int, causal: bool, say: Say) -> None:
    student, teacher = parts(), parts(seed=1)
    found = each(Relations(heads=heads, causal=causal), say, student, teacher)
    assert found.tolist() == pytest.approx(by_loop(student, teacher, heads, causal), rel=1e-10, abs=1e-12)


def test_unequal_and_grouped_widths_are_compared_through_the_same_number_of_heads(say: Say) -> None:
    student, teacher = parts((12, 6, 6)), parts((24, 12, 12), seed=1)
    found = each(Relations(heads=3), say, student, teacher)
    assert found.tolist() == pytest.approx(by_loop(student, teacher, 3, True), rel=1e-10, abs=1e-12) and found.min() >= 0


def test_of_a_model_beside_itself_it_is_zero_with_zero_gradient(say: Say) -> None:
    student = {name: x.requires_grad_() for name, x in parts().items()}
    found = each(Relations(heads=3), say, student, parts())
    found.sum().backward()
    assert found.abs().max() < 1e-14 and all(x.grad is not None and x.grad.abs().max() < 1e-14 for x in student.values())


def test_a_rotation_inside_each_head_changes_nothing(say: Say) -> None:
    student, teacher = parts(), parts(seed=1)
    turns = [torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(h), dtype=torch.float64))[0] for h in range(3)]
    rotated = {name: x @ torch.block_diag(*turns) for name, x in student.items()}
    objective = Relations(heads=3)
    torch.testing.assert_close(each(objective, say, rotated, teacher), each(objective, say, student, teacher), rtol=1e-10, atol=1e-12)


def test_a_permutation_across_heads_changes_it(say: Say) -> None:
    teacher = parts(seed=1)
    swapped = {name: x.roll(4, -1) for name, x in teacher.items()}  # heads 4 wide, moved on by one
    inside = {name: x.unflatten(-1, (3, 4)).flip(-1).flatten(-2) for name, x in teacher.items()}
    assert each(Relations(heads=3), say, swapped, teacher).max() > 0.05
    assert each(Relations(heads=3), say, inside, teacher).abs().max() < 1e-12
    assert each(Relations(heads=1), say, swapped, teacher).abs().max() < 1e-12  # one head: an order of channels means nothing


def test_a_position_relates_to_no_later_one_unless_asked(say: Say) -> None:
    student, teacher = parts(), parts(seed=1)
    changed = {name: torch.cat([x[:2], x[2:3] + 1, x[3:]]) for name, x in student.items()}
    for causal, moved in ((True, [False, False, True]), (False, [True, True, True])):
        before, after = (each(Relations(heads=3, causal=causal), say, x, teacher)[:3] for x in (student, changed))
        assert ((before - after).abs() > 1e-6).tolist() == moved


def test_the_first_position_of_a_row_relates_to_itself_alone_and_costs_nothing(say: Say) -> None:
    found = each(Relations(heads=3), say, parts(), parts(seed=1))
    assert found[[0, 3]].tolist() == pytest.approx([0, 0], abs=1e-14) and (found[[1, 2, 4, 5, 6]] > 1e-3).all()


def test_rows_beside_each_other_do_not_meet(say: Say) -> None:
    student, teacher = parts(), parts(seed=1)
    together = each(Relations(heads=3, causal=False), say, student, teacher)
    alone = [
        each(Relations(heads=3, causal=False), say, {n: x[rows] for n, x in student.items()}, {n: x[rows] for n, x in teacher.items()}, pos=(num,))
        for rows, num in ((slice(0, 3), 3), (slice(3, 7), 4))
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-14)


def test_no_rows_and_rows_of_no_length_are_connected_zeros(say: Say) -> None:
    student = {name: x[:0].requires_grad_() for name, x in parts().items()}
    found = each(Relations(), say, student, {name: x[:0] for name, x in parts().items()}, pos=(0, 0))
    assert found.shape == (0,) and found.sum().requires_grad


def test_low_precision_is_related_in_float32(say: Say) -> None:
    student, teacher = ({name: x.bfloat16() for name, x in parts(seed=seed).items()} for seed in (0, 1))
    exact = each(Relations(heads=3), say, {n: x.double() for n, x in student.items()}, {n: x.double() for n, x in teacher.items()})
    found = each(Relations(heads=3), say, student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths, of", [((10, 12, 12), "query.-1 of student"), ((12, 12, 4), "value.-1 of student")])
def test_heads_that_do_not_divide_every_width_are_refused_before_training(widths: tuple[int, int, int], of: str, say: Say) -> None:
    with pytest.raises(Refused) as caught:
        Relations(heads=3).build({"student": say(parts(widths)), "teacher": say(parts())})
    assert caught.value.slug == "value" and of in caught.value.expected
    assert Relations(heads=3).build({"student": say(parts()), "teacher": say(parts((24, 12, 12)))}) is None


def test_it_asks_for_the_layer_of_both(say: Say) -> None:
    assert Relations(layer=6).needs == {"student": ("query.6", "key.6", "value.6"), "teacher": ("query.6", "key.6", "value.6")}
    assert Relations().unit == "pos" and Relations()({"student": say(parts(), pos=(3, 4)), "teacher": say(parts(seed=1), pos=(3, 4))}).count == 7
