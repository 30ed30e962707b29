"""What a linear map reads out of frozen states."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.evaluate._scoring import clustered, documents
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.model.waves import noise_scale
from limbeck.numerics import Streams
from limbeck.signals import Row

AT_ONCE = {True: 8, False: 128}
"""Rows in one forward pass: of roles whose rows have positions, and of others."""
NAME = "labels read out by a linear probe"
"""What the figure is called in the report."""


class Probe(Evaluator):
    r"""How often a linear map from a layer's frozen states, averaged over each row, finds the row's label.

    $$ W = \arg\min_W \frac{1}{n} \sum_{i} \| W \hat h_i - y_i \|^2 + \lambda \| W \|^2,
       \qquad \hat h_i = \text{the mean over positions, standardised} $$

    in closed form, with y the label as one of its kinds; the answer is the largest entry. Held-out rows that have a `label` are shared out to
    `folds` by the name of their document; each fold is answered by a map of the others, so that none has seen a row, or another piece of
    its document. Standard errors are over documents. Of sounds it is told again with white noise at each of `ratios`, by the map made on
    clean ones: what is lost there is what the states lack, not the map; `steady` is the cosine between states of a clean and of a noisy
    sound, position by position. For students that are used as a basis for other tasks, and where nothing of what the model itself says can
    be compared: masked models of two tokenizers, encoders of sound. A good figure says that the label can be read out, not that the model
    uses it; compare `most_frequent`, the share of the largest kind, in the part `probe`.

    Example:
        >>> Probe(layer=2).ranges["probe_accuracy"]
        (0.0, 1.0)

    References:
        Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016, arXiv:1610.01644.
        Yang et al., SUPERB: Speech Processing Universal Performance Benchmark, 2021, arXiv:2105.01051.
    """

    kind: Literal["probe"] = "probe"
    measures: ClassVar[Literal["logits", "label", "score", "hidden"]] = "hidden"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"probe_accuracy": (0.0, 1.0), "probe_accuracy_0db": (0.0, 1.0), "steady_0db": (-1.0, 1.0)}
    layer: int = -1
    """Layer whose states are read: 1 is the first block, -1 the last; of image models, a stage."""
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """Parts that held-out rows are shared out to."""
    ridge: Annotated[float, Field(gt=0)] = 0.1
    """How much the size of the map costs; states have variance 1."""
    ratios: tuple[int, ...] = (0, 5, 10)
    """Signal-to-noise ratios in dB at which sounds are heard again; other rows are not."""

    def __call__(self, exam: Exam) -> dict[str, Any]:
        rows = [row for row in exam.rows if isinstance(row.content.get("label"), (int, str))]
        kinds = sorted({str(row.content["label"]) for row in rows})
        fold = torch.tensor([self.fold(row) for row in rows], dtype=torch.long, device="cpu")
        if len(kinds) < 2 or len(fold.unique()) < 2:
            return {}
        label = torch.tensor([kinds.index(str(row.content["label"])) for row in rows], dtype=torch.long, device="cpu")
        heard = ("", *(f"_{ratio}db" for ratio in self.ratios if "wave" in rows[0].content))
        right: dict[str, list[Tensor]] = {}
        out: dict[str, Any] = {}
        for subject in exam.subjects:
            with exam.open(subject) as role:
                if role.at_hand and role.offers & {"hidden", "stage"}:
                    states, alike = self.states(role, rows, len(heard) - 1, Streams(exam.seed))
                    right[subject] = self.right(states, label, len(kinds), fold)
                    steady = {f"steady{name}": value for name, value in zip(heard[1:], alike, strict=True)}
                    out[subject] = {**self.figures(heard, right[subject], rows), **steady}
        gaps = {name: self.gap(heard, right["student"], right[name], rows) for name in right if name != "student" and "student" in right}
        share = float(torch.bincount(label).max() / len(label))
        probe = {"rows": len(rows), "kinds": len(kinds), "most_frequent": share, "layer": self.layer}
        return {**out, **({"gaps": gaps} if gaps else {}), "probe": probe}

    def fold(self, row: Row) -> int:
        """The part that a row belongs to, by its document: adding rows moves no other."""
        name = row.source or row.group or row.key
        return int.from_bytes(hashlib.sha256(f"fold {name}".encode("utf-8", "surrogatepass")).digest()[:8], "big") % self.folds

    def states(self, role: Role, rows: Sequence[Row], noises: int, streams: Streams) -> tuple[list[Float[Tensor, "row dim"]], list[float]]:
        """Mean states of rows as they are and at each ratio, in double precision; and how alike states are to the clean ones."""
        parts: list[list[Tensor]] = [[] for _ in range(noises + 1)]
        alike: list[list[Tensor]] = [[] for _ in range(noises)]
        for first in range(0, len(rows), at_once := AT_ONCE[role.ragged]):
            some = rows[first : first + at_once]
            mean, clean = pooled(role, some, self.layer)
            parts[0].append(mean)
            for i, ratio in enumerate(self.ratios[:noises]):
                mean, other = pooled(role, [noisy(row, ratio, streams) for row in some], self.layer)
                parts[i + 1].append(mean)
                alike[i].append(torch.cosine_similarity(clean, other, dim=-1))
        return [torch.cat(each) for each in parts], [float(torch.cat(each).mean()) for each in alike]

    def right(
        self, states: Sequence[Float[Tensor, "row dim"]], label: Int[Tensor, " row"], kinds: int, fold: Int[Tensor, " row"]
    ) -> list[Bool[Tensor, " row"]]:
        """Whether each row's label is found by a map of the rows in other parts, made on the first of the states."""
        found = [torch.zeros_like(label, dtype=torch.bool) for _ in states]
        for number in fold.unique().tolist():
            inside = fold == number
            said = fitted(states[0][~inside], label[~inside], kinds, self.ridge, torch.cat([x[inside] for x in states]))
            for each, best in zip(found, said.argmax(-1).chunk(len(states)), strict=True):
                each[inside] = best == label[inside]
        return found

    def figures(self, heard: Sequence[str], right: Sequence[Tensor], rows: Sequence[Row]) -> dict[str, Any]:
        """Shares with their errors over documents, plain and as the table of a run shows them."""
        out: dict[str, Any] = {"metrics": {}}
        for name, each in zip(heard, right, strict=True):
            value, error = clustered(each.double(), torch.ones(len(rows), device="cpu"), documents(rows))
            out |= {f"probe_accuracy{name}": value, f"probe_accuracy{name}_error": error}
            percent = None if error is None else 100 * error
            out["metrics"][titled(name)] = {"value": 100 * value, "error": percent, "unit": "%", "lower_is_better": False}
        return out

    def gap(self, heard: Sequence[str], student: Sequence[Tensor], other: Sequence[Tensor], rows: Sequence[Row]) -> dict[str, float | None]:
        """The student's shares minus another subject's, with errors paired over documents, in percent."""
        out: dict[str, float | None] = {}
        for name, mine, theirs in zip(heard, student, other, strict=True):
            value, error = clustered(mine.double() - theirs.double(), torch.ones(len(rows), device="cpu"), documents(rows))
            out |= {titled(name): 100 * value, f"{titled(name)}_error": None if error is None else 100 * error}
        return out


def titled(name: str) -> str:
    """What a figure is called in the report."""
    return f"{NAME} at {name.strip('_').removesuffix('db')} dB" if name else NAME


def pooled(role: Role, rows: Sequence[Row], layer: int) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "unit dim"]]:
    """The mean of a layer's states over each row, and the states themselves, in double precision."""
    device = next((p.device for p in role.parameters()), torch.device("cpu"))
    name, view = f"{'hidden' if 'hidden' in role.offers else 'stage'}.{layer}", role.view(rows).to(device)
    with listening(role), torch.no_grad():
        states = role.says(view, (name,), {})[name].double()
    mean = by_row(states, view.rows("pos"), view.num_rows) if view.lengths is not None else states.flatten(2).mean(-1)
    return mean.cpu(), states.flatten(1).cpu()


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


def noisy(row: Row, ratio: int, streams: Streams) -> Row:
    """A sound with white noise, always the same for the row and the ratio."""
    wave = row.content["wave"]
    noise = torch.randn(len(wave), generator=streams("probe", row.key, ratio), device="cpu").to(wave)
    return replace(row, key=f"{row.key}~{ratio}", content={**row.content, "wave": wave + noise * noise_scale(wave, noise, ratio)})
