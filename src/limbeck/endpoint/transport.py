"""One request and its answer, over HTTP: bounded in time and size, no redirect followed."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from weakref import finalize

from limbeck.endpoint.address import is_loopback
from limbeck.errors import Failed


class Ask(NamedTuple):
    """A request, whole: a GET where it has no body."""

    url: str
    headers: Mapping[str, str]
    body: bytes | None
    timeout_seconds: float
    most_bytes: int


class Reply(NamedTuple):
    """What came back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Lost(Exception):
    """No whole answer came: a time-out, a connection that was reset or refused. It may be asked again."""


Send = Callable[[Ask], Reply]
"""Sends one request. Threads call it at the same time."""


class OverHttp:
    """Sends requests over HTTP, through one pool of connections."""

    def __init__(self) -> None:
        self.client: Any = None
        self.guard = threading.Lock()

    def open(self, url: str) -> Any:
        """The pool; a proxy of the environment is used, but never for this machine itself."""
        import httpx2

        with self.guard:
            if self.client is None:
                here = is_loopback(urlsplit(url).hostname or "")
                bounds = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
                self.client = httpx2.Client(follow_redirects=False, trust_env=not here, limits=bounds)
                finalize(self, self.client.close)
            return self.client

    def __call__(self, ask: Ask) -> Reply:
        """The answer to a request.

        Raises:
            Lost: no whole answer came in time.
            Failed: `size`, if the answer is larger than allowed.
        """
        import httpx2

        client, end, parts, size = self.open(ask.url), time.monotonic() + ask.timeout_seconds, [], 0
        headers = {**ask.headers, "Accept-Encoding": "identity"}  # else a small answer could unpack into a huge one
        try:
            method = "GET" if ask.body is None else "POST"
            with client.stream(method, ask.url, headers=headers, content=ask.body, timeout=ask.timeout_seconds) as answer:
                for part in answer.iter_raw():
                    parts.append(part)
                    size += len(part)
                    if size > ask.most_bytes:
                        expected, got = f"an answer of at most {ask.most_bytes:,} bytes", f"{size:,} bytes, and more to come"
                        raise Failed("size", ask.url, expected, got, "look at the server; shorter rows or a smaller k make smaller answers")
                    if time.monotonic() > end:
                        raise Lost(f"no whole answer within {ask.timeout_seconds:g} s")
                return Reply(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, b"".join(parts))
        except httpx2.TimeoutException:
            raise Lost(f"no answer within {ask.timeout_seconds:g} s") from None
        except httpx2.TransportError as error:
            raise Lost(f"{type(error).__name__}: {str(error)[:120]}") from None
