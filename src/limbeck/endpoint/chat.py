"""Chat completions: what is asked, the name under which the answer is kept, and a strict reading of it."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from limbeck.endpoint.client import Endpoint
from limbeck.errors import Failed, Refused
from limbeck.store import sha256_json

TEMPLATE_TOKENS = 64
"""That a server's chat template may put around the messages, for the budget."""

WAITING = 16
"""Threads beyond those that ask: some wait until their answer is on the disk."""


class Written(NamedTuple):
    """What a model wrote, and why it stopped: `stop`, `length`, or another word of the server."""

    text: str
    finish: str


@dataclass(frozen=True)
class Chat:
    """One question to a model that writes."""

    model: str
    messages: tuple[Mapping[str, str], ...]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int | None
    prompt: str = ""
    """Name and version of the template that the messages were made from."""
    sample: int = 0
    """Which of several answers to the same question."""

    def body(self) -> dict[str, Any]:
        """What is sent."""
        seed = {} if self.seed is None else {"seed": self.seed + self.sample}
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        return {"model": self.model, "messages": [dict(message) for message in self.messages], **sampling, **seed}

    def key(self) -> str:
        """The name of the answer: all that it depends on. Never the address: a model that moves is not asked again."""
        return sha256_json({"chat": self.body(), "prompt": self.prompt, "sample": self.sample})

    def tokens(self) -> tuple[int, int]:
        """The most that it can read and write: no token is shorter than a byte."""
        return sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in self.messages) + TEMPLATE_TOKENS, self.max_tokens


def written(answer: Any, where: str) -> Written:
    """The first choice of an answer; no text (a refusal, a call of a tool) is the empty text.

    Raises:
        Failed: `answer`, for what is no chat completion.
    """
    try:
        choice = answer["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        text, finish = 0, ""
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        expected = "a chat completion: choices, of which the first has a message with a text"
        got = f"an object of {ascii(', '.join(answer))[1:80]}" if isinstance(answer, dict) else type(answer).__name__
        raise Failed("answer", where, expected, got, "look at the server: is it an address of chat completions?")
    return Written(text or "", finish or "")


def ask_all(endpoint: Endpoint, chats: Sequence[Chat], names: Sequence[str], where: str) -> list[Written]:
    """What is written to each question, in the order of the questions, whichever is answered first.

    Args:
        names: of the questions, for errors.
        where: what stands in front of them.

    Raises:
        Failed: `budget`, where it is used up: with how many are answered; and all that `Endpoint.ask` raises. What came is kept.
    """

    def one(chat: Chat, name: str) -> Written:
        return endpoint.ask("chat/completions", chat.body(), lambda answer: written(answer, f"{where}  row {name}"), chat.tokens(), key=chat.key())

    with ThreadPoolExecutor(endpoint.limits.concurrency + WAITING) as pool:
        waiting = [pool.submit(one, chat, name) for chat, name in zip(chats, names, strict=True)]
        try:
            return [each.result() for each in waiting]
        except BaseException as error:
            pool.shutdown(wait=True, cancel_futures=True)  # what is in flight is still kept
            if isinstance(error, Refused) and error.slug == "budget":
                done = sum(endpoint.responses.has(chat.key()) for chat in chats)
                got = f"{error.got}; {done:,} of {len(chats):,} rows are answered"
                raise Failed("budget", where, error.expected, got, error.do) from None
            raise
