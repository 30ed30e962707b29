"""distill(): for modules and data that somebody holds."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import limbeck
from limbeck.errors import Failed, LimbeckError, Refused
from limbeck.objective.forward_kl import ForwardKL
from toy import same


def net(width: int, seed: int = 0, inputs: int = 64, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


def batches(num: int = 4, rows: int = 8, inputs: int = 64, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    return [(torch.randn(rows, inputs, generator=draw), torch.randint(10, (rows,), generator=draw)) for _ in range(num)]


def state(module: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(module.state_dict())


def refused(function: Callable[..., Any], *args: Any, **named: Any) -> LimbeckError:
    with pytest.raises(LimbeckError) as caught:
        function(*args, **named)
    assert len(str(caught.value).splitlines()) == 4 and all(caught.value.as_json()["error"].values())
    return caught.value


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_small_student_of_the_digits_reads_more_than_80_percent_of_them() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    pixels, label = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pixels[:1500], label[:1500]), batch_size=64)
    teacher = limbeck.distill(None, net(128), loader, "cross_entropy", steps=300, optimiser={"lr": 3e-3})
    before = state(teacher)
    silent = ((x,) for x, _ in loader)  # the student never sees a label
    student = limbeck.distill(teacher, net(12, seed=1), [x for (x,) in silent], "forward_kl", steps=300, optimiser={"lr": 1e-2})

    def accuracy(module: nn.Module) -> float:
        return float((module(pixels[1500:]).argmax(-1) == label[1500:]).double().mean())

    assert accuracy(teacher) > 0.9 and accuracy(student) > 0.8 > 0.3 > accuracy(net(12, seed=1))
    assert same(state(teacher), before)


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_is_left_as_it_was_and_the_student_is_returned_in_eval_mode(training) -> None:
    teacher = nn.Sequential(net(16), nn.Dropout(0.5)).train(training)
    teacher[0][0].bias.requires_grad_(False)
    student = nn.Sequential(nn.BatchNorm1d(64), net(8, seed=1)).train(training)
    student[1][0].weight.requires_grad_(False)
    before, flags = state(teacher), [[p.requires_grad for p in m.parameters()] for m in (teacher, student)]
    made = limbeck.distill(teacher, student, batches(), steps=3)
    assert made is student and not made.training
    assert same(state(teacher), before) and teacher.training is training and teacher[1].training is training
    assert [[p.requires_grad for p in m.parameters()] for m in (teacher, student)] == flags
    assert all(p.grad is None for p in teacher.parameters())


def test_parts_of_a_teacher_that_were_in_different_modes_are_in_them_again() -> None:
    teacher = nn.Sequential(net(16), nn.Dropout(0.5)).train()
    teacher[1].eval()  # as people freeze a batch norm
    limbeck.distill(teacher, net(8, seed=1), batches(), steps=1)
    assert teacher.training and teacher[0].training and not teacher[1].training


def test_dropout_of_the_teacher_is_off_while_it_teaches() -> None:
    plain, dropping = net(16), nn.Sequential(net(16), nn.Dropout(0.9)).train()
    a, b = (limbeck.distill(teacher, net(8, seed=1), batches(), steps=3) for teacher in (plain, dropping))
    assert same(state(a), state(b))


def test_it_is_the_same_each_time_and_learns_what_it_is_told_to() -> None:
    heard: list[tuple[int, dict[str, float]]] = []
    teacher = net(16)
    a = limbeck.distill(
        teacher, net(8, seed=1), batches(), ForwardKL(temperature=2.0), steps=40, observe=lambda step, said: heard.append((step, said))
    )
    b = limbeck.distill(teacher, net(8, seed=1), batches(), [{"kind": "forward_kl", "temperature": 2.0}], steps=40)
    assert same(state(a), state(b))
    assert [step for step, _ in heard] == list(range(40)) and heard[-1][1]["forward_kl"] < 0.8 * heard[0][1]["forward_kl"]


def test_one_step_is_the_step_of_adamw_by_hand() -> None:
    teacher, (x, _) = net(16), batches(1)[0]
    student = net(8, seed=1)
    mirror = copy.deepcopy(student)
    limbeck.distill(teacher, student, [x], steps=1, optimiser={"lr": 1e-2, "clip": None})
    with torch.no_grad():
        p = teacher(x).log_softmax(-1)
    optimiser = torch.optim.AdamW(mirror.parameters(), lr=1e-2, weight_decay=0.0)
    nn.functional.kl_div(mirror(x).log_softmax(-1), p, log_target=True, reduction="batchmean").backward()
    optimiser.step()
    for mine, theirs in zip(student.parameters(), mirror.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)


def test_micro_batches_change_nothing_but_memory() -> None:
    teacher = net(16)
    whole, cut = (limbeck.distill(teacher, net(8, seed=1), batches(), steps=4, micro=micro, optimiser={"lr": 1e-3}) for micro in (1, 4))
    for mine, theirs in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_only_what_the_patterns_name_learns() -> None:
    student = net(8, seed=1)
    before = state(student)
    limbeck.distill(net(16), student, batches(), steps=2, only=("2.*",))
    assert torch.equal(student[0].weight, before["0.weight"]) and not torch.equal(student[2].weight, before["2.weight"])


def test_a_loader_is_started_again_at_its_end_and_mappings_name_their_inputs() -> None:
    pairs, teacher = batches(3), net(16)
    named = [{"features": x, "label": y} for x, y in pairs]
    a, b = (limbeck.distill(teacher, net(8, seed=1), loader, ["forward_kl", "cross_entropy"], steps=7) for loader in (pairs, named))
    assert same(state(a), state(b))
    thrice = limbeck.distill(teacher, net(8, seed=1), [*pairs, *pairs, pairs[0]], ["forward_kl", "cross_entropy"], steps=7)
    assert same(state(thrice), state(a))


def test_no_teacher_is_needed_for_labels() -> None:
    pairs = batches(2)
    student = limbeck.distill(None, net(32, seed=1), pairs, "cross_entropy", steps=60, optimiser={"lr": 1e-2})
    assert all(torch.equal(student(x).argmax(-1), y) for x, y in pairs), "16 rows are learnt by heart"


def once(pairs: list[Any]) -> Iterator[Any]:
    yield from pairs


def test_a_loader_that_cannot_start_again_is_refused() -> None:
    error = refused(limbeck.distill, net(16), net(8, seed=1), once(batches(2)), steps=5)
    assert isinstance(error, Refused) and error.slug == "data" and error.where == "loader" and "again" in error.do
    for empty in ([], once([])):
        assert refused(limbeck.distill, net(16), net(8, seed=1), empty, steps=1).slug == "data"


def test_what_is_no_loader_is_refused() -> None:
    for loader in (None, 3):
        assert refused(limbeck.distill, net(16), net(8, seed=1), loader, steps=1).slug == "data"


@pytest.mark.parametrize(
    ("named", "slug", "got"),
    [
        ({"objective": "foward_kl"}, "kind", "foward_kl"),
        ({"micr": 2}, "key", "micr"),
        ({"optimiser": {"lrr": 1.0}}, "key", "lrr"),
        ({"steps": 0}, "value", "steps"),
        ({"batch_size": 3}, "key", "batch_size"),
        ({"objective": []}, "value", "objective"),
        ({"optimiser": {"lr": -1.0}}, "value", "lr"),
    ],
)
def test_a_misspelt_option_is_refused_before_anything_learns(named, slug, got) -> None:
    student = net(8, seed=1)
    before = state(student)
    error = refused(limbeck.distill, net(16), student, batches(), **named)
    assert isinstance(error, Refused) and error.slug == slug and got in error.where + error.got, error
    assert same(state(student), before)


def test_an_objective_that_asks_for_what_the_modules_do_not_say_is_refused() -> None:
    error = refused(limbeck.distill, net(16), net(8, seed=1), batches(), [{"kind": "hidden_mse", "layers": [1]}], steps=1)
    assert isinstance(error, Refused) and error.code in (2, 3)
    error = refused(limbeck.distill, None, net(8, seed=1), batches(), "forward_kl", steps=1)
    assert isinstance(error, Refused) and "teacher" in str(error)


def test_an_input_of_an_unknown_name_is_refused_with_the_known_ones() -> None:
    error = refused(limbeck.distill, net(16), net(8, seed=1), [{"pixls": batches(1)[0][0]}], steps=1)
    assert error.slug == "data" and error.got == "pixls" and "pixels" in error.expected


def test_a_loss_that_is_not_a_number_stops_before_the_student_is_touched() -> None:
    pairs = batches(2)
    pairs[1][0][0, 0] = float("nan")
    student, teacher = net(8, seed=1), net(16).train()
    student[0].bias.requires_grad_(False)
    good = limbeck.distill(net(16), copy.deepcopy(student), pairs[:1], steps=1)
    error = refused(limbeck.distill, teacher, student, pairs, steps=2)
    assert isinstance(error, Failed) and error.slug == "nan" and error.code == 5 and "step 1" in error.where
    assert same(state(student), state(good)), "as it was before the step that broke"
    assert teacher.training and all(p.requires_grad for p in teacher.parameters()) and not student[0].bias.requires_grad


def test_flags_are_restored_also_where_a_loader_breaks() -> None:
    def broken() -> Iterator[Any]:
        yield batches(1)[0]
        raise OSError("the disk is gone")

    teacher = net(16).train()
    with pytest.raises(OSError, match="the disk is gone"):
        limbeck.distill(teacher, net(8, seed=1), broken(), steps=3)
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())
