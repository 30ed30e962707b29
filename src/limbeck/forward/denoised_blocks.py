"""Tokens of each block are hidden, and predicted from the rest."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.errors import Refused
from limbeck.forward.base import Forward
from limbeck.model.block_mask import hidden_tokens, hiding, maskable, whole_blocks
from limbeck.schedule import Count, NonNegative
from limbeck.signals import Batch, Logits, Signals, View, unit_of

GIVEN = ("target_weight", "maskable")
"""What only a role says that fills in masked tokens."""


class DenoisedBlocks(Forward):
    r"""Hides tokens of every block at random, and has them predicted from what is left of their block and from clean blocks before it.

    $$ t \sim U[a, b], \qquad x_i \to \mathrm{mask} \text{ with probability } t, \qquad \text{weight of a hidden token: } 1 / t $$

    Prompts, and the first token of a row, are never hidden. Targets are the hidden tokens, for every role that reads the same tokens:
    `cross_entropy` is then the mean over them, `masked_elbo` the bound on the likelihood, and a divergence holds the student against a teacher
    that fills in the same blocks, or against a causal one. The bound needs rates that are uniform over (0, 1), as they are here but for the
    first thousandth; on a narrow band the weighted sum is a pseudo-likelihood, which may lie below the truth. `complement: true` runs each
    window twice, the second time with the other tokens hidden, so that each is predicted once: less noise for small models, twice the work.
    Where a rate near 0 or 1 leaves nothing for one of the passes, all is predicted in the other; a band such as [0.3, 0.8] keeps both at work.
    Blocks may grow and shrink while it learns: with `shift` 1 of the student, a causal model that begins with blocks of one token is asked
    nothing new, and then is led away from it; with rate [1, 1] its loss is that of the causal model. With `shift` 0 the state of the mask
    itself must predict, which is new from the first step.

    Example:
        >>> DenoisedBlocks(block=16, rate=(0.3, 0.8)).requires({"student": ("logits",)})["student"]
        ('logits', 'target_weight')

    References:
        Bie et al., LLaDA2.0: Scaling Up Diffusion Language Models to 100B, 2025, arXiv:2512.15745.
        Arriola et al., Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models, 2025, arXiv:2503.09573.
    """

    kind: Literal["denoised_blocks"] = "denoised_blocks"
    block: Count | None = None
    """Tokens of a block, or a schedule of it; none: those of the student."""
    rate: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (1e-3, 1.0)
    """The least and the greatest share that is hidden; from 0.001, since weights are one over it."""
    per: Literal["block", "row"] = "block"
    """Whether the share is drawn for each block, or once a row."""
    complement: bool = False
    """Whether the window is run again with the other tokens hidden."""
    noise: NonNegative = 0.0
    """Gaussian noise on what the student reads at hidden tokens, in standard deviations of its embedding: for the first steps, in which the
    new row is like no other. A schedule as a rule, down to 0."""
    whole: bool = True
    """Whether rows must be whole blocks; else their last block is shorter, which no block is that the student writes."""

    @classmethod
    def example(cls) -> "DenoisedBlocks":
        return cls(block=4, whole=False, noise=0.5)

    @model_validator(mode="after")
    def rates_in_order(self) -> "DenoisedBlocks":
        low, high = self.rate
        if low > high or low < 1e-3:
            raise ValueError("rate: from 0.001, the lower one first")
        if self.complement and high == 1:
            raise ValueError("rate: below 1 where the other tokens are hidden too")
        return self

    def requires(self, needs):
        for role, names in needs.items() if self.complement else ():
            if odd := [name for name in names if unit_of(name) != "target" and name not in GIVEN]:
                expected, do = "objectives that hear targets, which both passes share out", "leave complement out, or compare what is said of targets"
                raise Refused("complement", "forward.complement", expected, f"{odd[0]} of {role}", do)
        return {**needs, "student": tuple(dict.fromkeys((*needs.get("student", ()), "target_weight")))}

    def draw(self, batch, streams, place):
        student = batch.view("student")
        self.refuse(batch, student)
        lengths = student.inputs["block_length"]
        view = replace(student, inputs={**student.inputs, "block_length": lengths if self.block is None else torch.full_like(lengths, self.block)})
        if self.whole:
            whole_blocks(view, batch.keys, view.inputs["block_length"], "forward.block")
        masked, share = hidden_tokens(view, batch.keys, self.rate, self.per, streams, place)
        weight = 0.5 / torch.where(masked, share, 1 - share) if self.complement else 1 / share
        hidden = hiding(view, masked, weight)
        if self.noise:
            seeds = [[float(self.noise), streams.number("embedding_noise", *place, key) % 2**52] for key in batch.keys]
            hidden["embedding_noise"] = torch.tensor(seeds, dtype=torch.float64, device=view.device).reshape(-1, 2)
        asked = maskable(view) if self.complement else masked
        return replace(batch, views={role: noised(one, hidden, asked) for role, one in batch.views.items()})

    def refuse(self, batch: Batch, student: View) -> None:
        """Refuses windows in which what is asked must not change any more."""
        do = "use a teacher that is run live, and leave the alignment out"
        if batch.said or any(view.chunk_of is not None for view in batch.views.values()):
            got = "answers that were kept" if batch.said else "targets that an alignment has laid into chunks"
            raise Refused("teacher", "forward: denoised_blocks", "roles that are asked now: other tokens are hidden each time", got, do)
        for role, view in batch.views.items():
            if view.lengths is None or not torch.equal(view.lengths, student.ragged):
                raise Refused("tokenizer", "forward: denoised_blocks", "one tokenizer for all roles", f"rows of other lengths of {role}", do)

    def __call__(self, models, batch, needs):
        said = {role: models.says(role, batch, names) for role, names in needs.items()}
        if not self.complement:
            return said
        hears = {role: batch.view(role) for role in needs if "masked" in batch.view(role).inputs}
        inverse = {role: {"masked": maskable(view) & ~view.inputs["masked"]} for role, view in hears.items()}  # never a prompt, nor what begins a row
        other = batch
        for role in inverse:
            other = other.with_inputs(role, **inverse[role])
        again = {role: models.says(role, other, needs[role]) for role in inverse}
        return {role: either(batch.view(role), one, again[role]) if role in again else one for role, one in said.items()}


def noised(view: View, hidden: dict[str, Tensor], asked: Tensor) -> View:
    """A view in which only hidden tokens are asked for, and which says so to a role that fills in blocks."""
    some = asked if view.asked is None else view.asked & asked
    return replace(view, asked=some, inputs={**view.inputs, **(hidden if "block_length" in view.inputs else {})})


def either(view: View, first: Signals, second: Signals) -> Signals:
    """Of each target what was said when it was hidden."""
    pick = view.inputs["masked"][view.targets]

    def chosen(a: Any, b: Any) -> Any:
        if isinstance(a, Logits):
            return replace(a, hidden=torch.where(pick[:, None], a.hidden, b.hidden))
        return a if len(a) != len(pick) or a is b else torch.where(pick.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return replace(first, values={name: chosen(x, second.values[name]) for name, x in first.values.items()})
