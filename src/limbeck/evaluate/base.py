"""How close, how good, how fast: evaluators read, and never write into what they measure."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from limbeck.component import Choice, Component
from limbeck.model.base import Models, Role
from limbeck.signals import Row


@dataclass(frozen=True)
class Table:
    """One pass over held-out rows, one entry a target: all that agreement, perplexity and calibration are computed from.

    Of a subject that says no probabilities, but one score a row, or denoises rows, it has one entry a row.
    """

    row: Int[Tensor, " target"]
    """Number of the held-out row."""
    best: Int[Tensor, " target"] | None = None
    """The subject's first choice; None where it says no probabilities."""
    best_prob: Float[Tensor, " target"] | None = None
    label: Int[Tensor, " target"] | None = None
    """What is right; None where rows have no labels."""
    label_logprob: Float[Tensor, " target"] | None = None
    """Log-probability that the subject gives to the label, in nats."""
    teacher_best: Int[Tensor, " target"] | None = None
    teacher_best_prob: Float[Tensor, " target"] | None = None
    kl: Float[Tensor, " target"] | None = None
    """KL(teacher || subject), in nats."""
    label_rank: Int[Tensor, " target"] | None = None
    """How many entries the subject puts before the label; only where rows have no positions, and a target is the class of its row."""
    pos: Int[Tensor, " target"] | None = None
    """Place of the target in its row; None where rows have no positions."""
    num_bytes: Int[Tensor, " target"] | None = None
    """Bytes of text (UTF-8) that the target stands for, 0 for marks such as an end of text; None where the tokenizer does not say."""
    score: Float[Tensor, " row"] | None = None
    """What the subject says of each row, where that is one number."""
    velocity_error: Float[Tensor, " row"] | None = None
    """Of a subject that denoises: squared error of the velocity of each row, at times and in noise that are always the same."""


@dataclass(frozen=True)
class Exam:
    """What evaluators are given: held-out rows, the subjects, and one table a subject, computed once and shared."""

    rows: Sequence[Row]
    subjects: Sequence[str]
    """`teacher`, `start`, `student`, `text_only`, ...: those that exist, teacher first."""
    open: Callable[[str], AbstractContextManager[Role]]
    """The role of a subject, or of another model by its reference, in memory while the context lasts."""
    table: Callable[[str], Table]
    """The table of a subject."""
    seed: int = 0
    context: Mapping[str, Any] = field(default_factory=dict)
    """`teacher`: its role, which reads even where it cannot speak; `folders`: subject -> folder of its exported files; `lm_eval_tasks`: folder of
    one's own lm-eval tasks, which may hold code; `base`: folder that relative paths start from; `evidence`: folder for what was judged;
    `send`, `responses`: see `limbeck.endpoint.writer`."""


class Evaluator(Component):
    """Measures all subjects of an exam."""

    room: ClassVar[str] = "evaluate"
    measures: ClassVar[Literal["logits", "label", "score", "hidden", "blocks", "sample", "pitch", "transcript"]] = "logits"
    """What rows must be for it to find anything: predicted piece by piece, of one class each, scored, only represented, filled in by blocks,
    samples to be denoised, sounds of known pitch, or sounds with their transcript."""
    perfect: ClassVar[Mapping[str, float]] = {}
    """Claim: values that the teacher gets against itself."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Claim: bounds of each metric."""

    def ready(self) -> None:
        """Refuses what would stop it after hours of training: a package that is not there. Called by every plan."""

    def suits(self, models: Models, where: str) -> None:
        """Refuses models that it could not measure, or not as it is told to. Called by every plan; `where` is its place in the recipe."""

    def agrees(self, forwards: Sequence[Any], where: str) -> None:
        """Refuses to measure a student otherwise than the `forwards` of its last stage have taught it. Called by every plan."""

    def glance(self, table: Table, rows: Sequence[Row]) -> Mapping[str, float]:
        """A few figures of a table that are told while a run goes; none where others tell enough."""
        return {}

    @abstractmethod
    def __call__(self, exam: Exam) -> dict[str, Any]:
        """Subject -> metrics, and further parts of the summary by their own names (see `limbeck.export.report`)."""

    def notes(self, subjects: Sequence[str], base: str) -> tuple[str, ...]:
        """What it will ask of servers, for the plan; what cannot work is refused. `base`: folder that relative paths start from."""
        return ()


AnyEvaluator = Annotated[Evaluator, Choice()]
