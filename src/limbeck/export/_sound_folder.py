"""A folder of an encoder of sounds, as transformers keeps it."""

import copy
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import Failed
from limbeck.export._card import model_card
from limbeck.export.base import Parcel
from limbeck.model.base import listening
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.model.sound import EXTRACTOR, Sound
from limbeck.signals import Row
from limbeck.store import write_json, write_text

PROBE_FRAMES = 50
LOADS = f"Opens with `transformers`; `{EXTRACTOR}` says what waveforms it expects. It needs nothing of limbeck."


def write(role: Sound, parcel: Parcel, dtype: str) -> list[dict[str, Any]]:
    """Writes config, weights and what is expected of waveforms, opens the folder again, and compares."""
    before, written = says(role), role
    if dtype != "as_trained":
        written = copy.deepcopy(role)
        for parameter in written.module.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    module: Any = written.module
    module.save_pretrained(parcel.folder, safe_serialization=True)
    write_json(parcel.folder / EXTRACTOR, extractor(role))
    write_text(parcel.folder / "README.md", model_card(parcel.summary, parcel.provenance, loads=LOADS))
    again: Any = as_role(open_pretrained(f"path:{Path(parcel.folder).absolute()}", dtype="float32")).to(next(role.module.parameters()).device)
    if dtype != "as_trained":
        module.float()
    gap = float((says(again) - (before if dtype == "as_trained" else says(written))).abs().max())
    if gap > 0:
        place, got = str(parcel.folder), f"a difference of {gap:.3g} after loading"
        raise Failed("export", place, "the states of the student in memory", got, "report this", code=5)
    return [
        {
            "name": "Exported student, opened again",
            "result": f"largest difference of a state {gap} over {PROBE_FRAMES} frames of noise",
            "open": False,
            "bytes": sum(path.stat().st_size for path in Path(parcel.folder).iterdir()),
            "class": type(module).__name__,
        }
    ]


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
