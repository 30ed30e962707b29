"""A folder that stock transformers loads."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.errors import Failed
from limbeck.export import _denoiser_folder, _image_folder, _pitch_folder, _sound_folder
from limbeck.export._card import model_card
from limbeck.export._carried import carry
from limbeck.export.base import Exporter, Parcel
from limbeck.model.adapters import adapted, merged, stock
from limbeck.model.denoiser import Denoiser
from limbeck.model.folder import is_hybrid
from limbeck.model.image import Image
from limbeck.model.pitch import Pitch
from limbeck.model.quantised import quantised
from limbeck.model.sound import Sound
from limbeck.numerics import TOLERANCE
from limbeck.store import write_text

PROBE_TOKENS = 64
"""Length of the text on which the reloaded student must say the same."""


class Safetensors(Exporter):
    """Writes config, weights and tokenizer as transformers reads them, loads them again, and compares.

    The folder needs nothing of limbeck; adapters are added to the weights, and rounded weights are written as the numbers that they stand
    for (`packed` keeps their codes). A student with other modules in its blocks carries their code along: transformers opens it with
    `trust_remote_code=True`, or without after `limbeck.register()`. Weights are safetensors only; the card names what the student was
    made of, with the licences that it inherits. An image classifier of timm is written as timm keeps it, and opens there;
    a denoiser as diffusers keeps it.

    Example:
        >>> Safetensors(dtype="bfloat16").dtype
        'bfloat16'

    References:
        safetensors and transformers (`save_pretrained`, `from_pretrained`)
    """

    kind: Literal["safetensors"] = "safetensors"
    dtype: Literal["as_trained", "bfloat16", "float16"] = "as_trained"
    """Number format of the weights on disk."""

    def __call__(self, parcel: Parcel) -> list[dict[str, Any]]:
        if isinstance(parcel.role, Image):
            return _image_folder.write(parcel.role, parcel, self.dtype)
        if isinstance(parcel.role, Sound):
            return _sound_folder.write(parcel.role, parcel, self.dtype)
        if isinstance(parcel.role, Pitch):
            return _pitch_folder.write(parcel.role, parcel, self.dtype)
        if isinstance(parcel.role, Denoiser):
            return _denoiser_folder.write(parcel.role, parcel, self.dtype)
        whole = merged(parcel.role)
        module: Any = stock(whole).module
        probe = parcel.role.probe(PROBE_TOKENS)  # type: ignore[operator]
        before = self.says(module, probe)
        apart = None if module is parcel.role.module else self.says(parcel.role.module, probe) - before
        if self.dtype != "as_trained":
            module = copy.deepcopy(module)  # the run still evaluates the student as it is
            for parameter in module.parameters():  # weights alone: transformers keeps rotary frequencies in float32
                parameter.data = parameter.data.to(getattr(torch, self.dtype))
        module.config.dtype = str(module.dtype).removeprefix("torch.")
        module.save_pretrained(parcel.folder, safe_serialization=True)
        parcel.role.tokenizer.save_pretrained(str(parcel.folder))
        parcel.role.accompany(Path(parcel.folder))
        own_code = is_hybrid(module.config)
        if own_code:
            carry(module, parcel.folder)
        write_text(parcel.folder / "README.md", model_card(parcel.summary, parcel.provenance, own_code, parcel.role.loads))
        how = {"dtype": module.dtype, "attn_implementation": module.config._attn_implementation}
        again: Any = type(module).from_pretrained(parcel.folder, **how).to(module.device)
        gap = float((self.says(again, probe) - (before if self.dtype == "as_trained" else self.says(module, probe))).abs().max())
        if gap > 0:
            raise Failed(
                "export", str(parcel.folder), "the logits of the student in memory", f"a difference of {gap:.3g} after loading", "report this", code=5
            )
        size = sum(path.stat().st_size for path in Path(parcel.folder).iterdir())
        name = "Adapters added to the weights" if adapted(parcel.role.module) else "Rounded weights written as numbers"
        lost = "; what layers hear was rounded, and is not here" if quantised(whole.module) else ""
        checks: list[dict[str, Any]] = [] if apart is None else [added(name, apart, before, module.dtype, lost)]
        return [
            *checks,
            {
                "name": "Exported student, loaded " + ("with limbeck's classes" if own_code else "by stock transformers"),
                "result": f"largest difference of a logit {gap} over {PROBE_TOKENS} tokens",
                "open": False,
                "bytes": size,
                "class": type(again).__name__,
            },
        ]

    @staticmethod
    @torch.no_grad()
    def says(module: Any, probe: Mapping[str, torch.Tensor]) -> torch.Tensor:
        said = module.eval()(**{name: x.to(module.device, module.dtype if x.is_floating_point() else x.dtype) for name, x in probe.items()})
        return (said.logits if "logits" in said else said.last_hidden_state).float()


def added(name: str, apart: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype, lost: str) -> dict[str, Any]:
    """What writing all into the weights has changed, which are rounded to their dtype: open, where it is more than that explains."""
    relative, absolute = TOLERANCE.get((str(dtype).removeprefix("torch."), "gradient"), TOLERANCE["bfloat16", "gradient"])
    gap, size = float(apart.abs().max()), float(logits.abs().max())
    result = f"largest difference of a logit {gap:.3g}, of logits up to {size:.3g}{lost}"
    return {"name": name, "result": result, "open": gap > relative * size + absolute}
