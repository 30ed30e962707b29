"""What a simple classifier makes of the states of each subject."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.evaluate._scoring import clustered, documents
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.model.waves import noise_scale
from limbeck.numerics import Streams
from limbeck.signals import Row

AT_ONCE = 32
"""Rows in one forward pass."""


class Probe(Evaluator):
    r"""Reads the classes of held-out rows off each subject's frozen states by a linear map, and tells how often it is right.

    $$ W = (X^\top X + \lambda n I)^{-1} X^\top Y, \qquad \hat y = \arg\max_c \, (x W)_c $$

    x is the mean of a layer's states over the positions of a row, centred and scaled as the rows are on which the map is made; Y has a 1
    at the class. The map is in closed form, so nothing is drawn and no rate is tuned. Held-out documents are parted into `folds` by a hash:
    each is told by a map that was made on the others, with as many errors as they allow. Of sounds it is told again with white noise at each
    of `ratios`, by the map made on clean ones: what is lost there is what the states lack, not the classifier. `steady` is the cosine
    between the states of a clean and of a noisy sound, position by position. Choose it for encoders, which answer nothing themselves; where
    a model has classes of its own, `accuracy` tells more.

    Example:
        >>> Probe(ratios=(0, 5, 10)).names
        ('probe accuracy', 'probe accuracy at 0 dB', 'probe accuracy at 5 dB', 'probe accuracy at 10 dB')

    References:
        Alain and Bengio, Understanding Intermediate Layers Using Linear Classifier Probes, 2016, arXiv:1610.01644.
        Yang et al., SUPERB: Speech Processing Universal Performance Benchmark, 2021, arXiv:2105.01051.
    """

    kind: Literal["probe"] = "probe"
    measures: ClassVar[Literal["logits", "label", "score", "hidden"]] = "hidden"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"probe": (0.0, 1.0), "probe_error": (0.0, 1.0), "steady_0db": (-1.0, 1.0)}
    layer: int = -1
    """The layer that is read: -1 is the last block."""
    ratios: tuple[int, ...] = (0, 5, 10)
    """Signal-to-noise ratios in dB, of sounds."""
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Parts of the held-out documents."""
    ridge: Annotated[float, Field(gt=0)] = 0.01
    """What keeps the map small, beside states of variance 1."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each figure is called in the report."""
        return ("probe accuracy", *(f"probe accuracy at {ratio} dB" for ratio in self.ratios))

    def __call__(self, exam: Exam) -> dict[str, Any]:
        rows = [row for row in exam.rows if "label" in row.content]
        if len({row.content["label"] for row in rows}) < 2:
            return {}
        right, steady = {}, {}
        for name in exam.subjects:
            with exam.open(name) as role:
                if "hidden" in role.offers and role.represents:
                    right[name], steady[name] = self.told(role, rows, Streams(exam.seed))
        out: dict[str, Any] = {name: self.figures(right[name], steady[name], rows) for name in right}
        if "student" in right:
            out["gaps"] = {name: self.gap(right["student"], right[name], rows) for name in right if name != "student"}
        return out

    def told(self, role: Role, rows: Sequence[Row], streams: Streams) -> tuple[list[Tensor], list[float]]:
        """Where the map was right, clean and at each ratio; and how alike clean and noisy states are at each."""
        label = torch.tensor([row.content["label"] for row in rows], dtype=torch.long, device="cpu")
        fold = torch.tensor([streams.number("probe", row.source or row.key) % self.folds for row in rows], dtype=torch.long, device="cpu")
        ratios = self.ratios if "wave" in rows[0].content else ()
        parts: list[list[Tensor]] = [[] for _ in (None, *ratios)]
        alike: list[list[Tensor]] = [[] for _ in ratios]
        for first in range(0, len(rows), AT_ONCE):
            some = rows[first : first + AT_ONCE]
            mean, states = self.states(role, some)
            parts[0].append(mean)
            for i, ratio in enumerate(ratios):
                mean, other = self.states(role, [noisy(row, ratio, streams) for row in some])
                parts[i + 1].append(mean)
                alike[i].append(torch.cosine_similarity(states, other, dim=-1))
        clean, *_ = heard = [torch.cat(each) for each in parts]
        right = [torch.zeros(len(rows), dtype=torch.float64, device="cpu") for _ in heard]
        for i in range(self.folds):
            inside, outside = fold == i, fold != i
            if inside.any() and outside.any():
                classify = fitted(clean[outside], label[outside], self.ridge)
                for found, x in zip(right, heard, strict=True):
                    found[inside] = (classify(x[inside]) == label[inside]).double()
        return right, [float(torch.cat(each).mean()) for each in alike]

    def states(self, role: Role, rows: Sequence[Row]) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "pos dim"]]:
        """Mean states of rows, and the states themselves."""
        name, view = f"hidden.{self.layer}", role.view(rows).to(next(role.parameters()).device)
        with listening(role), torch.no_grad():
            said = role.says(view, (name,), {})[name].double().cpu()
        of, none = view.rows("pos").cpu(), said.new_zeros(view.num_rows, said.shape[1])
        return none.index_add(0, of, said) / torch.bincount(of, minlength=view.num_rows)[:, None], said

    def figures(self, right: Sequence[Tensor], steady: Sequence[float], rows: Sequence[Row]) -> dict[str, Any]:
        """Shares with their errors over documents, plain and as the table of a run shows them."""
        out: dict[str, Any] = {"metrics": {}}
        short = ("probe", *(f"probe_{ratio}db" for ratio in self.ratios))
        for name, key, each in zip(self.names, short, right, strict=False):
            value, error = share(each, rows)
            out |= {key: value, f"{key}_error": error}
            out["metrics"][name] = {"value": 100 * value, "error": 100 * error if error is not None else None, "unit": "%", "lower_is_better": False}
        return out | {f"steady_{ratio}db": value for ratio, value in zip(self.ratios, steady, strict=False)}

    def gap(self, student: Sequence[Tensor], other: Sequence[Tensor], rows: Sequence[Row]) -> dict[str, float | None]:
        """The student's shares minus another subject's, with errors paired over documents, in percent."""
        out: dict[str, float | None] = {}
        for name, mine, theirs in zip(self.names, student, other, strict=False):
            value, error = share(mine - theirs, rows)
            out |= {name: 100 * value, f"{name}_error": 100 * error if error is not None else None}
        return out


def share(values: Float[Tensor, " row"], rows: Sequence[Row]) -> tuple[float, float | None]:
    """Mean over rows, and its standard error over documents."""
    return clustered(values, torch.ones_like(values), documents(rows))


def fitted(x: Float[Tensor, "row dim"], label: Int[Tensor, " row"], ridge: float) -> Any:
    """A linear classifier in closed form."""
    centre, spread = x.mean(0), x.std(0, correction=0).clamp(min=1e-9)
    scaled = (x - centre) / spread
    target = torch.nn.functional.one_hot(label).to(x)
    middle = target.mean(0)
    gram = scaled.mT @ scaled + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, scaled.mT @ (target - middle))
    return lambda other: (((other - centre) / spread) @ weight + middle).argmax(-1)


def noisy(row: Row, ratio: int, streams: Streams) -> Row:
    """A sound with white noise, always the same for the row and the ratio."""
    wave = row.content["wave"]
    noise = torch.randn(len(wave), generator=streams("probe", row.key, ratio), device="cpu").to(wave)
    return replace(row, key=f"{row.key}~{ratio}", content={**row.content, "wave": wave + noise * noise_scale(wave, noise, ratio)})
