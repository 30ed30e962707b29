"""Certainty where the student is right."""

from typing import Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.numerics import log_probs
from limbeck.objective.base import Objective, by_chunks
from limbeck.signals import Needs, Signals, dense


class ConfidentEntropy(Objective):
    r"""Entropy of what the student says, at those targets where its best entry is the label already.

    $$ [\arg\max q = y] \cdot \Big( -\sum_v q_v \log q_v \Big) $$

    Beside the cross-entropy of a model that fills in several tokens at once: what is right becomes certain, and a decoder that accepts
    what is certain accepts more of it in each pass. The mean is over all targets, right or wrong, since a count must not depend on what
    learns: weigh it by 2 or so. Alone it teaches nothing new.

    Example:
        >>> ConfidentEntropy().needs
        {'student': ('logits', 'label')}

    References:
        Bie et al., LLaDA2.0: Scaling Up Diffusion Language Models to 100B, 2025, arXiv:2512.15745 (confidence-aware parallel training).
        Chen et al., dParallel: Learnable Parallel Decoding for dLLMs, 2025, arXiv:2509.26488.
    """

    kind: Literal["confident_entropy"] = "confident_entropy"
    chunk: int = Field(default=256, gt=0)
    """Targets whose logits exist at the same time."""

    @property
    def needs(self) -> Needs:
        return {"student": ("logits", "label")}

    def values(self, student: Signals) -> Float[Tensor, " target"]:
        return by_chunks(self.part, self.chunk, student["logits"], student["label"])

    def part(self, q: Any, label: Any) -> Float[Tensor, " target"]:
        """The entropy of one chunk, where it counts: this function compiles whole."""
        log_q = log_probs(dense(q))
        entropy = -(log_q.exp() * log_q).sum(-1)
        return entropy * (log_q.argmax(-1) == label)
