"""A folder of an encoder of sounds, as transformers keeps it."""

from typing import Any

import torch

from limbeck.export._card import model_card
from limbeck.export._reopened import reopened, rounded
from limbeck.export.base import Parcel
from limbeck.model.base import listening
from limbeck.model.sound import EXTRACTOR, Sound
from limbeck.signals import Row
from limbeck.store import write_json, write_text

PROBE_FRAMES = 50
LOADS = f"Opens with `transformers`; `{EXTRACTOR}` says what waveforms it expects. It needs nothing of limbeck."


def write(role: Sound, parcel: Parcel, dtype: str) -> list[dict[str, Any]]:
    """Writes config, weights and what is expected of waveforms, opens the folder again, and compares."""
    written = rounded(role, dtype)
    module: Any = written.module
    module.save_pretrained(parcel.folder, safe_serialization=True)
    write_json(parcel.folder / EXTRACTOR, extractor(role))
    write_text(parcel.folder / "README.md", model_card(parcel.summary, parcel.provenance, loads=LOADS))
    return [reopened(written, parcel, says, "a state", f"{PROBE_FRAMES} frames of noise")]


def extractor(role: Sound) -> dict[str, Any]:
    """What transformers reads beside a model: at which rate it hears, and whether waveforms are normalised."""
    masked = getattr(role.module.config, "feat_extract_norm", "group") != "group"
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": role.hearing.rate,
        "do_normalize": role.hearing.normalise,
        "padding_value": 0.0,
        "return_attention_mask": masked,
    }


@torch.no_grad()
def says(role: Sound) -> torch.Tensor:
    """The last states for a sound of noise, always the same."""
    hop, device = 1, next(role.module.parameters()).device
    for _, stride in role.strides:
        hop *= stride
    wave = torch.randn(role.least + (PROBE_FRAMES - 1) * hop, generator=torch.Generator().manual_seed(0), device="cpu")
    view = role.view([Row("probe", {"wave": wave, "rate": role.hearing.rate})]).to(device)
    with listening(role.module):
        return role.says(view, ("hidden.-1",), {})["hidden.-1"].float()
