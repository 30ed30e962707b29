"""A server on a loopback port that scores texts with a tiny model, as several servers do, writes what a function says, and fails as it is told to."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import torch

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


class LlamaPython(Scripted):
    """As `python -m llama_cpp.server` of llama-cpp-python 0.3.36, whose answers were looked at; it writes an end of text wherever it may."""

    front = False
    """A BOS is put in front of every text."""

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "models":
            return 200, {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "me", "permissions": []}]}
        if not isinstance(body["prompt"], str):
            told = "4 validation errors:\n  {'type': 'string_type', 'loc': ('body', 'prompt', 'str'), 'msg': 'Input should be a valid string'}"
            return 500, {"error": {"message": told, "type": "internal_server_error", "param": None, "code": None}}
        bos = self.bos
        ids = [bos] * self.front + self.role.tokenizer.encode(body["prompt"], add_special_tokens=False)
        written, log_p = self.written(ids, body.get("logit_bias") or {})
        echo, first = bool(body.get("echo")), [] if body.get("echo") else ids
        tokens = (ids[1:] if ids[0] == bos else ids) + written if echo else written
        listed = [(i, row) for i, row in zip(tokens, log_p[max(len(first) - 1, 0) :], strict=False) if i != bos]
        own: list[Any] = [float(row[i]) for i, row in listed]
        top: list[Any] = [self.best(row, i, body["logprobs"]) for i, row in listed]
        if echo and tokens:
            own[0] = top[0] = None
        names = [self.name(i) for i, _ in listed]
        said = {"tokens": names, "token_logprobs": own, "top_logprobs": top, "text_offset": [0] * len(names)}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
        return 200, {"choices": [{"index": 0, "text": "", "logprobs": said, "finish_reason": "length"}], "usage": usage}

    @property
    def bos(self) -> int:
        return self.role.tokenizer.bos_token_id

    def name(self, i: int) -> str:
        if i not in self.names:
            text = "" if i in self.role.tokenizer.all_special_ids else self.role.tokenizer.decode([i]).replace("\ufffd", "")
            self.names[i] = text if len(text.encode()) <= 32 else ""
        return self.names[i]

    def best(self, row: torch.Tensor, own: int, k: int) -> dict[str, float]:
        """Of tokens that share a name, the least probable stays."""
        values, order = row.topk(min(k, len(row)))
        return {**{self.name(i): value for i, value in zip(order.tolist(), values.tolist(), strict=True)}, self.name(own): float(row[own])}

    def written(self, ids: list[int], bias: dict[str, float]) -> tuple[list[int], torch.Tensor]:
        """What it writes, until a character is whole, and the log-probabilities after each token that was read."""
        written: list[int] = []
        while True:
            log_p = self.log_probs([*ids, *written])
            eos = self.role.tokenizer.eos_token_id
            token = eos if bias.get(str(eos), 0) > -50 else int(log_p[-1].argmax())
            if token == eos:
                return written, log_p
            written.append(token)
            if self.name(token) or len(written) == 4:
                return written, log_p


class ScriptedServer:
    """`faults` are taken one a request about a text, in order; `always` holds for those without one. `seen` and `prompts` say what was asked."""

    def __init__(
        self,
        role: Text | None = None,
        model: str = "tutor",
        most: int = 1 << 20,
        like: type[Scripted] = Scripted,
        writes: Callable[[str], Any] = lambda question: f"It asks {question}. So the answer is {len(question)}.",
    ):
        """Args:
        role: scores texts; none: chats only.
        writes: what it answers to the last message of a chat: a text, or a whole choice.
        """
        self.scripted = like(role, model, most)  # type: ignore[arg-type]
        self.writes, self.questions = writes, list[str]()
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
            disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement of its head

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
                self.prompts.append(tuple(body.get("prompt", ())))
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
            if body is not None and "messages" in body:
                return 200, self.chat(body)
            if body is not None and self.front:
                ids = body["prompt"] if isinstance(body["prompt"], list) else TOKENIZER.encode(body["prompt"], add_special_tokens=False)
                body = {**body, "prompt": [*self.front, *ids]}
            return self.scripted.answer(path, body)

    def chat(self, body: Any) -> Any:
        """A chat completion."""
        question = body["messages"][-1]["content"]
        self.questions.append(question)
        said = self.writes(question)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"} if isinstance(said, str) else said
        usage = {"prompt_tokens": len(question.split()), "completion_tokens": len(str(said).split())}
        return {"id": "chat-1", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}

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
def serving(role: Text | None = None, **options: Any) -> Iterator[ScriptedServer]:
    server = ScriptedServer(role, **options)
    try:
        yield server
    finally:
        server.close()
