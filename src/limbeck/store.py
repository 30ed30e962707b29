"""Every write of the library: atomic, checksummed, locked, with named crash points; and the cache of finished steps.

A file or folder is first written under a hidden name beside its place (`.NAME.limbeck-partial`), flushed to the disk, and then renamed:
whoever looks sees the old content or the new one. What a dead writer leaves behind is told from a live one's by a lock that the
kernel drops when a process dies, and is removed by `sweep`. Locks, too, are hidden files beside what they lock.
"""

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from limbeck.errors import Failed, LimbeckError, Refused

if TYPE_CHECKING:                                           # torch takes seconds to import, and most writes need none of it
    from torch import Tensor

logger = logging.getLogger(__name__)
CRASH_POINTS = (
    "file.begin", "file.half", "file.written", "file.renamed",
    "folder.begin", "folder.filled", "folder.sealed", "folder.aside", "folder.renamed",
    "pointer.before", "pointer.after", "log.begin", "log.torn", "log.end", "cache.removing",
)  # fmt: skip
"""Where a power cut can be played. Between two files of a folder, `file.renamed` of the first is passed."""
PASSINGS: dict[str, int] = {}
MANIFEST, ABOUT, MARK, ALIASES = "manifest.json", "about.json", ".limbeck-", "limbeck.aliases"
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "complex64": "C64",
}  # fmt: skip
"""Names of torch's dtypes in a safetensors header."""


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
    return usage.free if usage.total else 2**63             # some network file systems do not say


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
    except (OSError, RuntimeError, ValueError):             # too long, a ring of links, not encodable
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
            if is_at(handle, file):                         # else its last holder has just removed or renamed it
                with suppress(OSError):                     # a full disk must not keep anybody from freeing space
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
        fcntl.flock(handle, fcntl.LOCK_UN)                  # also for forked children, which have the handle too
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
        with suppress(Refused), disk(path), suppress(FileNotFoundError, IsADirectoryError):     # another was faster
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


def switch(pointer: Path | str, name: str) -> None:
    """Makes a small file, such as `checkpoints/current`, name another entry of its folder."""
    inside(Path(pointer).parent, name)
    crash_point("pointer.before")
    write_text(pointer, name + "\n")
    crash_point("pointer.after")


def pointed(pointer: Path | str) -> Path | None:
    """What `switch` named last; None if it never did."""
    pointer = Path(pointer)
    with disk(pointer):
        return inside(pointer.parent, pointer.read_text(encoding="utf-8", errors="replace").removesuffix("\n")) if pointer.exists() else None


def save_tensors(path: Path | str, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file whose bytes depend only on what is passed; a tensor with several names is written once.

    Written here because the safetensors package leaves the order of metadata to chance, and a name of its own behind when it is killed.
    """
    import torch

    first: dict[tuple, str] = {}
    aliases, header, stop = {}, {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):   # so that each is aligned
        dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or tensor.layout != torch.strided or name == "__metadata__":
            got = f"{name}: {tensor.layout}, {tensor.dtype}"
            raise Refused("tensor", str(path), f"dense tensors of {', '.join(DTYPES)}", got, "convert it before it is saved")
        place = (tensor.device, tensor.data_ptr(), tensor.is_conj(), tensor.is_neg(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            aliases[name] = first[place]
            continue
        start, stop = stop, stop + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
    extra = {"format": "pt", **(metadata or {}), ALIASES: canonical(aliases).decode()}
    head = canonical({"__metadata__": extra, **header})
    head += b" " * (-len(head) % 8)

    def parts() -> Iterator[Any]:
        yield len(head).to_bytes(8, "little") + head
        for name in header:
            plain = tensors[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
            yield plain.reshape(-1).view(torch.uint8).numpy()

    write_parts(path, parts(), 8 + len(head) + stop)


@contextmanager
def opened(path: Path, device: str = "cpu") -> Iterator[Any]:
    """A safetensors file to read from; `Failed("corrupt")` if it is none."""
    from safetensors import SafetensorError, safe_open

    with disk(path):
        try:
            with safe_open(path, framework="pt", device=device) as file:
                yield file
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise corrupt(path, "a safetensors file", ascii(str(error))[1:200]) from error


def load_tensors(path: Path | str, device: str = "cpu") -> "dict[str, Tensor]":
    """Reads a safetensors file; what was one tensor with several names is so again."""
    with opened(Path(path), device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        aliases = json.loads((file.metadata() or {}).get(ALIASES, "{}"))
        return {**tensors, **{name: tensors[kept] for name, kept in aliases.items()}}


def load_metadata(path: Path | str) -> dict[str, str]:
    """The metadata that `save_tensors` was given, without reading the tensors."""
    with opened(Path(path)) as file:
        return {key: text for key, text in (file.metadata() or {}).items() if key not in ("format", ALIASES)}


def save_state(folder: Path | str, name: str, nested: Any) -> None:
    """Writes nested dicts, lists, tuples, None, bools, numbers, strings and tensors as `name.json` and `name.safetensors`.

    All but devices, `requires_grad` and subclasses comes back bit by bit, keys of dicts that are no strings too. Meant for a folder of
    `new_folder`, since it is two files.
    """
    tensors: dict[str, Any] = {}
    packed = pack(nested, tensors, name)
    save_tensors(inside(folder, f"{name}.safetensors"), tensors)
    write_bytes(inside(folder, f"{name}.json"), canonical(packed))


def load_state(folder: Path | str, name: str, device: str = "cpu") -> Any:
    """Reads what `save_state` wrote; `Failed("corrupt")` if it is something else."""
    path = inside(folder, f"{name}.json")
    tensors = load_tensors(inside(folder, f"{name}.safetensors"), device)
    try:
        return unpack(read_json(path), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise corrupt(path, "a state", ascii(str(error))[:80]) from error


def pack(value: Any, tensors: dict[str, Any], place: str) -> Any:
    """A nested state as JSON: lists as lists, everything that JSON lacks as a mapping of its kind to its content."""
    import torch

    if value is None or isinstance(value, (bool, int, str)) or isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, float):
        return {"float": str(float(value))}
    if isinstance(value, Mapping):
        return {"dict": [[pack(key, tensors, place), pack(item, tensors, f"{place}.{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [pack(item, tensors, f"{place}.{number}") for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, torch.Tensor):
        tensors[str(len(tensors))] = value
        return {"tensor": len(tensors) - 1}
    got = f"{type(value).__module__}.{type(value).__qualname__}"
    raise Refused("state", place, "dicts, lists, tuples, None, bools, numbers, strings and tensors", got, "leave it out, or turn it into these")


def unpack(value: Any, tensors: Mapping[str, Any]) -> Any:
    """The nested state that `pack` turned into JSON."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[str(content)]
    made = {"float": float, "tuple": tuple, "dict": dict}[kind]
    return made(content if kind == "float" else unpack(content, tensors))


class Log:
    """A file of one JSON object a line that only grows. A line torn by a crash is dropped where it is the last; elsewhere it is an error."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Hands records to the operating system; `sync` puts them on the disk."""
        data = b"".join(json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records)
        crash_point("log.begin")
        with disk(self.path, len(data)):
            ensure(self.path.parent)
            with open(self.path, "a+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                    end = self.path.read_bytes().rfind(b"\n") + 1
                    os.truncate(file.fileno(), end)
                try:
                    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                        while part:
                            part = part[file.write(part) :]
                        crash_point("log.torn")
                except OSError:
                    os.truncate(file.fileno(), end)
                    raise
        crash_point("log.end")

    def sync(self) -> None:
        """Waits until everything appended is on the disk."""
        with disk(self.path):
            flush(self.path)
            flush(self.path.parent)

    def lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each whole line with its record."""
        with disk(self.path):
            whole = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        for number, line in enumerate(whole, 1):
            record = None
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
            if not isinstance(record, dict):
                raise corrupt(f"{self.path}:{number}", "one JSON object", ascii(line[:60].decode("utf-8", "replace")))
            yield line, record

    def read(self) -> list[dict[str, Any]]:
        """Every record, in order."""
        return [record for _, record in self.lines()]

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops the other records, such as those after the step that a run goes on from."""
        write_bytes(self.path, b"".join(line + b"\n" for line, record in self.lines() if wanted(record)))


def home() -> Path:
    """Where caches live: LIMBECK_HOME, else limbeck in XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("LIMBECK_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "limbeck")).expanduser()


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
            raise Refused("path", str(self.root), "a key: 64 hexadecimal digits", ascii(key)[:80], "limbeck cache list")
        return self.root / key

    def get(self, key: str) -> Path | None:
        """The sound entry of a key, now the last used. An altered one is set aside with a warning, and counts as missing."""
        path = self.path(key)
        if not path.is_dir():
            return None
        stamp = self.stamp(path)
        if stamp not in self.verified:
            try:
                verify(path)
            except LimbeckError as error:
                if self.stamp(path) == stamp:               # else another process has replaced or removed it meanwhile
                    aside = next(place for number in count(1) if not (place := path.with_name(f"{key}.corrupt-{number}")).exists())
                    with disk(path):
                        os.rename(path, aside)
                    logger.warning("%s: expected %s, got %s; set aside as %s and not used", error.where, error.expected, error.got, aside.name)
                return None
            self.verified.add(stamp)
        with suppress(OSError):                             # a shared cache may be read-only
            os.utime(path / ABOUT)
        return path

    @staticmethod
    def stamp(path: Path) -> tuple[str, int, int]:
        """Tells a folder from the one that had its name before."""
        with suppress(FileNotFoundError):
            state = path.stat()
            return (str(path.absolute()), state.st_ino, state.st_mtime_ns)
        return ("", 0, 0)

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
                self.verified.add(self.stamp(path))
        return path

    @contextmanager
    def hold(self, key: str) -> Iterator[Path | None]:
        """Keeps an entry from `gc`, in every process, as long as the block lasts."""
        with lock(self.path(key), wait_seconds=10, shared=True):
            yield self.get(key)

    def entries(self) -> list[Entry]:
        """Everything in the cache, by name."""
        found = []
        for path in sorted(self.root.glob("*")):
            if re.fullmatch(r"[0-9a-f]{64}(\.corrupt-\d+)?", path.name):
                about = None
                with suppress(LimbeckError):
                    about = read_json(path / ABOUT)
                with suppress(FileNotFoundError):           # removed while we look
                    used = (path / ABOUT if (path / ABOUT).exists() else path).stat().st_mtime
                    found.append(Entry(path.name, path, sum(file.stat().st_size for file in files_of(path).values()), about, used))
        return found

    def gc(self, keep_bytes: int) -> list[str]:
        """Removes what was set aside, then what was used longest ago, until this many bytes are left; says what, and spares what is held."""
        sweep(self.root)
        entries, removed = self.entries(), []
        left_bytes = sum(entry.size_bytes for entry in entries)
        for entry in sorted(entries, key=lambda entry: ("." not in entry.name, entry.used, entry.name)):
            if left_bytes <= keep_bytes:
                break
            with suppress(Refused), lock(entry.path, wait_seconds=0), disk(entry.path):
                if entry.path.exists():                     # else another process has collected it
                    gone = hidden(entry.path, "partial")
                    os.rename(entry.path, gone)
                    crash_point("cache.removing")
                    shutil.rmtree(gone)
                    removed.append(entry.name)
                left_bytes -= entry.size_bytes
        return removed
