"""A folder that was written is opened again, and what it says is compared with the student in memory."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import Failed
from limbeck.export.base import Parcel
from limbeck.model.base import Role
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role


def rounded(role: Any, dtype: str) -> Any:
    """The role as it is written: a copy with its parameters in that dtype, or the role itself."""
    if dtype == "as_trained":
        return role
    made = copy.deepcopy(role)
    for parameter in made.module.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return made


def reopened(written: Role, parcel: Parcel, says: Callable[[Any], torch.Tensor], of: str, over: str) -> dict[str, Any]:
    """Opens the parcel's folder, and tells how far apart both are: not at all.

    Args:
        written: what was written; it is computed with in float32, as the folder is opened.
        says: what a role says of some input that is always the same.
        of: what one number of that is called.
        over: what it was asked about.

    Raises:
        Failed: `export`, for any difference.
    """
    folder, expected = Path(parcel.folder), says(as_float(written))
    again = as_role(open_pretrained(f"path:{folder.absolute()}", dtype="float32")).to(next(written.module.parameters()).device)
    gap = float((says(again) - expected).abs().max())
    if gap > 0:
        raise Failed("export", str(folder), f"{of} of the student in memory", f"a difference of {gap:.3g} after loading", "report this", code=5)
    return {
        "name": "Exported student, opened again",
        "result": f"largest difference of {of} {gap} over {over}",
        "open": False,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "class": type(written.module).__name__,
    }


def as_float(role: Any) -> Any:
    """The role with its weights in float32, where they are not."""
    if all(parameter.dtype == torch.float32 for parameter in role.module.parameters()):
        return role
    made = copy.deepcopy(role)
    made.module.float()
    return made
