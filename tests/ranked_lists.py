"""Signals of lists of candidates, for tests of objectives that compare them."""

from collections.abc import Sequence
from typing import Any

import torch

from limbeck.signals import Signals


def lists(group: Sequence[int], **values: Any) -> Signals:
    """What a role says of rows in lists, in double precision; scores ask for gradients where they do already."""
    rows = torch.arange(len(group))
    floats = ("score", "given_score")
    tensors = {n: x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=torch.float64 if n in floats else None) for n, x in values.items()}
    return Signals(tensors, {"row": rows}, ("",) * len(group), torch.tensor(group), torch.ones(len(group)))
