"""Contracts of exporters: what they write can be loaded by others, and says the same."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.models import family_of, quiet, rows
from limbeck.check.reads import over_choices
from limbeck.component import changed
from limbeck.export.base import Exporter, Parcel
from limbeck.model.text import Text
from limbeck.signals import dense

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PROVENANCE = (
    {"name": "hf:org/teacher", "revision": "0a1b", "licence": "apache-2.0", "role": "teacher"},
    {"name": "lessons/*.jsonl", "sha256": "9b1f", "licence": None, "role": "data"},
)


def student(seed: int = 0) -> Text:
    return family_of("llama", seed, torch.float32, layers=3)


def written(exporter: Exporter, folder: str, seed: int = 0) -> tuple[Text, list[dict[str, Any]]]:
    """A small student, and the checks of what was written of it."""
    role = student(seed)
    with quiet():
        return role, exporter(Parcel(role, Path(folder), {"verdict": "The student keeps <b>93 %</b>."}, PROVENANCE))


def exercise(exporter: Exporter) -> None:
    """One ordinary use."""
    with tempfile.TemporaryDirectory() as folder:
        written(exporter, folder)


@contract
@over_choices
def loads(exporter: Exporter, seed: int = 0) -> None:
    """What is written for transformers is loaded by it without complaint, and says what the student says, up to the dtype."""
    with quiet(), tempfile.TemporaryDirectory() as folder:
        written(exporter, folder, seed)
        if not (Path(folder) / "config.json").is_file():
            raise NotClaimed("it writes no folder for transformers")
        import transformers

        config: Any = transformers.AutoConfig.from_pretrained(folder)
        again, info = getattr(transformers, config.architectures[0]).from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), f"weights do not fit the config: {info}"
    whole = student(seed)
    role = Text(again.eval(), whole.tokenizer, whole.anatomy)
    with torch.no_grad():
        ours, theirs = (dense(r.says(r.view(rows(seed).train), ("logits",), {})["logits"]).float() for r in (role, whole))
    bound = (1e-5, 1e-5) if again.dtype == torch.float32 else (3e-2, 1e-2)
    close(ours, theirs, bound, f"logits of the folder, in {str(again.dtype).removeprefix('torch.')}, against the student")


@contract
@over_choices
def no_pickles(exporter: Exporter, seed: int = 0) -> None:
    """It writes files into its folder alone, none of which can hold code."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "inside"
        folder.mkdir()
        written(exporter, str(folder), seed)
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files and list(Path(outer).iterdir()) == [folder], "it writes nothing, or outside of its folder"
        wrong = [path.name for path in files if path.suffix in PICKLES or path.suffix == ".py"]
        assert not wrong, f"files that can hold code: {', '.join(wrong)}"


@contract
@over_choices
def tells(exporter: Exporter, seed: int = 0) -> None:
    """It says what it checked, as name, result, and whether it is open; the same again, byte by byte, when written twice."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        checks = written(exporter, one, seed)[1]
        written(exporter, two, seed)
        json.dumps(checks)
        assert checks and all({"name", "result", "open"} <= check.keys() for check in checks), f"checks {checks}; expected name, result, open in each"
        for path in sorted(Path(one).rglob("*")):
            other = Path(two) / path.relative_to(one)
            assert path.is_dir() or other.is_file() and other.read_bytes() == path.read_bytes(), f"{path.name} differs when it is written again"


@contract
def student_untouched(exporter: Exporter, seed: int = 0) -> None:
    """The student in memory is the same afterwards: the run still evaluates it."""
    with tempfile.TemporaryDirectory() as folder:
        role, _ = written(exporter, folder, seed)
    before, after = student(seed).module.state_dict(), role.module.state_dict()
    for name, x in before.items():
        assert after[name].dtype == x.dtype and torch.equal(after[name], x), f"{name} changed: {after[name].dtype}, was {x.dtype}"


@contract
def every_dtype(exporter: Exporter, seed: int = 0) -> None:
    """Where it offers number formats: another format leaves the student in memory as it was, too."""
    if "dtype" not in type(exporter).model_fields:
        raise NotClaimed("it offers no number formats")
    student_untouched(changed(exporter, dtype="bfloat16"), seed)
