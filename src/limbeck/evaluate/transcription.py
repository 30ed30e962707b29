"""How well what was said is written down."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.evaluate._scoring import clustered, documents
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.transcriber import Transcriber
from limbeck.store import write_json
from limbeck.text.words import edits, normalised

AT_ONCE = 8
"""Rows in one forward pass."""
WRITTEN = "written.json"
"""What subjects have written, by key of the row: [{key, <subject>}]."""
TITLES = {"word_error_rate": "Wrong words", "character_error_rate": "Wrong characters", "words_as_teacher": "Words as the teacher's"}
"""What figures are called in the report."""


class Transcription(Evaluator):
    r"""How many words, and characters, of what each subject writes of a sound are wrong, and how far it writes what the teacher writes.

    $$ \mathrm{WER} = \frac{\sum_i d(w_i, \hat w_i)}{\sum_i |w_i|}, \qquad
       \mathrm{CER} = \text{the same of characters}, \qquad
       \mathrm{agreement} = 1 - \frac{\sum_i d(\hat w^T_i, \hat w_i)}{\sum_i \max(|\hat w^T_i|, |\hat w_i|)} $$

    with d the fewest words that are put in, taken away or replaced, w the words of the transcript and $\hat w$ those that are written, taking
    the best token each time. Both are put into lower case, punctuation is left out and an apostrophe within a word with nothing in its place;
    digits stay digits, and nothing is expanded: `Mr.` for `mister`, or `10` for `ten`, is a wrong word, which other normalisers forgive. An error
    rate may be above 1, where more is written than was said. Standard errors are over clips. For models that write what they hear; where the
    student is to follow its teacher also in what it gets wrong, look at the agreement, else at the error rates.

    Example:
        >>> from limbeck.text.words import edits
        >>> edits("he was not ill disposed".split(), "he was ill dispose".split())
        2

    References:
        Levenshtein, Binary codes capable of correcting deletions, insertions, and reversals, 1966, Soviet Physics Doklady 10(8).
        Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, arXiv:2212.04356 (why texts are normalised, appendix C).
    """

    kind: Literal["transcription"] = "transcription"
    measures: ClassVar[Literal["logits", "label", "score", "hidden", "blocks", "sample", "pitch", "transcript"]] = "transcript"
    perfect: ClassVar[Mapping[str, float]] = {"words_as_teacher": 1.0}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "word_error_rate": (0.0, math.inf),
        "character_error_rate": (0.0, math.inf),
        "words_as_teacher": (0.0, 1.0),
    }
    tokens: Annotated[int, Field(gt=0)] = 224
    """Most tokens that are written of a clip, half of what Whisper's decoder holds."""

    @classmethod
    def example(cls) -> "Transcription":
        return cls(tokens=8)

    def __call__(self, exam: Exam) -> dict[str, Any]:
        rows = [row for row in exam.rows if "wave" in row.content and isinstance(row.content.get("answer"), str)]
        written: dict[str, list[str]] = {}
        for subject in exam.subjects if rows else ():
            with exam.open(subject) as role:
                if isinstance(role, Transcriber):
                    parts = (role.transcribe(rows[i : i + AT_ONCE], self.tokens) for i in range(0, len(rows), AT_ONCE))
                    written[subject] = [text for part in parts for text in part]
        if not written:
            return {}
        words = {subject: [normalised(text) for text in texts] for subject, texts in written.items()}
        right, of = [normalised(row.content["answer"]) for row in rows], documents(rows)
        counts = {subject: counted(texts, right, words.get("teacher")) for subject, texts in words.items()}
        out: dict[str, Any] = {subject: figures(each, of) for subject, each in counts.items()}
        mine = counts.get("student")
        gaps = {name: gap(mine, each, of) for name, each in counts.items() if name != "student" and mine is not None}
        if "evidence" in exam.context:
            told = [{"key": row.key, **{subject: texts[i] for subject, texts in written.items()}} for i, row in enumerate(rows)]
            write_json(Path(exam.context["evidence"]) / WRITTEN, told)
        facts = {"clips": len(rows), "words": sum(len(text.split()) for text in right)}
        return {**out, **({"gaps": gaps} if gaps else {}), "transcription": facts}


Counts = Mapping[str, tuple[Float[Tensor, " row"], Float[Tensor, " row"]]]
"""Figure -> what is wrong in each row, and of how many."""


def counted(texts: Sequence[str], right: Sequence[str], teacher: Sequence[str] | None) -> Counts:
    """What is wrong in each row, in words and in characters; and in how many words it differs from the teacher's."""
    pairs = {"word_error_rate": [(edits(b.split(), a.split()), len(b.split())) for a, b in zip(texts, right, strict=True)]}
    pairs["character_error_rate"] = [(edits(b, a), len(b)) for a, b in zip(texts, right, strict=True)]
    if teacher is not None:
        both = [(a.split(), b.split()) for a, b in zip(texts, teacher, strict=True)]
        pairs["words_as_teacher"] = [(max(len(a), len(b)) - edits(b, a), max(len(a), len(b))) for a, b in both]
    found = {name: torch.tensor(each, dtype=torch.float64, device="cpu").unbind(-1) for name, each in pairs.items()}
    return {name: (wrong, of) for name, (wrong, of) in found.items() if of.any() or name == "words_as_teacher"}


def figures(counts: Counts, of: Tensor) -> dict[str, Any]:
    """Shares with their errors over clips, plain and as the table of a run shows them."""
    out: dict[str, Any] = {"metrics": {}}
    for name, (part, whole) in counts.items():
        value, error = clustered(part, whole, of) if whole.any() else (1.0, None)  # where neither writes a word, both write the same
        percent = None if error is None else 100 * error
        out |= {name: value, f"{name}_error": error}
        out["metrics"][TITLES[name]] = {"value": 100 * value, "error": percent, "unit": "%", "lower_is_better": name != "words_as_teacher"}
    return out


def gap(student: Counts, other: Counts, of: Tensor) -> dict[str, float | None]:
    """The student's error rates minus another subject's, with errors paired over clips, in percent."""
    out: dict[str, float | None] = {}
    for name in (name for name in student if name in other and name != "words_as_teacher"):
        value, error = clustered(student[name][0] - other[name][0], student[name][1], of)
        out |= {TITLES[name]: 100 * value, f"{TITLES[name]}_error": None if error is None else 100 * error}
    return out
