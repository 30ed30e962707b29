"""A folder of a denoiser: as diffusers keeps it, with its schedule beside it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from limbeck.export._card import model_card
from limbeck.export._reopened import reopened, rounded
from limbeck.export.base import Parcel
from limbeck.model.adapter_files import write_adapter, write_lora
from limbeck.model.adapters import merged
from limbeck.model.base import listening
from limbeck.model.denoiser import Denoiser
from limbeck.model.from_diffusers import OWN, SCHEDULER, WEIGHTS, scheduler_of
from limbeck.model.latents import Latents
from limbeck.model.pipeline import write_pipeline
from limbeck.signals import View
from limbeck.store import write_json, write_text

PROBES = 4
USUAL = 32
"""Height and width of the probe for a network that takes any size."""
STOCK = "Opens with `diffusers`: the class that `config.json` names, and the scheduler of `scheduler_config.json`. It needs nothing of limbeck."
ADAPTER = " `adapter` holds the adapters alone, as `peft` keeps them: they can be added to other weights of the same shapes, also beside others."
PIPELINE = "Opens with `diffusers.StableDiffusionPipeline.from_pretrained`, as a whole. It needs nothing of limbeck."
LORA = " `pipe.load_lora_weights(\"adapter\")` adds them to a pipeline of these weights, or of others of the same shapes."
HEARS = "Opens with limbeck: `path:FOLDER`. It hears the scale of guidance, for which the class of `diffusers` in `config.json` has no input."
OURS = "Opens with limbeck: `path:FOLDER`. It is a small network of limbeck's own, for points and tiny images."


def write(role: Denoiser, parcel: Parcel, dtype: str) -> list[dict[str, Any]]:
    """Writes config, weights and schedule, and adapters by themselves; opens the folder again, and compares."""
    whole: Any = merged(role)
    written = rounded(whole, dtype)
    known, folder = role.parametrisation, Path(parcel.folder)
    plain = {"noise": known.noise.model_dump(mode="json"), "predicts": known.predicts}
    plain |= {} if known.scale_dim is None else {"scale_dim": known.scale_dim}
    if role.own:
        write_json(folder / "config.json", {**{k: v for k, v in role.module.config.items() if v is not None}, **plain})  # type: ignore[union-attr]
        save_file({name: x.contiguous() for name, x in written.module.state_dict().items()}, str(folder / WEIGHTS), {"format": "pt"})
    elif isinstance(role, Latents):
        write_pipeline(written.module, folder)
    else:
        written.module.save_pretrained(folder, safe_serialization=True)
        write_json(folder / OWN, known.model_dump(mode="json"))
        if (scheduler := scheduler_of(known)) is not None:
            write_json(folder / SCHEDULER, scheduler)
    if whole is not role:
        write_adapter(role, folder / "adapter")
        if isinstance(role, Latents):
            write_lora(role, folder / "adapter")
    latents = isinstance(role, Latents)
    loads = OURS if role.own else PIPELINE if latents else STOCK if known.scale_dim is None else HEARS
    loads += "" if whole is role else ADAPTER + LORA * latents
    write_text(folder / "README.md", model_card(parcel.summary, parcel.provenance, loads=loads))
    checks = [reopened(written, parcel, says, "a prediction", f"{PROBES} noisy samples")]
    if whole is not role:
        apart, scale = float((says(whole) - says(role)).abs().max()), float(says(role).abs().max())
        result = f"largest difference {apart:.3g}, of numbers up to {scale:.3g}"
        checks.insert(0, {"name": "Adapters added to the weights", "result": result, "open": apart > 1e-4 * scale + 1e-6})
    return checks


@torch.no_grad()
def says(role: Denoiser) -> torch.Tensor:
    """What it predicts of noise that is always the same, at times along the way."""
    draw, device = torch.Generator().manual_seed(0), next(role.module.parameters()).device
    sample = torch.randn(PROBES, *(USUAL if axis is None else axis for axis in role.shape), generator=draw, device="cpu").to(device)
    time = role.parametrisation.noise.grid(PROBES)[:-1].to(device)
    inputs = {"sample": sample, "time": time, **{name: x.to(device) for name, x in role.usual(PROBES).items()}}
    if role.parametrisation.scale_dim is not None:
        inputs["guidance_scale"] = torch.arange(PROBES, device=device) / 2
    with listening(role.module):
        name = "denoised" if role.parametrisation.predicts == "preconditioned" else role.parametrisation.predicts
        return role.says(View(inputs), (name,), {})[name].float()
