"""Branches from the map of a stage to logits: learned beside the student, and thrown away with the objective."""

from jaxtyping import Float
from torch import Tensor, nn

HEADS = 4
MOST_SIDE = 7
"""Grids of tokens are merged until they are no larger."""


def halved(side: int) -> int:
    return (side + 1) // 2


class Separable(nn.Module):
    """Two separable convolutions, the first of which halves the map.

    Each is depth-wise 3x3, then 1x1, a norm and a ReLU. The norm is over all channels and pixels of one image: batch norm would make the gradient
    depend on how a window is cut.
    """

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(part for stride, wide in ((2, dim), (1, out)) for part in (
                nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False),
                nn.Conv2d(dim, wide, 1, bias=False),
                nn.GroupNorm(1, wide),
                nn.ReLU(),
            ))
        )

    def forward(self, x: Float[Tensor, "row dim height width"]) -> Float[Tensor, "row out high wide"]:
        return self.layers(x)


class ConvolutionExit(nn.Module):
    """Halves a map until it is as small as the last one, doubling its channels, then pools and classifies."""

    def __init__(self, dim: int, side: int, smallest: int, least: int, classes: int):
        super().__init__()
        sides = [side]
        while sides[-1] > smallest:
            sides.append(halved(sides[-1]))
        widths = [dim * 2**i for i in range(len(sides))]
        widths[-1] = max(widths[-1], least) if len(sides) > 1 else dim
        last = [] if len(sides) > 1 else [nn.Conv2d(dim, least, 1)]
        self.layers = nn.Sequential(*(Separable(a, b) for a, b in zip(widths, widths[1:], strict=False)), *last)
        self.head = nn.Linear(widths[-1] if len(sides) > 1 else least, classes)

    def forward(self, x: Float[Tensor, "row dim height width"]) -> Float[Tensor, "row classes"]:
        return self.head(self.layers(x).mean((2, 3)))


class Merge(nn.Module):
    """Joins each two by two tokens into one; an odd grid loses its last row or column."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.map = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "row dim height width"]) -> Float[Tensor, "row dim high wide"]:
        high, wide = (side - side % 2 for side in x.shape[-2:])
        four = nn.functional.pixel_unshuffle(x[..., :high, :wide], 2)
        return self.map(self.norm(four.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class AttentionExit(nn.Module):
    """Merges tokens while there are more than 7x7, lets them attend to each other in some blocks, then takes their mean and classifies."""

    def __init__(self, dim: int, side: int, blocks: int, classes: int):
        super().__init__()
        merges = 0
        while side >> merges > MOST_SIDE:
            merges += 1
        heads = next(n for n in range(min(HEADS, dim), 0, -1) if dim % n == 0)
        self.merges = nn.Sequential(*(Merge(dim) for _ in range(merges)))
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(blocks))
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Float[Tensor, "row dim height width"]) -> Float[Tensor, "row classes"]:
        return self.head(self.norm(self.blocks(self.merges(x).flatten(2).mT)).mean(1))
