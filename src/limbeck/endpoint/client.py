"""The client: asks again where that helps, keeps what was answered, spends no more than allowed, and tells nobody its key."""

import hashlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

from limbeck.endpoint.kept import Kept
from limbeck.endpoint.ledger import Budget, Ledger
from limbeck.endpoint.responses import Responses
from limbeck.endpoint.transport import Ask, Lost, Reply, Send
from limbeck.errors import Failed, Refused
from limbeck.store import sha256_json

logger = logging.getLogger(__name__)
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which a request is sent again."""
MISREAD = b"validation error"
"""In an answer of status 500: llama.cpp's Python server says so about a body that it cannot read."""
FIRST_WAIT, LONGEST_WAIT, MOST_PATIENCE = 0.5, 60.0, 300.0
"""Seconds before the second attempt, before any, and the longest that a server may ask for."""
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a client allows a server, and itself."""

    concurrency: int = 8
    """Requests in flight at the same time."""
    timeout_seconds: float = 120.0
    attempts: int = 6
    """Sendings of one request."""
    most_bytes: int = 1 << 28
    """Of one answer."""


class Declined(Refused):
    """The server will not answer such a request, and would not the next time either."""


class Endpoint:
    """Asks one server. An answer that was read and found good is kept, and the same request is never sent again."""

    def __init__(
        self,
        url: str,
        send: Send | None,
        folder: Path,
        *,
        key_env: str = "",
        limits: Limits | None = None,
        budget: Budget | None = None,
        wait: Callable[[float], None] | None = None,
        responses: Responses | Kept | None = None,
    ):
        """Args:
        url: of the server, checked by `address`.
        send: sends a request; None: nothing is asked, only what is kept is used.
        folder: of all kept answers; the ledger of this server is below it.
        key_env: the environment variable that holds the key; empty: the server takes none.
        wait: between attempts; none: sleeps.
        responses: where answers are kept; none: in files of the folder.
        """
        self.url, self.sender, self.key_env, self.limits, self.wait = url, send, key_env, limits or Limits(), wait or sleep
        self.responses, self.says = responses or Responses(folder), {}
        self.folder = folder / "servers" / sha256_json(url)[:16]
        self.ledger = Ledger(self.folder / "ledger.jsonl", budget or Budget(), url)
        self.counts: Counter[str] = Counter()
        """Requests that were `asked`, `replayed` from the store, and `repeated`: sent again after no answer came, perhaps in an earlier run."""
        self.slots, self.guard = threading.BoundedSemaphore(self.limits.concurrency), threading.Lock()

    def key(self, path: str, body: Mapping[str, Any]) -> str:
        """The name of a request: server, what the server says about itself, path and body."""
        return sha256_json({"url": self.url, "says": self.says, "path": path, "body": body})

    def has(self, path: str, body: Mapping[str, Any]) -> bool:
        """Whether the answer is kept already."""
        return self.responses.has(self.key(path, body))

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[Any], T],
        tokens: tuple[int, int] = (0, 0),
        keep: bool = True,
        key: str | None = None,
    ) -> T:
        """What `read` makes of the answer, which is kept if `read` accepts it.

        Args:
            path: below the address: `completions`.
            body: plain data; None asks with GET.
            read: raises `Failed` for an answer that is not what it must be.
            tokens: read and written, estimated, for the budget.
            keep: whether the answer is taken from the store and put there.
            key: under which it is kept; none: the request's own, which is one of this server.

        Raises:
            Declined: the server will not answer such a request.
            Refused: `budget`, `key`, `redirect`.
            Failed: `endpoint`, if no answer came; `offline`, if nothing may be asked; and what `read` raises.
        """
        key = key or self.key(path, body or {})
        if keep and (found := self.responses.get(key)) is not None:
            return self.replayed(found, read)
        if self.sender is None:
            raise Failed("offline", self.url, "an answer that is kept", "none, and nothing may be asked", "repeat the command with the server")
        if not keep:
            with self.slots:
                return read(self.attempts(key, path, body, tokens)[0])
        with self.responses.claim(key, self.limits.attempts * (self.limits.timeout_seconds + LONGEST_WAIT)):
            if (found := self.responses.get(key)) is not None:  # another has asked meanwhile
                return self.replayed(found, read)
            with self.slots:  # what waits for the disk keeps no other request waiting
                answer, raw = self.attempts(key, path, body, tokens)
            value = read(answer)
            self.responses.put(key, raw)
            return value

    def replayed(self, found: bytes, read: Callable[[Any], T]) -> T:
        self.count("replayed")
        return read(json.loads(found))

    def count(self, what: str) -> None:
        with self.guard:
            self.counts[what] += 1

    def attempts(self, key: str, path: str, body: Mapping[str, Any] | None, tokens: tuple[int, int]) -> tuple[Any, bytes]:
        """The answer, parsed and as it came, without the key."""
        url, got = f"{self.url}/{path}", ""
        headers = {"Content-Type": "application/json", **self.secret_header()}
        data = None if body is None else json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
        self.count("asked")
        for number in range(self.limits.attempts):
            if self.ledger.send(key, *tokens):
                self.count("repeated")
            pause = None
            try:
                reply = self.sender(Ask(url, headers, data, self.limits.timeout_seconds, self.limits.most_bytes))  # type: ignore[misc]
                reply = reply._replace(body=self.hidden(reply.body))
                if reply.status == 200:
                    with suppress(ValueError, RecursionError):
                        answer = json.loads(reply.body)
                        self.ledger.settle(key, "answered", *used(answer, tokens))
                        return answer, reply.body
                    got = f"{len(reply.body):,} bytes that are no JSON"
                else:
                    self.ledger.settle(key, "free")
                    got = f"status {reply.status}{said(reply)}"
                    if reply.status not in AGAIN or reply.status == 500 and MISREAD in reply.body:
                        raise self.declined(reply, url)
                    pause = patience(reply.headers)
            except Lost as error:
                got = str(error)
            if pause is not None and pause > MOST_PATIENCE:
                do = "repeat the command then: what was answered is kept"
                raise Failed("endpoint", url, "an answer", f"{got}; it asks to wait {pause:,.0f} s", do)
            if number + 1 < self.limits.attempts:
                logger.info("%s: %s; attempt %d of %d follows", url, got, number + 2, self.limits.attempts)
                self.wait(self.pause(key, number) if pause is None else pause)
        do = "look whether the server runs, and repeat the command: what was answered is kept"
        raise Failed("endpoint", url, "an answer", f"{got}, {self.limits.attempts} times", do)

    def pause(self, key: str, number: int) -> float:
        """Seconds before the next attempt: doubled each time, and spread by a hash so that many clients do not come at once."""
        share = int.from_bytes(hashlib.sha256(f"{key}/{number}".encode()).digest()[:4], "big") / 2**32
        return min(LONGEST_WAIT, FIRST_WAIT * 2**number) * (0.5 + share)

    def secret(self) -> str:
        """The key.

        Raises:
            Refused: `key`, if the variable is not set or holds what cannot be one. Its value is not shown.
        """
        if not self.key_env:
            return ""
        value = os.environ.get(self.key_env, "").strip()
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            got, do = "not set" if not value else "something that is no key", f"export {self.key_env}=..."
            raise Refused("key", self.url, f"a key in the environment variable {self.key_env}", got, do)
        return value

    def secret_header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if (key := self.secret()) else {}

    def hidden(self, body: bytes) -> bytes:
        """An answer without the key, should the server repeat it."""
        key = self.secret()
        for form in {key, key.replace("/", "\\/")} if key else ():
            body = body.replace(form.encode(), b"***")
        return body

    def declined(self, reply: Reply, url: str) -> Refused:
        """The error of a status that stays."""
        if 300 <= reply.status < 400:
            got = f"status {reply.status}: it sends us elsewhere, to {ascii(self.hidden(reply.headers.get('location', '').encode()).decode()[:80])}"
            return Refused("redirect", url, "an answer; redirects are not followed", got, "write that address, if you trust it")
        got = f"status {reply.status}{said(reply)}"
        if reply.status in (401, 403):
            do = f"correct the variable {self.key_env}" if self.key_env else "name the variable that holds one: key_env: NAME"
            return Refused("key", url, "a key that the server takes", got, do)
        return Declined("server", url, "an answer", got, "look at the server's options and its log")


def said(reply: Reply) -> str:
    """The server's own words about an error, as one short line of data."""
    text = reply.body[:2000].decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        found = json.loads(reply.body)
        found = found.get("error", found) if isinstance(found, dict) else found
        text = str(found.get("message", found.get("detail", found)) if isinstance(found, dict) else found)
    text = " ".join(text.split())
    return f": {ascii(text[:160])}" if text else ""


def used(answer: Any, estimate: tuple[int, int]) -> tuple[int, int]:
    """Tokens in and out that the server counted, or the estimate where it says nothing that can be one."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return estimate
    found = [usage.get("prompt_tokens"), usage.get("completion_tokens", 0)]
    return (found[0], found[1]) if all(type(n) is int and 0 <= n < 1 << 40 for n in found) else estimate


def patience(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait (Retry-After), or None."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with suppress(ValueError, TypeError):
        when = parsedate_to_datetime(text)
        return max(0.0, (when - datetime.now(UTC if when.tzinfo else None)).total_seconds())
    return None
