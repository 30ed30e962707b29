"""A folder of an image classifier: as timm keeps it, or as transformers does."""

from typing import Any

import torch
from safetensors.torch import save_file

from limbeck.export._card import model_card
from limbeck.export._reopened import reopened, rounded
from limbeck.export.base import Parcel
from limbeck.model.base import listening
from limbeck.model.folder import WEIGHTS
from limbeck.model.from_timm import config_json
from limbeck.model.image import Image
from limbeck.model.pixels import PROCESSOR
from limbeck.store import write_json, write_text

PROBE_IMAGES = 4
USUAL = (224, 224)
"""Height and width of the probe for a student that takes any size and has seen no row."""
TIMM = "Opens with `timm.create_model('local-dir:FOLDER', pretrained=True)`; `config.json` says what pixels it expects. It needs nothing of limbeck."
STOCK = f"Opens with `transformers`; `{PROCESSOR}` says what pixels it expects. It needs nothing of limbeck."


def write(role: Image, parcel: Parcel, dtype: str) -> list[dict[str, Any]]:
    """Writes config, weights and what is expected of pixels, opens the folder again, and compares."""
    written, pixels = rounded(role, dtype), probe(role)
    module: Any = written.module
    if isinstance(module.config, dict):
        write_json(parcel.folder / "config.json", config_json(module))
        save_file({name: x.contiguous() for name, x in module.state_dict().items()}, str(parcel.folder / WEIGHTS), {"format": "pt"})
    else:
        module.save_pretrained(parcel.folder, safe_serialization=True)
        write_json(parcel.folder / PROCESSOR, role.preprocessing.processor())
    write_text(parcel.folder / "README.md", model_card(parcel.summary, parcel.provenance, loads=TIMM if isinstance(module.config, dict) else STOCK))
    return [reopened(written, parcel, lambda some: says(some, pixels), "a logit", f"{PROBE_IMAGES} images of noise")]


def probe(role: Image) -> torch.Tensor:
    """Images of noise, always the same, of a size that the student has read."""
    channels, (high, wide) = role.preprocessing.channels, role.preprocessing.size or max(((h, w) for _, h, w in role.known), default=USUAL)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (PROBE_IMAGES, channels, high, wide), generator=draw, dtype=torch.uint8, device="cpu")


@torch.no_grad()
def says(role: Any, pixels: torch.Tensor) -> torch.Tensor:
    with listening(role.module):
        return role.run(pixels.to(next(role.module.parameters()).device)).float()
