"""What is installed holds every file that the sources need."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_file_beside_the_modules_is_named_for_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["limbeck"]
    source = ROOT / "src" / "limbeck"
    named = {path for pattern in patterns for path in source.glob(pattern)}
    there = {path for path in source.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there and not there - named, f"not in package-data: {sorted(str(path.relative_to(source)) for path in there - named)}"
