"""Tasks with right answers."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from limbeck.evaluate._lm_eval import installed, lm_eval_scores
from limbeck.evaluate._topic_choice import Question, accuracy, topic_choice
from limbeck.evaluate.base import Evaluator, Exam

PREFIX = "lm_eval:"


class Tasks(Evaluator):
    r"""How often each subject is right at tasks: one that needs nothing but the held-out text, and those of lm-eval.

    `topic_choice` shows the first half of a passage and four continuations of the same number of bytes, the true one and three
    from other documents. With $c_i$ the bytes of continuation i after the context x, the subject chooses

    $$ \arg\max_i \; \frac{1}{|c_i|} \log q(c_i \mid x) $$

    and 0.25 is chance; ties count their share. It asks whether a model keeps track of what a text is about: easy for a large
    model, and where a damaged one fails. `lm_eval:NAME` is a task of the LM Evaluation Harness, in its own words and metrics
    (`pip install 'limbeck[eval]'`; it may fetch data). Values are shares or the metric's own unit, errors are standard errors: over
    documents for `topic_choice`, as the harness gives them for its tasks.

    Example:
        >>> Tasks(names=("topic_choice", "lm_eval:hellaswag")).questions
        100

    References:
        Zellers et al., HellaSwag, 2019, arXiv:1905.07830 (choosing a continuation).
        Biderman et al., Lessons from the Trenches on Reproducible Evaluation of Language Models, 2024, arXiv:2405.14782 (lm-eval).
    """

    kind: Literal["tasks"] = "tasks"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"topic_choice": (0.0, 1.0)}
    unread: ClassVar[frozenset[str]] = frozenset({"limit", "num_fewshot"})  # for lm-eval's own tasks, which need a network
    names: tuple[Annotated[str, Field(pattern=r"^(topic_choice|lm_eval:[A-Za-z0-9_.+-]+)$")], ...] = ("topic_choice",)
    """`topic_choice`, and `lm_eval:NAME` for tasks of lm-eval."""
    questions: int = Field(default=100, gt=0)
    """Questions of `topic_choice` at most."""
    passage_bytes: int = Field(default=400, ge=16)
    """Bytes of a passage of `topic_choice`, both halves together."""
    limit: int | None = Field(default=None, gt=0)
    """Documents of each lm-eval task; none: all."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Solved examples before each question of lm-eval; none: as the task says."""

    def ready(self) -> None:
        if any(name.startswith(PREFIX) for name in self.names):
            installed()

    def __call__(self, exam: Exam) -> dict[str, Any]:
        asked: list[Question] = topic_choice(exam.rows, self.questions, self.passage_bytes, exam.seed) if "topic_choice" in self.names else []
        harness = tuple(name.removeprefix(PREFIX) for name in self.names if name.startswith(PREFIX))
        out: dict[str, Any] = {}
        for subject in exam.subjects:
            found: dict[str, Any] = {}
            with exam.open(subject) as role:
                if asked:
                    found["topic_choice"] = accuracy(role, asked)
                if harness and role.writes:  # lm-eval drives one model of transformers: a mixture is left out
                    found |= lm_eval_scores(role, harness, self.limit, self.num_fewshot, exam.seed, exam.context.get("lm_eval_tasks"))
            out[subject] = {"tasks": found}
        return out
