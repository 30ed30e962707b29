"""What every number format shares: groups, the step of each group, codes and back, and gradients straight through the rounding.

Groups are stretches of neighbours on the last axis: of a weight, the axis over which it is summed up (`nn.Linear` keeps it last).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from limbeck.errors import Refused

ROUNDED = 1 + 2**-22
"""A frozen scale was rounded to float32 once or twice: what it was measured on counts as inside of its range."""


@dataclass(frozen=True)
class Codes:
    """A tensor as it is kept."""

    packed: Shaped[Tensor, "*unit code"]
    """Numbers of 8 bits, or bytes that hold several codes, the first one in the lowest bits."""
    scale: Shaped[Tensor, "*unit group"]
    """One number a group; a single one where the scale was frozen."""
    whole: Float[Tensor, " one"] | None = None
    """A number for the whole tensor, by which `scale` is divided; None where the format has none."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.packed, self.scale) if self.whole is None else (self.packed, self.scale, self.whole)


@dataclass(frozen=True)
class Ranges:
    """What scales are made for, in place of what is measured."""

    amax: Float[Tensor, "*unit group"]
    """The greatest magnitude of each group; of a format that has a number for the whole tensor, that is made for the greatest of them."""
    each: bool = True
    """Whether groups have theirs from here, too; else only the number for the whole tensor, and groups are measured."""
    growth: Float[Tensor, "*unit group"] | None = None
    """A logarithm that learns: how far each group has grown, or shrunk."""

    def now(self) -> Float[Tensor, "*unit group"]:
        """The greatest magnitudes that groups are made for by now."""
        return self.amax if self.growth is None else self.amax * self.growth.exp()


class Format(ABC):
    r"""A number format: each number of a group becomes a level, a number that few bits can tell, times the step of its group.

    $$ \hat x = s \cdot \mathrm{level}(x / s), \qquad s \text{ measured on the group, or frozen} $$

    Any float in; scales and levels are computed in float32. `decode(encode(x))` and `fake(x)` are the same to the last bit. A NaN or an
    infinity is refused by `encode`; `fake` says NaN in its place, and for all that share its scale where the scale is measured.
    """

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Numbers of a group; None: all of the last axis."""

    @abstractmethod
    def measure(self, groups: Float[Tensor, "*unit group k"], frozen: float | None) -> tuple[Tensor, Tensor | None]:
        """Scale of each group and number for the whole tensor, as they are kept."""

    @abstractmethod
    def made_for(self, amax: Float[Tensor, "*unit group"], most: Float[Tensor, ""]) -> tuple[Tensor, Tensor | None]:
        """Scale of each group and number for the whole tensor, as they are kept, for greatest magnitudes of the groups and of the tensor."""

    @abstractmethod
    def frozen(self, amax: float) -> float:
        """The scale to freeze for a greatest magnitude: a number of float32, as files keep it."""

    @abstractmethod
    def reach(self, frozen: float) -> float:
        """The greatest magnitude that a frozen scale was made for."""

    @abstractmethod
    def levels(self, scaled: Float[Tensor, "*unit group k"]) -> Float[Tensor, "*unit group k"]:
        """The nearest level of each number, in units of its step."""

    @abstractmethod
    def pack(self, levels: Float[Tensor, "*unit dim"]) -> Shaped[Tensor, "*unit code"]:
        """Levels as codes."""

    @abstractmethod
    def unpack(self, packed: Shaped[Tensor, "*unit code"]) -> Float[Tensor, "*unit dim"]:
        """Codes as levels."""

    def step(self, scale: Tensor, whole: Tensor | None) -> Float[Tensor, "*unit group"]:
        """The step of each group."""
        return scale.float() if whole is None else scale.float() / whole

    def groups(self, x: Float[Tensor, "*unit dim"]) -> Float[Tensor, "*unit group k"]:
        """The last axis in groups, in float32.

        Raises:
            Refused: `group`, where they do not come out even.
        """
        size = self.size or x.shape[-1]
        if x.shape[-1] % size:
            name = type(self).__name__
            raise Refused("group", name, f"rows of whole groups of {size}", f"rows of {x.shape[-1]} numbers", "choose a group that divides them")
        return x.float().contiguous().unflatten(-1, (-1, size))  # sums in one order, however x lies in memory

    def rounded(
        self, x: Float[Tensor, "*unit dim"], frozen: float | None = None, ranges: Ranges | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Levels in groups, the scale of each, and the number for the whole tensor."""
        groups = self.groups(x)
        if ranges is None:
            scale, whole = self.measure(groups, frozen)
        else:
            scale, whole = self.made_for(ranges.now() if ranges.each else amax(groups), ranges.amax.max())
        step = self.step(scale, whole)[..., None]
        levels = self.levels(groups / torch.where(step == 0, 1.0, step))  # 0: a group of zeros
        return (levels if frozen is None and ranges is None else torch.where(groups.isfinite(), levels, torch.nan)), scale, whole

    def encode(self, x: Float[Tensor, "*unit dim"], frozen: float | None = None, ranges: Ranges | None = None) -> Codes:
        """The codes of a tensor, and its scales.

        Raises:
            Refused: `finite`, for a NaN or an infinity; `group`.
        """
        if not bool(x.isfinite().all()):
            raise Refused("finite", type(self).__name__, "finite numbers", "NaN or an infinity", "look at the training that made them")
        with torch.no_grad():
            levels, scale, whole = self.rounded(x, frozen, ranges)
            return Codes(self.pack(levels.flatten(-2)), scale, whole)

    def decode(self, codes: Codes, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*unit dim"]:
        """The numbers that codes stand for."""
        levels = self.groups(self.unpack(codes.packed))
        return (levels * self.step(codes.scale, codes.whole)[..., None]).flatten(-2).to(dtype)

    def fake(self, x: Float[Tensor, "*unit dim"], frozen: float | None = None, ranges: Ranges | None = None) -> Float[Tensor, "*unit dim"]:
        """The rounded tensor in its own dtype. The gradient goes straight through, and is 0 outside of the range of a frozen scale.

        A measured scale leaves nothing outside: what is clipped there is so by the rounding of the scale alone.
        """
        with torch.no_grad():
            levels, scale, whole = self.rounded(x, frozen, ranges)
            out = (levels * self.step(scale, whole)[..., None]).flatten(-2).to(x.dtype)
            inside = None if frozen is None else x.float().abs() <= self.reach(frozen) * ROUNDED
            if ranges is not None:
                most = ranges.now()[..., None] if ranges.each else ranges.amax.max()
                inside = (self.groups(x).abs() <= most * ROUNDED).flatten(-2)
        if not torch.is_grad_enabled() or not x.requires_grad and (ranges is None or ranges.growth is None):
            return out
        return straight_through(x, out, inside, None if ranges is None else ranges.growth)


class StraightThrough(torch.autograd.Function):
    """Says one tensor, and hands the gradient on to another; and, where these learn, to the logarithms of the ranges of its groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, said: Tensor, inside: Tensor | None, growth: Tensor | None) -> Tensor:
        ctx.save_for_backward(inside, *(() if growth is None else (said, x, growth)))
        return said.view_as(said)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
        (inside, *more), slope = ctx.saved_tensors, None
        if more:  # s level(x / s) by log s, where levels count as straight: what was rounded away inside, all of it outside
            said, x, growth = more
            moved = gradients[0].float() * (said.float() - torch.where(inside, x.float(), 0))
            slope = moved.unflatten(-1, (growth.shape[-1], -1)).sum(-1).to(growth.dtype)
        return (gradients[0] if inside is None else torch.where(inside, gradients[0], 0)), None, None, slope


def straight_through(
    x: Float[Tensor, "*unit dim"],
    said: Float[Tensor, "*unit dim"],
    inside: Bool[Tensor, "*unit dim"] | None,
    growth: Float[Tensor, "*unit group"] | None = None,
) -> Tensor:
    """`said`, whose gradient goes to x as it is, and is 0 where x is not inside; by the growth of a range, it is that of a step that is learned."""
    return StraightThrough.apply(x, said, inside, growth)  # type: ignore[return-value]


def divided(x: Tensor, by: float) -> Tensor:
    """x / by, rounded once: some devices multiply by the reciprocal of a plain number."""
    return x / x.new_full((), by)


def amax(groups: Float[Tensor, "*unit k"]) -> Float[Tensor, "*unit"]:
    """The greatest magnitude of each group; NaN where one is not finite."""
    return finite(groups.abs().amax(-1))


def finite(x: Tensor) -> Tensor:
    """x, with NaN for infinity."""
    return torch.where(x.isfinite(), x, torch.nan)


def number(x: float, function: Any) -> float:
    """A function of float32 tensors for a plain number."""
    return float(function(torch.tensor(x, dtype=torch.float32, device="cpu")))
