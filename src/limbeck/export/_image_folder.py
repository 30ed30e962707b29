"""A folder of an image classifier: as timm keeps it, or as transformers does."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from limbeck.errors import Failed
from limbeck.export._card import model_card
from limbeck.export.base import Parcel
from limbeck.model.base import listening
from limbeck.model.folder import WEIGHTS
from limbeck.model.from_timm import config_json
from limbeck.model.image import Image
from limbeck.model.opening import open_pretrained
from limbeck.model.pixels import PROCESSOR
from limbeck.model.role import as_role
from limbeck.store import write_json, write_text

PROBE_IMAGES = 4
USUAL = (224, 224)
"""Height and width of the probe for a student that takes any size and has seen no row."""
TIMM = "Opens with `timm.create_model('local-dir:FOLDER', pretrained=True)`; `config.json` says what pixels it expects. It needs nothing of limbeck."
STOCK = f"Opens with `transformers`; `{PROCESSOR}` says what pixels it expects. It needs nothing of limbeck."


def write(role: Image, parcel: Parcel, dtype: str) -> list[dict[str, Any]]:
    """Writes config, weights and what is expected of pixels, opens the folder again, and compares."""
    before = says(role, probe(role))
    written = role
    if dtype != "as_trained":
        written = copy.deepcopy(role)
        for parameter in written.module.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    module: Any = written.module
    if isinstance(module.config, dict):
        write_json(parcel.folder / "config.json", config_json(module))
        save_file({name: x.contiguous() for name, x in module.state_dict().items()}, str(parcel.folder / WEIGHTS), {"format": "pt"})
    else:
        module.save_pretrained(parcel.folder, safe_serialization=True)
        write_json(parcel.folder / PROCESSOR, role.preprocessing.processor())
    write_text(parcel.folder / "README.md", model_card(parcel.summary, parcel.provenance, loads=TIMM if isinstance(module.config, dict) else STOCK))
    again = as_role(open_pretrained(f"path:{Path(parcel.folder).absolute()}", dtype="float32"))
    again.to(next(role.module.parameters()).device)
    expected = before if dtype == "as_trained" else says(as_float(written), probe(role))
    gap = float((says(again, probe(role)) - expected).abs().max())
    if gap > 0:
        place, got = str(parcel.folder), f"a difference of {gap:.3g} after loading"
        raise Failed("export", place, "the logits of the student in memory", got, "report this", code=5)
    return [
        {
            "name": "Exported student, opened again",
            "result": f"largest difference of a logit {gap} over {PROBE_IMAGES} images of noise",
            "open": False,
            "bytes": sum(path.stat().st_size for path in Path(parcel.folder).iterdir()),
            "class": type(module).__name__,
        }
    ]


def as_float(role: Image) -> Image:
    """The role with its rounded weights, computed with in float32."""
    role.module.float()
    return role


def probe(role: Image) -> torch.Tensor:
    """Images of noise, always the same, of a size that the student has read."""
    channels, (high, wide) = role.preprocessing.channels, role.preprocessing.size or max(((h, w) for _, h, w in role.known), default=USUAL)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (PROBE_IMAGES, channels, high, wide), generator=draw, dtype=torch.uint8, device="cpu")


@torch.no_grad()
def says(role: Any, pixels: torch.Tensor) -> torch.Tensor:
    with listening(role.module):
        return role.run(pixels.to(next(role.module.parameters()).device)).float()
