"""Questions about images, and their answers, from classes."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.component import Document
from limbeck.data.base import Place, Rows, Step, key_of
from limbeck.errors import Refused
from limbeck.signals import Row

MARK, LABEL = "<image>", "{label}"


class Pair(Document):
    """A question about an image, and its answer."""

    question: str
    """What is asked; the image stands before it."""
    answer: str
    """What is to be answered; `{label}` in it becomes the name of the class."""


PAIRS = (
    Pair(question="What is shown here?", answer="The picture shows this: {label}."),
    Pair(question="Name it in a word.", answer="{label}"),
    Pair(question="Describe the image.", answer="A small picture in grey. It is of one thing, {label}, and of nothing else."),
)


class Describe(Step):
    """Makes a question about each image and its answer, out of the name of its class.

    A row of pixels and a class gets a prompt, `<image>` and a question, and an answer in which `{label}` is the name of the class: so that any
    labelled images teach a vision-language model, and nothing has to be written or downloaded. Which question an image gets depends on its
    key alone. Answers are all alike but for the class, so that most of their tokens are soon known: agreement on them tells little of how
    much is seen. For real descriptions read `image_chat`.

    Example:
        >>> len(Describe().pairs)
        3

    References:
        Liu et al., Visual Instruction Tuning, 2023, arXiv:2304.08485 (the layout of rows: image, question, answer).
    """

    kind: Literal["describe"] = "describe"
    inputs: ClassVar[tuple[str, ...]] = ("pixels",)
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)] = PAIRS
    """Questions and answers, each a mapping with `question` and `answer`."""
    every: bool = False
    """Every image gets all questions, a row each, instead of one of them."""
    names: tuple[str, ...] = ()
    """Names of the classes, from 0; none: as the source calls them."""
    form: Literal["prompt", "chat"] = "prompt"
    """chat: as messages, which the chat template of a tokenizer writes out."""

    @model_validator(mode="after")
    def one_image(self) -> "Describe":
        if any(MARK in text for pair in self.pairs for text in (pair.question, pair.answer)):
            raise ValueError(f"pairs: no {MARK}, which is put before each question")
        return self

    def rows(self, rows: Rows, place: Place) -> Rows:
        return rows.each(self.asked)

    def asked(self, rows: Sequence[Row]) -> list[Row]:
        """A row for each question about each image."""
        return [self.made(row, i) for row in rows for i in (range(len(self.pairs)) if self.every else (turn(row.key, len(self.pairs)),))]

    def made(self, row: Row, number: int) -> Row:
        """An image with one question."""
        if not {"pixels", "label"} <= row.content.keys():
            got, do = ", ".join(row.content), "write describe right after a source of labelled images: digits, idx_images, image_folder"
            raise Refused("data", "data describe", "rows that hold pixels and a class", got, do)
        label, pair = int(row.content["label"]), self.pairs[number]
        if label < 0 or not (self.names or row.tag):
            got, do = f"row {row.key} of class {label}" + ", without a name" * (not row.tag), "leave such rows out, or write names: of all classes"
            raise Refused("label", "data describe", "images whose class has a name", got, do)
        if self.names and label >= len(self.names):
            raise Refused("label", "data describe  names", f"a name for each class, {label} too", f"{len(self.names)} names", "name all classes")
        name = self.names[label] if self.names else row.tag
        question, answer = f"{MARK}\n{pair.question}\n", pair.answer.replace(LABEL, name)
        content: dict[str, Any] = {"prompt": question, "answer": answer}
        if self.form == "chat":
            content = {"messages": ({"role": "user", "content": question[:-1]}, {"role": "assistant", "content": answer})}
        return replace(row, key=key_of(row.key, question, answer, self.form), content={**row.content, **content})


def turn(key: str, num: int) -> int:
    """A number below `num`, by a name alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % num
