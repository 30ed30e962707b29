"""Networks that share the way from noise to sample among them."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.model.parametrisation import Parametrisation


class Experts(nn.Module):
    """Denoisers of one kind, of which each is asked about its own stretch of times: the first where there is most noise.

    A stretch begins at a rung of a sampler and ends before the rung that the next one begins at.
    """

    def __init__(self, experts: Sequence[nn.Module], rungs: int):
        """Args:
        experts: from noise to sample; all of one architecture, schedule and prediction.
        rungs: steps of the sampler, which the experts share evenly.
        """
        super().__init__()
        first: Any = experts[0]
        self.experts = nn.ModuleList(experts)
        self.parametrisation: Parametrisation = first.parametrisation
        grid = self.parametrisation.noise.grid(rungs).tolist()
        self.begins = [grid[rungs * i // len(experts)] for i in range(1, len(experts))]
        """Time at which each expert but the first is asked first."""
        stock, plain = "denoiser" not in first.config, {key: value for key, value in dict(first.config).items() if not key.startswith("_")}
        self.config = {
            "denoiser": "experts",
            "num": len(experts),
            "rungs": rungs,
            "null_label": self.parametrisation.null_label if stock else None,
            "each": {"_class_name": type(first).__name__, **plain} if stock else plain,
        }

    def of(self, time: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
        """The number of the expert that is asked about each row."""
        return (time[:, None] <= torch.tensor(self.begins, dtype=time.dtype, device=time.device)).sum(1)
