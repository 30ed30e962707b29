"""The cache of finished steps, by the hash of everything they depend on."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from limbeck.errors import LimbeckError, Refused
from limbeck.store.files import crash_point, disk, hidden, lock, read_json, sha256_json, write_json
from limbeck.store.folder import files_of, filled, sweep, verify

logger = logging.getLogger(__name__)
ABOUT = "about.json"
KEY = re.compile(r"[0-9a-f]{64}(\.corrupt-\d+)?")
ANSWERS = "answers"
"""Folder of what teachers have said, below that of the cache."""


def home() -> Path:
    """Where caches live: LIMBECK_HOME, else limbeck in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("LIMBECK_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "limbeck")).expanduser()


def stamp(path: Path) -> tuple[str, int, int]:
    """Tells a folder from the one that had its name before."""
    with suppress(FileNotFoundError):
        state = path.stat()
        return (str(path.absolute()), state.st_ino, state.st_mtime_ns)
    return ("", 0, 0)


def is_sound_or_aside(path: Path) -> bool:
    """Whether a folder is what was written, compared once a process; an altered one is set aside with a warning."""
    seen = stamp(path)
    if seen not in Cache.verified:
        try:
            verify(path)
        except LimbeckError as error:
            if stamp(path) == seen:  # else another process has replaced or removed it meanwhile
                aside = next(place for number in count(1) if not (place := path.with_name(f"{path.name}.corrupt-{number}")).exists())
                with disk(path):
                    os.rename(path, aside)
                logger.warning("%s: expected %s, got %s; set aside as %s and not used", error.where, error.expected, error.got, aside.name)
            return False
        Cache.verified.add(seen)
    return True


@dataclass(frozen=True)
class Entry:
    """A finished step in the cache, or one that was set aside."""

    name: str
    """The key; with `.corrupt-1` and so on behind it if a file of it was altered."""
    path: Path
    size_bytes: int
    about: Any
    """The description that `make` was given; None if it cannot be read."""
    used: float
    """When it was asked for last, in seconds since 1970."""


class Cache:
    """Finished steps by the hash of everything they depend on; shared by all runs and processes."""

    verified: ClassVar[set[tuple[str, int, int]]] = set()
    """Folders whose checksums this process has compared or computed."""

    def __init__(self, root: Path | str | None = None):
        self.root = Path(root) if root else home()

    def key(self, parts: Mapping[str, Any]) -> str:
        """The key of a step that depends on these parts, which are plain data."""
        return sha256_json(parts)

    def path(self, key: str) -> Path:
        """Where the entry of a key is, if there is one."""
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise Refused("path", str(self.root), "a key: 64 hexadecimal digits", ascii(key)[:80], "look into the folder")
        return self.root / key

    def get(self, key: str) -> Path | None:
        """The sound entry of a key, now the last used. An altered one is set aside with a warning, and counts as missing."""
        path = self.path(key)
        if not path.is_dir():
            return None
        if not is_sound_or_aside(path):
            return None
        with suppress(OSError):  # a shared cache may be read-only
            os.utime(path / ABOUT)
        return path

    def make(self, key: str, describe: Mapping[str, Any], build: Callable[[Path], None], wait_seconds: float = 600.0) -> Path:
        """The entry of a key, filled by `build(folder)` if there is none; one process builds, the others wait for it."""
        if found := self.get(key):
            return found
        path = self.path(key)
        sweep(self.root)
        with lock(path, wait_seconds):
            if not (found := self.get(key)):
                with filled(path) as folder:
                    write_json(folder / ABOUT, dict(describe))
                    build(folder)
                self.verified.add(stamp(path))
        return path

    @contextmanager
    def hold(self, key: str) -> Iterator[Path | None]:
        """Keeps an entry from `gc`, in every process, as long as the block lasts."""
        with lock(self.path(key), wait_seconds=10, shared=True):
            yield self.get(key)

    def entries(self) -> list[Entry]:
        """Everything in the cache, by name, and what teachers have said, each teacher's as one."""
        found = []
        for path in (*sorted(self.root.glob("*")), *sorted((self.root / ANSWERS).glob("*"))):
            if KEY.fullmatch(path.name):
                about = None
                with suppress(LimbeckError):
                    about = read_json(path / ABOUT)
                with suppress(FileNotFoundError):  # removed while we look
                    used = (path / ABOUT if (path / ABOUT).exists() else path).stat().st_mtime
                    size_bytes = sum(file.stat().st_size for file in files_of(path).values())
                    found.append(Entry(path.relative_to(self.root).as_posix(), path, size_bytes, about, used))
        return found

    def gc(self, keep_bytes: int) -> list[str]:
        """Removes what was set aside, then what was used longest ago, until this many bytes are left; says what, and spares what is held."""
        sweep(self.root)
        sweep(self.root / ANSWERS)
        entries, removed = self.entries(), []
        left_bytes = sum(entry.size_bytes for entry in entries)
        for entry in sorted(entries, key=lambda entry: ("." not in entry.name, entry.used, entry.name)):
            if left_bytes <= keep_bytes:
                break
            with suppress(Refused), lock(entry.path, wait_seconds=0), disk(entry.path):
                if entry.path.exists():  # else another process has collected it
                    gone = hidden(entry.path, "partial")
                    os.rename(entry.path, gone)
                    crash_point("cache.removing")
                    shutil.rmtree(gone)
                    removed.append(entry.name)
                left_bytes -= entry.size_bytes
        return removed
