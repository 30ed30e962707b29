"""A student's blocks made to say what its teacher holds at their place, by least squares, before the first step of a stage."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.align.shared_vocab import same
from limbeck.component import Document
from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.base import Models, Role, Tap, listening, taps
from limbeck.model.blocks import one_token_a_pass
from limbeck.model.quantised import quantised
from limbeck.model.text import Text
from limbeck.numerics import upcast
from limbeck.signals import Row, View

Told = Callable[[int, int, str], None]
AT_ONCE = 8
"""Rows that are heard together."""
LEAST = 1e-3
"""What an input counts as at least, in mean squares of all: one that is never heard would have no scale."""


class Reconstruct(Document):
    r"""Fits the last matrix of each block's MLP to what the teacher holds behind that block: no gradient, and no step that could be too long.

    With A what the matrix hears on calibration rows, one column an input, and R what the teacher's stream holds and the student's does not,

    $$ W \leftarrow W + \Big(\arg\min_D\; \lVert A D - R \rVert^2 + \lambda \textstyle\sum_i \lVert a_i \rVert^2 \lVert d_i \rVert^2 \Big)^\top $$

    The ridge holds each column where it was in units of what it hears: a few inputs of most models are thousands of times as large as the others.

    From the first block to the last: each hears those before it as they are now, so that it mends what they have left wrong. What a block
    should say is what the block behind it heard in the teacher: so a block before a gap stands in for those that were dropped. Blocks in front
    of the first gap are right already, and stay as they are. One pass of the student and one of the teacher over the rows, and the products that fit.

    Example:
        >>> Reconstruct(rows=64).ridge
        0.1

    References:
        He et al., Channel Pruning for Accelerating Very Deep Neural Networks, 2017, arXiv:1707.06168 (least squares through pruned inputs).
        Shopkhoev et al., ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization, 2025, arXiv:2505.02819.
    """

    rows: int = Field(default=128, gt=0)
    """Training rows that it is fitted on; all, where there are fewer. More tokens than the matrix has inputs should be in them."""
    ridge: Annotated[float, Field(gt=0)] = 0.1
    """How strongly each column of the matrix is held where it was, in squares of what it hears."""
    layers: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """For each block of the student the teacher's layer, from 1, whose state it should say; none: as blocks were dropped."""

    @torch.no_grad()
    def __call__(self, models: Models, rows: Sequence[Row], where: str, told: Told = lambda done, total, said: None) -> list[tuple[float, float]]:
        """Fits the student in place; for each block what is left between it and the teacher, as a share of the teacher's state, before and after.

        Args:
            models: `student` and `teacher`.
            rows: what it is fitted on.
            where: for errors.
            told: hears after each pass over some rows, and after each block, how much of how much is done.

        Raises:
            Refused: see `suits`.
        """
        student, teacher = self.suits(models, where)
        wanted, some = self.wanted(student, teacher, where), [rows[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]
        with listening(student.module), listening(teacher.module):
            views, found, total = [teacher.view(part) for part in some], [], len(some) + len(wanted)
            states = held(teacher, views, sorted(set(wanted)), lambda done: told(done, total, f"{min(len(rows), done * AT_ONCE):,} rows heard"))
            heard = [Stream(student, part) for part in some]
            for i, layer in enumerate(wanted):
                state = states[layer] if layer in wanted[i + 1 :] else states.pop(layer)
                found.append(self.fit(student, i, heard, state.to(heard[0].state.device).split([int(view.ragged.sum()) for view in views])))
                told(len(some) + i + 1, total, f"block {i}: left over {found[-1][0]:.2g}, then {found[-1][1]:.2g}")
            return found

    def fit(self, student: Text, i: int, heard: Sequence["Stream"], wanted: Sequence[Float[Tensor, "pos dim"]]) -> tuple[float, float]:
        """Block i, and what all streams hold behind it."""
        weight = student.anatomy.weight(student.module, "down", i)
        inputs = [stream.through(i) for stream in heard]
        left = [upcast(state) - upcast(stream.flat(stream.state)) for state, stream in zip(wanted, heard, strict=True)]
        size, before = (float(sum(x.double().square().sum() for x in some)) for some in (wanted, left))
        after = before
        flat = [upcast(stream.flat(x)) for stream, x in zip(heard, inputs, strict=True)]
        if before and any(bool(x.any()) for x in flat):
            gram, right = (torch.zeros(len(weight.mT), num, dtype=torch.float64, device=weight.device) for num in weight.shape[::-1])
            for x, r in zip(flat, left, strict=True):
                gram += x.mT @ x
                right += x.mT @ r
            squares = gram.diagonal()
            squares.add_(self.ridge * (squares + LEAST * squares.mean()))
            change = torch.linalg.solve(gram, right).to(flat[0].dtype)
            weight += change.mT
            for stream, x in zip(heard, inputs, strict=True):
                stream.state = (stream.state + upcast(x) @ change).to(stream.state.dtype)
            after = float(sum((r - x @ change).double().square().sum() for r, x in zip(left, flat, strict=True)))
        return before / size, after / size

    def wanted(self, student: Text, teacher: Text, where: str) -> tuple[int, ...]:
        """For each block of the student a layer of the teacher, from 1.

        Raises:
            Refused: `layer`, where they are not known, or not there.
        """
        num, total = student.num_layers, teacher.num_layers
        if self.layers is not None:
            if len(self.layers) != num or max(self.layers) > total:
                expected = f"{num} of the layers 1 to {total}, one for each block of the student"
                raise Refused("layer", f"{where}.reconstruct.layers", expected, str(list(self.layers)), "change layers")
            return self.layers
        if student.opened_layers != total:
            got = f"{num} blocks of a model with {student.opened_layers}, the teacher has {total}"
            raise Refused("layer", f"{where}.reconstruct.layers", "for each block a layer of the teacher", got, "name them: layers: [...]")
        return (*student.numbers[1:], total)

    @staticmethod
    def suits(models: Models, where: str) -> tuple[Text, Text]:
        """Student and teacher.

        Raises:
            Refused: `family`, where what a block adds is not what its last matrix says; `teacher`, where there is none at hand whose stream is
                as wide; `tokenizer`, where they read otherwise; `exact`, where a block has no such matrix, a rounded one, or adapters.
        """
        student, teacher, where = models["student"], models["teacher"] if "teacher" in models else None, f"{where}.reconstruct"
        if not isinstance(student, Text) or not adds_as_said(student):
            got = student.anatomy.family.family if isinstance(student, Text) else type(student.module).__name__
            raise Refused("family", where, "a text model whose MLP adds what its last matrix says", got, "leave reconstruct out", code=3)
        one_token_a_pass(student, where)
        if not isinstance(teacher, Text) or not teacher.at_hand or width(teacher) != width(student):
            got = "none" if teacher is None else f"{width(teacher):,} channels" if isinstance(teacher, Text) else type(teacher).__name__
            expected = f"one text model at hand as teacher, with the student's {width(student):,} channels"
            raise Refused("teacher", where, expected, got, "leave reconstruct out", code=3)
        known = student.tokenizer is not None and teacher.tokenizer is not None
        if student.reads_as != teacher.reads_as or known and not same(student.tokenizer, teacher.tokenizer):
            raise Refused("tokenizer", where, "one tokenizer, and rows laid out alike", "others of the student", "leave reconstruct out", code=3)
        if quantised(student.module) or adapted(student.module):
            raise Refused("exact", where, "exact matrices without adapters", "others", "write the surgery under the stage that follows", code=3)
        parts, place = dict(student.module.named_modules()), student.anatomy.path
        without = next((i for i in range(student.num_layers) if getattr(parts.get(place("down", i)), "weight", None) is None), None)
        if without is not None:
            raise Refused("exact", where, "a matrix at the end of each MLP", f"none in block {without}", "leave reconstruct out", code=3)
        return student, teacher


def adds_as_said(student: Text) -> bool:
    """Whether a block adds to the stream just what the last matrix of its MLP says: no norm stands behind it, and no factor."""
    factor = getattr(student.module.config, "residual_multiplier", None) or 1
    return student.anatomy.has("down") and not student.anatomy.has("mlp_post_norm") and factor == 1


def held(teacher: Text, views: Sequence[View], layers: Sequence[int], told: Callable[[int], None]) -> dict[int, Float[Tensor, "pos dim"]]:
    """What the teacher holds behind some layers, in memory of the host: one tensor a layer, which goes back to the system when it is done with."""
    nums, asked = [int(view.ragged.sum()) for view in views], tuple(f"hidden.{layer}" for layer in layers)
    first = next(teacher.parameters())
    states = {layer: torch.empty(sum(nums), width(teacher) or 0, dtype=first.dtype, device="cpu") for layer in layers}
    for i, view in enumerate(views):
        said = teacher.says(view.to(first.device), asked, {})
        for layer, state in states.items():
            state.split(nums)[i].copy_(said[f"hidden.{layer}"])
        told(i + 1)
    return states


class Stream:
    """What a student's blocks hear and say about some rows, one block after the other."""

    def __init__(self, student: Text, rows: Sequence[Row]):
        self.student, view = student, student.view(rows).to(next(student.parameters()).device)
        self.flat = student.lay_out(view)[0]
        self.beside: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        """What each block hears beside its state: masks, positions."""
        with taps(student.module, {"state": Tap(student.anatomy.path("block", 0), "input")}, {}) as heard, self.handing_on():
            student.says(view, ("hidden.0",), {})  # all that it hears, whatever it is made of
        self.state = heard["state"]

    @contextmanager
    def handing_on(self) -> Iterator[None]:
        """Inside, blocks do nothing but note what they hear beside the state: masks and positions do not depend on it."""
        blocks: list[Any] = [self.student.module.get_submodule(self.student.anatomy.path("block", i)) for i in range(self.student.num_layers)]
        own, kinds = blocks[0].forward, []

        def forward(*args: Any, **kwargs: Any) -> Any:
            state = args[0] if args else kwargs["hidden_states"]
            self.beside.append((args[1:], {name: x for name, x in kwargs.items() if name != "hidden_states"}))
            if not kinds:  # the first says whether a family's blocks give their state alone
                kinds.append(type(own(*args, **kwargs)))
            return (state,) if kinds[0] is tuple else state

        compiled = [block.__dict__.pop("_compiled_call_impl", None) for block in blocks]  # it would not look at another `forward`
        for block in blocks:
            block.forward = forward
        try:
            yield
        finally:
            for block, call in zip(blocks, compiled, strict=True):
                del block.forward
                block._compiled_call_impl = call

    def through(self, i: int) -> Float[Tensor, "*unit inner"]:
        """Lets block i change the state; returns what the last matrix of its MLP has heard."""
        anatomy, (args, kwargs) = self.student.anatomy, self.beside[i]
        with taps(self.student.module, {"inner": Tap(anatomy.path("down", i), "input")}, {}) as heard:
            out = self.student.module.get_submodule(anatomy.path("block", i))(self.state, *args, **kwargs)
        self.state = out[0] if isinstance(out, tuple) else out
        return heard["inner"]


def width(role: Role) -> int | None:
    """Channels of a text model's stream."""
    return role.anatomy.size(role.module.config, "width") if isinstance(role, Text) else None
