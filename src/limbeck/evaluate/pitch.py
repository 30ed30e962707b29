"""How often a pitch is right."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.evaluate._scoring import clustered, documents
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.model.pitch import Pitch as PitchRole
from limbeck.model.pitch_scale import cents, decoded
from limbeck.signals import Row, dense

AT_ONCE = 8
"""Rows in one forward pass."""
OCTAVE = 1200


class Pitch(Evaluator):
    r"""How often each subject's pitch is within 50 cents of the true one, and how often it is up to octaves, over frames that have a pitch.

    $$ \mathrm{RPA} = \frac{1}{|V|} \sum_{t \in V} [\,|\hat c_t - c_t| < 50\,], \qquad
       \mathrm{RCA} = \frac{1}{|V|} \sum_{t \in V} [\,\min_k |\hat c_t - c_t + 1200 k| < 50\,] $$

    with V the frames that have a pitch and $\hat c$ the mean of the bins around the highest one. Standard errors are over clips. What is said in
    frames without a pitch is not judged. Far above one half of the time right, a figure within 50 cents hides how fine a student is: take a
    smaller `within`, or look at `pitch_gap`, the mean distance in cents of the frames that are right.

    Example:
        >>> Pitch(within=25).ranges["pitch_accuracy"]
        (0.0, 1.0)

    References:
        Poliner et al., Melody Transcription From Music Audio: Approaches and Evaluation, 2007, IEEE TASLP 15(4).
        Kim, Salamon, Li and Bello, CREPE: A Convolutional Representation for Pitch Estimation, 2018, arXiv:1802.06182.
    """

    kind: Literal["pitch"] = "pitch"
    measures: ClassVar[Literal["logits", "label", "score", "hidden", "blocks", "sample", "pitch"]] = "pitch"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"pitch_accuracy": (0.0, 1.0), "chroma_accuracy": (0.0, 1.0)}
    within: Annotated[float, Field(gt=0, le=600)] = 50.0
    """Cents by which a pitch may be off."""

    def __call__(self, exam: Exam) -> dict[str, Any]:
        rows = [row for row in exam.rows if isinstance(row.content.get("pitch"), Tensor) and bool((row.content["pitch"] > 0).any())]
        if not rows:
            return {}
        true = torch.cat([row.content["pitch"] for row in rows]).double()
        row_of = torch.arange(len(rows), device="cpu").repeat_interleave(torch.tensor([len(row.content["pitch"]) for row in rows], device="cpu"))
        voiced = true > 0
        of = documents(rows)[row_of[voiced]]
        right: dict[str, dict[str, Bool[Tensor, " frame"]]] = {}
        out: dict[str, Any] = {}
        for subject in exam.subjects:
            with exam.open(subject) as role:
                if isinstance(role, PitchRole):
                    gap = said(role, rows)[voiced] - cents(true[voiced])
                    right[subject] = {"pitch": gap.abs() < self.within, "chroma": folded(gap).abs() < self.within}
                    out[subject] = self.figures(right[subject], gap, of)
        mine = right.get("student")
        gaps = {name: self.gap(mine, each, of) for name, each in right.items() if name != "student" and mine is not None}
        facts = {"clips": len(rows), "frames": int(voiced.sum()), "within": self.within}
        return {**out, **({"gaps": gaps} if gaps else {}), "pitch": facts}

    def figures(self, right: Mapping[str, Bool[Tensor, " frame"]], gap: Float[Tensor, " frame"], of: Int[Tensor, " frame"]) -> dict[str, Any]:
        """Shares with their errors over clips, plain and as the table of a run shows them."""
        near = right["pitch"]
        out: dict[str, Any] = {"pitch_gap": float(gap[near].abs().mean()) if near.any() else None, "metrics": {}}
        for name, each in right.items():
            value, error = clustered(each.double(), torch.ones(len(each), device="cpu"), of)
            out |= {f"{name}_accuracy": value, f"{name}_accuracy_error": error}
            percent = None if error is None else 100 * error
            out["metrics"][self.titled(name)] = {"value": 100 * value, "error": percent, "unit": "%", "lower_is_better": False}
        return out

    def gap(self, student: Mapping[str, Tensor], other: Mapping[str, Tensor], of: Int[Tensor, " frame"]) -> dict[str, float | None]:
        """The student's shares minus another subject's, with errors paired over clips, in percent."""
        out: dict[str, float | None] = {}
        for name in student:
            value, error = clustered(student[name].double() - other[name].double(), torch.ones(len(of), device="cpu"), of)
            out |= {self.titled(name): 100 * value, f"{self.titled(name)}_error": None if error is None else 100 * error}
        return out

    def titled(self, name: str) -> str:
        """What a figure is called in the report."""
        return f"{'pitches' if name == 'pitch' else 'pitch classes'} within {self.within:g} cents"


def folded(gap: Float[Tensor, " frame"]) -> Float[Tensor, " frame"]:
    """A distance in cents less all whole octaves in it."""
    return gap - OCTAVE * torch.floor(gap / OCTAVE + 0.5)


def said(role: Role, rows: Sequence[Row]) -> Float[Tensor, " frame"]:
    """The pitch of each frame in cents, in double precision."""
    device, found = next((p.device for p in role.parameters()), torch.device("cpu")), []
    with listening(role), torch.no_grad():
        for first in range(0, len(rows), AT_ONCE):
            view = role.view(rows[first : first + AT_ONCE]).to(device)
            found.append(decoded(dense(role.says(view, ("logits",), {})["logits"]).double()).cpu())
    return torch.cat(found)
