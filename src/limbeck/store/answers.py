"""What a teacher has said about rows: a folder that says what it is, and grows by parts that are whole or absent.

    about.json         schema; identity, which is compared; facts, which are told
    parts/HASH/        index.json: keys of rows, and how much of each tensor is theirs; answers.safetensors; manifest.json
    teacher/           what is needed where the teacher's weights are not at hand (written by `limbeck capture`)

A row is found by its key, whatever part it is in. Only what is asked for is read, from the file mapped into memory.
"""

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

from limbeck.errors import Failed, Refused
from limbeck.store.cache import ABOUT, is_sound_or_aside
from limbeck.store.files import corrupt, disk, lock, read_json, sha256_json, write_json
from limbeck.store.folder import files_of, new_folder
from limbeck.store.tensors import opened, save_tensors

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import Tensor

SCHEMA = "limbeck.answers/1"
NAME = re.compile("[0-9a-f]{32}")
OPEN_FILES = 64
"""Parts that are mapped into memory at the same time."""
WAIT_SECONDS = 24 * 3600.0
"""How long one process lets another ask."""
Tensors = Mapping[str, "Tensor"]
Unpack = Callable[[Tensors], "dict[str, Tensor]"]
"""From what is written of some entries, with what belongs to their whole part, to what was said."""


@dataclass(frozen=True)
class Part:
    """Rows that were written together."""

    path: Path
    rows: Mapping[str, int]
    """Key -> place among the rows of the part."""
    ends: Mapping[str, Sequence[int]]
    """Tensor -> where the entries of each row end, after a 0."""
    whole: Sequence[str]
    """Tensors that belong to all its rows."""

    @classmethod
    def read(cls, path: Path) -> "Part":
        """The index of a part; `Failed("corrupt")` if it is none."""
        try:
            plain = read_json(path / "index.json")
            keys, lengths = plain["rows"], plain["lengths"]
            good = all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys)
            good = good and all(len(some) == len(keys) and all(type(n) is int and n >= 0 for n in some) for some in lengths)
            ends = [list(accumulate(some, initial=0)) for some in lengths]
            if good:
                return cls(path, {key: i for i, key in enumerate(keys)}, {name: ends[i] for name, i in plain["tensors"].items()}, plain["whole"])
        except (KeyError, TypeError, AttributeError, IndexError):
            pass
        raise corrupt(path / "index.json", "the index of a part", "something else")

    def entries(self, name: str, key: str) -> int:
        """How many entries of a tensor belong to a row."""
        ends, i = self.ends[name], self.rows[key]
        return ends[i + 1] - ends[i]


class Answers(Mapping[str, dict[str, "Tensor"]]):
    """Key of a row -> what was said about it. Nothing is written before the first answer."""

    def __init__(self, folder: Path | str, identity: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None, unpack: Unpack = dict):
        """Args:
            folder: where they are, or will be.
            identity: what the answers depend on; compared with that of the folder. None: whatever is there, to be read only.
            facts: told about the folder, and not compared.
            unpack: see `Unpack`.

        Raises:
            Refused: `cache`, with the first difference.
        """
        self.folder, self.unpack = Path(folder), unpack
        self.about: dict[str, Any] = {"schema": SCHEMA, "identity": dict(identity or {}), "facts": dict(facts or {})}
        self.writes = identity is not None
        self.parts: dict[str, Part] = {}
        self.where: dict[str, str] = {}
        self.files: OrderedDict[str, tuple[ExitStack, Any]] = OrderedDict()
        self.held, self.holds = ExitStack(), False
        finalize(self, self.held.close)
        if (self.folder / ABOUT).is_file():
            self.compare()
        elif not self.writes:
            raise Refused("cache", str(self.folder), "a folder that limbeck capture wrote", f"no {ABOUT} in it", "correct the path")
        self.refresh()

    def compare(self) -> None:
        """Refuses a folder of another kind, and takes over what it says about itself."""
        there, mine = read_json(self.folder / ABOUT), self.about["identity"]
        if not isinstance(there, dict) or there.get("schema") != SCHEMA or not all(isinstance(there.get(n), dict) for n in ("identity", "facts")):
            got = str(there.get("schema"))[:60] if isinstance(there, dict) else "something else"
            raise Refused("cache", str(self.folder / ABOUT), f"a cache of the schema {SCHEMA}", got, "capture into another folder")
        for name in dict.fromkeys([*mine, *there["identity"]]) if self.writes else ():
            if mine.get(name) != there["identity"].get(name):
                expected, got = (f"{name} {str(x.get(name))[:160]}" for x in (mine, there["identity"]))
                raise Refused("cache", str(self.folder), expected, got, "name another folder, or remove this one and capture again")
        self.about = there

    def refresh(self) -> None:
        """Looks for parts that others have written or set aside meanwhile."""
        names = {path.name for path in (self.folder / "parts").glob("*") if NAME.fullmatch(path.name)}
        for name in self.parts.keys() - names:
            self.forget(name)
        for name in sorted(names - self.parts.keys()):
            try:
                part = Part.read(self.folder / "parts" / name)
            except Failed:
                if is_sound_or_aside(self.folder / "parts" / name):
                    raise
                continue
            self.parts[name] = part
            for key in part.rows:
                self.where.setdefault(key, name)

    def forget(self, name: str) -> None:
        """Drops a part that is no longer there; a row of it may be in another one."""
        self.parts.pop(name)
        self.close(name)
        self.where = {key: name for name in sorted(self.parts, reverse=True) for key in self.parts[name].rows}

    def __len__(self) -> int:
        return len(self.where)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __contains__(self, key: object) -> bool:
        return key in self.where

    def __getitem__(self, key: str) -> "dict[str, Tensor]":
        return self.unpack(self.written(key))

    def written(self, key: str) -> "dict[str, Tensor]":
        """A row's entries as they are written, with what belongs to their part."""
        part = self.parts[self.where[key]]
        file, i = self.file(part), part.rows[key]
        with disk(part.path):
            return {
                **{name: file.get_slice(name)[ends[i] : ends[i + 1]] for name, ends in part.ends.items()},
                **{name: file.get_tensor(name) for name in part.whole},
            }

    def file(self, part: Part) -> Any:
        """The tensors of a part, mapped into memory; those used longest ago are closed."""
        name = part.path.name
        if name not in self.files:
            stack = ExitStack()
            file = stack.enter_context(opened(part.path / "answers.safetensors"))
            sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}
            if sizes.keys() != {*part.ends, *part.whole} or any(not sizes[n] or sizes[n][0] != ends[-1] for n, ends in part.ends.items()):
                stack.close()
                raise corrupt(part.path, "tensors as its index says", "others")
            self.files[name] = stack, file
            while len(self.files) > OPEN_FILES:
                self.close(next(iter(self.files)))
        self.files.move_to_end(name)
        return self.files[name][1]

    def close(self, name: str) -> None:
        if name in self.files:
            self.files.pop(name)[0].close()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that are not there, each once; parts that hold the others are verified once a process, and set aside if altered."""
        self.hold()
        self.refresh()
        keys = list(dict.fromkeys(keys))
        for name in sorted({self.where[key] for key in keys if key in self.where}):
            if not is_sound_or_aside(self.parts[name].path):
                self.forget(name)
        return [key for key in keys if key not in self.where]

    def turn(self) -> AbstractContextManager[None]:
        """Held by who asks: others wait, and then look what is still missing."""
        return lock(self.folder / "parts", WAIT_SECONDS)

    def hold(self) -> None:
        """Keeps the folder from being collected while this process lives, and marks it as the last used."""
        if self.writes and not self.holds and (self.folder / ABOUT).is_file():
            self.held.enter_context(lock(self.folder, wait_seconds=10, shared=True))
            self.holds = True
            with suppress(OSError):  # a shared one may be read-only
                os.utime(self.folder / ABOUT)

    def begin(self) -> None:
        """Says in the folder what it is, if nobody has yet."""
        if (self.folder / ABOUT).is_file():
            self.compare()
        else:
            write_json(self.folder / ABOUT, self.about)
        self.hold()

    def append(self, tensors: Tensors, lengths: Mapping[str, Mapping[str, int]], whole: Tensors | None = None) -> None:
        """Writes rows as one part.

        Args:
            tensors: entries of all the rows, one row after the other.
            lengths: key of a row -> tensor -> how many of its entries are the row's.
            whole: tensors that belong to all of them.
        """
        self.begin()
        lists = {name: [lengths[key][name] for key in lengths] for name in tensors}
        distinct = [list(some) for some in dict.fromkeys(tuple(some) for some in lists.values())]
        index = {
            "rows": list(lengths),
            "lengths": distinct,
            "tensors": {name: distinct.index(some) for name, some in sorted(lists.items())},
            "whole": sorted(whole or {}),
        }
        name = sha256_json(list(lengths))[:32]
        needed = sum(x.numel() * x.element_size() for x in (*tensors.values(), *(whole or {}).values()))
        with new_folder(self.folder / "parts" / name, needed, wait_seconds=60) as folder:
            write_json(folder / "index.json", index)
            save_tensors(folder / "answers.safetensors", {**tensors, **(whole or {})})
        self.refresh()

    @property
    def size_bytes(self) -> int:
        """Of everything in the folder."""
        return sum(file.stat().st_size for file in files_of(self.folder).values()) if self.folder.is_dir() else 0

    def num(self, name: str) -> int:
        """Entries of a tensor, over all rows; of the longest name that begins so, where it is written in pieces."""
        found = ((self.parts[part], key) for key, part in self.where.items())
        return sum(part.entries(next(n for n in part.ends if n.split("/")[0] == name), key) for part, key in found)


def merge(into: Answers, others: Sequence[Answers]) -> int:
    """Adds the rows of others that are missing, as they are written; returns how many.

    Raises:
        Refused: `cache`, where one of them depends on something else.
    """
    import torch

    added = 0
    for other in others:
        Answers(other.folder, into.about["identity"])  # refuses another identity
        other.missing(other)  # sets aside what was altered
        for part in list(other.parts.values()):
            with into.turn():
                keys = into.missing(key for key in part.rows if other.where.get(key) == part.path.name)
                rows = [other.written(key) for key in keys]
                if rows:
                    tensors = {name: torch.cat([row[name] for row in rows]) for name in part.ends}
                    lengths = {key: {name: part.entries(name, key) for name in part.ends} for key in keys}
                    into.append(tensors, lengths, {name: rows[0][name] for name in part.whole})
            added += len(keys)
    return added
