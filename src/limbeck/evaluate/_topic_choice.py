"""Multiple choice over held-out text: which of four continuations belongs to the passage."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from limbeck.errors import Refused
from limbeck.evaluate._kinds import text_of
from limbeck.evaluate._scoring import clustered, documents, score
from limbeck.model.base import Role
from limbeck.numerics import Streams
from limbeck.signals import Row

WRONG = 3
"""Continuations from other documents."""


@dataclass(frozen=True)
class Question:
    """A context with its continuations, the true one first."""

    context: str
    choices: tuple[str, ...]
    document: int
    key: str

    def rows(self) -> list[Row]:
        """One row a choice: the context is given, the choice is to be predicted, and nothing follows it."""
        return [Row(f"{self.key}:{i}", {"prompt": self.context, "answer": choice, "open": True}) for i, choice in enumerate(self.choices)]


def topic_choice(rows: Sequence[Row], most: int, passage_bytes: int, seed: int) -> list[Question]:
    """Questions over rows that are long enough, the first of each document, by seed where they are too many; the same on every machine.

    Raises:
        Refused: `data`, where fewer than four documents are long enough.
    """
    halves: dict[int, tuple[str, str, str]] = {}
    for row, document in zip(rows, documents(rows).tolist(), strict=True):
        cut = passage(text_of(row.content), passage_bytes // 2)
        if cut and document not in halves:
            halves[document] = (*cut, row.key)
    if len(halves) <= WRONG:
        raise Refused(
            "data",
            "evaluate.tasks  topic_choice",
            f"held-out text of at least {WRONG + 1} documents with {passage_bytes} bytes",
            f"{len(halves)} of {len(rows)} rows",
            "hold out more, or lower passage_bytes",
        )
    order = torch.randperm(len(halves), generator=Streams(seed)("topic_choice")).tolist()[:most]
    names, out = list(halves), []
    for i in sorted(order):
        context, truth, key = halves[names[i]]
        others = [j for j in range(len(names)) if j != i]
        drawn = torch.randperm(len(others), generator=Streams(seed)("topic_choice", key)).tolist()[:WRONG]
        out.append(Question(context, (truth, *(halves[names[others[j]]][1] for j in drawn)), names[i], key))
    return out


def passage(text: str, half_bytes: int) -> tuple[str, str] | None:
    """The first half, which ends where a word does if it can, and as many bytes after it; None of a text that is too short."""
    first = clipped(text, half_bytes)
    if (space := max(first.rfind(" "), first.rfind("\n"))) > 0:
        first = first[:space]
    rest = text[len(first) :][:half_bytes]
    enough = len(rest.encode("utf-8", "surrogatepass")) >= half_bytes
    return (first, clipped(rest, half_bytes)) if enough and first.strip() else None


def clipped(text: str, num_bytes: int) -> str:
    """The beginning of a text: whole characters, at most so many bytes."""
    return text[:num_bytes].encode("utf-8", "surrogatepass")[:num_bytes].decode("utf-8", "ignore")


def accuracy(role: Role, questions: Sequence[Question]) -> dict[str, float | None]:
    """Share of questions where the true continuation is the most probable one per byte; questions of equal choices count their share.

    Raises:
        Refused: `context`, for passages that are longer than what the role was made for.
    """
    rows = [row for question in questions for row in question.rows()]
    try:
        table = score(role, rows, None)
    except Refused as error:
        if error.slug != "context":
            raise
        raise Refused("context", "evaluate.tasks  topic_choice", error.expected, error.got, "lower passage_bytes") from None
    assert table.label_logprob is not None
    total = torch.zeros(len(rows), dtype=torch.float64).index_add(0, table.row, table.label_logprob.double())
    num_bytes = torch.tensor([len(row.content["answer"].encode("utf-8", "surrogatepass")) for row in rows])
    each = (total / num_bytes).view(len(questions), WRONG + 1)
    best = each == each.max(-1, keepdim=True).values
    right = best[:, 0].double() / best.sum(-1)
    value, error = clustered(right, torch.ones(len(right)), torch.tensor([question.document for question in questions]))
    return {"value": value, "error": error}
