"""What tests of recurrences have in common: gradients of all that goes in, comparing all that comes out, counting work."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

EXACT = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}


def slopes(function: Callable[..., Sequence[Tensor]], values: Sequence[Tensor | None]) -> tuple[Sequence[Tensor], tuple[Tensor, ...]]:
    """What a function says (outputs, and the state after them if it has one), and the gradients of a sum of it with fixed weights."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in values]
    said = function(*leaves)
    total = sum((x * torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(x)).sum() for x in said)
    assert isinstance(total, Tensor)
    return said, torch.autograd.grad(total, [x for x in leaves if x is not None], materialize_grads=True)


def same(got: Any, wanted: Any, **bounds: float) -> None:
    """Compares tensors, in whatever they are put together, in the precision of what was got."""
    for one, two in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(one, two.to(one.dtype), **bounds)


class Counted(TorchDispatchMode):
    """Adds up how many numbers are made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers += sum(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))
        return out


def work(form: Callable[..., Sequence[Tensor]], values: Sequence[Tensor | None]) -> int:
    """Numbers that are made forward and backward; none of them is computed."""
    with Counted() as counted:
        slopes(form, [None if x is None else x.to("meta") for x in values])
    return counted.numbers
