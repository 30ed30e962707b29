"""A server on a loopback port that scores texts with a tiny model, in both dialects, and fails as it is told to."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from limbeck.check.models import TOKENIZER
from limbeck.check.serving import Scripted
from limbeck.model.text import Text


class Fault(NamedTuple):
    """What goes wrong with one request."""

    status: int = 200
    headers: dict[str, str] = {}
    change: Callable[[bytes], bytes] = lambda body: body
    """Of the answer, before it is sent."""
    reset_at: int | None = None
    """The connection is closed after so many bytes."""
    hang: bool = False
    """No answer comes before the server is closed."""


class ScriptedServer:
    """`faults` are taken one a request about a text, in order; `always` holds for those without one. `seen` and `prompts` say what was asked."""

    def __init__(self, role: Text, model: str = "tutor", most: int = 1 << 20):
        self.scripted = Scripted(role, model, most)
        self.faults: list[Fault] = []
        self.always = Fault()
        self.front: list[int] = []
        """Ids put in front of every text."""
        self.seen: list[dict[str, Any]] = []
        self.prompts: list[tuple[int, ...]] = []
        self.paths: list[str] = []
        self.most_at_once = self.at_once = 0
        self.guard, self.closed = threading.Lock(), threading.Event()
        self.gate: threading.Event | None = None
        """If it is there, answers wait for it."""
        self.arrived = threading.Semaphore(0)
        """Released once a request about a text."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                outer.handle(self, None)

            def do_POST(self) -> None:
                outer.handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        path = handler.path.rpartition("/")[2]
        with self.guard:
            self.paths.append(path)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = Fault()
            if body is not None:
                self.seen.append({"headers": dict(handler.headers), **body})
                self.prompts.append(tuple(body["prompt"]))
                fault = self.faults.pop(0) if self.faults else self.always
        if body is not None:
            self.arrived.release()
        if self.gate is not None and body is not None:
            self.gate.wait()
        if fault.hang:
            self.closed.wait()
        status, answer = self.answer(path, body) if fault.status == 200 else (fault.status, {"error": {"message": "as it was told to"}})
        with self.guard:
            self.at_once -= 1
        self.send(handler, status, fault, fault.change(json.dumps(answer).encode()))

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        with self.guard:  # one model, many threads
            if body is not None and self.front:
                ids = body["prompt"] if isinstance(body["prompt"], list) else TOKENIZER.encode(body["prompt"], add_special_tokens=False)
                body = {**body, "prompt": [*self.front, *ids]}
            return self.scripted.answer(path, body)

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, fault: Fault, data: bytes) -> None:
        with contextlib.suppress(OSError):  # who asked may be gone
            handler.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **fault.headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data if fault.reset_at is None else data[: fault.reset_at])
            if fault.reset_at is not None:
                handler.close_connection = True

    def close(self) -> None:
        self.closed.set()
        if self.gate is not None:
            self.gate.set()
        self.http.shutdown()
        self.http.server_close()


def changed(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """A change to the plain data of an answer."""
    return lambda body: json.dumps(change(json.loads(body))).encode()


@contextlib.contextmanager
def serving(role: Text, **options: Any) -> Iterator[ScriptedServer]:
    server = ScriptedServer(role, **options)
    try:
        yield server
    finally:
        server.close()
