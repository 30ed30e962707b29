"""A folder of a pitch tracker: its config, and weights named as torchcrepe names them."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from limbeck.errors import Failed
from limbeck.export._card import model_card
from limbeck.export.base import Parcel
from limbeck.model.base import listening
from limbeck.model.crepe import FRAME
from limbeck.model.folder import WEIGHTS
from limbeck.model.opening import open_pretrained
from limbeck.model.pitch import Pitch
from limbeck.model.pitch_scale import HOP, RATE
from limbeck.model.role import as_role
from limbeck.signals import Row, dense
from limbeck.store import write_json, write_text

PROBE_FRAMES = 20
LOADS = (
    "Opens with `limbeck.model.opening.open_pretrained('path:FOLDER')`. The weights are named as those of torchcrepe, whose `Crepe('tiny')` and "
    "`Crepe('full')` load them (`load_state_dict`) where the size in `config.json` is that one."
)


def write(role: Pitch, parcel: Parcel, dtype: str) -> list[dict[str, Any]]:
    """Writes config and weights, opens the folder again, and compares."""
    before, written = says(role), role
    if dtype != "as_trained":
        written = copy.deepcopy(role)
        for parameter in written.module.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    module: Any = written.module
    write_json(parcel.folder / "config.json", {**module.config, "sampling_rate": RATE, "frame": FRAME, "hop": HOP})
    save_file({name: x.contiguous() for name, x in module.state_dict().items()}, str(parcel.folder / WEIGHTS), {"format": "pt"})
    write_text(parcel.folder / "README.md", model_card(parcel.summary, parcel.provenance, loads=LOADS))
    again: Any = as_role(open_pretrained(f"path:{Path(parcel.folder).absolute()}", dtype="float32")).to(next(role.module.parameters()).device)
    if dtype != "as_trained":
        module.float()
    gap = float((says(again) - (before if dtype == "as_trained" else says(written))).abs().max())
    if gap > 0:
        place, got = str(parcel.folder), f"a difference of {gap:.3g} after loading"
        raise Failed("export", place, "the logits of the student in memory", got, "report this", code=5)
    return [
        {
            "name": "Exported student, opened again",
            "result": f"largest difference of a logit {gap} over {PROBE_FRAMES} frames of noise",
            "open": False,
            "bytes": sum(path.stat().st_size for path in Path(parcel.folder).iterdir()),
            "class": type(module).__name__,
        }
    ]


@torch.no_grad()
def says(role: Pitch) -> torch.Tensor:
    """Its log-odds for a sound of noise, always the same."""
    wave = torch.randn((PROBE_FRAMES - 1) * HOP, generator=torch.Generator().manual_seed(0), device="cpu")
    view = role.view([Row("probe", {"wave": wave, "rate": RATE})]).to(next(role.module.parameters()).device)
    with listening(role.module):
        return dense(role.says(view, ("logits",), {})["logits"]).float()
