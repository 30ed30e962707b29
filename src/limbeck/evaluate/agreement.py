"""How often, and how closely, a student says what its teacher says."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.evaluate._kinds import kinds
from limbeck.evaluate._scoring import BINS, bin_of, by_document
from limbeck.evaluate.base import Evaluator, Exam, Table
from limbeck.text.spans import encode

LEAST_SHARE, LEAST_TARGETS = 0.01, 50
"""A kind of text is shown from so large a share, and so many targets, on: less says nothing."""
NORMAL = 1.96
"""Standard errors to either side that hold 95 % of a normal distribution."""
BEFORE = 40
"""Tokens shown before one of large KL."""


class Agreement(Evaluator):
    r"""How close each subject is to the teacher: KL, top-1 agreement, and where they differ.

    $$ \mathrm{KL} = \frac{1}{N} \sum_{t=1}^{N} \sum_v p_{tv} (\log p_{tv} - \log q_{tv}), \qquad
       \mathrm{top1} = \frac{1}{N} \sum_{t=1}^{N} [\arg\max_v p_{tv} = \arg\max_v q_{tv}] $$

    over the held-out targets, in nats and as a share; both at temperature 1, on text that neither wrote. A teacher known by its
    k best ids is compared on these and one bucket for all others: its KL is a lower bound. Errors are standard errors over
    documents (see `clustered`). Both models may agree and be wrong: look at `perplexity` too.

    Parts: `by_certainty`, agreement by the probability of the teacher's first choice; `slices`, by the rows' tags or kind of text,
    each with at least 1 % of the targets and 50 of them (`error` is a standard error, `half_width` half of a 95 % interval);
    `weakest`, the lowest of these; `worst_tokens`, the student's predictions of largest KL.

    Example:
        >>> Agreement(worst=0).perfect["top1"]
        1.0

    References:
        Stanton et al., Does Knowledge Distillation Really Work?, 2021, arXiv:2106.05945 (agreement, as distinct from accuracy).
    """

    kind: Literal["agreement"] = "agreement"
    perfect: ClassVar[Mapping[str, float]] = {"kl": 0.0, "top1": 1.0}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "kl": (0.0, math.inf),
        "kl_error": (0.0, math.inf),
        "top1": (0.0, 1.0),
        "top1_error": (0.0, 1.0),
    }
    slices: int = Field(default=12, ge=0)
    """Kinds of text that are shown, the most frequent first."""
    worst: int = Field(default=50, ge=0)
    """Predictions of largest KL that are shown, with the held-out text before them; 0 shows no text."""

    def __call__(self, exam: Exam) -> dict[str, Any]:
        tables = {name: table for name in exam.subjects if (table := exam.table(name)).kl is not None}
        if not tables:
            return {}
        figures = {name: self.figures(table, exam) for name, table in tables.items()}
        others = {name: table for name, table in tables.items() if name != "teacher"} or tables
        main = "student" if "student" in others else list(others)[-1]
        found = self.by_kind(others, main, exam)
        parts = {"by_certainty": self.by_certainty(others, main), "slices": found, "worst_tokens": self.worst_tokens(others[main], main, exam)}
        if "student" in tables:
            parts["gaps"] = {name: self.gap(tables["student"], table, exam) for name, table in others.items() if name != "student"}
        if found:
            parts["weakest"] = min(found, key=lambda x: x[main])
        return figures | parts

    def figures(self, table: Table, exam: Exam) -> dict[str, float | None]:
        """KL and agreement of one subject, with their errors."""
        assert table.kl is not None
        (kl, kl_error), (top1, top1_error) = by_document(table.kl, table, exam.rows), by_document(same(table), table, exam.rows)
        return {"kl": kl, "kl_error": kl_error, "top1": top1, "top1_error": top1_error}

    def gap(self, student: Table, other: Table, exam: Exam) -> dict[str, float | None]:
        """The student's agreement and KL minus another subject's, with errors paired over documents: much smaller than those of each alone."""
        assert student.kl is not None and other.kl is not None
        top1 = by_document(same(student).double() - same(other).double(), student, exam.rows)
        kl = by_document(student.kl - other.kl, student, exam.rows)
        return {"top1": top1[0], "top1_error": top1[1], "kl": kl[0], "kl_error": kl[1]}

    def by_certainty(self, tables: Mapping[str, Table], main: str) -> list[dict[str, float]]:
        """Agreement of each subject by the probability that the teacher gives to its choice; empty bins are left out."""
        found = {name: (bin_of(table.teacher_best_prob), same(table)) for name, table in tables.items()}  # type: ignore[arg-type]
        out = []
        for i in range(BINS):
            inside = {name: agrees[bins == i] for name, (bins, agrees) in found.items()}
            if len(inside[main]):
                each = {name: float(agrees.mean()) for name, agrees in inside.items() if len(agrees)}
                out.append({"low": i / BINS, "high": (i + 1) / BINS, "share": len(inside[main]) / len(tables[main].row), **each})
        return out

    def by_kind(self, tables: Mapping[str, Table], main: str, exam: Exam) -> list[dict[str, Any]]:
        """Agreement of each subject by kind of text, with the error of the main one."""
        of_row = kinds(exam.rows)
        names = list(dict.fromkeys(of_row))
        number, out = torch.tensor([names.index(name) for name in of_row]), []
        for i, name in enumerate(names):
            inside = {subject: (number[table.row] == i).double() for subject, table in tables.items()}
            share = float(inside[main].mean())
            if share < LEAST_SHARE or int(inside[main].sum()) < LEAST_TARGETS:
                continue
            each = {s: by_document(same(t) * inside[s], t, exam.rows, per=inside[s]) for s, t in tables.items() if inside[s].any()}
            error = each[main][1]
            out.append(
                {
                    "name": name,
                    "share": share,
                    **{s: ratio for s, (ratio, _) in each.items()},
                    "error": error,
                    "half_width": None if error is None else NORMAL * error,
                }
            )
        return sorted(out, key=lambda x: -x["share"])[: self.slices]

    def worst_tokens(self, table: Table, main: str, exam: Exam) -> list[dict[str, Any]]:
        """The targets of largest KL with the text before them: what stands there, and what either would have put there."""
        if not self.worst or table.pos is None or table.kl is None or table.teacher_best is None or table.label is None or table.best is None:
            return []
        with exam.open(main) as role:
            tokenizer = role.tokenizer
        if tokenizer is None:
            return []
        out = []
        for i in table.kl.topk(min(self.worst, len(table.kl))).indices.tolist():
            pos = int(table.pos[i])
            before = encode(exam.rows[int(table.row[i])], tokenizer)[0][max(pos - BEFORE, 0) : pos]
            token, teacher, student = (tokenizer.decode([int(x[i])]) for x in (table.label, table.teacher_best, table.best))
            out.append({"before": tokenizer.decode(before), "token": token, "teacher": teacher, "student": student, "kl": float(table.kl[i])})
        return out


def same(table: Table) -> torch.Tensor:
    """1 where subject and teacher choose the same."""
    assert table.best is not None
    return (table.best == table.teacher_best).double()
