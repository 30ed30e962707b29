"""The store of what models wrote: one file that only grows, where many answers wait for one write."""

import base64
import binascii
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from limbeck.endpoint.responses import MOST_BYTES
from limbeck.errors import Refused
from limbeck.store import Log, disk
from limbeck.store.files import ensure, flush

logger = logging.getLogger(__name__)
LOCK_SECONDS = 60.0
"""Longest wait for another process that writes."""


class Claims:
    """What is being asked, each by one thread of one process: one locked byte of a file for each, so that no file is made and removed."""

    def __init__(self, path: Path):
        self.path, self.handle = path, -1
        self.busy: set[int] = set()
        self.free = threading.Condition()

    @contextmanager
    def hold(self, place: int, wait_seconds: float) -> Iterator[None]:
        """Holds a byte.

        Raises:
            Refused: `locked`, if another holds it for too long.
        """
        end, do = time.monotonic() + wait_seconds, "wait until it has ended, or stop it, and repeat the command"
        late = Refused("locked", str(self.path), "no other process that asks the same", "one at work", do, code=3)
        with self.free, disk(self.path):
            if self.handle < 0:
                ensure(self.path.parent)
                self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            if not self.free.wait_for(lambda: place not in self.busy, wait_seconds):
                raise late
            self.busy.add(place)
        try:
            while not self.locked(place):
                if time.monotonic() >= end:
                    raise late
                time.sleep(0.02)
            yield
        finally:
            with self.free:
                fcntl.lockf(self.handle, fcntl.LOCK_UN, 1, place)
                self.busy.discard(place)
                self.free.notify_all()

    def locked(self, place: int) -> bool:
        """Whether the byte is this process's now."""
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):  # what systems say where another process holds it
            return False
        return True


GUARD = threading.Lock()
CLAIMS: dict[Path, Claims] = {}
"""One a file and process: closing a second handle would give up the locks of the first."""


class Kept:
    """Answers as lines of a file. An answer is on the disk when `put` returns; those that come meanwhile are written together.

    A line torn by a crash is cut off by the next one; an altered line counts as missing, and leaves the others as they are.
    """

    def __init__(self, path: Path):
        self.log = Log(path)
        self.places: dict[str, tuple[int, int]] = {}
        """Request -> where its last line begins, and its length."""
        self.offset = 0
        self.queue: list[Waiting] = []
        self.guard, self.written, self.busy = threading.Lock(), threading.Condition(), False

    def claim(self, key: str, wait_seconds: float) -> AbstractContextManager[None]:
        """Holds a request while it is asked, so that nobody else asks the same."""
        path = self.log.path.with_suffix(".claims")
        with GUARD:
            claims = CLAIMS.setdefault(path, Claims(path))
        return claims.hold(int(key[:15], 16), wait_seconds)

    def catch_up(self) -> None:
        """Takes up what this process or another has written since."""
        path = self.log.path
        with self.guard, disk(path):
            if not path.is_file() or path.stat().st_size <= self.offset:
                return
            with open(path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
            start = 0
            while (end := data.find(b"\n", start) + 1) > 0:
                key = named(data[start:end])
                if key is not None:
                    self.places[key] = self.offset + start, end - start
                start = end
            self.offset += start

    def has(self, key: str) -> bool:
        self.catch_up()
        return key in self.places

    def get(self, key: str) -> bytes | None:
        """The answer to a request; an altered one is told of, and counts as missing."""
        if not self.has(key):
            return None
        path, (start, length) = self.log.path, self.places[key]
        with disk(path), open(path, "rb") as file:
            file.seek(start)
            line = file.read(length)
        try:
            record = json.loads(line)
            body = zlib.decompressobj().decompress(base64.b64decode(record["body"], validate=True), MOST_BYTES)
            if named(line) == key and hashlib.sha256(body).hexdigest() == record["sha256"]:
                return body
        except (ValueError, KeyError, TypeError, RecursionError, zlib.error, binascii.Error):
            pass
        logger.warning("%s: the answer at byte %d is not what was written; it is asked again", path, start)
        with self.guard:
            self.places.pop(key, None)
        return None

    def put(self, key: str, body: bytes) -> None:
        """Keeps an answer: with all that wait for the disk at this time, in one write."""
        packed = base64.b64encode(zlib.compress(body, 1)).decode()
        mine = Waiting({"request": key, "sha256": hashlib.sha256(body).hexdigest(), "body": packed})
        with self.written:
            self.queue.append(mine)
            self.written.wait_for(lambda: mine.done or not self.busy)
            batch = [] if mine.done else self.queue
            if batch:  # nobody writes: this thread does, for all that wait
                self.busy, self.queue = True, []
        if batch:
            self.write(batch)
        if mine.error is not None:
            raise mine.error

    def write(self, batch: "list[Waiting]") -> None:
        error: BaseException | None = None
        try:
            new = not self.log.path.exists()
            with self.log.alone(LOCK_SECONDS):
                self.log.append(one.record for one in batch)
                flush(self.log.path)
            if new:
                flush(self.log.path.parent)
            self.catch_up()
        except BaseException as reason:  # each that waits is told
            error = reason
        with self.written:
            for one in batch:
                one.done, one.error = True, error
            self.busy = False
            self.written.notify_all()


@dataclass
class Waiting:
    """An answer that waits for the disk."""

    record: dict[str, str]
    done: bool = False
    error: BaseException | None = None


def named(line: bytes) -> str | None:
    """The request of a line, from its first bytes; None for a line that was altered there."""
    begins = b'{"request":"'
    key = line[len(begins) : len(begins) + 64]
    return key.decode() if line.startswith(begins) and line[len(begins) + 64 :].startswith(b'","') and key.isalnum() else None
