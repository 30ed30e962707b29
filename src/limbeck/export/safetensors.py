"""A folder that stock transformers loads."""

import copy
from pathlib import Path
from typing import Any, Literal

import torch

from limbeck.errors import Failed
from limbeck.export._card import model_card
from limbeck.export.base import Exporter, Parcel
from limbeck.model.adapters import merged
from limbeck.numerics import TOLERANCE
from limbeck.store import write_text

PROBE_TOKENS = 64
"""Length of the text on which the reloaded student must say the same."""


class Safetensors(Exporter):
    """Writes config, weights and tokenizer as transformers reads them, loads them again, and compares.

    The folder needs nothing of limbeck; adapters are added to the weights. Weights are safetensors only; the card names what the
    student was made of, with the licences that it inherits.

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
        module: Any = merged(parcel.role).module
        probe = torch.arange(PROBE_TOKENS)[None] % module.config.vocab_size
        before = self.says(module, probe)
        apart = None if module is parcel.role.module else self.says(parcel.role.module, probe) - before
        if self.dtype != "as_trained":
            module = copy.deepcopy(module)  # the run still evaluates the student as it is
            for parameter in module.parameters():  # weights alone: transformers keeps rotary frequencies in float32
                parameter.data = parameter.data.to(getattr(torch, self.dtype))
        module.config.dtype = str(module.dtype).removeprefix("torch.")
        module.save_pretrained(parcel.folder, safe_serialization=True)
        parcel.role.tokenizer.save_pretrained(str(parcel.folder))
        write_text(parcel.folder / "README.md", model_card(parcel.summary, parcel.provenance))
        how = {"dtype": module.dtype, "attn_implementation": module.config._attn_implementation}
        again: Any = type(module).from_pretrained(parcel.folder, **how).to(module.device)
        gap = float((self.says(again, probe) - (before if self.dtype == "as_trained" else self.says(module, probe))).abs().max())
        if gap > 0:
            raise Failed(
                "export", str(parcel.folder), "the logits of the student in memory", f"a difference of {gap:.3g} after loading", "report this", code=5
            )
        size = sum(path.stat().st_size for path in Path(parcel.folder).iterdir())
        checks: list[dict[str, Any]] = [] if apart is None else [added(apart, before, module.dtype)]
        return [
            *checks,
            {
                "name": "Exported student, loaded by stock transformers",
                "result": f"largest difference of a logit {gap} over {PROBE_TOKENS} tokens",
                "open": False,
                "bytes": size,
                "class": type(again).__name__,
            },
        ]

    @staticmethod
    @torch.no_grad()
    def says(module: Any, probe: torch.Tensor) -> torch.Tensor:
        return module.eval()(probe.to(module.device)).logits.float()


def added(apart: torch.Tensor, logits: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """What adding the adapters to the weights has changed, which are rounded to their dtype: open, where it is more than that explains."""
    relative, absolute = TOLERANCE.get((str(dtype).removeprefix("torch."), "gradient"), TOLERANCE["bfloat16", "gradient"])
    gap, size = float(apart.abs().max()), float(logits.abs().max())
    result = f"largest difference of a logit {gap:.3g}, of logits up to {size:.3g}"
    return {"name": "Adapters added to the weights", "result": result, "open": gap > relative * size + absolute}
