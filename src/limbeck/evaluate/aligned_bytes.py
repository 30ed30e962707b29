"""How much of held-out text two tokenizers cut out alike, and how likely both models find it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import Refused
from limbeck.evaluate._scoring import clustered, documents
from limbeck.evaluate.base import Evaluator, Exam, Table
from limbeck.model.base import Role
from limbeck.numerics import segment_sum
from limbeck.text.chunks import Chunks, Covered, coverage


class AlignedBytes(Evaluator):
    r"""What share of held-out text lies in chunks that a subject's tokenizer and the teacher's both cut out, and how far apart both find them.

    $$ \mathrm{aligned\ bytes} = \frac{\text{bytes in chunks that begin and end at the same bytes of both}}{\text{bytes that are asked for}}, \qquad
       \mathrm{chunk\ gap} = \frac1C \sum_{c=1}^{C} \Big| \sum_{t \in c} \log p_t - \sum_{s \in c} \log q_s \Big| $$

    What is outside is not taught by `align: byte_chunks`: a first token that one side cannot predict, text that one side has changed, what
    stands after the last common byte. With one tokenizer, only first tokens are. The gap, in nats a chunk, says how close a student is to its
    teacher where `agreement` has nothing to compare; chunks are as they were cut, neither debiased nor merged, and longer ones lie further
    apart, so that only students of one tokenizer are to be compared. Nothing is measured without a teacher, or of tokenizers that do not
    keep every byte; no gap to a teacher that is not at hand. `bits_per_byte` of `perplexity` says how well the text is predicted. `gaps`:
    the student's gap minus that of other subjects, its error paired over documents.

    Example:
        >>> AlignedBytes().ranges["aligned_bytes"]
        (0.0, 1.0)

    References:
        Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025, arXiv:2503.20083.
    """

    kind: Literal["aligned_bytes"] = "aligned_bytes"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "aligned_bytes": (0.0, 1.0),
        "chunk_gap": (0.0, math.inf),
        "chunk_gap_error": (0.0, math.inf),
    }

    def __call__(self, exam: Exam) -> dict[str, Any]:
        teacher: Role | None = exam.context.get("teacher")
        if teacher is None and "teacher" in exam.subjects:
            with exam.open("teacher") as teacher:
                pass
        if teacher is None or teacher.tokenizer is None:
            return {}
        out: dict[str, Any] = {}
        apart: dict[str, Apart] = {}
        for name in (name for name in exam.subjects if name != "teacher"):
            found: list[Covered] = []
            with exam.open(name) as role, suppress(Refused):
                if role.tokenizer is not None:
                    found = coverage(exam.rows, [role.tokenizer, teacher.tokenizer], [role.shift, teacher.shift], "evaluate aligned_bytes")
            if found:
                share = sum(one.inside for one in found) / max(1, sum(one.asked for one in found))
                out[name] = {"aligned_bytes": share, "rows_without_chunks": sum(not one.chunks for one in found)}
            told = all(exam.table(who).label_logprob is not None for who in (name, "teacher") if who in exam.subjects)  # masked models say nothing
            if "teacher" in exam.subjects and any(one.chunks for one in found) and told:
                apart[name] = Apart.of([one.chunks for one in found], name, exam)
                out[name] |= figures(apart[name].gap, apart[name])
        if "student" in apart and exam.table("student").kl is None:  # where there is one, agreement tells
            mine = apart["student"]
            alike = {name: one for name, one in apart.items() if name != "student" and torch.equal(one.document, mine.document)}
            out |= {"gaps": {name: figures(mine.gap - one.gap, mine) for name, one in alike.items()}} if alike else {}
        return out


class Apart(NamedTuple):
    """How far apart a subject and the teacher find each chunk."""

    gap: Float[Tensor, " chunk"]
    document: Int[Tensor, " chunk"]

    @classmethod
    def of(cls, rows: Sequence[Chunks], name: str, exam: Exam) -> "Apart":
        said = [likelihoods(rows, side, exam.table(who)) for side, who in enumerate((name, "teacher"))]
        row = torch.tensor([i for i, some in enumerate(rows) for _ in some], dtype=torch.long, device="cpu")
        return cls((said[0] - said[1]).abs(), documents(exam.rows)[row])


def figures(values: Float[Tensor, " chunk"], of: Apart) -> dict[str, float | None]:
    """The mean over all chunks, with its error over documents."""
    mean, error = clustered(values, torch.ones_like(values), of.document)
    return {"chunk_gap": mean, "chunk_gap_error": error}


def likelihoods(rows: Sequence[Chunks], side: int, table: Table) -> Float[Tensor, " chunk"]:
    """Log-probability that one side gives to the chunks of all rows, from what it gives to each target."""
    assert table.pos is not None and table.label_logprob is not None, "text has positions and labels"
    places = [(i, chunk[side]) for i, chunks in enumerate(rows) for chunk in chunks]
    wanted = torch.tensor([(i, n, place) for n, (i, some) in enumerate(places) for place in some], dtype=torch.long, device="cpu")
    span = int(table.pos.max()) + 1
    at = torch.searchsorted(table.row * span + table.pos, wanted[:, 0] * span + wanted[:, 2])
    return segment_sum(table.label_logprob.double()[at], wanted[:, 1], len(places))
