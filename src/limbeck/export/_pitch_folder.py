"""A folder of a pitch tracker: its config, and weights named as torchcrepe names them."""

from typing import Any

import torch
from safetensors.torch import save_file

from limbeck.export._card import model_card
from limbeck.export._reopened import reopened, rounded
from limbeck.export.base import Parcel
from limbeck.model.base import listening
from limbeck.model.crepe import FRAME
from limbeck.model.folder import WEIGHTS
from limbeck.model.pitch import Pitch
from limbeck.model.pitch_scale import HOP, RATE
from limbeck.signals import Row, dense
from limbeck.store import write_json, write_text

PROBE_FRAMES = 20
LOADS = (
    "Opens with `limbeck.model.opening.open_pretrained('path:FOLDER')`. The weights are named as those of torchcrepe, whose `Crepe('tiny')` and "
    "`Crepe('full')` load them (`load_state_dict`) where the size in `config.json` is that one."
)


def write(role: Pitch, parcel: Parcel, dtype: str) -> list[dict[str, Any]]:
    """Writes config and weights, opens the folder again, and compares."""
    written = rounded(role, dtype)
    module: Any = written.module
    write_json(parcel.folder / "config.json", {**module.config, "sampling_rate": RATE, "frame": FRAME, "hop": HOP})
    save_file({name: x.contiguous() for name, x in module.state_dict().items()}, str(parcel.folder / WEIGHTS), {"format": "pt"})
    write_text(parcel.folder / "README.md", model_card(parcel.summary, parcel.provenance, loads=LOADS))
    return [reopened(written, parcel, says, "a logit", f"{PROBE_FRAMES} frames of noise")]


@torch.no_grad()
def says(role: Pitch) -> torch.Tensor:
    """Its log-odds for a sound of noise, always the same."""
    wave = torch.randn((PROBE_FRAMES - 1) * HOP, generator=torch.Generator().manual_seed(0), device="cpu")
    view = role.view([Row("probe", {"wave": wave, "rate": RATE})]).to(next(role.module.parameters()).device)
    with listening(role.module):
        return dense(role.says(view, ("logits",), {})["logits"]).float()
