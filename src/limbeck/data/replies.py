"""Answers that a served model gives."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from limbeck.component import short
from limbeck.data._asking import AbstractAsking, most
from limbeck.data._written import Unparsed, fields, filled, readable, texts
from limbeck.data.base import Part, Place, Rows, key_of
from limbeck.endpoint.chat import Chat, Written
from limbeck.errors import Failed, Refused
from limbeck.signals import Row
from limbeck.store import sha256_json

LATER = Written("not asked yet", "stop")
"""What stands in a plan for answers that are not kept."""


class Replies(AbstractAsking):
    r"""Has a served model answer each training row, in place of the answer that is there.

    A chat is sent up to the last turn of the assistant; of other rows the template `prompt` is sent, with fields of the row in braces. An
    answer that is cut off at `max_tokens` stays open: that it ends there is not learnt. An empty one, or one that ends for another
    reason, is none: its row is left out, and counted. Each question is asked once, in all runs, and rows keep their order. For
    sequence-level distillation from a model that can only be asked; with `rollouts` after it, whose `own` keeps these answers, for
    pairs of a served teacher's and the student's own text.

    Example:
        >>> Replies(url="http://localhost:8000/v1", model="tutor", tag="chosen").prompt
        '{prompt}'

    References:
        Kim and Rush, Sequence-level knowledge distillation, 2016, arXiv:1606.07947.
        Ko et al., DistiLLM-2, 2025, arXiv:2503.07067.
    """

    kind: Literal["replies"] = "replies"
    prompt: str = Field(default="{prompt}", min_length=1)
    """What the model is asked about a row that is no chat; {{name}} is the text {name}. The student is asked the row's own prompt, if it has one."""
    version: int = Field(default=1, ge=1)
    """Raised to ask everything anew with the same words."""
    tag: str | None = None
    """Tag of the rows with answers; none: the one they have."""

    @classmethod
    def example(cls) -> "Replies":
        return cls(url="http://localhost:8000/v1", model="tutor", prompt="{text}")

    def rows(self, rows: Rows, place: Place) -> Rows:
        chats = {row.key: chat for row in rows.train if (chat := self.chat(row)) is not None}
        if rows.train and not chats:
            there = ", ".join(sorted({name for row in rows.train for name in texts(row.content)})) or "none"
            expected = f"chats, or rows with all of {', '.join(sorted(fields(self.prompt))) or 'some fields'}"
            raise Refused("prompt", "data replies  prompt", expected, f"rows with {short(there)}", "correct prompt; {name} in it is a field")
        said, reasons = self.said(chats, place), Counter[str]()
        made = [(tuple(self.answered(part.rows, chats, said, reasons)), part.share) for part in rows.parts]
        parts = tuple(Part(some, share) for some, share in made if some)
        if said and reasons.total() == len(chats):
            do = f"look at the server, or raise max_tokens: {self.max_tokens}; version: {self.version + 1} asks the same anew"
            raise Failed("answers", "data replies", "an answer that is a text", f"none in {len(said):,}: {most(reasons)}", do, code=5)
        facts = {"name": f"endpoint:{self.url}#{self.model}", "revision": sha256_json(self.prompt)[:16], "licence": None, "rows": len(chats)}
        notes = [f"replies: {len(said) - reasons.total():,} of {len(rows.train):,} rows answered by {self.model}"]
        if other := len(rows.train) - len(chats):
            notes.append(f"replies: {other:,} rows are no chat of texts, nor have {', '.join(sorted(fields(self.prompt)))}: they are left out")
        if reasons:
            notes.append(f"replies: {reasons.total():,} answers are left out with their rows: {most(reasons)}")
        notes += self.to_come(chats, said)
        return replace(rows, parts=parts, provenance=(*rows.provenance, facts), notes=(*rows.notes, *notes))

    def chat(self, row: Row) -> Chat | None:
        """The question of a row, if it has one. What is put into the template is text: braces in it mean nothing."""
        if "messages" in row.content:
            asked = before(row.content["messages"])
            if not asked or any(set(m) != {"role", "content"} or not isinstance(m["content"], str) for m in asked):
                return None
            return self.question(asked, f"messages/{self.version}")
        if not fields(self.prompt) <= texts(row.content).keys():
            return None
        words = filled(self.prompt, texts(row.content))
        return self.question(({"role": "user", "content": words},), f"{sha256_json(self.prompt)[:16]}/{self.version}")

    def answered(self, rows: tuple[Row, ...], chats: Mapping[str, Chat], said: Mapping[str, Written], reasons: Counter[str]) -> list[Row]:
        """The rows that have an answer that can be read, in their order."""
        made = []
        for row in (row for row in rows if row.key in chats):
            answer = said.get(row.key, LATER)
            try:
                text = readable(answer, "stop", "length")
                if not text.strip():
                    raise Unparsed("empty")
            except Unparsed as reason:
                reasons[str(reason)] += 1
                continue
            new = {**self.content(row, chats[row.key], text), "open": answer.finish == "length", "by": self.model}
            key = key_of(row.key, json.dumps([text, answer.finish, self.tag]))
            made.append(replace(row, key=key, content=new, tag=row.tag if self.tag is None else self.tag))
        return made

    def content(self, row: Row, chat: Chat, text: str) -> Mapping[str, Any]:
        """The row with another last turn, or another answer."""
        kept = {name: value for name, value in row.content.items() if name not in ("ids", "asked", "text", "turns")}
        if "messages" in kept:
            messages = before(kept["messages"])
            return {**kept, "messages": (*messages, {"role": "assistant", "content": text}), "turns": (len(messages),)}
        return {"prompt": chat.messages[0]["content"], **kept, "answer": text}


def before(messages: Any) -> tuple[Any, ...]:
    """What is said before the last turn of the assistant, if that is the last of all."""
    return tuple(messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages)
