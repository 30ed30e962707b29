"""Mixes images of a window in pairs, and their labels alike."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.data.base import Place, Step
from limbeck.errors import Refused
from limbeck.signals import Batch


class MixImages(Step):
    r"""Mixes each image of a window with another one, by weight or by pasting a box of it, and its label by the same share.

    $$ x = \lambda x_i + (1 - \lambda) x_j, \qquad y = \lambda y_i + (1 - \lambda) y_j, \qquad \lambda \sim \mathrm{Beta}(\alpha, \alpha) $$

    With a box (cutmix) $\lambda$ is the share of the image that is left. The label becomes a distribution over the classes, which
    `cross_entropy` and `target_aware_ce` read as such; teacher and student see the same mixed image. All is drawn on the whole window
    before it is cut. Choose it for long training of models that would learn their few images by heart; short runs lose by it.

    Example:
        >>> MixImages(cutmix=0.0).mixup
        0.8

    References:
        Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018, arXiv:1710.09412.
        Yun et al., CutMix, 2019, arXiv:1905.04899.
    """

    kind: Literal["mix_images"] = "mix_images"
    inputs: ClassVar[tuple[str, ...]] = ("pixels", "label")
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.8
    """Parameter of the Beta distribution of weights; 0: none is mixed so."""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 1.0
    """The same for boxes; where both are above 0, each row takes one or the other, as often."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of rows that are mixed."""

    @model_validator(mode="after")
    def changes_something(self) -> "MixImages":
        if not self.mixup and not self.cutmix:
            raise ValueError("mixup or cutmix above 0: else nothing is mixed")
        return self

    def window(self, batch: Batch, place: Place, memory: object) -> Batch:
        number = len(batch.keys)
        if not number:
            return batch
        draw = np.random.default_rng(place.streams.number("mix_images", place.window))
        partner = draw.permutation(number)
        boxed = draw.random(number) < 0.5 if self.mixup and self.cutmix else np.full(number, not self.mixup)
        weight = np.where(boxed, *(draw.beta(a or 1.0, a or 1.0, number) for a in (self.cutmix, self.mixup)))
        weight = np.where(draw.random(number) < self.share, weight, 1.0)
        centre, views, kept = draw.random((2, number)), dict(batch.views), weight
        for role, view in views.items():
            if not {"pixels", "label"} <= view.inputs.keys():
                do = "use a source of images with classes, or remove mix_images"
                raise Refused("data", "data mix_images", "rows that hold pixels and a label", ", ".join(view.inputs), do)
            pixels, label = view.inputs["pixels"].float(), distribution(view.inputs["label"], place.models[role].vocab)
            mine = portion(weight, boxed, centre, pixels)
            kept = mine.mean((1, 2, 3), dtype=torch.float64).numpy()
            other, share = torch.as_tensor(partner, device=pixels.device), mine.mean((1, 2, 3))[:, None]
            mixed = {"pixels": mine * pixels + (1 - mine) * pixels[other], "label": share * label + (1 - share) * label[other]}
            views[role] = replace(view, inputs={**view.inputs, **mixed})
        pairs = zip(batch.keys, partner.tolist(), kept.tolist(), strict=True)
        keys = tuple(key if share == 1 else f"{key}+{batch.keys[j]}@{share:.6f}" for key, j, share in pairs)
        return replace(batch, views=views, keys=keys)


def distribution(label: Tensor, classes: int | None) -> Float[Tensor, "target vocab"]:
    """Labels as shares of the classes."""
    if label.is_floating_point():
        return label
    if classes is None:
        do = "use a model of timm or transformers"
        raise Refused("label", "data mix_images", "a student that knows its number of classes", "one that does not", do)
    return torch.nn.functional.one_hot(label, classes).float()


def portion(weight: Any, boxed: Any, centre: Any, pixels: Float[Tensor, "row channel height width"]) -> Float[Tensor, "row one high wide"]:
    """What of each image stays its own: its weight everywhere, or all but a box of the other's around a centre."""
    high, wide = pixels.shape[-2:]
    side = np.sqrt(1 - weight)
    inside = []
    for length, middle in ((high, centre[0]), (wide, centre[1])):
        low, end = (np.clip(np.rint(middle * length + sign * side * length / 2), 0, length) for sign in (-1, 1))
        at = np.arange(length)[None]
        inside.append((at >= low[:, None]) & (at < end[:, None]))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    kept = np.where(boxed[:, None, None], ~box, weight[:, None, None] * np.ones((1, high, wide)))
    return torch.as_tensor(kept[:, None], dtype=pixels.dtype, device=pixels.device)
