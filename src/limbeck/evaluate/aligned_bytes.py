"""How much of held-out text two tokenizers cut out alike."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal

from limbeck.errors import Refused
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role
from limbeck.text.chunks import coverage


class AlignedBytes(Evaluator):
    r"""What share of held-out text lies in chunks that each subject's tokenizer and the teacher's both cut out, and rows without any.

    $$ \mathrm{aligned\ bytes} = \frac{\text{bytes in chunks that begin and end at the same bytes of both}}{\text{bytes that are asked for}} $$

    What is outside is not taught by `align: byte_chunks`: a first token that one side cannot predict, text that one side has changed, what
    stands after the last common byte. With one tokenizer, only first tokens are. Nothing is measured without a teacher, or of tokenizers that
    do not keep every byte. It says nothing about how long chunks are: `bits_per_byte` of `perplexity` says how well the text is predicted.

    Example:
        >>> AlignedBytes().ranges["aligned_bytes"]
        (0.0, 1.0)

    References:
        Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025, arXiv:2503.20083.
    """

    kind: Literal["aligned_bytes"] = "aligned_bytes"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"aligned_bytes": (0.0, 1.0)}

    def __call__(self, exam: Exam) -> dict[str, Any]:
        teacher: Role | None = exam.context.get("teacher")
        if teacher is None and "teacher" in exam.subjects:
            with exam.open("teacher") as teacher:
                pass
        if teacher is None or teacher.tokenizer is None:
            return {}
        out: dict[str, Any] = {}
        for name in (name for name in exam.subjects if name != "teacher"):
            with exam.open(name) as role, suppress(Refused):
                out |= {} if role.tokenizer is None else {name: self.beside(exam, role, teacher)}
        return out

    def beside(self, exam: Exam, role: Role, teacher: Role) -> dict[str, float]:
        """The figures of one subject."""
        found = coverage(exam.rows, [role.tokenizer, teacher.tokenizer], [role.shift, teacher.shift], "evaluate aligned_bytes")
        share = sum(one.inside for one in found) / max(1, sum(one.asked for one in found))
        return {"aligned_bytes": share, "rows_without_chunks": sum(not one.chunks for one in found)}
