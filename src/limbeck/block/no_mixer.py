"""No attention."""

from typing import Any, Literal

from torch import nn

from limbeck.block.base import Attention, Mixer, Shape


class NoMixer(Mixer):
    r"""Takes attention out of a block and puts nothing in its place: its MLP hears the residual stream as it came in.

    $$ h \leftarrow h + 0 $$

    The cheapest choice there is; deep in a model there are often blocks that can spare their attention. `drop_blocks` takes whole blocks
    out, and needs no code beside the weights.

    Example:
        >>> NoMixer().kind
        'no_mixer'

    References:
        He et al., What Matters in Transformers? Not All Attention is Needed, 2024, arXiv:2406.15786.
    """

    kind: Literal["no_mixer"] = "no_mixer"

    def spec(self, shape: Shape) -> dict[str, Any]:
        return self.numbers()

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        return {}

    def state_bytes(self, shape: Shape, length: int, itemsize: int = 4) -> int:
        return 0

    def flops(self, shape: Shape, length: int) -> float:
        return 0.0
