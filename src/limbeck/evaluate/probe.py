"""What a linear map reads out of frozen states."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.evaluate._scoring import clustered, documents
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.signals import Row

AT_ONCE = {True: 8, False: 128}
"""Rows in one forward pass: of roles whose rows have positions, and of others."""


class Probe(Evaluator):
    r"""How often a linear map from a layer's frozen states, averaged over each row, finds the row's label.

    $$ W = \arg\min_W \frac{1}{n} \sum_{i} \| W \hat h_i - y_i \|^2 + \lambda \| W \|^2, \qquad
       \hat h_i = \text{the mean over positions, standardised} $$

    in closed form, with y the label as one of its kinds; the answer is the largest entry. Held-out rows that have a `label` are shared out to
    `folds` by the name of their document; each fold is answered by a map of the others, so that none has seen a row, or another piece of
    its document. Standard errors are over documents. For students that are used as a basis for other tasks, and where nothing of what the
    model itself says can be compared: masked models of two tokenizers, encoders of sound. A good figure says that the label can be
    read out, not that the model uses it; compare `most_frequent`, the share of the largest kind, in the part `probe`.

    Example:
        >>> Probe(layer=2).ranges["probe_accuracy"]
        (0.0, 1.0)

    References:
        Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016, arXiv:1610.01644.
    """

    kind: Literal["probe"] = "probe"
    measures: ClassVar[Literal["logits", "label", "score"]] = "label"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"probe_accuracy": (0.0, 1.0), "probe_accuracy_error": (0.0, 1.0)}
    layer: int = -1
    """Layer whose states are read: 1 is the first block, -1 the last; of image models, a stage."""
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """Parts that held-out rows are shared out to."""
    ridge: Annotated[float, Field(gt=0)] = 0.1
    """How much the size of the map costs; states have variance 1."""

    def __call__(self, exam: Exam) -> dict[str, Any]:
        rows = [row for row in exam.rows if isinstance(row.content.get("label"), (int, str))]
        kinds = sorted({str(row.content["label"]) for row in rows})
        fold = torch.tensor([self.fold(row) for row in rows], dtype=torch.long, device="cpu")
        if len(kinds) < 2 or len(fold.unique()) < 2:
            return {}
        label = torch.tensor([kinds.index(str(row.content["label"])) for row in rows], dtype=torch.long, device="cpu")
        out: dict[str, Any] = {}
        for subject in exam.subjects:
            with exam.open(subject) as role:
                if role.at_hand and role.offers & {"hidden", "stage"}:
                    right = self.right(pooled(role, rows, self.layer), label, len(kinds), fold)
                    value, error = clustered(right.double(), torch.ones(len(rows), device="cpu"), documents(rows))
                    figure = {"value": 100 * value, "error": None if error is None else 100 * error, "unit": "%"}
                    out[subject] = {"probe_accuracy": value, "probe_accuracy_error": error, "metrics": {"labels read out by a linear probe": figure}}
        share = float(torch.bincount(label).max() / len(label))
        return {**out, "probe": {"rows": len(rows), "kinds": len(kinds), "most_frequent": share, "layer": self.layer}}

    def fold(self, row: Row) -> int:
        """The part that a row belongs to, by its document: adding rows moves no other."""
        name = row.source or row.group or row.key
        return int.from_bytes(hashlib.sha256(f"fold {name}".encode("utf-8", "surrogatepass")).digest()[:8], "big") % self.folds

    def right(self, states: Float[Tensor, "row dim"], label: Int[Tensor, " row"], kinds: int, fold: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """Whether each row's label is found by a map of the rows in other parts."""
        found = torch.zeros_like(label, dtype=torch.bool)
        for number in fold.unique().tolist():
            inside = fold == number
            best = fitted(states[~inside], label[~inside], kinds, self.ridge, states[inside]).argmax(-1)
            found[inside] = best == label[inside]
        return found


def pooled(role: Role, rows: Sequence[Row], layer: int) -> Float[Tensor, "row dim"]:
    """The mean of a layer's states over each row, in double precision."""
    device = next((p.device for p in role.parameters()), torch.device("cpu"))
    name, out = f"{'hidden' if 'hidden' in role.offers else 'stage'}.{layer}", []
    with listening(role), torch.no_grad():
        for first in range(0, len(rows), at_once := AT_ONCE[role.ragged]):
            view = role.view(rows[first : first + at_once]).to(device)
            states = role.says(view, (name,), {})[name].double()
            out.append(by_row(states, view.rows("pos"), view.num_rows) if view.lengths is not None else states.flatten(2).mean(-1))
    return torch.cat(out).cpu()


def by_row(states: Float[Tensor, "pos dim"], row: Int[Tensor, " pos"], num: int) -> Float[Tensor, "row dim"]:
    """The mean over the positions of each row."""
    sums = states.new_zeros(num, states.shape[-1]).index_add(0, row, states)
    return sums / torch.bincount(row, minlength=num).clamp(min=1)[:, None]


def fitted(
    states: Float[Tensor, "row dim"], label: Int[Tensor, " row"], kinds: int, ridge: float, others: Float[Tensor, "other dim"]
) -> Float[Tensor, "other kind"]:
    """What a map of some rows says of others: ridge regression of each kind, which is 1 or 0."""
    mean, scale = states.mean(0), states.std(0, correction=0)
    scale = torch.where(scale > 1e-12, scale, 1.0)
    x, z = (states - mean) / scale, (others - mean) / scale
    y = torch.nn.functional.one_hot(label, kinds).to(x)
    gram = x.mT @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return z @ torch.linalg.solve(gram, x.mT @ (y - y.mean(0)) / len(x)) + y.mean(0)
