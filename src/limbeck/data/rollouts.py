"""Answers that roles write."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from limbeck.data.base import Part, Place, Rows, Step, key_of
from limbeck.errors import Refused
from limbeck.model.sampling import write
from limbeck.signals import Row
from limbeck.text.spans import encode
from limbeck.text.tokens import fingerprint


class Rollouts(Step):
    r"""Has roles answer the prompts of all rows: one row for each answer, tagged, and those of one prompt in one group.

    The prompt is what stands before the last answer of a row; of a text, its first `prompt_tokens`. Answers are drawn when the stage begins,
    from the roles as they are then, and kept with the run: with `repeat`, each round learns from what the student of that round
    writes. A row's draw has a stream of its own. Roles must have their weights at hand: of a served model `replies` gets answers, and
    `own` keeps them. With `by: {chosen: teacher, rejected: student}` objectives pick by `tag` whose text they learn from.

    Example:
        >>> Rollouts(by={"chosen": "teacher", "rejected": "student"}, prompt_tokens=32).temperature
        0.8

    References:
        Ko et al., DistiLLM-2: A contrastive approach boosts the distillation of LLMs, 2025, arXiv:2503.07067.
        Agarwal et al., On-policy distillation of language models, 2024, arXiv:2306.13649.
    """

    kind: Literal["rollouts"] = "rollouts"
    by: Annotated[dict[str, str], Field(min_length=1)] = Field(default={"rollout": "student"})
    """Tag -> the role that writes."""
    own: str | None = None
    """Tag under which a row's own answer, from a file or of a served model (`replies`), stays beside those that are written; none: it goes."""
    prompt_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a text that are its prompt; rows with answers need none."""
    new_tokens: int = Field(default=128, gt=0)
    """Tokens that an answer may have."""
    temperature: float = Field(default=0.8, ge=0)
    """Of what is drawn; 0: the best entry each time. It is another one than that of an objective."""
    num: int | None = Field(default=None, gt=0)
    """Prompts that are answered, taken at random; none: all."""
    batch: int = Field(default=8, gt=0)
    """Prompts that are run together."""

    @model_validator(mode="after")
    def tags_apart(self) -> "Rollouts":
        if self.own in self.by:
            raise ValueError(f"own: a tag that no writer has; by has {', '.join(self.by)}")
        return self

    @classmethod
    def example(cls) -> "Rollouts":
        return cls(prompt_tokens=2, new_tokens=4, num=6)

    @property
    def needs(self):
        return {role: ("text",) for role in self.by.values()}

    def rows(self, rows: Rows, place: Place) -> Rows:
        if not place.live:
            do = "write it under data: of a stage, after the sources that it is to answer"
            raise Refused("data", "data rollouts", "a stage, whose models can write", "the recipe's own data, which is read before them", do)
        train = list(rows.train)
        if self.num is not None and self.num < len(train):
            order = torch.randperm(len(train), generator=place.streams("prompts", place.window), device="cpu")
            train = [train[i] for i in order[: self.num].tolist()]
        own = [] if self.own is None else [[self.kept(row, self.own) for row in train]]
        made = zip(*own, *(self.answers(train, tag, name, place) for tag, name in self.by.items()), strict=True)
        note = f"rollouts: {len(train):,} prompts answered by {', '.join(self.by.values())}"
        return replace(rows, parts=(Part(tuple(row for group in made for row in group)),), notes=(*rows.notes, note))

    def kept(self, row: Row, tag: str) -> Row:
        """The row with its own answer, in the group of those that others write."""
        if not row.content.keys() & {"answer", "messages"}:
            do = "remove own, or let a step before it answer: replies, rollouts"
            raise Refused("row", f"data rollouts  row {row.key}", "a row with an answer, which own keeps", "one without", do)
        return replace(row, key=key_of(row.key, tag), tag=tag, group=row.key)

    def answers(self, rows: list[Row], tag: str, name: str, place: Place) -> list[Row]:
        """What one role answers to every row."""
        role = place.models[name]
        tokenizer, mark = role.tokenizer, fingerprint(role.tokenizer)
        prompts = [self.prompt(row, *encode(row, tokenizer)) for row in rows]
        seeds = [place.streams.number("rollout", row.key, tag, place.window) for row in rows]
        with place.models.turn(None):
            answers = write(role, prompts, self.new_tokens, self.temperature, seeds, self.batch)
        made = []
        for row, prompt, answer in zip(rows, prompts, answers, strict=True):
            open_ = answer[-1:] != [tokenizer.eos_token_id]
            content: Mapping[str, object] = {
                "prompt": tokenizer.decode(prompt),
                "answer": tokenizer.decode(answer, skip_special_tokens=True),
                "open": open_,
                "by": name,
                "ids": {mark: (*prompt, *answer)},
                "asked": {mark: (False,) * len(prompt) + (True,) * len(answer)},
            }
            key = key_of(row.key, tag, name, ",".join(map(str, answer)))
            made.append(Row(key, content, tag=tag, group=row.key, split=row.split, source=row.source))
        return made

    def prompt(self, row: Row, ids: list[int], asked: list[bool]) -> list[int]:
        """What stands before the last answer."""
        start = len(asked) - 1 - asked[::-1].index(False) + 1 if False in asked else self.prompt_tokens
        if not start or start >= len(ids) and all(asked):
            expected = "rows with answers, or prompt_tokens: below the length of a text"
            raise Refused("row", f"data rollouts  row {row.key}", expected, f"a text of {len(ids):,} tokens", "set prompt_tokens")
        return ids[:start]
