"""A file of one JSON object a line."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from limbeck.errors import Refused
from limbeck.store.files import corrupt, crash_point, disk, ensure, flush, write_bytes


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

    @contextmanager
    def alone(self, wait_seconds: float) -> Iterator[None]:
        """Holds the file itself, which is made if it must be: others who ask for it wait. Not for a log of which `keep` drops records.

        Raises:
            Refused: `locked`, if another process holds it for too long.
        """
        with disk(self.path):
            ensure(self.path.parent)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            end = time.monotonic() + wait_seconds
            while not held(handle):
                if time.monotonic() >= end:
                    do = "wait until it has ended, or stop it, and repeat the command"
                    raise Refused("locked", str(self.path), "no other process at work here", "one that writes", do, code=3)
                time.sleep(0.002)
            yield
        finally:
            os.close(handle)

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


def held(handle: int) -> bool:
    """Whether an open file could be locked now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
