"""What teachers share that are asked once about each row: their answers come back by the key of the row."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from limbeck.component import canonical
from limbeck.errors import Failed, Refused
from limbeck.model.base import Models, Role
from limbeck.model.recorded import Recorded
from limbeck.numerics import RULED_OUT
from limbeck.signals import Batch, Head, Logits, Row, TopK, unit_of
from limbeck.teacher._packing import pack
from limbeck.teacher.base import Teacher


class AbstractRemembering(Teacher):
    """Answers are kept by row: `hidden` (final states at the targets), or `ids`, `log_probs` and `tail` of a truncated distribution,
    or `ids` and `log_weights` of draws; and further states by the name of their signal."""

    remembers: ClassVar[bool] = True
    at_once: ClassVar[int] = 8
    """Rows that `capture` is asked about at a time."""

    bits: Literal[8, 16, 32] = 32
    """Of each number that is kept: 32 as it is, 16 nearly so, 8 with an error that `limbeck capture` measures on some rows."""

    @property
    def rounds(self):
        return "" if self.bits == 32 else f"answers are kept in {self.bits} bits"

    @property
    def keeps(self) -> dict[str, Any]:
        """What of its fields decides what is kept, for the identity of the answers; weights and tokenizer are part of it already."""
        return {name: value for name, value in canonical(self).items() if name != "model"}

    @abstractmethod
    def capture(self, rows: Sequence[Row], role: Role) -> dict[str, dict[str, Tensor]]:
        """Row key -> tensors to keep, one entry a target of the row."""

    def pack(self, said: Mapping[str, Tensor], other: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What was said about some rows, as it is written; see `limbeck.teacher._packing`."""
        return pack(said, self.bits, other)

    def bits_of(self, role: Role) -> int:
        """What its answers were kept in; a recorded model says so itself."""
        return role.about["identity"].get("teacher", {}).get("bits", self.bits) if isinstance(role, Recorded) else self.bits

    def attach(self, batch: Batch, models: Models, kept: Mapping[str, Mapping[str, Tensor]]) -> Batch:
        view, role, device = batch.view("teacher"), models["teacher"], batch.group.device
        if changed := [key for key in batch.keys if key not in kept]:
            do = "run the teacher live, or leave out the data steps that change rows in each window"
            raise Refused("cache", f"row {changed[0]}", "rows that the teacher was asked about", "one that it has never seen", do)
        each = [kept[key] for key in batch.keys]
        tensors = {name: torch.cat([one[name].to(device) for one in each]) for name in each[0]} if each else {}
        said: dict[str, Any] = {name: x for name, x in tensors.items() if name.split(".")[0] != name}
        if "hidden" in tensors:
            said["logits"] = Logits(tensors["hidden"], role.head, False, coarse=self.bits_of(role) == 8)  # type: ignore[attr-defined]
        elif "log_weights" in tensors:
            weights = tensors["log_weights"]
            said["sampled_logits"] = TopK(tensors["ids"], weights, torch.full_like(weights[:, 0], RULED_OUT))
        elif tensors:
            said["top_logits"] = TopK(tensors["ids"], tensors["log_probs"], tensors["tail"])
        if "ids" in view.inputs and view.lengths is not None:
            said["label"] = view.inputs["ids"][view.targets]
        elif "label" in view.inputs:
            said["label"] = view.inputs["label"]
        if tensors:
            fits(batch, said, tensors, role)
        return replace(batch, said={**batch.said, "teacher": batch.signals("teacher", said)})


def fits(batch: Batch, said: Mapping[str, Any], tensors: Mapping[str, Tensor], role: Any) -> None:
    """Refuses answers that are not finite, about other text than that of these rows, or of another model."""
    view, rows, again = batch.view("teacher"), f"rows {batch.keys[0]}, ...", "remove this cache, and capture again"
    for name, x in tensors.items():
        if x.is_floating_point() and not x.isfinite().all():
            raise Failed("nan", f"cache  {rows}", "finite answers", f"{name} is not", again, code=5)
    for name, value in said.items():
        if len(value) != (num := len(view.rows(unit_of(name)))):
            raise Refused("cache", f"{name} of {rows}", f"{num:,} entries, one for each of their {unit_of(name)}s", f"{len(value):,}", again)
    ids, head = tensors.get("ids"), getattr(role, "head", None) if "hidden" in tensors else None
    if ids is not None and role.vocab is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < role.vocab:
        raise Refused("cache", rows, f"ids below {role.vocab:,}", f"ids from {int(ids.min()):,} to {int(ids.max()):,}", again)
    if isinstance(head, Head) and head.weight.shape[-1] != (width := tensors["hidden"].shape[-1]):
        raise Refused("cache", rows, f"final states {head.weight.shape[-1]:,} wide", f"{width:,} wide", again)
