"""What is compared of samples: their numbers, or what a classifier hears of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import Refused
from limbeck.evaluate._pictures import pictured
from limbeck.evaluate.base import Exam
from limbeck.model.base import Role, listening
from limbeck.signals import Row


def features_of(
    exam: Exam, reference: str | None, role: Role, samples: Float[Tensor, "row *axes"], rows: Sequence[Row], at_once: int
) -> Float[Tensor, "row dim"]:
    """Features of samples of a role.

    Args:
        exam: opens the classifier.
        reference: of it; none: the samples themselves.
        role: whose samples they are, which knows how they are looked at.
        samples: as the role makes them.
        rows: held-out ones, which must hold pixels too.
        at_once: samples that the classifier hears together.

    Raises:
        Refused: `data`, for rows without pixels.
    """
    if reference is None:
        return samples.flatten(1).float()
    if "pixels" not in rows[0].content:
        do = "remove features"
        raise Refused("data", "evaluate samples  features", "rows of pixels, which a classifier reads", ", ".join(rows[0].content), do)
    pixels = ((pictured(role, samples).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    with exam.open(reference) as judge, listening(judge), torch.no_grad():
        made = [Row(str(i), {"pixels": image, "label": 0}) for i, image in enumerate(pixels)]
        parts = [judge.says(judge.view(made[i : i + at_once]), ("features",), {})["features"].float() for i in range(0, len(made), at_once)]
    return torch.cat(parts)
