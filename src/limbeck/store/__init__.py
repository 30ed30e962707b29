"""Every write of the library: atomic, checksummed, locked, with named crash points; the cache of finished steps; what teachers have said.

A file or folder is first written under a hidden name beside its place (`.NAME.limbeck-partial`), flushed to the disk, and then renamed:
whoever looks sees the old content or the new one. What a dead writer leaves behind is told from a live one's by a lock that the
kernel drops when a process dies, and is removed by `sweep`. Locks, too, are hidden files beside what they lock.
"""

from limbeck.store.answers import Answers, merge
from limbeck.store.cache import ANSWERS, Cache, Entry, home, is_sound_or_aside
from limbeck.store.files import (
    CRASH_POINTS,
    corrupt,
    crash_point,
    disk,
    free_bytes,
    in_bytes,
    inside,
    lock,
    new_file,
    read_json,
    sha256_json,
    write_bytes,
    write_json,
    write_parts,
    write_text,
)  # fmt: skip
from limbeck.store.folder import is_sound, manifest, new_folder, sha256_file, sha256_folder, sweep, verify
from limbeck.store.log import Log
from limbeck.store.tensors import DTYPES, Later, later_tensors, load_metadata, load_state, load_tensors, save_state, save_tensors

__all__ = [
    "ANSWERS",
    "Answers",
    "CRASH_POINTS",
    "Cache",
    "DTYPES",
    "Entry",
    "Later",
    "Log",
    "corrupt",
    "crash_point",
    "disk",
    "free_bytes",
    "home",
    "in_bytes",
    "inside",
    "is_sound",
    "is_sound_or_aside",
    "later_tensors",
    "load_metadata",
    "load_state",
    "load_tensors",
    "lock",
    "manifest",
    "merge",
    "new_file",
    "new_folder",
    "read_json",
    "save_state",
    "save_tensors",
    "sha256_file",
    "sha256_folder",
    "sha256_json",
    "sweep",
    "verify",
    "write_bytes",
    "write_json",
    "write_parts",
    "write_text",
]
