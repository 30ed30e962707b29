"""Chats."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from limbeck.component import short
from limbeck.data._records import Bad, Records, json_lines, missing, parquet_rows, words
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.text.spans import asked_turns

SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "observation": "tool",
}
"""How files of conversations (`from`, `value`) name those who speak, where it is not as in chat templates."""
ROLES = {"system", "developer", "user", "assistant", "tool", "function"}


class Chat(Records):
    r"""Reads chats from JSON lines or Parquet files: lists of messages, of which the assistant's are learnt.

    A message has `role` and `content`; all else in it (tool calls, names) goes to the chat template as it is, and so does
    a list `tools` beside the messages. Conversations in the older form (`from`, `value`) are converted. A chat in which the
    assistant does not answer is left out with a note.

    Example:
        >>> Chat(path="lessons/*.jsonl").ask
        'answers'

    References:
        Hugging Face, Chat templates, https://huggingface.co/docs/transformers/chat_templating.
    """

    kind: Literal["chat"] = "chat"
    messages: str = "messages"
    """Name of the field that holds the messages; where there is none, `conversations` is read."""
    ask: Literal["answers", "calls", "last"] = "answers"
    """What is learnt: all turns of the assistant but those that call tools; those too; or only the last turn of each chat."""

    @classmethod
    def example(cls) -> "Chat":
        return cls(path="*.jsonl")

    def records(self, path: Path) -> Iterator[tuple[str, Any]]:
        return parquet_rows(path, self.pick, self.tag) if path.suffix == ".parquet" else json_lines(path)

    def pick(self, names: Collection[str]) -> dict[str, str]:
        field = "conversations" if self.messages == "messages" and self.messages not in names and "conversations" in names else self.messages
        if field not in names:
            raise Bad(missing(field, names))
        return {"messages": field} | ({"tools": "tools"} if "tools" in names else {})

    def content(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        fields = self.pick(record)
        listed = record[fields["messages"]]
        if not isinstance(listed, list) or not listed:
            raise Bad(f"{fields['messages']} is no list of messages")
        content: dict[str, Any] = {"messages": tuple(message(item, i) for i, item in enumerate(listed))}
        if tools := record.get("tools"):
            content["tools"] = parsed(tools) if isinstance(tools, str) else tools
        if self.ask != "answers":
            every = [i for i, m in enumerate(content["messages"]) if i and m["role"] == "assistant"]
            content["turns"] = tuple(every if self.ask == "calls" else every[-1:])
        opening = next((m["content"] for m in content["messages"] if m["role"] == "user"), content["messages"][0].get("content"))
        return content, json.dumps(opening, sort_keys=True, default=str)

    def kept(self, rows: list[Row]) -> tuple[list[Row], list[str]]:
        answered = [row for row in rows if asked_turns(row.content)]
        left = len(rows) - len(answered)
        if rows and not answered:
            raise Refused(
                "chat",
                f"data chat  path: {short(self.path)}",
                "messages of an assistant that answer others",
                f"none in {left:,} chats",
                "name the roles system, user, assistant and tool" + ("; or set ask: calls" if self.ask == "answers" else ""),
            )
        return answered, [f"chat: {left:,} of {len(rows):,} rows skipped: no assistant turn"] if left else []


def message(item: Any, number: int) -> dict[str, Any]:
    """A message with role and content; raises `Bad`."""
    if not isinstance(item, Mapping):
        raise Bad(f"message {number} is no mapping")
    if "from" in item and "role" not in item:
        item = {"role": SPEAKERS.get(str(item["from"]), item["from"]), "content": item.get("value")}
    item = {name: value for name, value in item.items() if value is not None or name == "content"}  # Parquet writes what is not there as null
    if str(item.get("role")) not in ROLES:
        raise Bad(f"message {number} is by {short(item.get('role'))}, which is none of {', '.join(sorted(ROLES))}")
    if isinstance(item.get("content"), str):
        words(item["content"], f"message {number}")
    elif item.get("content") is None and not any(value for name, value in item.items() if name not in ("role", "content")):
        raise Bad(f"message {number} says nothing")
    return item


def parsed(tools: str) -> Any:
    """Tools that were written as JSON within JSON."""
    try:
        return json.loads(tools)
    except (ValueError, RecursionError):
        raise Bad("tools is text, and no JSON") from None
