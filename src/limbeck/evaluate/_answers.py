"""What models answer to the same prompts: subjects of an exam, models behind a server, and answers in files."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.component import nearest, short
from limbeck.endpoint.chat import ask_all
from limbeck.endpoint.writer import Writer
from limbeck.errors import Failed, Refused
from limbeck.evaluate._topic_choice import clipped
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.model.sampling import write
from limbeck.numerics import Streams
from limbeck.signals import Row, View, dense
from limbeck.store import disk, write_text
from limbeck.text.spans import encode

MOST_BYTES = 1 << 28
"""Of a file of answers."""
TOGETHER = 8
"""Answers that a role reads at once."""
UNASKED = "."
"""Stands for an answer where a chat template is to write what comes before one."""


class Prompt(NamedTuple):
    """What is asked: the messages of a chat, or words that are read as they stand."""

    key: str
    document: str
    messages: tuple[Mapping[str, str], ...]
    chat: bool = True

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.messages)


class Said(NamedTuple):
    """An answer as text without blanks around it, and the ids of prompt and answer where a role wrote it."""

    text: str
    prompt: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()


class Model(Writer):
    """A served model that answers, or judges."""

    room: ClassVar[str] = "evaluate"


class Answering(Evaluator):
    """Fields of an evaluator that reads answers."""

    answers: dict[str, str] = {}
    """Further models: name -> a file of JSON lines with a prompt and an answer each; a relative one starts at the recipe."""
    served: dict[str, Model] = {}
    """Further models: name -> a served model, which is asked."""
    judge: Model | None = None
    """A served model that judges; none: only what needs no judge is measured."""
    new_tokens: int = Field(default=48, gt=0)
    """Tokens that an answer may have; roles write the best token each time."""

    @abstractmethod
    def most(self, speakers: int) -> tuple[int, int]:
        """Prompts, and questions to the judge about so many speakers, at most."""

    def notes(self, subjects: Sequence[str], base: str) -> tuple[str, ...]:
        for name in self.answers:
            self.read(name, base)
        prompts, questions = self.most(len(subjects) + len(self.answers) + len(self.served))
        asked = [(model, prompts) for model in self.served.values()] + ([(self.judge, questions)] if self.judge else [])
        return tuple(f"{self.kind}: at most {num:,} requests to {model.model}, {model.url}; a plan asks nothing" for model, num in asked)  # type: ignore[attr-defined]

    def read(self, name: str, base: str) -> dict[str, str]:
        """Prompt -> answer of a model whose answers are in a file."""
        return in_file(Path(base) / self.answers[name], f"evaluate {self.kind}  answers.{name}")  # type: ignore[attr-defined]

    def speakers(self, exam: Exam) -> list[str]:
        """All that can answer: subjects first."""
        subjects = [name for name in exam.subjects if can_write(exam, name)]
        every = [*subjects, *self.answers, *self.served]
        if twice := next((name for name in every if every.count(name) > 1 or name in exam.subjects and name not in subjects), None):
            got, do = f"{twice}, which is taken", f"call it otherwise; taken are {', '.join(exam.subjects)}"
            raise Refused("name", f"evaluate.{self.kind}", "a name of its own for each model", got, do)  # type: ignore[attr-defined]
        return every

    def said(self, name: str, prompts: Sequence[Prompt], exam: Exam) -> list[Said | None]:
        """What one of them answers to each prompt; None where a file has no answer to it."""
        where = f"evaluate {self.kind}"  # type: ignore[attr-defined]
        if name in self.answers:
            found = self.read(name, base_of(exam))
            return [Said(found[prompt.text].strip()) if prompt.text in found else None for prompt in prompts]
        if name in self.served:
            model = self.served[name]
            chats = [model.question(prompt.messages, where) for prompt in prompts]
            there = f"{where}  endpoint:{model.url}#{model.model}"
            return [Said(one.text.strip()) for one in ask_all(model.client(exam.context), chats, [prompt.key for prompt in prompts], there)]
        with opened(name, exam, where) as role, listening(role), torch.no_grad():
            ids = [ids_of(prompt, role) for prompt in prompts]
            longest, context = max(map(len, ids), default=0) + self.new_tokens, getattr(role, "context", None) or 1 << 60
            if longest > context:
                raise Refused("context", f"{where}  {name}", f"at most {context:,} tokens", f"{longest:,}", "lower new_tokens, or ask less")
            made = write(role, ids, self.new_tokens, 0.0, [0] * len(ids))
            texts = (role.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in made)
            return [Said(text, tuple(prompt), tuple(answer)) for text, prompt, answer in zip(texts, ids, made, strict=True)]


def base_of(exam: Exam) -> str:
    """The folder that relative paths start from."""
    return str(exam.context.get("base", "."))


def can_write(exam: Exam, name: str) -> bool:
    """Whether a subject is a language model that can write."""
    with exam.open(name) as role:
        return role.writes


def refuse_unknown(name: str, known: Sequence[str], where: str) -> None:
    """Raises `Refused` for a name that is none of those, and no model reference."""
    if name not in known and ":" not in name:
        expected = f"one of {', '.join(known)}, a name in answers or served, or a model reference"
        raise Refused("name", where, expected, short(name), f"write {nearest(name, known)}")


def opened(name: str, exam: Exam, where: str) -> AbstractContextManager[Role]:
    """The role of a subject, or of a model reference such as run:NAME or path:FOLDER."""
    refuse_unknown(name, exam.subjects, where)
    return exam.open(name)


def ids_of(prompt: Prompt, role: Role) -> list[int]:
    """A prompt as a role reads it: by its chat template where it has one, up to the answer."""
    if not prompt.chat or not getattr(role.tokenizer, "chat_template", None):
        return encode(Row(prompt.key, {"prompt": prompt.text}), role.tokenizer)[0]
    messages = [*prompt.messages, {"role": "assistant", "content": UNASKED}]
    ids, asked = encode(Row(prompt.key, {"messages": messages, "turns": [len(prompt.messages)]}), role.tokenizer)
    return ids[: asked.index(True)]


def answer_logits(role: Role, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[Float[Tensor, "target vocab"]]:
    """What a role says before each token of each answer, of pairs of a prompt and its answer; some are read together."""
    device = next(role.parameters()).device
    for some in (answers[at : at + TOGETHER] for at in range(0, len(answers), TOGETHER)):
        ids = torch.tensor([one for pair in some for part in pair for one in part], device=device)
        asked = torch.tensor([bool(i) for pair in some for i, part in enumerate(pair) for _ in part], device=device)
        view = View({"ids": ids}, ids.new_tensor([len(prompt) + len(answer) for prompt, answer in some]), asked, shift=role.shift)  # type: ignore[attr-defined]
        yield from dense(role.says(view, ("logits",), {})["logits"]).cpu().split([len(answer) for _, answer in some])


def in_file(path: Path, where: str) -> dict[str, str]:
    """Prompt -> answer of a file of JSON lines.

    Raises:
        Refused: `answers`, where there is none, for a line that is no such object, and for a prompt with two answers.
        Failed: `file`, for one that cannot be read.
    """
    found: dict[str, str] = {}
    if not path.is_file():
        do = "correct the path; a relative one starts at the folder of the recipe"
        raise Refused("answers", where, "a file of JSON lines", f"{short(path.name)}, which is none", do)
    with disk(path):
        if path.stat().st_size > MOST_BYTES:
            raise Failed("file", str(path), f"at most {MOST_BYTES:,} bytes", f"{path.stat().st_size:,}", "split it, or ask fewer prompts")
        lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompt, answer = record["prompt"], record["answer"]
            if not isinstance(prompt, str) or not isinstance(answer, str) or found.get(prompt, answer) != answer:
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            expected = 'an object with the texts "prompt" and "answer", one answer a prompt'
            raise Refused("answers", f"{where}  {path.name}:{number}", expected, short(ascii(line[:60])), "correct the line") from None
        found[prompt] = answer
    return found


def keep(exam: Exam, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes the evidence of an evaluation as JSON lines, where the exam has a place for it."""
    if "evidence" in exam.context:
        write_text(Path(exam.context["evidence"]) / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def prompts_of(rows: Sequence[Row], num: int, prompt_bytes: int, seed: int) -> list[Prompt]:
    """Prompts of held-out rows, drawn by seed where they are too many, in the order of the rows; none twice."""
    order = torch.randperm(len(rows), generator=Streams(seed)("answers"), device="cpu").tolist()
    drawn: dict[str, tuple[int, Prompt]] = {}
    for i in order:
        if len(drawn) < num and (prompt := prompt_of(rows[i], prompt_bytes)) is not None:
            drawn.setdefault(prompt.text, (i, prompt))
    return [prompt for _, prompt in sorted(drawn.values(), key=lambda one: one[0])]


def prompt_of(row: Row, prompt_bytes: int) -> Prompt | None:
    """What stands before the last answer of a chat, the prompt of an answer, the beginning of a text that goes on; None of other rows."""
    content, document = row.content, row.source or row.group or row.key
    messages = content.get("messages")
    if isinstance(messages, Sequence):
        turns = [i for i, message in enumerate(messages) if i and message.get("role") == "assistant"]
        before = [{"role": str(m.get("role")), "content": m.get("content")} for m in messages[: turns[-1]]] if turns else []
        plain = bool(before) and all(isinstance(message["content"], str) for message in before)
        return Prompt(row.key, document, tuple(before)) if plain else None  # type: ignore[arg-type]
    text = content.get("prompt")
    if not isinstance(text, str) and isinstance(whole := content.get("text"), str):
        cut = clipped(whole, prompt_bytes)
        space = max(cut.rfind(" "), cut.rfind("\n"))
        text = "" if len(cut) == len(whole) else cut[:space] if space > 0 else cut
    return Prompt(row.key, document, ({"role": "user", "content": text},), chat=False) if isinstance(text, str) and text.strip() else None
