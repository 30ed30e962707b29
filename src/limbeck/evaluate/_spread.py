"""How alike two clouds of points are: Fréchet distance, sliced Wasserstein distance, precision and recall of manifolds."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "row dim"]
SLICES, NEIGHBOURS = 128, 3
FEWEST = 8
"""Points of a class that a distance of its own needs."""
AT_ONCE = 512
WIDE = 1024
"""Numbers of a point from which on covariances would cost more than the points: those of latents, and of photographs."""
NAMES = {
    "frechet": ("Fréchet", True),
    "class_frechet": ("Fréchet by class", True),
    "sliced_w2": ("Sliced Wasserstein", True),
    "precision": ("Precision", False),
    "recall": ("Recall", False),
    "milliseconds": ("Time of a sample", True),
}
"""Figure -> what the table of a run calls it, and whether less is better."""


def frechet(a: Points, b: Points) -> float:
    r"""Squared Fréchet distance of the Gaussians of both: $\|\mu_a - \mu_b\|^2 + \mathrm{tr}(S_a + S_b - 2 (S_a S_b)^{1/2})$, in float64.

    Of points of many numbers no covariance is made: with centred points X and Y the last trace is the sum of the singular values of $X Y^\top$.
    """
    a, b = a.double(), b.double()
    if a.shape[1] > WIDE:
        x, y = ((each - each.mean(0)) / math.sqrt(len(each) - 1) for each in (a, b))
        moved = (a.mean(0) - b.mean(0)).square().sum()
        return float(moved + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum())
    of_a, of_b = (torch.cov(x.T).reshape(x.shape[1], x.shape[1]) for x in (a, b))
    values, vectors = torch.linalg.eigh(of_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ of_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + of_a.trace() + of_b.trace() - 2 * both)


def frechet_by_class(a: Points, of_a: Tensor, b: Points, of_b: Tensor) -> dict[str, float]:
    """The mean of that distance over classes with enough points on both sides; nothing where there is none."""
    some = [c for c in of_b.unique() if min((of_a == c).sum(), (of_b == c).sum()) >= FEWEST]
    return {"class_frechet": sum(frechet(a[of_a == c], b[of_b == c]) for c in some) / len(some)} if some else {}


def sliced_w2(a: Points, b: Points, stream: torch.Generator) -> float:
    """Root of the mean squared Wasserstein distance along directions that are drawn; clouds of two sizes are compared by quantiles."""
    direction = torch.randn(a.shape[1], SLICES, generator=stream, dtype=torch.float64, device="cpu")
    direction = direction / direction.norm(dim=0)
    num = max(len(a), len(b))
    place = (torch.arange(num, dtype=torch.float64, device="cpu") + 0.5) / num
    first, second = ((x.double().cpu() @ direction).sort(0).values[(place * len(x)).long().clamp(max=len(x) - 1)] for x in (a, b))
    return math.sqrt(float((first - second).square().mean()))


def inside(points: Points, cloud: Points) -> float:
    """Share of points that lie within the ball of some point of the cloud: its radius reaches the third nearest of the cloud."""
    cloud, points = cloud.float(), points.float()
    most = min(NEIGHBOURS, len(cloud) - 1)
    radius = torch.cat([torch.cdist(some, cloud).kthvalue(most + 1, dim=1).values for some in cloud.split(AT_ONCE)])
    return float(torch.cat([(torch.cdist(some, cloud) <= radius).any(1) for some in points.split(AT_ONCE)]).double().mean())


def covered(points: Points, data: Points, label: Tensor) -> float:
    """Share of the classes of the data that get at least a quarter of the points that they should: a point is of its nearest datum's class."""
    nearest = torch.cat([torch.cdist(some.float(), data.float()).argmin(1) for some in points.split(AT_ONCE)])
    num = int(label.max()) + 1
    found, expected = (torch.bincount(of, minlength=num).double() / len(of) for of in (label[nearest], label))
    there = expected > 0
    return float((found[there] >= expected[there] / 4).double().mean())
