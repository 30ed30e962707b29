"""Lets stages of the student answer through branches of their own."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.component import Component, changed
from limbeck.numerics import upcast
from limbeck.objective._exits import AttentionExit, ConvolutionExit
from limbeck.objective.base import AnyObjective, Objective
from limbeck.objective.target_aware_ce import TargetAwareCE
from limbeck.signals import Needs, Signals, dense


class ExitHeads(Objective):
    r"""Holds what learned branches make of some stages of the student against another objective, as if each were the student.

    $$ \sum_{k \in K} L\big(P_k(h_k),\, \text{teacher, labels}\big) $$

    $h_k$ is what stage k of the student says, $P_k$ a branch to logits, L any objective that asks logits of the student. Stages are so
    compared with an unlike teacher in the one space that both share, its answers. Branches are built to fit the maps that a dry run finds:
    separable convolutions that halve them down to the smallest, where maps shrink from stage to stage; attention over at most 7x7 tokens,
    where all are of one grid, as in blocks that are alike. They learn with the student and are left out of what is exported. They normalise
    within one image, not over the batch. Cost: a branch is small beside a large student, and not beside a tiny one.

    Example:
        >>> ExitHeads(stages=(1, 2), objective={"kind": "target_aware_ce", "gamma": 1.5}).needs["student"]
        ('stage.1', 'stage.2', 'logits', 'label')

    References:
        Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation, 2023, arXiv:2310.19444.
        Zhang et al., Be Your Own Teacher, 2019, arXiv:1905.08094 (branches that are thrown away).
    """

    kind: Literal["exit_heads"] = "exit_heads"
    stages: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3, 4)
    """Stages that answer, the first from 1; of models whose blocks are alike, blocks, such as (3, 6, 9, 12)."""
    objective: AnyObjective = TargetAwareCE()
    """What each answer is held against."""
    branch: Literal["auto", "convolution", "attention"] = "auto"
    """auto: attention where all maps have one size and there are several, else convolution."""

    @model_validator(mode="after")
    def branches_can_answer(self) -> "ExitHeads":
        inner = self.objective
        if inner.teaches != "student" or "logits" not in inner.needs["student"]:
            raise ValueError("objective: one that asks logits of the student")
        if inner.tag or inner.seats or inner.weight != 1:
            raise ValueError("objective: without tag, seats and weight; write them beside it")
        if type(inner).build is not Component.build or any(schedule.follows for schedule in inner.schedules.values()):
            raise ValueError("objective: one that learns nothing itself")
        if len(set(self.stages)) < len(self.stages):
            raise ValueError("stages: each once")
        return self

    @property
    def unit(self) -> str:
        return self.objective.unit

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"stage.{i}" for i in self.stages)

    @property
    def needs(self) -> Needs:
        inner = self.objective.needs
        return {**inner, "student": (*self.names, *inner["student"])}  # of its own logits, only how many there are

    def at(self, step: int, memory: Mapping[str, Any] = MappingProxyType({})) -> Component:
        made: Any = super().at(step, memory)
        return changed(made, objective=self.objective.at(step)) if self.objective.schedules else made

    def build(self, example: Mapping[str, Signals]) -> nn.Module:
        student = example["student"]
        shapes = [student[name].shape[1:] for name in self.names]
        smallest, alike = min(max(shape[1:]) for shape in shapes), len({shape[1:] for shape in shapes}) == 1 and len(shapes) > 1
        form = self.branch if self.branch != "auto" else "attention" if alike else "convolution"
        least, classes = max(shape[0] for shape in shapes), dense(student["logits"]).shape[-1]
        if form == "attention":
            return nn.ModuleList(AttentionExit(s[0], max(s[1:]), max(len(shapes) - 1 - i, 1), classes) for i, s in enumerate(shapes))
        return nn.ModuleList(ConvolutionExit(s[0], max(s[1:]), smallest, least, classes) for s in shapes)

    def values(self, student: Signals, learned: Any, **others: Signals) -> Float[Tensor, " unit"]:
        row = student.rows["target"]
        each = []
        for branch, name in zip(learned, self.names, strict=True):
            logits = branch(upcast(student[name]))[row]
            each.append(self.objective.values(student=replace(student, values={**student.values, "logits": logits}), **others))
        return torch.stack(each).sum(0)
