"""What forwards of denoisers share: random numbers a row, and roles that are asked about noisy samples."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import Refused
from limbeck.forward.base import Listen
from limbeck.guidance import Guidance, guided
from limbeck.model.base import Models
from limbeck.model.denoiser import NO_LABEL, Denoiser, no_null
from limbeck.numerics import Streams
from limbeck.signals import Batch, Signals

UNGUIDED = ("clean", "noise", "flow", "label", "time")
"""What a condition does not change."""


def shape_of(batch: Batch) -> torch.Size:
    """Axes of the samples of a window."""
    inputs = batch.view("student").inputs
    name = next((name for name in Denoiser.samples if name in inputs), None)
    if name is None:
        raise Refused("forward", "forward", "rows that hold samples", ", ".join(inputs), "start from a denoiser, and use a source of samples")
    return inputs[name].shape[1:]


def generators(batch: Batch, streams: Streams, purpose: str, place: tuple[object, ...]) -> Iterable[torch.Generator]:
    """A stream for each row, by its key and how often it has come in the window."""
    seen: dict[str, int] = {}
    for key in batch.keys:
        seen[key] = seen.get(key, 0) + 1
        yield streams(purpose, *place, key, seen[key])


def normal(batch: Batch, streams: Streams, place: tuple[object, ...], purpose: str = "noise") -> Float[Tensor, "row *axes"]:
    """Standard normal noise of the shape of the samples; another purpose gives other noise."""
    shape = shape_of(batch)
    each = [torch.randn(shape, generator=stream, device="cpu") for stream in generators(batch, streams, purpose, place)]
    return torch.stack(each).to(batch.weights.device) if each else torch.zeros(0, *shape, device=batch.weights.device)


def normals(batch: Batch, num: int, streams: Streams, place: tuple[object, ...], purpose: str = "noise") -> list[Float[Tensor, "row *axes"]]:
    """So many times standard normal noise, one after the other of each row's stream."""
    shape = shape_of(batch)
    each = [torch.randn(num, *shape, generator=stream, device="cpu") for stream in generators(batch, streams, purpose, place)]
    found = torch.stack(each, 1) if each else torch.zeros(num, 0, *shape, device="cpu")
    return list(found.to(batch.weights.device))


def uniform(batch: Batch, num: int, streams: Streams, place: tuple[object, ...], purpose: str = "time") -> Float[Tensor, "row k"]:
    """So many numbers below 1 for each row."""
    each = [torch.rand(num, generator=stream, device="cpu") for stream in generators(batch, streams, purpose, place)]
    return torch.stack(each).to(batch.weights.device) if each else torch.zeros(0, num, device=batch.weights.device)


def with_draws(batch: Batch, **drawn: Tensor) -> Batch:
    """The window with random inputs for all roles."""
    for role in batch.views:
        batch = batch.with_inputs(role, **drawn)
    return batch


def ask(
    models: Listen, role: str, batch: Batch, names: Iterable[str], sample: Float[Tensor, "row *axes"], time: Float[Tensor, " row"]
) -> Signals:
    """What a role says of noisy samples at their times. The role's state decides about gradients; `sample` may have some."""
    return models.says(role, batch.with_inputs(role, sample=sample, time=time), names)


def ask_guided(
    models: Listen,
    role: str,
    batch: Batch,
    names: Iterable[str],
    sample: Float[Tensor, "row *axes"],
    time: Float[Tensor, " row"],
    factor: Float[Tensor, " row"] | None,
) -> Signals:
    """The same, pushed away from what the role says without a condition by a factor; None: not at all."""
    said = ask(models, role, batch, names, sample, time)
    if factor is None:
        return said
    label = batch.view(role).inputs.get("label")
    if label is None:
        raise Refused("label", "forward.guidance", "rows with labels", "rows without", "remove guidance")
    alone = ask(models, role, batch.with_inputs(role, label=torch.full_like(label, NO_LABEL)), names, sample, time)
    values = {name: x if name in UNGUIDED else guided(x, alone[name], factor) for name, x in said.values.items()}
    return batch.signals(role, values)


def factor_of(guidance: Guidance | None, share: Float[Tensor, " row"]) -> Float[Tensor, " row"] | None:
    """What the difference that a condition makes is multiplied by, row by row; None where guidance is off."""
    if guidance is None or guidance.off:
        return None
    return guidance.factor(guidance.drawn(share))  # type: ignore[arg-type, return-value]


def refuse_unlike(models: Models, roles: Iterable[str], where: str) -> None:
    """Refuses roles that hear no noisy samples, or that were trained along other paths of noise or on other samples than the student."""
    heard = [role for role in dict.fromkeys(("student", *roles)) if role in models]
    for name in heard:
        role, student = models[name], models["student"]
        if role.parametrisation is None:
            do = "start from a denoiser, or write forward: paired"
            raise Refused("noise", where, f"{name} that hears noisy samples", type(role.module).__name__, do)
        mine, theirs = (dict(one.parametrisation.noise) for one in (student, role))
        if mine != theirs:
            differs = [f"{key}: {mine.get(key)} and {theirs.get(key)}" for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
            do = "start the student from the teacher, or give both one schedule"
            raise Refused("noise", where, f"one schedule of noise for student and {name}", ", ".join(differs), do)
        if student.reads_as != role.reads_as:
            do = "start the student from the teacher, or from a pipeline with the same vae, text_encoder and tokenizer"
            raise Refused("encoders", where, f"one code of images and captions for student and {name}", "encoders with other weights", do)
        ours, own = (getattr(one, "shape", ()) for one in (student, role))
        if ours and own and (len(ours) != len(own) or any(a != b for a, b in zip(ours, own, strict=True) if None not in (a, b))):
            raise Refused("size", where, f"samples of one shape for student and {name}", f"{ours} and {own}", "start from another model")


def refuse_unconditional(models: Models, role: str, where: str) -> None:
    """Refuses to ask a role without a condition that knows none, or that is told none ever."""
    found = models[role]
    if found.parametrisation.null_label is None or not getattr(found, "num_classes", 1):
        raise no_null(where)
