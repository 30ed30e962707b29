"""limbeck distils any trained model into a smaller, faster or differently built one.

Everything public is here; names are imported when they are first used, so `import limbeck` costs nothing.
"""

from importlib import import_module
from typing import Any

PUBLIC = {
    "Recipe": "recipe",
    "Student": "recipe",
    "Stage": "train.stage",
    "Turn": "train.stage",
    "load": "recipe",
    "run": "start",
    "Run": "start",
    "resume": "start",
    "evaluate_run": "start:evaluate",
    "plan": "planning",
    "distill": "given",
    "check": "check",
    "register": "model.hybrid",
    "Refused": "errors",
    "Failed": "errors",
}
ROOMS = ("noise", "block", "data", "teacher", "student", "align", "forward", "objective", "merge", "evaluate", "export")
__version__ = "0.1.0"
__all__ = sorted([*PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name in ROOMS:
        return import_module(f"limbeck.{name}")
    if name not in PUBLIC:
        raise AttributeError(f"limbeck has no {name}; it has {', '.join(sorted(PUBLIC))}")
    module, _, other = PUBLIC[name].partition(":")  # evaluate is the name of a room already
    return getattr(import_module(f"limbeck.{module}"), other or name)


def __dir__() -> list[str]:
    return __all__
