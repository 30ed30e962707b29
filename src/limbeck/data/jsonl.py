"""JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from limbeck.data._records import Texts, json_lines


class Jsonl(Texts):
    r"""Reads files of JSON lines: a text, or a prompt and its answer, in each.

    A line is one object. Where it has a field `prompt`, only the answer is learnt; rows of one prompt are trained on
    together or held out together. Blank lines are passed over, and so are fields that are not named. Chats are read by
    `chat`.

    Example:
        >>> Jsonl(path="questions.jsonl", prompt="question", answer="solution").max_bad
        0

    References:
        JSON Lines, https://jsonlines.org.
    """

    kind: Literal["jsonl"] = "jsonl"

    @classmethod
    def example(cls) -> "Jsonl":
        return cls(path="*.jsonl")

    def records(self, path: Path) -> Iterator[tuple[str, Any]]:
        return json_lines(path)
