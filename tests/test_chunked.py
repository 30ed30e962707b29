"""The chunked sum against plain autograd over all logits at once."""

import contextlib
import threading
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.align.shared_vocab import cut
from limbeck.chunked import Fold, Folding, fold, fold_together, foldable
from limbeck.numerics import ONE_SETTING, TOLERANCE, bfloat16_products, log_probs, top_k
from limbeck.objective.base import AbstractDivergence
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.jsd import JSD
from limbeck.objective.reverse_kl import ReverseKL
from limbeck.objective.skew_kl import SkewKL
from limbeck.objective.skew_reverse_kl import SkewReverseKL
from limbeck.objective.total_variation import TotalVariation
from limbeck.signals import Head, Logits, Signals, TopK, joined

TARGETS, VOCAB, DIM = 7, 13, 5
DIVERGENCES = [ForwardKL, ReverseKL, JSD, SkewKL, SkewReverseKL, TotalVariation]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def signals(logits: Any, name: str = "logits", **more: Any) -> Signals:
    """Three rows of 3, 4 and no targets, the second with the weight 2."""
    rows = {"target": torch.tensor([0, 0, 0, 1, 1, 1, 1]), "row": torch.arange(3)}
    return Signals({name: logits, **more}, rows, ("",) * 3, torch.arange(3), torch.tensor([1.0, 2.0, 1.0]))


def leaves(bias: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    shapes = [(TARGETS, DIM), (VOCAB, DIM), *([(VOCAB,)] if bias else [])]
    return [random(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]


def both(
    objective: Any,
    teacher: Any,
    bias: bool = False,
    scale: float = 1.0,
    cap: float | None = None,
    name: str = "logits",
    head: type[Head] = Head,
) -> list[Any]:
    """Total and gradients from a known head, and from the same logits as one tensor."""
    out = []
    for lazy in (True, False):
        x = leaves(bias)
        own = head(x[1], x[2] if bias else None, scale, cap)
        logits = Logits(x[0], own, True) if lazy else own(x[0])
        total = objective({"student": signals(logits), "teacher": signals(teacher, name)}).total
        out.append((total.detach(), torch.autograd.grad(total, x)))
    return out


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("per, temperature", [("target", 1.0), ("row", 1.0), ("target", 2.5), ("row", 0.5)])
@pytest.mark.parametrize("bias, scale, cap", [(False, 1.0, None), (True, 1.0, None), (True, 0.3, None), (False, 1.0, 2.0), (True, 1.7, 1.5)])
def test_every_head_gives_what_dense_logits_give(kind: Any, per: str, temperature: float, bias: bool, scale: float, cap: float | None) -> None:
    lazy, dense = both(kind(per=per, temperature=temperature, chunk=3), random(TARGETS, VOCAB, seed=9), bias, scale, cap)
    torch.testing.assert_close(lazy[0], dense[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lazy[1], dense[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("size", [1, 2, 32])
@pytest.mark.parametrize("chunk, made", [(1, [1] * 7), (4, [2, 2, 2, 1]), (6, [3, 3, 1]), (7, [3, 3, 1]), (32, [7])])
def test_a_chunk_is_shared_by_the_heads_that_are_run(kind: Any, size: int, chunk: int, made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of its rows of logits are the student's, half the teacher's; slices of it are worked on, however small."""
    monkeypatch.setattr("limbeck.chunked.SLICE_BYTES", size * 8 * VOCAB)
    asked: dict[int, list[int]] = {}

    class Heard(Head):
        def into(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            asked.setdefault(hidden.shape[-1], []).append(len(hidden))
            return super().into(hidden, out)

    states, head = random(TARGETS, 4, seed=7), Heard(random(VOCAB, 4, seed=8))
    lazy, dense = both(kind(chunk=chunk), Logits(states, head, False), head=Heard)
    torch.testing.assert_close(lazy, dense, rtol=1e-10, atol=1e-12)
    assert asked == {4: made, DIM: made}


@pytest.mark.parametrize("threads, room, targets", [(1, 5, 5), (2, 5, 4), (2, 1, 2), (3, 7, 6), (3, 100, 30), (4, 100, 32), (48, 1, 32)])
def test_a_slice_has_as_many_targets_for_each_thread(threads: int, room: int, targets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit into the room, but one each at least, and not above 32."""
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("limbeck.chunked.SLICE_BYTES", room * 8 * VOCAB)
    seen: list[int] = []

    def slope(log_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(log_q))
        return log_q.sum(-1), torch.ones_like(log_q)

    q = Logits(random(70, DIM, seed=0), Head(random(VOCAB, DIM, seed=1)), True)
    fold(Folding(slope, q, (), torch.ones(70, dtype=torch.float64), 70))
    assert seen == [targets] * (70 // targets) + [70 % targets] * (70 % targets > 0)


def test_a_teacher_that_two_divergences_hear_is_asked_once() -> None:
    asked: list[int] = []

    class Heard(Head):
        def into(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            asked.append(len(hidden))
            return super().into(hidden, out)

    x = leaves(bias=False)
    q, p = Logits(x[0], Head(x[1]), True), Logits(random(TARGETS, 4, seed=7), Heard(random(VOCAB, 4, seed=8)), False)
    factors, kinds = torch.ones(TARGETS, dtype=torch.float64), (ForwardKL(), ReverseKL(), JSD())
    total, each = fold_together([Folding(o.chunk_slope, q, (p,), factors, 6) for o in kinds], [1.0, 0.5, 2.0])
    assert asked == [3, 3, 1]
    alone = [fold(Folding(o.chunk_slope, q, (p,), factors, 6)) for o in kinds]
    torch.testing.assert_close(each, [one.detach() for one in alone], rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(total, x)
    expected = torch.autograd.grad(alone[0] + 0.5 * alone[1] + 2 * alone[2], x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_truncated_teacher_leaves_the_whole_chunk_to_the_student() -> None:
    asked: list[int] = []

    class Heard(Head):
        def into(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            asked.append(len(hidden))
            return super().into(hidden, out)

    both(ForwardKL(chunk=4), TopK(*top_k(log_probs(random(TARGETS, VOCAB, seed=9)), 3)), name="top_logits", head=Heard)
    assert asked == [4, 3]


def test_states_that_were_kept_in_few_bits_are_multiplied_in_bfloat16_where_there_are_instructions_for_it() -> None:
    """The student's never are, and afterwards everything is as it was."""
    matmul, asked = torch.backends.mkldnn.matmul, []  # type: ignore[attr-defined]

    class Heard(Head):
        def into(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            asked.append((hidden.shape[-1], matmul.fp32_precision))
            return super().into(hidden, out)

    before, found = matmul.fp32_precision, []
    for coarse in (False, True):
        x = [random(256, 64, seed=1, dtype=torch.float32).requires_grad_(), (random(512, 64, seed=2, dtype=torch.float32) / 4).requires_grad_()]
        states, other = random(256, 96, seed=3, dtype=torch.float32), Heard(random(512, 96, seed=4, dtype=torch.float32) / 5)
        factors, objective = torch.ones(256), ForwardKL()
        teacher = Logits(states, other, False, coarse=coarse)
        total = fold(Folding(objective.chunk_slope, Logits(x[0], Heard(x[1]), True), (teacher,), factors, 256))
        found.append((total.detach() / 256, *torch.autograd.grad(total / 256, x)))
        assert set(asked) == {(64, before), (96, "bf16" if coarse else before)}
        asked.clear()
    assert matmul.fp32_precision == before
    for exact, rounded in zip(*found, strict=True):  # the states' numbers lose at most one part in 512, and so do those of the head
        assert float((exact - rounded).norm() / exact.norm()) < 2**-8


def test_products_in_bfloat16_end_with_what_they_were_for_and_leave_no_trace() -> None:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with contextlib.suppress(ValueError), bfloat16_products():
        raise ValueError
    assert matmul.fp32_precision == "none"
    with torch.backends.flags(fp32_precision="ieee"):  # of all backends: what products have is no setting of their own
        with bfloat16_products():
            assert matmul.fp32_precision == "bf16"
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == "none"
    matmul.fp32_precision = "tf32"  # of their own
    try:
        with bfloat16_products():
            pass
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = "none"


def test_another_thread_waits_until_products_are_what_they_were() -> None:
    """Else the one that came second would take what the first one has set for what was there before."""
    got: list[bool] = []

    def tries() -> None:
        got.append(ONE_SETTING.acquire(blocking=False))
        if got[-1]:
            ONE_SETTING.release()

    def elsewhere() -> None:
        thread = threading.Thread(target=tries)
        thread.start()
        thread.join()

    with bfloat16_products():
        elsewhere()
    elsewhere()
    assert got == [False, True]


@pytest.mark.parametrize("lazy", [True, False])
def test_products_are_rounded_where_the_cpu_can_and_states_are_coarse(lazy: bool) -> None:
    """By a fold, and where logits are asked for as one tensor."""
    states, weight = random(128, 256, seed=0, dtype=torch.float32), random(512, 256, seed=1, dtype=torch.float32)
    exact, found = states.double() @ weight.double().mT, {}
    for coarse in (False, True):
        logits = Logits(states, Head(weight), False, coarse=coarse)
        out: list[torch.Tensor] = []

        def slope(log_q: torch.Tensor, p: torch.Tensor, out: list[torch.Tensor] = out) -> tuple[torch.Tensor, torch.Tensor]:
            out.append(p.clone())
            return log_q.sum(-1), torch.ones_like(log_q)

        if lazy:
            fold(Folding(slope, Logits(states[:, :1], Head(weight[:, :1]), True), (logits,), torch.ones(128), 256))
        found[coarse] = float(((torch.cat(out) if lazy else logits.dense()).double() - exact).norm() / exact.norm())
    assert found[False] < 1e-6
    assert 5e-4 < found[True] < 4e-3 if torch.cpu._is_amx_tile_supported() else found[True] < 4e-3


def test_what_is_made_of_coarse_logits_is_coarse() -> None:
    logits = Logits(random(3, 4, seed=0), Head(random(7, 4, seed=1)), False, coarse=True)
    assert cut(logits, 5).coarse and cut(logits, 5).dense().shape == (3, 5) and logits[1:].coarse
    assert joined([{"logits": logits}, {"logits": logits}])["logits"].coarse


def test_a_teacher_that_is_more_than_a_matrix_is_asked_for_fewer_rows_at_a_time() -> None:
    """Its head makes several tensors of the size of its logits: a mixture of models does."""
    asked: list[int] = []
    weight = random(VOCAB, 4, seed=8)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        asked.append(len(hidden))
        return torch.tanh(hidden @ weight.mT)

    lazy, _ = both(ForwardKL(chunk=24), Logits(random(TARGETS, 4, seed=7), head, False))
    assert asked[:3] == [3, 3, 1]  # a fourth part of the half of a chunk
    asked.clear()
    dense = both(ForwardKL(chunk=24), torch.tanh(random(TARGETS, 4, seed=7) @ weight.mT))[1]
    torch.testing.assert_close(lazy, dense, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 4, VOCAB - 1])
def test_a_truncated_teacher_too(k: int) -> None:
    lazy, dense = both(ForwardKL(chunk=2), TopK(*top_k(log_probs(random(TARGETS, VOCAB, seed=9)), k)), name="top_logits")
    torch.testing.assert_close(lazy, dense, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("label", ["hard", "soft"])
@pytest.mark.parametrize("per", ["target", "row"])
def test_labels_give_what_torchs_cross_entropy_gives(label: str, per: str) -> None:
    x = leaves(bias=True)
    wanted = torch.arange(TARGETS) if label == "hard" else random(TARGETS, VOCAB, seed=3).softmax(-1)
    head = Head(x[1], x[2])
    total = CrossEntropy(per=per, chunk=2)({"student": signals(Logits(x[0], head, True), label=wanted)}).total
    each = torch.nn.functional.cross_entropy(head(x[0]), wanted, reduction="none")
    factors = torch.tensor([1.0] * 3 + [2.0] * 4) if per == "target" else torch.tensor([1 / 3] * 3 + [2 / 4] * 4, dtype=torch.float64)
    expected = (each * factors).sum()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(total, x), torch.autograd.grad(expected, x), rtol=1e-10, atol=1e-13)


def solved(objective: Any, x: list[torch.Tensor], teacher: torch.Tensor) -> torch.Tensor:
    return objective({"student": signals(Logits(x[0], Head(x[1]), True)), "teacher": signals(teacher)}).total


def test_a_second_backward_pass_gives_the_same_again() -> None:
    x, teacher = leaves(bias=False), random(TARGETS, VOCAB, seed=9)
    total = solved(ForwardKL(chunk=3), x, teacher)
    first = torch.autograd.grad(3 * total, x, retain_graph=True)
    second = torch.autograd.grad(total, x)
    torch.testing.assert_close([3 * g for g in second], list(first), rtol=1e-12, atol=0)


def test_a_divergence_whose_derivative_is_the_same_number_everywhere() -> None:
    """The mean of log q, as label smoothing has it, written as a sum: its derivative is one number, which is no place in memory for each entry."""

    class Uniform(AbstractDivergence):
        kind: Literal["tests:uniform"] = "tests:uniform"

        def divergence(self, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
            return -log_q.sum(-1) / VOCAB

    lazy, dense = both(Uniform(chunk=3), random(TARGETS, VOCAB, seed=9))  # type: ignore[call-arg]
    torch.testing.assert_close(lazy[0], dense[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lazy[1], dense[1], rtol=1e-10, atol=1e-12)


def test_two_objectives_on_one_tied_head() -> None:
    """The embedding is the head, and is asked twice: three gradients flow into one tensor."""
    teacher, found = random(TARGETS, VOCAB, seed=9), []
    for lazy in (True, False):
        weight = random(VOCAB, DIM, seed=1).requires_grad_()
        hidden = torch.tanh(weight[:TARGETS] * 2)
        logits = Logits(hidden, Head(weight), True) if lazy else hidden @ weight.mT
        said = {"student": signals(logits), "teacher": signals(teacher)}
        (ForwardKL(chunk=3)(said).total + 0.5 * ReverseKL(chunk=2)(said).total).backward()
        found.append(weight.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    x, teacher = leaves(bias=False), random(TARGETS, VOCAB, seed=9)
    x[frozen].requires_grad_(False)
    solved(ForwardKL(chunk=3), x, teacher).backward()
    assert x[frozen].grad is None and x[1 - frozen].grad is not None


def test_a_role_that_spoke_without_gradients_gets_none() -> None:
    x = leaves(bias=False)
    said = {"student": signals(Logits(x[0].detach(), Head(x[1]), False)), "teacher": signals(random(TARGETS, VOCAB, seed=9))}
    assert not ForwardKL(chunk=3)(said).total.requires_grad


def test_hooks_of_the_tensors_hear_the_gradient() -> None:
    x, heard = leaves(bias=False), []
    x[1].register_hook(lambda g: heard.append(g.clone()))
    solved(ForwardKL(chunk=3), x, random(TARGETS, VOCAB, seed=9)).backward()
    torch.testing.assert_close(heard, [x[1].grad])


def test_a_teacher_that_learns_too_takes_the_plain_way() -> None:
    x, theirs = leaves(bias=False), random(TARGETS, VOCAB, seed=9).requires_grad_()
    assert not foldable(Logits(x[0], Head(x[1]), True), theirs)
    solved(ForwardKL(chunk=3), x, theirs).backward()
    assert theirs.grad is not None and theirs.grad.any()


@pytest.mark.parametrize("way", ["autocast", "bfloat16 weights"])
def test_sixteen_bits_are_near_thirty_two(way: str) -> None:
    x, teacher = leaves(bias=True, dtype=torch.float32), random(TARGETS, VOCAB, seed=9, dtype=torch.float32)
    low = [t.detach().bfloat16().requires_grad_() for t in x] if way != "autocast" else [t.detach().clone().requires_grad_() for t in x]
    totals = []
    for tensors, context in ((x, contextlib.nullcontext()), (low, torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"))):
        with context:
            logits = Logits(tensors[0], Head(tensors[1], tensors[2]), True)
            totals.append(ForwardKL(chunk=3)({"student": signals(logits), "teacher": signals(teacher)}).total)
        totals[-1].backward()
    assert totals[1].dtype == torch.float32
    rtol, atol = TOLERANCE["bfloat16", "value"]
    torch.testing.assert_close(totals[1], totals[0], rtol=rtol, atol=atol)
    rtol, atol = TOLERANCE["bfloat16", "gradient"]
    for a, b in zip(low, x, strict=True):
        assert a.grad is not None and b.grad is not None and a.grad.dtype == a.dtype
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=rtol, atol=atol)


def test_states_of_sixteen_bits_are_heard_through_a_head_of_thirty_two() -> None:
    x, theirs = leaves(bias=False, dtype=torch.float32), random(TARGETS, DIM, seed=8).bfloat16()
    weight = random(VOCAB, DIM, seed=7, dtype=torch.float32)
    totals = [
        ForwardKL(chunk=3)({"student": signals(Logits(x[0], Head(x[1]), True)), "teacher": signals(said)}).total
        for said in (Logits(theirs, Head(weight), False), theirs.float() @ weight.mT)
    ]
    torch.testing.assert_close(totals[0], totals[1])


def test_no_targets_give_a_connected_zero() -> None:
    hidden, weight = torch.zeros(0, DIM, requires_grad=True), random(VOCAB, DIM, seed=1, dtype=torch.float32).requires_grad_()
    how = (Head(weight), ForwardKL().chunk_slope, (torch.zeros(0, VOCAB),), 4, 1.0)
    total: Any = Fold.apply(hidden, weight, None, torch.zeros(0), how)
    total.backward()
    assert total.item() == 0 and weight.grad is not None and not weight.grad.any()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor had that any operation made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("objective", [*DIVERGENCES, CrossEntropy])
@pytest.mark.parametrize("chunk", [1, 4, 8])
def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_head(objective: Any, chunk: int) -> None:
    num, vocab, dim = 64, 200, 2
    ours = Logits(random(num, dim, seed=0).requires_grad_(), Head(random(vocab, dim, seed=1).requires_grad_()), True)
    theirs = Logits(random(num, dim, seed=2), Head(random(vocab, dim, seed=3)), False)
    rows = {"target": torch.zeros(num, dtype=torch.long), "row": torch.arange(1)}
    said = {"student": {"logits": ours, "label": torch.arange(num)}, "teacher": {"logits": theirs}}
    heard = {role: Signals(values, rows, ("",), torch.arange(1), torch.ones(1)) for role, values in said.items()}
    with Largest() as largest:
        objective(chunk=chunk)(heard).total.backward()
    each = chunk if objective is CrossEntropy else chunk // 2  # the other half is the teacher's
    assert largest.size == max(each, dim) * vocab


@pytest.mark.parametrize(
    "kinds, sparse",
    [
        ((ForwardKL, CrossEntropy), False),
        ((CrossEntropy, ReverseKL, JSD), False),
        ((ForwardKL, CrossEntropy), True),
        ((CrossEntropy, CrossEntropy), True),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_sums_over_the_same_logits_are_the_same_when_they_are_made_together(kinds: Any, sparse: bool, bias: bool) -> None:
    x = leaves(bias)
    teacher = random(TARGETS, VOCAB, seed=9)
    said = {
        "student": signals(Logits(x[0], Head(x[1], x[2] if bias else None), True), label=torch.arange(TARGETS) % VOCAB),
        "teacher": signals(TopK(*top_k(log_probs(teacher), 4)), "top_logits") if sparse else signals(teacher),
    }
    weights, foldings = [0.3 + i for i in range(len(kinds))], []
    for kind in kinds:
        objective = kind(chunk=3)
        factors, seated = objective.seated(said)
        foldings.append(objective.folding(factors, **seated))
    assert all(one.beside(foldings[0]) for one in foldings)
    whole, sums = fold_together(foldings, weights)
    apart = [fold(one) for one in foldings]
    torch.testing.assert_close(torch.stack(sums), torch.stack(apart).detach(), rtol=1e-12, atol=1e-12)
    expected = sum(weight * one for weight, one in zip(weights, apart, strict=True))
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(whole, x, retain_graph=True)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    for mine, again in zip(gradients, torch.autograd.grad(whole, x), strict=True):
        assert torch.equal(mine, again)
    torch.testing.assert_close(torch.stack(sums), torch.stack(apart).detach(), rtol=1e-12, atol=1e-12)


def test_sums_of_other_chunks_or_temperatures_are_not_made_together() -> None:
    x = leaves(False)
    student = signals(Logits(x[0], Head(x[1]), True))
    said = {"student": student, "teacher": signals(random(TARGETS, VOCAB, seed=9))}

    def folding(**fields: Any) -> Any:
        factors, seated = ForwardKL(**fields).seated(said)
        return ForwardKL(**fields).folding(factors, **seated)

    one = folding(chunk=3)
    assert one.beside(folding(chunk=3)) and not one.beside(folding(chunk=4)) and not one.beside(folding(chunk=3, temperature=2.0))
    said = {**said, "student": signals(Logits(x[0], Head(x[1]), True))}
    assert not one.beside(folding(chunk=3))
