"""Contracts of objectives about numbers: precision, extremes, fast paths that equal the plain one, truncated teachers, devices."""

import ast
import inspect
import itertools
import math
import textwrap
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.example import WHOLE, build, each, floats, loss, names, say, solve, with_heads
from limbeck.check.reads import over_choices
from limbeck.component import changed
from limbeck.numerics import TOLERANCE, log_probs, top_k
from limbeck.objective.base import AbstractDivergence, Objective
from limbeck.signals import Signals, TopK

VALUE, GRADIENT = (TOLERANCE["float64", kind] for kind in ("value", "gradient"))
COUNTED = ("bincount", "nonzero", "_local_scalar_dense", "unique", "repeat_interleave", "masked_select", "Tensor.item")
"""Operations whose result has a size that depends on data: where an objective needs them, shapes alone cannot flow through it."""
FACTORIES = frozenset(
    {"tensor", "zeros", "ones", "full", "empty", "eye", "arange", "linspace", "rand", "randn", "randint", "randperm", "tril_indices", "triu_indices"}
)


@contract
@over_choices
def float32(objective: Objective, seed: int = 0) -> None:
    """Low precision that comes in is computed with in float32: the same as the same numbers upcast by hand."""
    half = say(objective, seed, torch.bfloat16)
    full = each(half, lambda _, __, x: x.detach().float().requires_grad_(x.requires_grad))
    learned = build(objective, full, seed, torch.float32)
    ours, theirs = solve(objective, half, learned), solve(objective, full, learned)
    assert ours[0].dtype == theirs[0].dtype == torch.float32, f"the total is {ours[0].dtype}, expected float32"
    close(ours[0], theirs[0], TOLERANCE["float32", "value"], "bfloat16 signals against the same numbers in float32")
    close(ours[1], theirs[1], TOLERANCE["bfloat16", "gradient"], "gradient of bfloat16 signals against float32")


@contract
@over_choices
def float64(objective: Objective, seed: int = 0) -> None:
    """Double precision stays: float64 in, float64 out, near what float32 gives."""
    fine = say(objective, seed)
    coarse = each(fine, lambda _, __, x: x.detach().float().requires_grad_(x.requires_grad))
    total, _, _ = solve(objective, fine, build(objective, fine, seed))
    assert total.dtype == torch.float64, f"the total of float64 signals is {total.dtype}"
    close(solve(objective, coarse, build(objective, coarse, seed, torch.float32))[0], total, (1e-4, 1e-4), "float32 against float64")


@contract
@over_choices
def finite(objective: Objective, seed: int = 0) -> None:
    """Value and gradient stay finite with numbers of 10,000 and with logits that are ruled out, on either side and on both."""
    for what, said in extremes(objective, seed):
        total, found, _ = solve(objective, said, build(objective, said, dtype=torch.float32))
        assert total.isfinite(), f"{what}: the value is {total.item()}"
        assert found.isfinite().all(), f"{what}: {(~found.isfinite()).sum()} of {found.numel()} entries of the gradient are not finite"


def extremes(objective: Objective, seed: int) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = [("numbers of 10,000", say(objective, seed, torch.float32, scale=1e4))]
    seats = [s for s in objective.needs if WHOLE & set(names(objective, s))]
    for some in ([s] for s in seats) if len(seats) < 2 else (seats[:1], seats[1:], seats):
        roles = {objective.role(s) for s in some}

        def rule_out(role: str, name: str, x: Tensor, roles: Any = roles) -> Tensor:
            if role not in roles or name not in WHOLE:
                return x
            return x.detach().index_fill(-1, torch.tensor([2, 7]), -math.inf).requires_grad_(x.requires_grad)

        out.append((f"entries at -inf of {' and '.join(sorted(roles))}", each(say(objective, seed, torch.float32), rule_out)))
    return out


@contract
def temperature(objective: Objective, seed: int = 0) -> None:
    """The gradient keeps its size when both sides are softened: the loss carries the temperature's power."""
    if "temperature" not in type(objective).model_fields:
        raise NotClaimed("it has no temperature")
    sizes = []
    for number in (1.0, 4.0):
        soft = changed(objective, temperature=number)
        said = say(soft, seed, alike=tuple(soft.needs), gap=1e-3)
        sizes.append(solve(soft, said, build(soft, said))[1].norm().item())
    ratio = sizes[1] / sizes[0]
    assert 0.5 <= ratio <= 2, f"near the match the gradient at temperature 4 is {ratio:.3g} times that at 1 (expected 0.5 to 2)"


@contract
@over_choices
def chunks(objective: Objective, seed: int = 0) -> None:
    """How many targets are computed at once changes neither value nor gradient."""
    if "chunk" not in type(objective).model_fields:
        raise NotClaimed("it has no chunk")
    said = say(objective, seed)
    learned = build(objective, said)
    whole = solve(changed(objective, chunk=10_000), said, learned)
    for size in (1, 3, 7):
        part = solve(changed(objective, chunk=size), said, learned)
        close(part[0], whole[0], VALUE, f"value with chunks of {size}")
        close(part[1], whole[1], GRADIENT, f"gradient with chunks of {size}")


@contract
@over_choices
def lazy_logits(objective: Objective, seed: int = 0) -> None:
    """Logits that are made when asked for give what dense ones give, also to the head, and with a head that is frozen."""
    if not any(WHOLE & set(names(objective, seat)) for seat in objective.needs):
        raise NotClaimed("it needs no logits")
    small = changed(objective, chunk=3) if "chunk" in type(objective).model_fields else objective
    for frozen, known in itertools.product((False, True), repeat=2):
        lazy, plain, pairs = with_heads(small, say(small, seed), frozen, seed, known)
        learned = build(small, plain)
        totals = [loss(small, said, learned).total for said in (lazy, plain)]
        close(totals[0], totals[1], VALUE, "value from lazy logits against dense ones")
        for total in totals:
            total.backward()
        for a, b in pairs:
            assert (a.grad is None) == (b.grad is None), "a lazy head gets a gradient where a dense one gets none, or the other way round"
            if b.grad is not None:
                close(a.grad, b.grad, GRADIENT, "gradient of a lazy head against a dense one")


def truncated(said: Signals, k: int) -> Signals:
    """The k best of the logits, and the mass of all others."""
    values = {n: x for n, x in said.values.items() if n != "logits"}
    return replace(said, values={**values, "top_logits": TopK(*top_k(log_probs(said["logits"]), k))})


@contract
def truncated_teacher(objective: Objective, seed: int = 0) -> None:
    """Where a truncated teacher will do: with all entries but one kept it gives what the whole one does; a divergence is never raised."""
    seats = [seat for seat, asked in objective.needs.items() if any("logits|top_logits" in name for name in asked)]
    if not seats:
        raise NotClaimed("it needs the whole distribution")
    plain = changed(objective, temperature=1.0) if "temperature" in type(objective).model_fields else objective
    said = say(plain, seed)
    learned = build(plain, said)
    whole = solve(plain, said, learned)
    roles = {plain.role(seat) for seat in seats}
    for k in (10, 3):
        found = solve(plain, {role: truncated(s, k) if role in roles else s for role, s in said.items()}, learned)
        if k == 10:
            close(found[0], whole[0], (1e-6, 1e-9), "value with 10 of 11 entries kept")
            close(found[1], whole[1], (1e-5, 1e-9), "gradient with 10 of 11 entries kept")
        elif isinstance(plain, AbstractDivergence):
            less = found[0] <= whole[0] * (1 + 1e-9)
            assert less, f"with 3 of 11 entries kept it is {found[0].item():.6g}, above {whole[0].item():.6g} of the whole"


@contract
def cached_teacher(objective: Objective, seed: int = 0) -> None:
    """A teacher that was asked once, and whose states were kept, gives the gradient of the live one."""
    from limbeck.check.models import Trial, pair, rows
    from limbeck.check.window import same, trial_of
    from limbeck.teacher.cached import Cached

    asked = {objective.role(seat): [n.split("|")[0] for n in names] for seat, names in objective.needs.items()}
    taps = tuple(n for n in asked.get("teacher", ()) if "." in n and "*" not in n and not n.startswith("mixing."))
    teacher = Cached(model="config:tiny", keep="hidden", taps=taps)  # type: ignore[call-arg]
    missing = [n for n in asked.get("teacher", ()) if n not in teacher.offers]
    if missing:
        raise NotClaimed(f"what is kept of a teacher does not say {', '.join(missing)}")
    if set(asked) != {"student", "teacher"}:
        raise NotClaimed("it does not listen to student and teacher alone")
    kept = teacher.capture(rows(seed).train, pair(seed)["teacher"])
    same(Trial(seed, teacher, kept, objective=(objective,)).gradients(), trial_of(objective, seed).whole, "cached against live teacher")


@contract
def compiles(objective: Objective, seed: int = 0) -> None:
    """What works on one chunk compiles as one graph, and gives the same value and gradient."""
    if not hasattr(objective, "part"):
        raise NotClaimed("it does not work by chunks")
    heard: list[tuple[Any, ...]] = []
    original = type(objective).part  # type: ignore[attr-defined]

    def listen(self: Any, *args: Any) -> Any:
        heard.append(args)
        return original(self, *args)

    said = say(objective, seed)
    with mock.patch.object(type(objective), "part", listen):
        loss(objective, said, build(objective, said))
    torch._dynamo.reset()
    found = []
    for part in (torch.compile(objective.part, backend="aot_eager", fullgraph=True), objective.part):  # type: ignore[attr-defined]
        args = [x.detach().requires_grad_(x.requires_grad) if floats(x) else x for x in heard[0]]
        value = part(*args)
        value.sum().backward()
        found.append((value, [x.grad for x in args if floats(x) and x.grad is not None]))
    torch._dynamo.reset()
    close(found[0][0], found[1][0], VALUE, "compiled against plain, value")
    for a, b in zip(found[0][1], found[1][1], strict=True):
        close(a, b, GRADIENT, "compiled against plain, gradient")


def on_meta(said: Signals) -> Signals:
    """The same shapes without numbers; weights of rows stay: only the base looks at them."""
    values = {name: x.detach().to("meta").requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for name, x in said.values.items()}
    return Signals(values, {unit: rows.to("meta") for unit, rows in said.rows.items()}, said.tags, said.group.to("meta"), said.weights)


@contract
def shapes_flow(objective: Objective, seed: int = 0) -> None:
    """Forward and backward run on the meta device: nothing is made on another device, and no shape depends on a value."""
    real = say(objective, seed, torch.float32)
    learned = build(objective, real, dtype=torch.float32)
    said = {role: on_meta(s) for role, s in real.items()}
    seated = {seat: said[objective.role(seat)] for seat in objective.needs}
    try:
        values = objective.values(**seated, **({} if learned is None else {"learned": learned.to("meta")}))
        values.sum().backward()
    except (NotImplementedError, RuntimeError) as error:
        if any(word in str(error) for word in COUNTED) and "expected device" not in str(error):
            raise NotClaimed(f"how much it computes depends on data: {' '.join(str(error).split())[:120]}") from None
        raise
    assert values.device.type == "meta" and values.ndim == 1, f"values on {values.device} of shape {tuple(values.shape)}, expected one axis on meta"


@contract
def devices(objective: Objective) -> None:
    """Its code names no device, and makes no tensor without saying where."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(type(objective))))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, of = node.func.attr, getattr(node.func.value, "id", "")
        assert name not in ("cuda", "cpu", "mps"), f"line {node.lineno} of the class: .{name}()"
        if of == "torch" and name in FACTORIES:
            assert any(word.arg == "device" for word in node.keywords), f"line {node.lineno} of the class: torch.{name} without device="
