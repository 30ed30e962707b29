"""What one forward pass costs, counted as it runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.model.base import listening


def measured_cost(module: nn.Module, run: Callable[[], object]) -> tuple[float, float]:
    """Multiplications and additions of one forward pass, and bytes that training keeps of it."""
    kept = [0]

    def note(_: nn.Module, __: Any, out: Any) -> None:
        kept[0] += out.numel() * out.element_size() if isinstance(out, Tensor) else 0

    hooks = [part.register_forward_hook(note) for part in module.modules() if not any(True for _ in part.children())]
    try:
        with listening(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return float(counter.get_total_flops()), float(kept[0])
