"""A folder of a denoiser: as diffusers keeps it, with its schedule beside it."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from limbeck.errors import Failed
from limbeck.export._card import model_card
from limbeck.export.base import Parcel
from limbeck.model.adapter_files import write_adapter
from limbeck.model.adapters import merged
from limbeck.model.base import listening
from limbeck.model.denoiser import Denoiser
from limbeck.model.from_diffusers import OWN, SCHEDULER, WEIGHTS, scheduler_of
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.signals import View
from limbeck.store import write_json, write_text

PROBES = 4
USUAL = 32
"""Height and width of the probe for a network that takes any size."""
STOCK = "Opens with `diffusers`: the class that `config.json` names, and the scheduler of `scheduler_config.json`. It needs nothing of limbeck."
ADAPTER = " `adapter` holds the adapters alone, as `peft` keeps them: they can be added to other weights of the same shapes, also beside others."
OURS = "Opens with limbeck: `path:FOLDER`. It is a small network of limbeck's own, for points and tiny images."


def write(role: Denoiser, parcel: Parcel, dtype: str) -> list[dict[str, Any]]:
    """Writes config, weights and schedule, and adapters by themselves; opens the folder again, and compares."""
    whole: Any = merged(role)
    written = whole
    if dtype != "as_trained":
        written = copy.deepcopy(whole)
        for parameter in written.module.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    known, folder = role.parametrisation, Path(parcel.folder)
    plain = {"noise": known.noise.model_dump(mode="json"), "predicts": known.predicts}
    if role.own:
        write_json(folder / "config.json", {**{k: v for k, v in role.module.config.items() if v is not None}, **plain})  # type: ignore[union-attr]
        save_file({name: x.contiguous() for name, x in written.module.state_dict().items()}, str(folder / WEIGHTS), {"format": "pt"})
    else:
        written.module.save_pretrained(folder, safe_serialization=True)
        write_json(folder / OWN, known.model_dump(mode="json"))
        if (scheduler := scheduler_of(known)) is not None:
            write_json(folder / SCHEDULER, scheduler)
    if whole is not role:
        write_adapter(role, folder / "adapter")
    loads = (OURS if role.own else STOCK) + (ADAPTER if whole is not role else "")
    write_text(folder / "README.md", model_card(parcel.summary, parcel.provenance, loads=loads))
    again: Any = as_role(open_pretrained(f"path:{folder.absolute()}", dtype="float32")).to(next(role.module.parameters()).device)
    gap = float((says(again) - says(as_float(written))).abs().max())
    if gap > 0:
        raise Failed("export", str(folder), "what the student in memory says", f"a difference of {gap:.3g} after loading", "report this", code=5)
    size = sum(path.stat().st_size for path in folder.iterdir())
    result = f"largest difference {gap} over {PROBES} noisy samples"
    checks = [{"name": "Exported student, opened again", "result": result, "open": False, "bytes": size, "class": type(written.module).__name__}]
    if whole is not role:
        apart, scale = float((says(whole) - says(role)).abs().max()), float(says(role).abs().max())
        result = f"largest difference {apart:.3g}, of numbers up to {scale:.3g}"
        checks.insert(0, {"name": "Adapters added to the weights", "result": result, "open": apart > 1e-4 * scale + 1e-6})
    return checks


def as_float(role: Any) -> Any:
    """The role with its weights in float32, if they are rounded: so the folder is opened."""
    if next(role.module.parameters()).dtype == torch.float32:
        return role
    made = copy.deepcopy(role)
    made.module.float()
    return made


@torch.no_grad()
def says(role: Denoiser) -> torch.Tensor:
    """What it predicts of noise that is always the same, at times along the way."""
    draw, device = torch.Generator().manual_seed(0), next(role.module.parameters()).device
    sample = torch.randn(PROBES, *(USUAL if axis is None else axis for axis in role.shape), generator=draw, device="cpu").to(device)
    time = role.parametrisation.noise.grid(PROBES)[:-1].to(device)
    inputs = {"sample": sample, "time": time, **({"label": torch.arange(PROBES, device=device) % role.num_classes} if role.num_classes else {})}
    with listening(role.module):
        return role.says(View(inputs), (role.parametrisation.predicts,), {})[role.parametrisation.predicts].float()
