"""The store of answers: by the hash of the request, each written once."""

import hashlib
import logging
import os
import zlib
from contextlib import AbstractContextManager
from pathlib import Path

from limbeck.store import disk, inside, lock, write_bytes

logger = logging.getLogger(__name__)
MOST_BYTES = 1 << 30
"""Of an answer that is read back."""
MARK_BYTES = 32
"""A sha256 in front of each file."""


class Responses:
    """Answers of servers in files below a folder, compressed, each behind its sha256."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, key: str) -> Path:
        """The file of a request's answer, which need not exist."""
        return inside(self.root, f"{key[:2]}/{key}")

    def has(self, key: str) -> bool:
        return self.path(key).is_file()

    def get(self, key: str) -> bytes | None:
        """The answer to a request; an altered file is set aside with a warning, and counts as missing."""
        path = self.path(key)
        if not path.is_file():
            return None
        with disk(path):
            data = path.read_bytes()
        try:
            body = zlib.decompressobj().decompress(data[MARK_BYTES:], MOST_BYTES)
        except zlib.error:
            body = b""
        if hashlib.sha256(body).digest() == data[:MARK_BYTES]:
            return body
        logger.warning("%s is not what was written; set aside as %s.corrupt and asked again", path, path.name)
        with disk(path):
            os.replace(path, path.with_name(f"{path.name}.corrupt"))
        return None

    def claim(self, key: str, wait_seconds: float) -> AbstractContextManager[None]:
        """Holds a request while it is asked, so that nobody else asks the same."""
        return lock(self.path(key), wait_seconds)

    def put(self, key: str, body: bytes) -> None:
        """Keeps an answer, wholly or not at all."""
        write_bytes(self.path(key), hashlib.sha256(body).digest() + zlib.compress(body, 1))
