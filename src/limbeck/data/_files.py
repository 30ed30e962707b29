"""What sources that read files share: finding them, and saying what was read and left out."""

import glob
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from limbeck.component import short
from limbeck.data.base import Source, held_out
from limbeck.errors import Failed, Refused
from limbeck.signals import Row


def kind_of(source: Source) -> str:
    """The kind of a source, which only its final class has."""
    return type(source).model_fields["kind"].default


def find(pattern: str, base: str, kind: str) -> list[Path]:
    """The files of a pattern, sorted by name; relative ones start at `base`, those of `package:NAME/PATTERN` at the folder of that package.

    Raises:
        Refused: if there is none; `package`, where that is not installed.
    """
    if pattern.startswith("package:"):
        name, _, pattern = pattern.removeprefix("package:").partition("/")
        base = package_folder(name, kind)
    root, names = Path(base), []
    try:
        names = [pattern] if (root / pattern).is_file() else glob.glob(pattern, root_dir=root, recursive=True)
        folder = (root / pattern).is_dir()
    except (OSError, ValueError):  # a NUL, or a name longer than the disk allows
        folder = False
    files = [root / name for name in sorted(names) if (root / name).is_file()]
    if not files:
        do = f"write {pattern.rstrip('/')}/* for the files in it" if folder else "correct path; a relative one starts at the folder of the recipe"
        raise Refused("data", f"data {kind}  path: {short(pattern)}", "at least one file", "a folder" if folder else "none", do)
    return files


def package_folder(name: str, kind: str) -> str:
    """The folder of an installed package; none of its code is run."""
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or found.origin is None:
        do = f"pip install {short(name)}"
        raise Refused("package", f"data {kind}  path: package:{short(name)}", "an installed package", "none of this name", do, 3)
    return str(Path(found.origin).parent)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of the disk become ours."""
    try:
        yield
    except OSError as error:
        raise Failed("file", str(path), "a file that can be read", error.strerror or str(error), "check the disk and the file's rights") from None


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, the SHA-256 of theirs in a row."""
    each = []
    for path in files:
        with reading(path), path.open("rb") as file:
            each.append(hashlib.file_digest(file, "sha256").hexdigest())
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def once(rows: Sequence[Row], kind: str) -> tuple[list[Row], list[str]]:
    """Each content once, in the order of the first; a note where any came again."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.key, row)
    again = len(rows) - len(first)
    return list(first.values()), [f"{kind}: {again:,} of {len(rows):,} rows repeat another one, and are kept once"] if again else []


def finish(
    source: Source, found: Sequence[Row], notes: Sequence[str], name: str, files: Sequence[Path], split: bool
) -> tuple[list[Row], Mapping[str, Any], list[str]]:
    """What `Source.read` returns. With `split`, rows are about to be parted into trained and held-out ones.

    Raises:
        Refused: if there is no row, or none to train on.
    """
    kind = kind_of(source)
    rows, repeated = once(found, kind)
    if not rows:
        raise Refused("data", f"data {kind}  path: {short(name)}", "at least one row", f"none in {len(files)} files", "correct path")
    few = split and source.held_out is None and source.split > 0
    held = sum(held_out(row.source, source.split) for row in rows) if few else 0
    if few and held == len(rows):
        raise Refused(
            "data", f"data {kind}  split: {source.split}", "rows to train on", f"{held} rows, all of them held out", "set split: 0, or add documents"
        )
    empty = [f"{kind}: nothing is held out: {len(rows):,} rows are few for split {source.split}"] if few and not held else []
    facts = {"name": name, "sha256": digest(files), "files": len(files), "rows": len(rows), "licence": source.licence}
    return rows, facts, [*notes, *repeated, *empty]
