"""Points of a mixture of Gaussians."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.data.base import Place, Source, key_of
from limbeck.errors import Refused
from limbeck.model import gaussian_mixture as closed
from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.store import sha256_json


class GaussianMixture(Source):
    r"""Draws points around means on a circle of a plane; the class of a point is the number of its mean.

    $$ x \sim \tfrac{1}{K} \sum_k N(\mu_k, \tau^2 I), \qquad \mu_k = R\, (\cos \tfrac{2 \pi k}{K}, \sin \tfrac{2 \pi k}{K}) $$

    For trials of methods of diffusion: the best denoiser is known in closed form (a config file with `denoiser: gaussian_mixture` and the same
    numbers), so that a student can be held against the truth, and learns in seconds. Points are drawn by the seed alone.

    Example:
        >>> GaussianMixture(modes=5).radius
        1.0

    References:
        (folklore)
    """

    kind: Literal["gaussian_mixture"] = "gaussian_mixture"
    modes: int = Field(default=8, gt=0, le=1024)
    """Means."""
    radius: Annotated[float, Field(gt=0)] = 1.0
    """Of the circle."""
    width: Annotated[float, Field(gt=0)] = 0.1
    """Standard deviation of the points around each mean."""
    num: int = Field(default=4000, gt=0, le=10_000_000)
    """Points."""
    seed: int = 0
    """Of the draws."""
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of points that is held out for evaluation, chosen by hash."""
    licence: str | None = "CC0-1.0"
    """Of points that were drawn by a computer."""

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            do = "remove held_out"
            raise Refused("key", "data gaussian_mixture  held_out", "points, of which split holds out a share", f"held_out: {path}", do)
        known = Parametrisation(noise=RectifiedFlow(), predicts="denoised")
        mixture = closed.GaussianMixture(known, closed.ring(self.modes, self.radius), self.width)
        points, labels = mixture.draw(self.num, Streams(self.seed)("gaussian_mixture"))
        rows = []
        for point, label in zip(points, labels.tolist(), strict=True):
            name = key_of(point.numpy().tobytes().hex(), str(label))
            rows.append(Row(name, {"clean": point, "label": label}, str(label), source=name))
        facts = {"modes": self.modes, "radius": self.radius, "width": self.width, "num": self.num, "seed": self.seed}
        return rows, {"name": f"points of a mixture of {self.modes} Gaussians", "sha256": sha256_json(facts), "licence": self.licence}, []
