"""What teachers share that are asked once about each row: their answers come back by the key of the row."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from limbeck.model.base import Models
from limbeck.signals import Batch, Logits, TopK
from limbeck.teacher.base import Teacher


class AbstractRemembering(Teacher):
    """Answers are kept by row: `hidden` (final states at the targets), or `ids`, `log_probs` and `tail` of a truncated distribution."""

    remembers: ClassVar[bool] = True

    def attach(self, batch: Batch, models: Models, kept: Mapping[str, Mapping[str, Tensor]]) -> Batch:
        device = batch.group.device
        tensors = {name: torch.cat([kept[key][name].to(device) for key in batch.keys]) for name in kept[batch.keys[0]]} if batch.keys else {}
        if "hidden" in tensors:
            said: Any = {"logits": Logits(tensors["hidden"], models["teacher"].head, False)}  # type: ignore[attr-defined]
        else:
            said = {"top_logits": TopK(tensors["ids"], tensors["log_probs"], tensors["tail"])}
        view = batch.view("teacher")
        said["label"] = view.inputs["ids"][view.targets]
        return replace(batch, said={**batch.said, "teacher": batch.signals("teacher", said)})
