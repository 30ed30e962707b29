"""Parameters, multiplications and memory of a role, from its shapes alone."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from limbeck.model.base import Role
from limbeck.model.text import Text

TRAINED_COPIES = 4
"""Weights, gradients and the two means of AdamW."""
LOGIT_COPIES = 4
"""Logits of a chunk that exist at once: student, teacher, their log-probabilities."""


@dataclass(frozen=True)
class Cost:
    """What a role costs."""

    parameters: int
    weight_bytes: int
    forward_flops: float
    """Of one position, with the head."""
    activation_bytes: float
    """Kept for the backward pass, of one position."""
    vocab: int
    layers: int
    width: int
    """Numbers of a final hidden state."""

    def train_bytes(self, positions: int, chunk: int) -> float:
        """Memory of training, with so many positions in a micro-batch."""
        return TRAINED_COPIES * self.weight_bytes + positions * self.activation_bytes + LOGIT_COPIES * chunk * self.vocab * 4


def cost(role: Role, length: int = 128) -> Cost:
    """The cost of a role on rows of some length; the module may be on the meta device."""
    unique = {id(p): p for p in role.module.parameters()}.values()
    parameters, weight_bytes = sum(p.numel() for p in unique), sum(p.numel() * p.element_size() for p in unique)
    flops, kept = 0.0, 0.0
    for module in role.module.modules():
        weight = getattr(module, "weight", None)
        if weight is None or isinstance(module, nn.Embedding):
            continue
        if weight.ndim == 2:
            flops += 2 * weight.numel()
        kept += 4 * weight.shape[-1] if weight.ndim <= 2 else 0  # each part keeps what it heard
    layers, vocab, width = role.num_layers, 0, 0
    if isinstance(role, Text):
        config: Any = role.module.config
        heads, dim = role.anatomy.size(config, "heads"), role.anatomy.size(config, "head_dim")
        vocab, width = role.anatomy.size(config, "vocab"), role.anatomy.size(config, "width")
        flops += layers * 4 * heads * dim * length  # scores and their sum over values
        kept += layers * 4 * (3 * heads * dim + 2 * role.anatomy.size(config, "mlp_width"))
    return Cost(parameters, weight_bytes, flops, kept, vocab, layers, width)
