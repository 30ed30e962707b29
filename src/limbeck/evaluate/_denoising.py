"""How well a denoiser finds held-out samples in noise: always the same noise for a row, so that figures of two roles can be compared."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.model.base import Role, listening
from limbeck.noise.base import Noise
from limbeck.numerics import Streams
from limbeck.signals import Row, View

TIMES = 4
"""Times of each row, one in each quarter of the way from noise to sample."""


@torch.no_grad()
def velocity_errors(role: Role, rows: Sequence[Row], rows_at_once: int = 128) -> Float[Tensor, " row"]:
    """Mean squared error of the velocity that a role says of each row, over four times."""
    noise: Noise = role.parametrisation.noise
    device = next(role.parameters()).device
    out = []
    with listening(role):
        for first in range(0, len(rows), rows_at_once):
            some = rows[first : first + rows_at_once]
            view = role.view(some).to(device)
            clean = role.says(view, ("clean",), {})["clean"]
            streams = [Streams(0)("held out", row.key) for row in some]
            share = torch.stack([torch.rand(TIMES, generator=stream, device="cpu") for stream in streams])
            added = torch.stack([torch.randn(TIMES, *clean.shape[1:], generator=stream, device="cpu") for stream in streams]).to(clean)
            error = torch.zeros(len(some), device=device)
            for i in range(TIMES):
                time = noise.time((i + share[:, i].to(device)) / TIMES)
                inputs = {**view.inputs, "sample": noise.noised(clean, added[:, i], time), "time": time, "noise": added[:, i]}
                said = role.says(View(inputs), ("velocity", "flow"), {})
                error += (said["velocity"] - said["flow"]).square().flatten(1).mean(1).float() / TIMES
            out.append(error.cpu())
    return torch.cat(out)
