"""How often a class is right."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.evaluate._scoring import by_document
from limbeck.evaluate.base import Evaluator, Exam, Table
from limbeck.signals import Row

MANY = 6
"""Classes from which on the five best are worth a figure."""
FEW = 10
"""Held-out rows that a class needs before it can be called the weakest."""


class Accuracy(Evaluator):
    r"""How often each subject's first choice is the label of the row, and how often the label is among its five best.

    $$ \mathrm{accuracy} = \frac{1}{N} \sum_{i=1}^{N} [\arg\max_v q_{iv} = y_i] $$

    with standard errors over rows that are alike (a picture that comes twice counts once). The five best are counted from six classes on.
    Of text it measures nothing: there a right word is one of many, and `perplexity` tells more. Agreement with the teacher is another figure:
    a student may follow the teacher into its mistakes.

    Parts: `accuracy_gaps`, the student minus each other arm, with errors paired over rows; `classes`, the accuracy of each class with its
    share, the weakest first, of those with at least ten held-out rows.

    Example:
        >>> Accuracy().ranges["accuracy"]
        (0.0, 1.0)

    References:
        Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015, arXiv:1409.0575 (top-1 and top-5).
    """

    kind: Literal["accuracy"] = "accuracy"
    measures: ClassVar[Literal["logits", "label", "score", "hidden"]] = "label"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        name: (0.0, 1.0) for name in ("accuracy", "accuracy_error", "top5_accuracy", "top5_accuracy_error")
    }

    def __call__(self, exam: Exam) -> dict[str, Any]:
        tables = {name: table for name in exam.subjects if (table := exam.table(name)).label_rank is not None}
        if not tables:
            return {}
        out: dict[str, Any] = {name: self.figures(table, exam.rows) for name, table in tables.items()}
        main = "student" if "student" in tables else list(tables)[-1]
        out["classes"] = self.by_class(tables, main, exam.rows)
        if "student" in tables:
            others = {name: table for name, table in tables.items() if name != "student"}
            out["accuracy_gaps"] = {name: self.gap(tables["student"], table, exam.rows) for name, table in others.items()}
        return out

    def figures(self, table: Table, rows: Sequence[Row]) -> dict[str, float | None]:
        """Accuracy of one subject, and that of its five best where there are enough classes."""
        value, error = by_document(among(table, 1), table, rows)
        found = {"accuracy": value, "accuracy_error": error}
        if table.label is not None and int(table.label.max()) + 1 >= MANY:
            value, error = by_document(among(table, 5), table, rows)
            found |= {"top5_accuracy": value, "top5_accuracy_error": error}
        return found

    def gap(self, student: Table, other: Table, rows: Sequence[Row]) -> dict[str, float | None]:
        """The student's accuracy minus another's, and its error paired over rows."""
        value, error = by_document(among(student, 1) - among(other, 1), student, rows)
        return {"accuracy": value, "accuracy_error": error}

    def by_class(self, tables: Mapping[str, Table], main: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Accuracy of each subject in each class."""
        label, out = tables[main].label, []
        assert label is not None
        for number in label.unique().tolist():
            inside = (label == number).double()
            if inside.sum() < FEW:
                continue
            name = rows[int(tables[main].row[int(inside.argmax())])].tag or str(number)
            each = {subject: by_document(among(table, 1) * inside, table, rows, per=inside) for subject, table in tables.items()}
            values = {subject: value for subject, (value, _) in each.items()}
            out.append({"name": name, "share": float(inside.mean()), **values, "error": each[main][1]})
        return sorted(out, key=lambda one: one[main])


def among(table: Table, best: int) -> Float[Tensor, " target"]:
    """1 where the label is among so many of the best."""
    assert table.label_rank is not None
    return (table.label_rank < best).to(torch.float64) if best > 1 else (table.best == table.label).to(torch.float64)
