"""What an objective is, and the shared half of the divergences."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.chunked import Folding, at_entries, fold, foldable
from limbeck.component import Choice, Component
from limbeck.errors import Refused
from limbeck.numerics import coarsen, completed, log_probs, segment_mean, upcast
from limbeck.schedule import NonNegative
from limbeck.signals import Loss, Needs, Signals, TopK, dense, unit_of


class Objective(Component):
    """How far one role is from the others: one number a unit. The base sums, the loop divides."""

    room: ClassVar[str] = "objective"
    teaches: ClassVar[str] = "student"
    """The seat that gets the gradient."""
    zero_at_match: ClassVar[tuple[str, str] | None] = None
    """Claim: value and gradient vanish where these two seats say the same."""
    descends: ClassVar[bool] = True
    """Claim: a small step against the gradient lowers the value."""
    whole: ClassVar[bool] = False
    """It compares rows of the whole window, such as negatives in the batch: micro-batches are run twice, and never apart."""
    odds: ClassVar[bool] = False
    """Whether it hears log-odds of each entry by itself: a constant that is added to all logits of a target changes it."""
    special_cases: ClassVar[dict[str, dict[str, Any]]] = {}
    """Claim: with these fields it equals that other objective."""

    weight: NonNegative = 1.0
    """Factor in the total of its turn; at 0 it is only measured."""
    tag: str | None = None
    """Only rows with this tag (chosen, rejected, a domain); none: all rows."""
    seats: dict[str, str] = Field(default_factory=dict)
    """Seat -> role, where they differ: {student: peer, teacher: student}."""

    @property
    def unit(self) -> str:
        """What is summed and counted."""
        return "target"

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """Seat -> names of signals; `a|b` means a, or b in its place."""

    @model_validator(mode="after")
    def groups_stay_whole(self) -> "Objective":
        if self.tag and self.unit == "group":
            raise ValueError("no tag here: it compares rows that have different tags")
        return self

    def role(self, seat: str) -> str:
        """The role that sits there."""
        return self.seats.get(seat, seat)

    @abstractmethod
    def values(self, **said: Any) -> Float[Tensor, " unit"]:
        """One number a unit, given one Signals a seat, and `learned` if `build` made something."""

    def follow(self, learned: nn.Module | None) -> None:
        """Called once an optimiser step, after it: what `build` made may note that a window is over."""

    def __call__(self, said: Mapping[str, Signals], learned: nn.Module | None = None) -> Loss:
        """Sum and count over what the roles said; weights of rows are factors, they do not change the count."""
        factors, seated = self.seated(said, learned)
        return self.loss(factors, seated, self.folding(factors, **seated))

    def loss(self, factors: Float[Tensor, " unit"] | None, seated: Mapping[str, Any], folding: Folding | None) -> Loss:
        """The same, of what was made ready."""
        if folding is not None:
            return Loss(fold(folding), self.num(seated))
        values = upcast(self.values(**seated))
        return Loss((values if factors is None else values * factors).sum(), self.num(seated))

    def seated(self, said: Mapping[str, Signals], learned: nn.Module | None = None) -> tuple[Float[Tensor, " unit"] | None, dict[str, Any]]:
        """What each unit is multiplied by, where that is not 1 everywhere; and what `values` is given."""
        seated = {seat: said[self.role(seat)].on(self.tag) for seat in self.needs}
        taught = seated[self.teaches]
        plain = self.unit == "group" or bool((taught.weights == 1).all())
        factors = None if plain else taught.weights[taught.rows[self.unit]]
        return factors, {**seated, **({} if learned is None else {"learned": learned})}

    def num(self, seated: Mapping[str, Any]) -> int:
        """How many units are summed."""
        return seated[self.teaches].num(self.unit)

    def folding(self, factors: Float[Tensor, " unit"] | None, **said: Any) -> Folding | None:
        """The sum as one over targets, chunk by chunk, where the head is known as a matrix and nothing else learns; None: `values` tells."""
        return None


def by_chunks(part: Any, chunk: int, *aligned: Any) -> Float[Tensor, " target"]:
    """One number a target, `chunk` targets at a time; what a chunk needs is computed again in the backward pass."""
    num = len(aligned[0])
    if num <= chunk:
        return part(*aligned)
    return torch.cat([checkpoint(part, *(x[i : i + chunk] for x in aligned), use_reentrant=False) for i in range(0, num, chunk)])


def per_target(factors: Float[Tensor, " unit"] | None, said: Signals, per: str, name: str = "logits") -> Float[Tensor, " target"]:
    """What each target (chunk, patch) is multiplied by, where it is a unit, or the mean over the targets of a row; in the precision of the states."""
    rows, dtype = said.rows["target" if per == "row" else per], upcast(said[name].hidden).dtype
    each = torch.ones(len(rows), dtype=dtype, device=rows.device)
    if factors is not None:
        each = each * (factors[rows] if per == "row" else factors)
    return each / torch.bincount(rows, minlength=said.num("row"))[rows] if per == "row" else each


class AbstractDivergence(Objective):
    """A divergence of two distributions over the same entries; a final class writes only `divergence`."""

    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")
    teacher_needs: ClassVar[str] = "logits|top_logits"
    """A divergence that weighs by the student must see the whole teacher: "logits"."""
    order: ClassVar[int] = 2
    """The loss is multiplied by the temperature to this power, so that gradients keep their size: 2, where it grows with the square of small gaps."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softens both distributions; the loss is scaled back by its power `order`."""
    per: Literal["target", "row", "chunk", "patch"] = "target"
    """row: mean over the targets of each row, then one number a row; chunk: where two tokenizers have read the same bytes, see `byte_chunks`;
    patch: at the positions of images, a mean of their own, so that many visual tokens do not drown an answer."""
    chunk: int = Field(default=256, gt=0)
    """Targets whose logits exist at the same time; where those of the teacher are made beside them, half as many of each."""

    @property
    def unit(self) -> str:
        return self.per

    @property
    def compared(self) -> tuple[str, str]:
        """What is heard of student and teacher; of chunks, the entries that both vocabularies spell alike, as if there were no others."""
        own = f"{self.per}_logits"
        return (own, own) if self.per in ("chunk", "patch") else ("logits", self.teacher_needs)

    @property
    def needs(self) -> Needs:
        return {seat: (name,) for seat, name in zip(("student", "teacher"), self.compared, strict=True)}

    def folding(self, factors, student, teacher):
        q, p = student[self.compared[0]], teacher[self.compared[1]]
        if type(self).part is not AbstractDivergence.part or not foldable(q, p):
            return None
        each = per_target(factors, student, self.per, self.compared[0]) * self.temperature**self.order
        return Folding(self.chunk_slope, q, (p,), each, self.chunk, self.temperature)

    def chunk_slope(self, log_q: Float[Tensor, "target vocab"], p: Any) -> tuple[Float[Tensor, " target"], Any]:
        """The divergence of one chunk, and its derivative by log q."""
        if isinstance(p, TopK):
            log_p = self.with_tail(p)
            return at_entries(lambda kept: self.divergence(log_p, completed(kept)), log_q, p.ids)
        return self.slope(log_probs(dense(p), self.temperature), log_q)

    def slope(self, log_p: Float[Tensor, "target k"], log_q: Float[Tensor, "target k"]) -> tuple[Float[Tensor, " target"], Float[Tensor, "target k"]]:
        """The divergence and its derivative by log q: by autograd, unless a class writes it in fewer operations. log_p may be used up."""
        with torch.enable_grad():
            leaf = log_q.detach().requires_grad_()
            value = self.divergence(log_p, leaf)
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0].contiguous()  # that of a sum is one number at many places

    def with_tail(self, p: TopK) -> Float[Tensor, "target k1"]:
        """A truncated teacher's entries, and one bucket for all the others."""
        if self.temperature != 1:
            raise ValueError("a truncated teacher cannot be softened: its tail is known at temperature 1 only")
        return torch.cat([p.log_probs, p.tail[:, None]], -1)

    @abstractmethod
    def divergence(self, log_p: Float[Tensor, "target k"], log_q: Float[Tensor, "target k"]) -> Float[Tensor, " target"]:
        """The divergence of each target, in nats; p is the teacher, q the student."""

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " unit"]:
        each = by_chunks(self.part, self.chunk, student[self.compared[0]], teacher[self.compared[1]]) * self.temperature**self.order
        return each if self.per != "row" else segment_mean(each, student.rows["target"], student.num("row"))

    def part(self, q: Any, p: Any) -> Float[Tensor, " target"]:
        """The divergence of one chunk: this function compiles whole."""
        log_q = log_probs(dense(q), self.temperature)
        if isinstance(p, TopK):
            return self.divergence(self.with_tail(p), coarsen(log_q, p.ids))
        return self.divergence(log_probs(dense(p), self.temperature), log_q)


class AbstractByLayer(Objective):
    """Compares what two roles say of some layers; a base says what it is that is compared."""

    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")

    layers: Annotated[tuple[int, ...], Field(min_length=1)] | Literal["all"] = (-1,)
    """Layers (1 is the first block, -1 the last, 0 the embedding); with `align: layer_map`, its pairs, counted from 0, or `all` of them."""

    @property
    @abstractmethod
    def compared(self) -> str:
        """The signal of each layer."""

    @property
    def needs(self) -> Needs:
        names = (f"{self.compared}.*",) if self.layers == "all" else tuple(f"{self.compared}.{i}" for i in self.layers)
        return {"student": names, "teacher": names}

    def names(self, said: Signals) -> list[str]:
        """The signals that are compared, in order."""
        if self.layers != "all":
            return [f"{self.compared}.{i}" for i in self.layers]
        found = [name.removeprefix(f"{self.compared}.") for name in said.values if name.startswith(f"{self.compared}.")]
        return [f"{self.compared}.{i}" for i in sorted(int(number) for number in found if number.isdigit())]


class AbstractLayers(AbstractByLayer):
    """Compares states of layers, through learned maps where widths differ; a final class writes only `distance`."""

    project: bool = True
    """A learned linear map into the teacher's width, where the widths differ; without it they must agree."""
    signal: Literal["hidden", "mixer", "chunk_hidden"] = Field(default="hidden", json_schema_extra={"since": 2})
    """hidden: what blocks say; mixer: what attention says by itself, or what stands in its place; chunk_hidden: what blocks say of stretches that two
    tokenizers both cut out, see `visible_chunks`."""

    @property
    def unit(self) -> str:
        return unit_of(self.signal)

    @property
    def compared(self) -> str:
        return self.signal

    @abstractmethod
    def distance(self, a: Float[Tensor, "unit dim"], b: Float[Tensor, "unit dim"]) -> Float[Tensor, " unit"]:
        """Distance of the (mapped) student state a from the teacher state b, in float32."""

    def build(self, example: Mapping[str, Signals]) -> nn.Module | None:
        pairs = [[example[seat][name].shape[-1] for seat in ("student", "teacher")] for name in self.names(example["student"])]
        if all(a == b for a, b in pairs):
            return None
        if not self.project:
            raise Refused(
                "value",
                f"{dict(self)['kind']}.project",
                "states of one width",
                f"{', '.join(f'{a} and {b}' for a, b in pairs)} wide",
                "leave project out: then a map between them is learned",
            )
        return nn.ModuleList(nn.Identity() if a == b else nn.Linear(a, b, bias=False) for a, b in pairs)

    def values(self, student: Signals, teacher: Signals, learned: Any = None) -> Float[Tensor, " unit"]:
        names = self.names(student)
        maps = learned if learned is not None else [nn.Identity()] * len(names)
        each = [self.distance(f(upcast(student[n])), upcast(teacher[n])) for f, n in zip(maps, names, strict=True)]
        return torch.stack(each).mean(0)


AnyObjective = Annotated[Objective, Choice()]
