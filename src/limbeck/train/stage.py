"""Turn and Stage: who learns what, how often, and how long."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from limbeck.align.base import AnyAlign
from limbeck.component import Document
from limbeck.data.base import AnyStep
from limbeck.forward.base import AnyForward
from limbeck.forward.paired import Paired
from limbeck.objective.base import AnyObjective
from limbeck.student.base import AnySurgery
from limbeck.teacher.base import AnyTeacher, spelled
from limbeck.train.alarm import Alarm
from limbeck.train.optimiser import Optimiser
from limbeck.train.reconstruct import Reconstruct


class Turn(Document):
    """Who trains on what, how often."""

    trains: str = "student"
    """The role that learns."""
    only: tuple[str, ...] = ()
    """Patterns of parameter names that learn; none: all of the role."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameter names that do not."""
    through: tuple[str, ...] = ()
    """Frozen roles that let gradients pass."""
    every: int = Field(default=1, gt=0)
    """Runs at each so-manieth step of the stage."""
    data: tuple[AnyStep, ...] = ()
    """Steps on each window, after those of the recipe; sources belong to the recipe or the stage."""
    forward: AnyForward = Paired()
    """How the roles are run."""
    align: tuple[AnyAlign, ...] = ()
    """What is laid side by side."""
    objective: Annotated[tuple[AnyObjective, ...], Field(min_length=1)]
    """What is summed, each with its weight."""
    balance: Literal["none", "gradient_norm"] = Field(default="none", json_schema_extra={"since": 2})
    """gradient_norm: weights are found at each step, so that the gradients of all objectives by the last layer are equally large."""
    optimiser: Optimiser = Optimiser()
    """How parameters move."""
    batch: int = Field(default=8, gt=0)
    """Rows (or groups of rows, or packed bins) of a window."""
    micro: int = Field(default=1, gt=0)
    """Micro-batches that a window is cut into: less memory, the same gradient."""

    @model_validator(mode="after")
    def balanced_objectives(self) -> "Turn":
        if self.balance != "none" and len(self.objective) < 2:
            raise ValueError("balance: none, where there is one objective")
        if self.balance != "none" and any(objective.weight != 1 for objective in self.objective):
            raise ValueError("either weights of objectives, or balance, in which they cancel; not both")
        return self


class Select(Document):
    """Keeps the best state by a held-out metric, or the mean of the best few, and stops when it no longer improves."""

    metric: Literal["kl", "top1", "perplexity", "velocity_error"] = "kl"
    """The held-out metric."""
    every: int = Field(default=100, gt=0)
    """Measured after each so many steps, and after the last."""
    patience: int | None = Field(default=None, gt=0)
    """Measurements without improvement after which the stage ends; none: it runs to its end."""
    greater: bool = False
    """Whether more is better."""
    average: int = Field(default=1, gt=0, json_schema_extra={"since": 2})
    """So many of the best states are kept, each in memory, and the stage ends in the mean of their weights."""


class Checkpoint(Document):
    """How often a run is made safe."""

    every: int = Field(default=100, gt=0)
    """Steps between checkpoints; a finished stage leaves its result."""
    keep: int = Field(default=2, gt=0)
    """How many stay on disk."""


class Stage(Document):
    """A number of steps of one or more turns; the fields of a single turn may be written in its place."""

    in_place: ClassVar[tuple[str, ...]] = ("turn",)

    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=60)] = ""
    """What others refer to; empty: stage-0, stage-1, ..."""
    start: str | None = None
    """Where the student comes from: `student`, or the name of an earlier stage or merge; none: the stage before."""
    restart: tuple[str, ...] = Field(default=(), json_schema_extra={"since": 2})
    """Other roles that begin the stage as they were before any training: a critic, when the student begins something new."""
    steps: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(default="auto")
    """Optimiser steps; `auto`: as many as fit into `minutes` of the recipe, at the speed that was measured."""
    turn: Annotated[tuple[Turn, ...], Field(min_length=1)]
    """What happens at each step."""
    surgery: tuple[AnySurgery, ...] = ()
    """Changes to the student before the stage."""
    reconstruct: Reconstruct | None = Field(default=None, json_schema_extra={"since": 2})
    """Before its first step the student's blocks are fitted to the teacher's states, in closed form and once; for text alone they are not."""
    teacher: AnyTeacher | None = None
    """Another teacher than the recipe's, for this stage."""
    data: tuple[AnyStep, ...] | None = None
    """Other data than the recipe's, for this stage, in place of it; steps on windows alone are written in `turn:`."""
    repeat: int = Field(default=1, gt=0, le=1000)
    """Runs the stage so many times, each a stage of its own with fresh optimisers."""
    select: Select | None = None
    """Keep the best state instead of the last."""
    checkpoint: Checkpoint = Checkpoint()
    """How often the run is made safe."""
    alarm: tuple[Alarm, ...] = Field(default=(), json_schema_extra={"since": 2})
    """Figures that end the run, since they say that it has failed."""

    @field_validator("teacher", mode="before")
    @classmethod
    def a_reference_is_live(cls, value: Any) -> Any:
        return spelled(value)

    @model_validator(mode="after")
    def turns_go_together(self) -> "Stage":
        for i, turn in enumerate(self.turn):
            for other in self.turn[:i]:
                turn.forward.beside(other.forward)
        return self

    @model_validator(mode="after")
    def alarms_hear(self) -> "Stage":
        deaf = next((alarm.metric for alarm in self.alarm if alarm.metric.startswith("held_out.")), None)
        if deaf is not None and self.select is None:
            raise ValueError(f"alarm: {deaf} is measured only where select says how often")
        return self

    @model_validator(mode="before")
    @classmethod
    def one_turn(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "turn" in value:
            return value
        own = set(cls.model_fields) - {"turn"}
        return {**{k: v for k, v in value.items() if k in own}, "turn": [{k: v for k, v in value.items() if k not in own}]}
