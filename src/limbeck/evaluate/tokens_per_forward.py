"""How much a model that fills in blocks writes in a pass, and what becomes of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.model.sampling import write
from limbeck.numerics import Streams


class Task(NamedTuple):
    """A held-out row in two parts."""

    prompt: list[int]
    answer: list[int]
    """What stands there."""


class Point(NamedTuple):
    """What was written at one threshold."""

    tokens_per_forward: float
    agreement: float
    """Share of the tokens that stand in the held-out text in the same place."""
    exact: float
    """Share of the rows that are right from end to end."""


class TokensPerForward(Evaluator):
    r"""Tokens that are written in each pass, against how many of them are right: a curve over thresholds of acceptance.

    $$ \mathrm{tokens\ per\ forward} = \frac{\text{tokens written that were asked for}}{\text{passes of the model}}, \qquad
       \mathrm{agreement} = \frac1N \sum_i [\hat x_i = x_i] $$

    A block is filled in pass by pass: where the best entry has more than the threshold it is written, and always in the one place where it has
    most. A threshold of 1 writes one token a pass, or fewer: the last block is filled to its end, and what stands behind the last token that
    was asked for, or behind an end of text, costs passes and counts for nothing. Where rows are a prompt and an answer, the answer is
    written; of plain text so many tokens after a beginning. Rows that in whole blocks go beyond what a model was made for are left out.
    Agreement with a text that others wrote is low for open text and tells an ordering only; with tasks of one right
    answer it is accuracy. The first threshold gives the figures, all give `parallel_decoding`; causal subjects, which decode greedily, are a
    point of it at one token a pass. Passes depend on no machine; seconds do.

    Example:
        >>> TokensPerForward(thresholds=(0.95, 0.5)).ranges["text_agreement"]
        (0.0, 1.0)

    References:
        Bie et al., LLaDA2.0: Scaling Up Diffusion Language Models to 100B, 2025, arXiv:2512.15745.
    """

    kind: Literal["tokens_per_forward"] = "tokens_per_forward"
    measures: ClassVar[Literal["logits", "label", "score", "blocks"]] = "blocks"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "tokens_per_forward": (0.0, math.inf),
        "text_agreement": (0.0, 1.0),
        "exact": (0.0, 1.0),
    }
    num: int = Field(default=16, gt=0)
    """Rows at most, drawn by seed."""
    prompt_tokens: int = Field(default=32, gt=0)
    """Tokens of a plain text that are given."""
    new_tokens: int = Field(default=32, gt=0)
    """Tokens that are written at most."""
    thresholds: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.95, 0.9, 0.8, 0.6, 0.4)
    """Of acceptance: probabilities; entropies in nats where `accept` says so."""
    accept: Literal["confidence", "entropy"] = "confidence"
    """What is held against the threshold: confidence accepts above it, entropy up to it."""

    @classmethod
    def example(cls) -> "TokensPerForward":
        return cls(num=2, prompt_tokens=16, new_tokens=8, thresholds=(0.95, 0.005))

    def __call__(self, exam: Exam) -> dict[str, Any]:
        curves: dict[str, list[Point]] = {}
        fills = False
        for name in exam.subjects:
            with exam.open(name) as role, listening(role):
                fills |= "target_weight" in role.offers
                if curve := self.curve(role, self.tasks(role, exam)):
                    curves[name] = curve
        if not fills or not curves:
            return {}
        out: dict[str, Any] = {name: named(curve[0]) for name, curve in curves.items()}
        at = [{name: curve[min(i, len(curve) - 1)]._asdict() for name, curve in curves.items()} for i in range(len(self.thresholds))]
        out["parallel_decoding"] = [{"threshold": threshold, **each} for threshold, each in zip(self.thresholds, at, strict=True)]
        return out

    def tasks(self, role: Role, exam: Exam) -> list[Task]:
        """Rows that are long enough, each as a beginning and what follows; none for a role that does not write."""
        from limbeck.model.masked_blocks import MaskedBlocks

        out: list[Task] = []
        if not role.writes and "target_weight" not in role.offers:
            return out
        for i in torch.randperm(len(exam.rows), generator=Streams(exam.seed)("tokens_per_forward"), device="cpu").tolist():
            view = role.view([exam.rows[i]])
            ids, asked = view.inputs["ids"].tolist(), view.asked
            given = len(ids) if asked is None or not asked.any() else int(asked.nonzero()[0, 0])
            given = self.prompt_tokens if given <= 1 else given
            end = min(given + self.new_tokens, len(ids))
            fits = not isinstance(role, MaskedBlocks) or role.context is None or role.whole(end) <= role.context
            if given < len(ids) and fits and len(out) < self.num:
                out.append(Task(ids[:given], ids[given:end]))
        return out

    def curve(self, role: Role, tasks: Sequence[Task]) -> list[Point]:
        """A point for each threshold; one, of a role that writes from left to right."""
        from limbeck.model.block_decoding import certain, confident, fill
        from limbeck.model.masked_blocks import MaskedBlocks

        if not tasks:
            return []
        if not isinstance(role, MaskedBlocks):
            made = [write(role, [task.prompt], len(task.answer), 0.0, [0])[0] for task in tasks]
            return [self.point(tasks, made, 1.0)]
        out = []
        for threshold in self.thresholds:
            accept = confident(threshold) if self.accept == "confidence" else certain(threshold)
            found = [fill(role, task.prompt, len(task.answer), accept) for task in tasks]
            rate = sum(len(one.ids) for one in found) / sum(one.forwards for one in found)
            out.append(self.point(tasks, [one.ids for one in found], rate))
        return out

    @staticmethod
    def point(tasks: Sequence[Task], made: Sequence[list[int]], rate: float) -> Point:
        """What was written, held against what stands there; what is missing is wrong."""
        right = [sum(a == b for a, b in zip(task.answer, ids, strict=False)) for task, ids in zip(tasks, made, strict=True)]
        sizes = [len(task.answer) for task in tasks]
        return Point(rate, sum(right) / sum(sizes), sum(a == b for a, b in zip(right, sizes, strict=True)) / len(sizes))


def named(point: Point) -> dict[str, Any]:
    """The figures of a subject, plain and as the table of a run shows them."""
    shown = {
        "Tokens a pass": {"value": point.tokens_per_forward, "unit": "", "lower_is_better": False},
        "Written as the text goes on": {"value": 100 * point.agreement, "unit": "%", "lower_is_better": False},
    }
    return {"tokens_per_forward": point.tokens_per_forward, "text_agreement": point.agreement, "exact": point.exact, "metrics": shown}
