"""A served model that writes, as fields of a component."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from limbeck.endpoint.access import Access
from limbeck.endpoint.chat import Chat
from limbeck.endpoint.client import Endpoint
from limbeck.endpoint.kept import Kept
from limbeck.endpoint.transport import OverHttp
from limbeck.store import home, sha256_json

MOST_BYTES = 1 << 22
"""Of one answer."""


class Writer(Access):
    """Fields of a component that has a served model write."""

    temperature: float = Field(default=0.0, ge=0)
    """Of what is drawn; 0: the best token each time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the best tokens of so much probability are drawn."""
    max_tokens: int = Field(default=256, gt=0)
    """Tokens that an answer may have; one that is cut off cannot be read."""
    seed: int | None = Field(default=0, ge=0)
    """Of the server's draws, where it takes one; none: it is not said."""

    def question(self, messages: Sequence[Mapping[str, str]], prompt: str) -> Chat:
        """A question to the model; `prompt` names the template that the messages were made from, with its version."""
        return Chat(self.model, tuple(messages), self.temperature, self.top_p, self.max_tokens, self.seed, prompt)

    def client(self, given: Mapping[str, Any]) -> Endpoint:
        """The client of the server; what the model writes is kept in a file of its own.

        Args:
            given: `plan`: nothing is asked, and only what is kept is used; `send` in place of HTTP; `responses`: the folder of all
                answers, in place of the one in the cache.
        """
        send = None if given.get("plan") else given.get("send") or OverHttp()
        folder, limits = given.get("responses") or home() / "responses", replace(self.limits, most_bytes=MOST_BYTES)
        kept = Kept(folder / "written" / f"{sha256_json(self.model)[:16]}.jsonl")
        return Endpoint(self.url, send, folder, key_env=self.key_env, limits=limits, budget=self.budget, responses=kept)
