"""Folders of several files: whole or absent, with checksums; and the pointer to one of them."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, Refused
from limbeck.store.files import (
    MARK,
    corrupt,
    crash_point,
    disk,
    flush,
    free_bytes,
    grab,
    hidden,
    inside,
    lock,
    out_of_space,
    read_json,
    release,
    sha256_json,
    write_json,
)  # fmt: skip

MANIFEST = "manifest.json"


def files_of(folder: Path) -> dict[str, Path]:
    """Relative name -> path of each file below a folder, in order; links to folders, pipes and the like are refused."""

    def stop(error: OSError) -> None:
        raise error

    found = {}
    for place, folders, names in os.walk(folder, onerror=stop):
        for path in (Path(place, name) for name in names + folders if MARK not in name):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path
            elif path.is_symlink() or path.exists() and not path.is_dir():
                raise Refused("path", str(path), "files and folders", "a link or device", "replace it by what it stands for")
    return dict(sorted(found.items()))


def sha256_file(path: Path | str) -> str:
    """Hash of a file's content."""
    with disk(Path(path)), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(path: Path | str) -> str:
    """Hash of the names and contents of all files below a folder, not of their times, order or place."""
    with disk(Path(path)):
        return sha256_json({name: sha256_file(file) for name, file in files_of(Path(path)).items()})


def manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> bytes and sha256 of each file, as `new_folder` wrote them; `Failed("corrupt")` if they were altered."""
    content = read_json(path / MANIFEST)
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        if content["sha256"] == sha256_json(content["files"]):
            return {name: {"bytes": int(file["bytes"]), "sha256": str(file["sha256"])} for name, file in content["files"].items()}
    raise corrupt(path / MANIFEST, "the list of files as it was written", "an altered one")


def verify(path: Path | str) -> None:
    """Compares every file of a folder with its manifest; `Failed("corrupt")` names the first that differs or lacks."""
    path = Path(path)
    for name, stated in manifest(path).items():
        file = inside(path, name)
        got = sha256_file(file) if file.is_file() else "no file"
        if got != stated["sha256"]:
            raise corrupt(file, f"sha256 {stated['sha256']}", got)


def is_sound(path: Path | str) -> bool:
    """Whether a folder exists and is what was written."""
    try:
        verify(path)
    except LimbeckError:
        return False
    return True


def clear(path: Path) -> None:
    """Removes what a writer left of a folder, and puts back the one it was about to replace; the caller holds the lock."""
    old, partial = hidden(path, "old"), hidden(path, "partial")
    if old.exists() and not path.exists():
        os.rename(old, path)
    for left in (old, partial):
        shutil.rmtree(left, ignore_errors=True)


def sweep(root: Path | str) -> None:
    """Removes what dead writers left in a folder (not below it); what a live one is writing stays."""
    for left in sorted(Path(root).glob(f".*{MARK}*")):
        path = left.with_name(left.name[1:].rpartition(MARK)[0])
        with suppress(Refused), disk(path), suppress(FileNotFoundError, IsADirectoryError):  # another was faster
            if left.is_dir():
                with lock(path, wait_seconds=0):
                    clear(path)
            else:
                release(grab(left, make=False), left)


def seal(folder: Path) -> None:
    """Flushes every file of a folder and writes its manifest."""
    if (folder / MANIFEST).exists():
        raise Refused("path", str(folder), f"a folder without {MANIFEST}, which is written here", MANIFEST, "choose another name for it")
    files = {}
    for name, file in files_of(folder).items():
        flush(inside(folder, name))
        files[name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    for place, _, _ in os.walk(folder):
        flush(Path(place))
    write_json(folder / MANIFEST, {"v": 1, "sha256": sha256_json(files), "files": files})


@contextmanager
def filled(path: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """`new_folder` for a caller who holds the lock."""
    crash_point("folder.begin")
    partial, old = hidden(path, "partial"), hidden(path, "old")
    with disk(path, needed_bytes):
        clear(path)
        if path.is_symlink() or path.exists():
            known = {MANIFEST, *(manifest(path) if (path / MANIFEST).is_file() else ())}
            found = files_of(path) if path.is_dir() and not path.is_symlink() else [path.name]
            if strange := [name for name in found if name not in known]:
                expected = "a free name, or a folder that limbeck wrote"
                raise Refused("exists", str(path), expected, f"{ascii(strange[0])} in the way", "move it, or choose another name")
        if needed_bytes > free_bytes(path):
            raise out_of_space(path, needed_bytes)
        partial.mkdir()
        try:
            yield partial
            crash_point("folder.filled")
            seal(partial)
            crash_point("folder.sealed")
            if path.exists():
                os.rename(path, old)
                crash_point("folder.aside")
            os.rename(partial, path)
            crash_point("folder.renamed")
            flush(partial.parent)
        finally:
            clear(path)


@contextmanager
def new_folder(path: Path | str, needed_bytes: int = 0, wait_seconds: float = 0.2) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `path`, with a manifest, when the block ends; an older one of ours is replaced.

    Names that come from outside are joined to it by `inside`. A folder with files that limbeck did not write is never replaced.
    """
    path = Path(path)
    sweep(hidden(path, "partial").parent)
    with lock(path, wait_seconds), filled(path, needed_bytes) as partial:
        yield partial
