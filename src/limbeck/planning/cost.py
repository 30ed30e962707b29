"""Parameters, multiplications and memory of a role, from its shapes alone."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from limbeck.model.base import Role, matches
from limbeck.model.blocks import window_of
from limbeck.model.text import Text
from limbeck.signals import Head, Row

TRAINED_COPIES = 3
"""Gradients and the two means of AdamW, beside the weights."""
LOGIT_COPIES = 4
"""Logits of a chunk that exist at once: student, teacher, their log-probabilities."""


@dataclass(frozen=True)
class Cost:
    """What a role costs."""

    parameters: int
    weight_bytes: int
    """Of its own: a role that shares the weights of another one has none."""
    trained_bytes: int
    """Of those that may learn."""
    forward_flops: float
    """Of one position, with the head."""
    activation_bytes: float
    """Kept for the backward pass, of one position."""
    vocab: int
    layers: int
    width: int
    """Numbers of a final hidden state."""
    targets: int = 1
    """Predictions that what counts as a position asks for: of a whole row, where that costs what it says itself, all of them."""

    def train_bytes(self, positions: int, chunk: int) -> float:
        """Memory of training, with so many positions in a micro-batch."""
        return self.weight_bytes + TRAINED_COPIES * self.trained_bytes + positions * self.activation_bytes + LOGIT_COPIES * chunk * self.vocab * 4


def cost(role: Role, length: int = 128, rows: Sequence[Row] = ()) -> Cost:
    """The cost of a role on rows of some length, or like those; the module may be on the meta device. Members of a mixture are added up."""
    own = {id(p) for p in role.parameters()}
    first, *others = [single(speaker, length, own, rows) for speaker in role.speakers]
    added = {name: value for name, value in vars(first).items() if name not in ("vocab", "targets")}
    return replace(first, **{name: value + sum(vars(c)[name] for c in others) for name, value in added.items()})


def single(role: Role, length: int, own: Set[int], rows: Sequence[Row]) -> Cost:
    """The cost of one model; `own`: ids of the parameters that count as memory."""
    unique = {id(p): p for p in role.module.parameters()}.values()
    parameters, weight_bytes = sum(p.numel() for p in unique), sum(p.numel() * p.element_size() for p in unique if id(p) in own)
    trained_bytes = sum(p.numel() * p.element_size() for name, p in role.module.named_parameters() if not role.learns or matches(name, role.learns))
    flops, kept = 0.0, 0.0
    for module in role.module.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")  # its own: a layer with adapters shows that of its base
        if weight is None or isinstance(module, nn.Embedding):
            continue
        if weight.ndim == 2:
            flops += 2 * weight.numel()
        kept += 4 * weight.shape[-1] if weight.ndim <= 2 else 0  # each part keeps what it heard
    if (counted := role.row_cost(rows)) is not None:
        head = getattr(role, "head", None)
        width = head.weight.shape[-1] if isinstance(head, Head) else 0
        shared = length if role.ragged else 1  # a row's, shared out to its positions
        flops, kept = counted[0] / shared, counted[1] / shared
        return Cost(parameters, weight_bytes, trained_bytes, flops, kept, role.vocab or 0, role.num_layers, width, role.row_targets(rows))
    layers, vocab, width = role.num_layers, 0, 0
    if isinstance(role, Text):
        config: Any = role.module.config
        heads, dim = role.anatomy.size(config, "heads"), role.anatomy.size(config, "head_dim")
        vocab, width = role.anatomy.size(config, "vocab"), role.anatomy.size(config, "width")
        place = role.anatomy.place("mixer")
        parts = getattr(config, "layer_parts", None) or [{}] * layers
        windows = [window_of(config, i) if role.anatomy.causal else None for i in range(layers) if place not in parts[i]]
        flops += 4 * heads * dim * sum(min(length, window or length) for window in windows)  # scores and their sum over values
        kept += layers * 4 * (3 * heads * dim + 2 * role.anatomy.size(config, "mlp_width"))
    return Cost(parameters, weight_bytes, trained_bytes, flops, kept, vocab, layers, width)
