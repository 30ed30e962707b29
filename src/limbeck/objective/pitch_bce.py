"""Pitch from labels."""

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from limbeck.model.pitch_scale import bin_cents, cents
from limbeck.numerics import RULED_OUT, upcast
from limbeck.objective.base import Objective, by_chunks
from limbeck.signals import Needs, Signals, dense


class PitchBCE(Objective):
    r"""Binary cross-entropy of each bin of pitch against a bell around the true pitch; the sum over bins.

    $$ -\sum_b \Big( y_b \log q_b + (1 - y_b) \log (1 - q_b) \Big), \qquad y_b = \exp \Big( -\frac{(c_b - c)^2}{2 w^2} \Big) $$

    with c the pitch and $c_b$ that of a bin, in cents, and w the width of the bell: a near miss costs little. In frames without a pitch no bin
    is right. The published loss of CREPE, there as the mean over bins. Labels alone; beside `bernoulli_kl` it keeps a student honest where the
    teacher is wrong.

    Example:
        >>> PitchBCE(width=25.0).needs
        {'student': ('logits', 'pitch')}

    References:
        Kim, Salamon, Li and Bello, CREPE: A Convolutional Representation for Pitch Estimation, 2018, arXiv:1802.06182.
    """

    kind: Literal["pitch_bce"] = "pitch_bce"

    width: Annotated[float, Field(gt=0)] = 25.0
    """Standard deviation of the bell in cents."""
    chunk: int = Field(default=256, gt=0)
    """Targets whose logits exist at the same time."""

    @property
    def needs(self) -> Needs:
        return {"student": ("logits", "pitch")}

    def values(self, student: Signals) -> Float[Tensor, " target"]:
        return by_chunks(self.part, self.chunk, student["logits"], student["pitch"].detach())

    def part(self, q: Any, pitch: Float[Tensor, " target"]) -> Float[Tensor, " target"]:
        """The loss of one chunk."""
        s = upcast(dense(q)).clamp(min=RULED_OUT)
        y = self.bell(pitch, s)
        return (softplus(s) - y * s).sum(-1)

    def bell(self, pitch: Float[Tensor, " target"], like: Float[Tensor, "target bin"]) -> Float[Tensor, "target bin"]:
        """How right each bin is."""
        gap = bin_cents(like.shape[-1], like) - cents(pitch).to(like.dtype)[:, None]
        return torch.exp(-0.5 * (gap / self.width) ** 2)
