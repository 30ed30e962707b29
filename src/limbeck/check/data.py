"""Contracts of data steps: the same rows from the same seed, named by content, wherever the files are and without a network."""

import copy
import gzip
import json
import os
import socket
import struct
import tempfile
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch

from limbeck.check.contract import NotClaimed, contract
from limbeck.check.models import RATE, SIDE, SIZES, WORDS, classifier, clips, denoiser, family_of, hearing_model, pictures, pitch_tracker, sighted_of
from limbeck.check.reads import over_choices
from limbeck.check.speaker import write_speaker
from limbeck.component import canonical_json
from limbeck.data.base import Part, Place, Rows, Source, Step
from limbeck.endpoint import Ask, Reply
from limbeck.errors import LimbeckError
from limbeck.export._png import png
from limbeck.model.base import Models, Role
from limbeck.model.loading import named_tokenizer
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.text.bytes_tokenizer import ByteTokenizer

NUM, CONTEXT = 40, 1 << 20
LAST: dict[tuple[type, str, int], Rows] = {}
"""What was made last."""


class Chatting(ByteTokenizer):
    """Bytes, with a chat template."""

    chat_template = "one line a message"

    def get_added_vocab(self) -> dict[str, int]:
        return {"</s>": self.eos_token_id}

    def apply_chat_template(self, messages: Any, tools: Any = None, tokenize: bool = False, add_generation_prompt: bool = False) -> str:
        told = "".join(f"{m['role']}: {m.get('content') or m.get('tool_calls')}</s>\n" for m in messages)
        return told + "assistant: " * add_generation_prompt


def records() -> list[dict[str, Any]]:
    """Records that any source of records can read: each is a text, a prompt with its answer, and a chat."""
    out = []
    for i in range(NUM):
        prompt, answer = f"{WORDS[i % 10] or 'why'} {i}?", f"{WORDS[(3 * i + 1) % 10]} {i * i}"
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        out.append(
            {
                "text": f"{prompt} {answer} " * (1 + i % 5),
                "prompt": prompt,
                "answer": answer,
                "messages": chat,
                "tag": ("even", "odd")[i % 2],
                "label": i % 3,
                "domain": "all",
                "id": i,
            }
        )
    return out


@contextmanager
def place(seed: int = 0, files: Literal["whole", "broken", "none"] = "whole", nested: str = "", inputs: Sequence[str] = ()) -> Iterator[Place]:
    """A folder with files of every format that sources read, one of the records perhaps without content, and models; no network. `inputs`:
    what windows must hold."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(socket.socket, "connect", refuse):
        base = Path(folder) / nested
        base.mkdir(parents=True, exist_ok=True)
        if files != "none":
            write(base, records() + [dict.fromkeys(records()[0])] * (files == "broken"))
        student: Role = hearing_model() if "wave" in inputs else classifier()
        teacher = student
        if "ids" in inputs:
            student, teacher = masked("nucleotides"), masked("kmer6")
        elif not {"pixels", "wave"} & set(inputs):
            student = teacher = family_of("llama", 0, context=CONTEXT)
            student.tokenizer = Chatting()
        extra = {"send": oracle, "responses": base / ".responses"}
        path = {"PATH": f"{write_speaker(base / 'programs')}{os.pathsep}{os.environ.get('PATH', '')}"}
        with mock.patch.dict(os.environ, path):
            yield Place(Models({"student": student, "teacher": teacher}), Streams(seed), base=str(base), extra=extra, live=True)


def masked(name: str) -> Role:
    """A model that sees both sides of a position, with a tokenizer of that name."""
    tokenizer = named_tokenizer(name)
    role = family_of("bert", 0, context=CONTEXT // 1024, vocab=max(SIZES["vocab"], len(tokenizer)))
    role.tokenizer = tokenizer
    return role


def oracle(ask: Ask) -> Reply:
    """A server that writes, in this process: it spells the question, and now and then gives no answer."""
    words = json.loads(ask.body or b"{}")["messages"][-1]["content"]
    text = f"It has {len(words)} letters. So the answer is {len(words) % 3}." if len(words) % 7 else "That is hard to say."
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Reply(200, {}, json.dumps({"choices": [choice], "usage": {"prompt_tokens": len(words), "completion_tokens": 9}}).encode())


def refuse(*_: Any) -> None:
    raise AssertionError("it opens a connection: contracts run without a network")


def write(base: Path, found: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_pictures(base, broken=len(found) > NUM)
    write_sequences(base, broken=len(found) > NUM)
    write_sounds(base, broken=len(found) > NUM)
    for name, some in (("a", found[: NUM // 2]), ("b", found[NUM // 2 :])):
        (base / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in some), encoding="utf-8")
        (base / f"{name}.json").write_text(json.dumps(some), encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(some), base / f"{name}.parquet")
    for i, record in enumerate(found[:NUM]):
        (base / f"{i:02d}.txt").write_text(record["text"], encoding="utf-8")
    write_collection(base / "search", found[:NUM])
    (base / "all.csv").write_text("text,label\n" + "".join(f'"{record["text"]}",{record["label"]}\n' for record in found[:NUM]), encoding="utf-8")


def sequence(i: int) -> str:
    """Letters of DNA, as many as no tokenizer of several letters cuts evenly; an unknown one among them."""
    return "".join("ACGT"[(i + k * k // 3 + k) % 4] for k in range(20 + i % 7)) + "N" + "ACG" * (i % 5 + 1)


def write_sequences(base: Path, broken: bool) -> None:
    """Sequences as a FASTA file, some in lower case, one perhaps with letters that are none."""
    found = [(sequence(i) * 3).lower() if i % 4 == 0 else sequence(i) * 3 for i in range(NUM)]
    found[0] += "XYZ" * broken
    (base / "genome.fa").write_text("".join(f">chr{i} example\n{text}\n" for i, text in enumerate(found)), encoding="utf-8")


def write_pictures(base: Path, broken: bool) -> None:
    """Images in folders of their classes, and as a pair of IDX files; a broken one among them, perhaps."""
    rows = pictures()
    for i, row in enumerate(rows):
        folder = base / "pictures" / row.tag
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.png").write_bytes(png(row.content["pixels"]) if i or not broken else b"no picture")
    talk = [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "A line."}]
    names = [f"pictures/{row.tag}/{i:02d}.png" for i, row in enumerate(rows)]
    (base / "talks").mkdir(exist_ok=True)
    (base / "talks" / "seen.jsonl").write_text("".join(json.dumps({"image": name, "messages": talk, "tag": name[9]}) + "\n" for name in names))
    labels = bytes(row.content["label"] for row in rows)
    pixels = b"".join(row.content["pixels"].numpy().tobytes() for row in rows)
    cut = pixels[:-1] if broken else pixels
    (base / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4I", 0x0803, len(rows), SIDE, SIDE) + cut))
    (base / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 0x0801, len(rows)) + labels))


def write_sounds(base: Path, broken: bool) -> None:
    """Sounds in folders of their classes, every second one of two channels; a broken one among them, perhaps."""
    for i, row in enumerate(clips(num=12)):
        file = base / "sounds" / row.tag / f"{row.tag}_{i:02d}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        channels = 1 + i // 2 % 2
        with wave.open(str(file), "wb") as out:
            out.setparams((channels, 2, RATE * channels, 0, "NONE", "not compressed"))
            out.writeframes(np.repeat((row.content["wave"] * 20_000).to(torch.int16).numpy(), channels).tobytes())
        if broken and not i:
            file.write_bytes(file.read_bytes()[:-100])


def write_collection(folder: Path, found: list[dict[str, Any]]) -> None:
    """A collection with its judgements and a run: each query finds six documents, the first of them relevant; and the same as questions."""
    folder.mkdir()
    (folder / "docs.jsonl").write_text("".join(json.dumps({"id": f"d{r['id']}", "text": r["text"]}) + "\n" for r in found), encoding="utf-8")
    (folder / "queries.tsv").write_text("".join(f"q{r['id']}\t{r['prompt']}\n" for r in found), encoding="utf-8")
    (folder / "qrels.txt").write_text("".join(f"q{r['id']} 0 d{r['id']} 1\n" for r in found), encoding="utf-8")
    hits = [(r["id"], (r["id"] + 3 * place) % len(found), place + 1) for r in found for place in range(6)]
    (folder / "run.txt").write_text("".join(f"q{q} Q0 d{d} {rank} {1 / rank:.3f} first\n" for q, d, rank in hits), encoding="utf-8")
    asked = [{"context": r["text"], "qas": [{"id": f"q{r['id']}", "question": r["prompt"]}]} for r in found]
    (folder / "squad.json").write_text(json.dumps({"data": [{"paragraphs": asked}]}), encoding="utf-8")


def examples(step: Step) -> tuple[Row, ...]:
    """Rows whose windows the step can change."""
    if "pixels" in step.inputs or "wave" in step.inputs:
        return pictures() if "pixels" in step.inputs else clips()
    if "ids" in step.inputs:
        return tuple(Row(f"sequence-{i}", {"text": sequence(i)}) for i in range(NUM))
    return tuple(Row(f"text-{i}", {"text": record["text"]}) for i, record in enumerate(records()))


def given(step: Step) -> Rows:
    """What comes in: nothing for a source, texts, answers and pairs of both for what changes rows."""
    if isinstance(step, Source) or type(step).rows is Step.rows:
        return Rows()
    if "pixels" in step.inputs:
        return Rows((Part(pictures()),), pictures(split="held_out"))
    texts = tuple(Row(f"text-{i}", {"text": record["text"]}, record["tag"], source=f"doc-{i // 2}") for i, record in enumerate(records()))
    answers = tuple(
        Row(
            f"answer-{i}",
            {"prompt": record["prompt"], "answer": record["answer"]},
            ("chosen", "rejected")[i % 2],
            f"pair-{i // 2}",
            source=f"doc-{i}",
        )
        for i, record in enumerate(records()[:10])
    )
    return Rows((Part(texts[:30]), Part(answers, 2.0)), tuple(replace(row, split="held_out") for row in texts[30:]))


def make(step: Step, seed: int = 0, nested: str = "") -> Rows:
    """The rows that it makes."""
    with place(seed, nested=nested) as where:
        return step.rows(given(step), where)


def made(step: Step, seed: int = 0) -> Rows:
    """The same, remembered while contracts of one step follow each other."""
    key = type(step), canonical_json(step), seed
    if key not in LAST:
        LAST.clear()
        LAST[key] = make(step, seed)
    return LAST[key]


def exercise(step: Step) -> None:
    """One ordinary use, and one with a record that cannot be read."""
    with place(inputs=step.inputs) as where:
        rows = step.rows(given(step), where)
        if type(step).window is not Step.window:
            step.window(where.models.batch((rows.train or examples(step))[:6]), where, step.build(None))
    if isinstance(step, Source):
        with place(files="broken") as where, suppress(LimbeckError):
            step.rows(Rows(), where)


def plain(rows: Rows) -> list[Any]:
    return [(part.share, list(part.rows)) for part in rows.parts] + [list(rows.held_out)]


def changes_rows(step: Step) -> None:
    if type(step).rows is Step.rows:
        raise NotClaimed("it makes and changes no rows")


@contract
def same_again(step: Step, seed: int = 0) -> None:
    """The same seed gives the same rows, in the same order, with the same names; where the files are does not matter."""
    changes_rows(step)
    first = made(step, seed)
    assert first.train, "it makes no rows of the example files"
    assert plain(make(step, seed)) == plain(first), "other rows when they are made again"
    assert plain(make(step, seed, nested="another/folder")) == plain(first), "other rows when the files are in another folder"


@contract
def keys(step: Step, seed: int = 0) -> None:
    """Every row has a name of its own, from its content: a row whose content changed has another name."""
    changes_rows(step)
    before, after = given(step), made(step, seed)
    every = [*after.train, *after.held_out]
    names = [row.key for row in every]
    assert all(isinstance(name, str) and name for name in names), "a row has no key"
    double = {name for name in names if names.count(name) > 1}
    known = {row.key: row.content for row in (*before.train, *before.held_out)}
    for row in every:
        assert row.key not in known or row.content == known[row.key], f"the content of {row.key} changed, and its key did not"
    shared = sorted(name for name in double if len({repr(row.content) for row in every if row.key == name}) > 1)
    assert not shared, f"rows of unlike content share a key: {shared[:3]}"


@contract
def held_out_apart(step: Step, seed: int = 0) -> None:
    """Held-out rows say so, and are of no document that is trained on."""
    changes_rows(step)
    rows = made(step, seed)
    assert {row.split for row in rows.train} <= {"train"}, "rows are trained on that are held out"
    assert {row.split for row in rows.held_out} <= {"held_out"}, "held-out rows do not say so"
    if isinstance(step, Source):
        both = {row.source for row in rows.train} & {row.source for row in rows.held_out}
        assert not both, f"documents are trained on and held out: {sorted(both)[:3]}"
        assert all(row.source for row in (*rows.train, *rows.held_out)), "a row does not say which document it was cut from"


@contract
def adds(step: Step, seed: int = 0) -> None:
    """A source adds to the rows that come in, and says what it read: name, licence, hash or revision."""
    if not isinstance(step, Source):
        raise NotClaimed("it is no source")
    before = Rows((Part((Row("first", {"text": "was there"}),)),), (), ({"name": "earlier"},), ("a note",))
    with place(seed) as where:
        after = step.rows(before, where)
    assert after.parts[:1] == before.parts and after.provenance[:1] == before.provenance and after.notes[:1] == before.notes, "what came in is lost"
    assert len(after.provenance) == 2, "it does not say what it read"
    facts = after.provenance[1]
    said = {"name", "licence"} <= facts.keys() and facts.keys() & {"sha256", "revision"}
    assert said, f"its provenance has {', '.join(facts)}; expected name, licence, and sha256 or revision"


@contract
def empty(step: Step, seed: int = 0) -> None:
    """No rows stay no rows, and a source without files says so: never a traceback."""
    try:
        with place(seed, "none", inputs=step.inputs) as where:
            rows = step.rows(Rows(), where)
            if type(step).window is not Step.window:
                none = where.models.batch(examples(step)[:1]).at(torch.arange(0))
                assert len(step.window(none, where, step.build(None)).keys) == 0, "rows come out of an empty window"
    except LimbeckError:
        return
    assert not isinstance(step, Source) or rows.train, "a source without files makes no rows, and says nothing"


@contract
@over_choices
def readable(step: Step, seed: int = 0) -> None:
    """A role can read every row that comes out: one of text, of images, of both, of sounds, or a denoiser."""
    changes_rows(step)
    try:
        rows = made(step, seed)
    except LimbeckError as error:
        raise NotClaimed(str(error)) from None
    first = (*rows.train, *rows.held_out)[0].content
    if "pixels" in first and not first.keys().isdisjoint({"prompt", "messages"}):
        sees = sighted_of(context=CONTEXT, channels=first["pixels"].shape[0])
        sees.tokenizer = Chatting()
        view = sees.view([*rows.train, *rows.held_out])
        assert (view.span("vision").sum(), view.span("response").any()) == (view.num_rows * sees.num_patches, True), "an image or an answer lacks"
        return
    if (pixels := first.get("pixels")) is not None:
        view = classifier(channels=pixels.shape[0], side=pixels.shape[1]).view([*rows.train, *rows.held_out])
        assert view.num_rows == len(view.inputs["label"]), "a row has no class"
        return
    if "pitch" in first:
        view = pitch_tracker().view([*rows.train, *rows.held_out])
        assert len(view.inputs["pitch"]) == view.ragged.sum() and (view.inputs["pitch"] > 0).any(), "frames without a pitch"
        return
    if (rate := first.get("rate")) is not None:
        listener = hearing_model()
        listener.hearing = replace(listener.hearing, rate=rate)
        assert (listener.view([*rows.train, *rows.held_out]).ragged > 0).all(), "a clip has no frame"
        return
    if (clean := first.get("clean")) is not None:
        view = denoiser(shape=tuple(clean.shape)).view([*rows.train, *rows.held_out])
        assert view.inputs["clean"].isfinite().all(), "a sample is not finite"
        return
    role = family_of("llama", 0, context=CONTEXT)
    role.tokenizer = Chatting()
    view = role.view([*rows.train, *rows.held_out])
    assert len(view.targets), "no row has anything to predict"
    assert (view.ragged > 0).all(), "a row is empty"


@contract
def draws_resume(step: Step, seed: int = 0) -> None:
    """Draws of its rows are a pure function of the seed and of how many were drawn before: a run goes on where it stopped."""
    changes_rows(step)
    rows = made(step, seed)
    whole = rows.draw(0, 9, Streams(seed))
    assert whole == rows.draw(0, 4, Streams(seed)) + rows.draw(4, 5, Streams(seed)), "stopped after 4 draws, the others differ"
    assert not whole or {row.key for row in whole} <= {row.key for row in rows.train}, "rows are drawn that are not trained on"


@contract
def windows_resume(step: Step, seed: int = 0) -> None:
    """What it does to windows depends on seed, window and saved memory alone: loaded into a fresh copy it goes on the same."""
    if type(step).window is Step.window:
        raise NotClaimed("it changes no window")
    with place(seed, inputs=step.inputs) as where:
        rows = step.rows(given(step), where).train or examples(step)

        def run(memory: Any, numbers: range) -> list[Any]:
            out = [step.window(where.models.batch(rows[4 * n : 4 * n + 4]), replace(where, window=n), memory) for n in numbers]
            return [(b.keys, b.tags, b.weights.tolist(), {name: x.tolist() for name, x in b.view("student").inputs.items()}) for b in out]

        first, second = step.build(None), step.build(None)
        before = run(first, range(2))
        if first is not None:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert run(second, range(2, 4)) == run(first, range(2, 4)), "loaded into a fresh copy, the third window differs"
        assert run(step.build(None), range(2)) == before, "the first windows differ when they are made again"


@contract
def inputs_untouched(step: Step, seed: int = 0) -> None:
    """The rows that come in are the same afterwards."""
    changes_rows(step)
    rows = given(step)
    if not rows.train:
        raise NotClaimed("it is a source")
    before = copy.deepcopy(plain(rows))
    with place(seed) as where:
        step.rows(rows, where)
    assert plain(rows) == before, "rows that came in were changed in place"
