"""No MLP."""

from typing import Any, Literal

from torch import nn

from limbeck.block.base import FeedForward, Mlp, MlpShape


class NoMlp(FeedForward):
    r"""Takes the MLP out of a block and puts nothing in its place.

    $$ h \leftarrow h + 0 $$

    Most parameters of a block are in its MLP, so this saves most, and costs most: `narrow_mlp` and `linear_mlp` lie between. `drop_blocks`
    takes whole blocks out, and needs no code beside the weights.

    Example:
        >>> NoMlp().kind
        'no_mlp'

    References:
        Bercovich et al., Puzzle: Distillation-Based NAS for Inference-Optimized LLMs, 2024, arXiv:2411.19146.
    """

    kind: Literal["no_mlp"] = "no_mlp"

    def spec(self, shape: MlpShape) -> dict[str, Any]:
        return self.numbers()

    def begin(self, module: nn.Module, taught: Mlp) -> dict[str, str]:
        return {}
