"""Files: atomic, locked, with named crash points; the disk's errors as ours."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from limbeck.errors import Failed, Refused

CRASH_POINTS = (
    "file.begin", "file.half", "file.written", "file.renamed",
    "folder.begin", "folder.filled", "folder.sealed", "folder.aside", "folder.renamed",
    "log.begin", "log.torn", "log.end", "cache.removing",
)  # fmt: skip
"""Where a power cut can be played. Between two files of a folder, `file.renamed` of the first is passed."""
PASSINGS: dict[str, int] = {}
MARK = ".limbeck-"


def crash_point(name: str) -> None:
    """Does nothing, unless LIMBECK_CRASH_AT is `name` or `name:n`: at the n-th passing the process then dies as in a power cut."""
    at, _, nth = os.environ.get("LIMBECK_CRASH_AT", "").partition(":")
    if at == name:
        PASSINGS[name] = PASSINGS.get(name, 0) + 1
        if PASSINGS[name] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def corrupt(where: Path | str, expected: str, got: str) -> Failed:
    """The error for a file that is not what was written."""
    return Failed("corrupt", str(where), expected, got, "put back a sound copy, or remove it and repeat the command: it is made again")


@contextmanager
def disk(path: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turns the operating system's errors into `Failed("space")` with bytes needed and free, or `Failed("disk")`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise out_of_space(path, needed_bytes, f" ({error.strerror})") from error
        got = ": ".join(str(part) for part in (error.strerror or str(error) or type(error).__name__, error.filename) if part)
        raise Failed("disk", str(path), "a place that can be read and written", got, "repair it or choose another; repeat the command") from error


def out_of_space(path: Path, needed_bytes: int, reason: str = "") -> Failed:
    """The error for a full disk, with what is needed, free and missing."""
    free = free_bytes(path)
    expected = f"{in_bytes(needed_bytes) if needed_bytes else 'room'} for {path.name}"
    do = f"free {in_bytes(needed_bytes - free)}" if needed_bytes > free else "free space, or raise the limit on it,"
    return Failed("space", str(path), expected, f"{in_bytes(free, math.floor)} free{reason}", f"{do} and repeat the command")


def free_bytes(path: Path) -> int:
    """Bytes that may still be written where a path is, or would be."""
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    usage = shutil.disk_usage(place)
    return usage.free if usage.total else 2**63  # some network file systems do not say


def in_bytes(size: int, rounded: Callable[[float], int] = math.ceil) -> str:
    """12.5 GB (= 1e9), 3.1 MB, or 1,024 bytes."""
    unit, word = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{rounded(size / unit * 10) / 10:,.1f} {word}" if size >= 1e6 else f"{size:,} bytes"


def hidden(path: Path, kind: str) -> Path:
    """The name beside a path for its `lock`, its `partial` new content, or the `old` folder that is being replaced."""
    path = path.absolute()
    return path.with_name(f".{path.name}{MARK}{kind}")


def inside(root: Path | str, name: str) -> Path:
    """The path of a relative name under a folder; `Refused("path")` if the name, or a link on its way, leads out of it."""
    path = Path(root, name)
    try:
        plain = bool(name) and not re.search(r"[\x00-\x1f\x7f\\]", name) and not Path(name).is_absolute() and ".." not in Path(name).parts
        if plain and Path(root).resolve() in path.resolve().parents:
            return path
    except (OSError, RuntimeError, ValueError):  # too long, a ring of links, not encodable
        pass
    raise Refused("path", str(root), "a name inside this folder", ascii(name)[:80], "write a relative name without .., \\ or links that lead out")


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ensure(folder: Path) -> None:
    """Makes a folder and those above it, so that they outlast a power cut."""
    if not folder.is_dir():
        ensure(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def grab(file: Path, wait_seconds: float = 0.0, shared: bool = False, make: bool = True) -> int:
    """Opens and locks a file, whose text becomes the holder's process id; `Refused("locked")` if another holds it for too long."""
    end = time.monotonic() + wait_seconds
    while True:
        handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if make else 0), 0o666)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if is_at(handle, file):  # else its last holder has just removed or renamed it
                with suppress(OSError):  # a full disk must not keep anybody from freeing space
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
                return handle
        except BlockingIOError:
            if time.monotonic() >= end:
                name, holder = file.name[1:].rpartition(MARK)[0], ascii(os.pread(handle, 80, 0).decode("utf-8", "replace"))[1:-1]
                where, do = str(file.with_name(name)), "wait until it has ended, or stop it, and repeat the command"
                os.close(handle)
                raise Refused("locked", where, "no other process at work here", holder or "an unnamed process", do, code=3) from None
            time.sleep(0.02)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def is_at(handle: int, file: Path) -> bool:
    """Whether an open file still has this name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), file.stat())
    return False


def release(handle: int, file: Path) -> None:
    """Unlocks what `grab` locked, and removes the file unless others share the lock or it was renamed."""
    try:
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(handle, file):
                file.unlink()
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # also for forked children, which have the handle too
        os.close(handle)


@contextmanager
def lock(path: Path | str, wait_seconds: float = 0.2, shared: bool = False) -> Iterator[None]:
    """Holds a file or folder, which need not exist, for this process alone or for all that share it.

    `Refused("locked")` names the process in the way, unless that is done in the time given (a sweep takes but a moment). The hold ends with
    the block, or with the process and the children it forked.
    """
    beside = hidden(Path(path), "lock")
    with disk(beside):
        ensure(beside.parent)
        handle = grab(beside, wait_seconds, shared)
    try:
        yield
    finally:
        release(handle, beside)


@contextmanager
def new_file(path: Path | str, needed_bytes: int = 0) -> Iterator[Path]:
    """A hidden path to write to, which becomes `path` when the block ends, and vanishes when it fails."""
    path = Path(path)
    temp = hidden(path, "partial")
    crash_point("file.begin")
    with disk(path, needed_bytes):
        ensure(temp.parent)
        handle = grab(temp, wait_seconds=60)
        try:
            os.truncate(temp, 0)
            yield temp
            flush(temp)
            crash_point("file.written")
            os.replace(temp, path)
            crash_point("file.renamed")
            flush(temp.parent)
        finally:
            release(handle, temp)


def write_parts(path: Path | str, parts: Iterable[Any], needed_bytes: int) -> None:
    """Writes pieces of bytes one after the other as one file."""
    with new_file(path, needed_bytes) as temp, open(temp, "wb") as file:
        for number, part in enumerate(parts):
            if number:
                file.flush()
                crash_point("file.half")
            file.write(part)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes a file, wholly or not at all."""
    half = len(data) // 2
    write_parts(path, (data[:half], data[half:]), len(data))


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file as UTF-8 (halves of surrogate pairs as \\udXXX), wholly or not at all."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: Any) -> None:
    """Writes plain data as a JSON file; numbers must be finite, order of keys is kept."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file; `Failed("corrupt")` if it is none."""
    path = Path(path)
    with disk(path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, "JSON", str(error)) from error


def canonical(value: Any) -> bytes:
    """One spelling of plain data, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_json(value: Any) -> str:
    """Hash of plain data, whatever the order of its keys."""
    return hashlib.sha256(canonical(value)).hexdigest()
