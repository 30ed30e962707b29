"""Attention back into some blocks that were converted."""

import copy
import logging
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from limbeck.addition import added
from limbeck.errors import Refused
from limbeck.model.base import Role, clone
from limbeck.model.blocks import causal
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.student._parts import exact
from limbeck.student.base import Score, Surgery, Tryout

log = logging.getLogger(__name__)
WHERE = "surgery  restore_attention"
STEPS = 20


class RestoreAttention(Surgery):
    r"""Gives some converted blocks their attention back, with its original weights; the other blocks keep what they have learned.

    With C the converted blocks, k of them to restore, and $s(R)$ the measured score (mean KL to the teacher) with attention back in the blocks R:

    - `restore_one` restores the k blocks with the least $s(\{i\})$, each measured alone in the converted model: |C| measurements;
    - `greedy` restores the block with the least $s(R \cup \{i\})$, k times over: k|C| - k(k-1)/2 measurements;
    - `supervised` is `restore_one` after learning: each of the |C| models takes the first `steps` steps of the stage before it is measured,
      on the same rows in the same order, and what it has learned is thrown away. It sees what the stage can mend, and takes |C| times as long;
    - `uniform` spreads them evenly over C, `random` draws them by `seed`; nothing is measured: what the others have to beat.

    Measured in the converted model, after its mixers have learned to stand in for attention: adding attention there tells more than taking
    it away from the whole model. Where scores are equal, the earlier block is restored. Blocks count from 0.

    Example:
        >>> RestoreAttention(num=2).choose
        'restore_one'

    References:
        Li et al., Distilling to Hybrid Attention Models via KL-Guided Layer Selection, 2025, arXiv:2512.20569.
    """

    kind: Literal["restore_attention"] = "restore_attention"
    policy: ClassVar[Literal["stock", "import", "carried"]] = "carried"
    follows: ClassVar[tuple[str, ...]] = ("linearize",)
    num: Annotated[int, Field(ge=1)] = 1
    """How many blocks get attention back."""
    choose: Literal["restore_one", "greedy", "supervised", "uniform", "random", "given"] = "restore_one"
    """How they are chosen; `given`: they are in `layers`."""
    layers: tuple[int, ...] = ()
    """The blocks, where they are given."""
    steps: int = Field(default=STEPS, gt=0, json_schema_extra={"since": 2})
    """Steps that each candidate learns before it is measured, where choose is supervised; at most those of the stage."""
    seed: int = Field(default=0, json_schema_extra={"since": 2})
    """Of the draw, where choose is random."""

    @model_validator(mode="after")
    def given_or_not(self) -> "RestoreAttention":
        if (self.choose == "given") != bool(self.layers):
            raise ValueError("layers if, and only if, choose is given")
        if self.choose != "supervised" and self.steps != STEPS or self.choose != "random" and self.seed:
            raise ValueError("steps where choose is supervised, seed where it is random")
        return self

    @property
    def tries(self) -> int:
        return self.steps if self.choose == "supervised" else 0

    def measures(self, role: Role) -> int:
        asked: list[Any] = []
        self.chosen(tuple(range(role.num_layers)), lambda some: asked.append(some) or 0.0)
        return len(asked)

    def settle(self, role: Role, score: Score) -> "RestoreAttention":
        text = causal(role, WHERE)

        def restored(some: tuple[int, ...]) -> float:
            back = swap(text, some)
            try:
                return float(score(text))
            finally:
                swap(text, some, back)

        def learned(some: tuple[int, ...]) -> float:
            assert isinstance(score, Tryout)
            swap(own := causal(clone(text), WHERE), some)
            score.learn(own, self.steps)
            return float(score(own.eval()))

        def cost(some: tuple[int, ...]) -> float:
            value = learned(some) if self.choose == "supervised" else restored(some)
            log.info("restore_attention: blocks %s score %.6g", some, value)
            return math.inf if math.isnan(value) else value

        if self.choose == "supervised" and not isinstance(score, Tryout):
            do = "write it under surgery: of the stage that follows, or choose restore_one"
            raise Refused("stage", f"{WHERE}.choose", "a stage whose first steps candidates can take", "supervised, outside of a stage", do)
        chosen = self.chosen(converted(text), cost)
        return RestoreAttention(num=len(chosen), choose="given", layers=chosen)

    def shape(self) -> "RestoreAttention":
        return self if self.choose == "given" else RestoreAttention(num=self.num, choose="uniform")

    def chosen(self, found: tuple[int, ...], cost: Any) -> tuple[int, ...]:
        """The blocks that are restored, out of those that were converted.

        Raises:
            Refused: `layer`, for one that was not converted, or more than were.
        """
        wrong = [i for i in self.layers if i not in found]
        if wrong or self.num > len(found):
            got = f"block {wrong[0]}" if wrong else f"{self.num} blocks"
            expected = f"some of the converted blocks: {', '.join(map(str, found)) or 'none'}"
            raise Refused("layer", WHERE, expected, got, "put it after linearize, and name blocks that it converted")
        if self.choose == "given":
            return self.layers
        if self.choose == "uniform":
            return tuple(found[(2 * i + 1) * len(found) // (2 * self.num)] for i in range(self.num))
        if self.choose == "random":
            streams = Streams(self.seed)
            return tuple(sorted(sorted(found, key=lambda i: streams.number("restore_attention", i))[: self.num]))
        told: dict[tuple[int, ...], float] = {}
        while True:
            chosen, missing = added(found, self.num, told.get, 1 if self.choose == "greedy" else self.num)
            if not missing:
                return chosen
            told |= {some: cost(some) for some in missing}

    def __call__(self, role: Role) -> Role:
        text = causal(role, WHERE)
        if self.choose not in ("given", "uniform", "random"):
            raise Refused("settle", WHERE, "blocks that have been measured", f"choose: {self.choose}, not settled", "settle it first")
        layers = self.chosen(converted(text), None)
        exact(text)
        swap(text, layers)
        path = tuple(f"{text.anatomy.path('mixer', layer)}." for layer in layers)
        text.origins = {name: how for name, how in text.origins.items() if not name.startswith(path)}
        text.aside = {layer: part for layer, part in text.aside.items() if layer not in layers}
        return text


def converted(role: Text) -> tuple[int, ...]:
    """Blocks that hold another mixer, and whose attention is at hand."""
    from limbeck.model.hybrid import parts_of

    place = role.anatomy.place("mixer")
    return tuple(i for i, parts in enumerate(parts_of(role.module)) if place in parts and i in role.aside)


def swap(role: Text, layers: tuple[int, ...], back: dict[int, tuple[Any, nn.Module]] | None = None) -> dict[int, tuple[Any, nn.Module]]:
    """Puts attention back into some blocks, or what is given `back`; returns what stood there: spec and module."""
    from limbeck.model.hybrid import become, parts_of  # with it comes transformers

    place, parts, made, was = role.anatomy.place("mixer"), parts_of(role.module), {}, {}
    for layer in layers:
        was[layer] = (parts[layer].pop(place, None), role.module.get_submodule(role.anatomy.path("mixer", layer)))
        spec, module = (None, copy.deepcopy(role.aside[layer])) if back is None else back[layer]
        module.layer_idx = layer  # type: ignore[assignment]
        parts[layer] = parts[layer] if spec is None else {**parts[layer], place: spec}
        made[layer, place] = module.to(next(role.module.parameters()).device)
    become(role, parts, made)
    return was
