"""Puts the subjects of a run before its evaluators: tables are made once, kept in the run's folder, and shared."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.align.shared_vocab import SharedVocab, same
from limbeck.data._sounds import resampled
from limbeck.data.base import Rows
from limbeck.errors import Refused
from limbeck.evaluate._scoring import predicts, score
from limbeck.evaluate.base import Exam, Table
from limbeck.export import _wav
from limbeck.export._png import data_uri
from limbeck.model.base import Models, Role
from limbeck.model.transcriber import Transcriber
from limbeck.model.vision_language import VisionLanguage
from limbeck.numerics import Streams
from limbeck.recipe import Recipe
from limbeck.signals import Row, View, dense
from limbeck.store import is_sound, load_tensors, new_folder, read_json, save_tensors, write_json
from limbeck.teacher.base import Teacher

MADE = "made.json"
"""What an evaluator has kept of what subjects make of noise: [{pixels [channel, height, width], label}]."""
TELEPHONE = 8_000
"""Numbers a second of speech in the report."""
CALIBRATION_ROWS = 16
"""Training rows that surgeries and searches are measured on."""


def one_tokenizer(role: Role, teacher: Role) -> bool:
    """Whether two roles read text by the same ids, as far as they read text."""
    return None in (role.tokenizer, teacher.tokenizer) or same(role.tokenizer, teacher.tokenizer)


def shared_ids(role: Role, teacher: Role | None) -> SharedVocab | None:
    """The cut to the ids that a subject shares with the teacher, where their heads are of other sizes; as in training."""
    if teacher is None or None in (role.vocab, teacher.vocab) or role.vocab == teacher.vocab:
        return None
    return SharedVocab().settle(Models({"student": role, "teacher": teacher}))


class Examiner:
    """Opens subjects and scores them on held-out rows."""

    def __init__(
        self,
        recipe: Recipe,
        rows: Rows,
        teacher: Role | None,
        kept: Mapping[str, Any],
        folder: Path,
        openers: Mapping[str, Callable[[], Role]],
        other: Callable[[str], Role] | None = None,
    ):
        """Args:
        rows: of the run; the held-out ones are looked at.
        teacher: its role, if there is one.
        kept: what was captured of the teacher, by key of the row.
        folder: of the run; tables go below it.
        openers: subject -> makes its role.
        other: opens a model that is no subject, by its reference.
        """
        self.recipe, self.rows, self.teacher, self.kept, self.folder, self.openers = recipe, rows, teacher, kept, folder, dict(openers)
        self.other = other
        self.tables: dict[str, Table] = {}

    @contextmanager
    def open(self, subject: str) -> Iterator[Role]:
        """The role of a subject, or of another model by its reference, in eval mode."""
        role = self.other(subject) if self.other and subject not in self.openers else self.openers[subject]()
        yield role.eval()

    def answers(self, rows: Sequence[Row], view: View) -> Any:
        """The teacher's logits at the targets of some rows: as captured, or asked now."""
        assert self.teacher is not None
        source = self.recipe.teacher
        if isinstance(source, Teacher) and self.kept and "sampled_logits" not in self.teacher.offers:  # draws tell too little of one target
            models = Models({"teacher": self.teacher, "student": self.teacher})
            return source.attach(models.batch(rows).to(view.device), models, self.kept).said["teacher"]["logits|top_logits"]
        with torch.no_grad():
            return self.teacher.says(self.teacher.view(rows).to(view.device), ("logits",), {})["logits"]

    def beside(self, role: Role) -> dict[str, Any]:
        """The teacher's answers and how they are laid beside a subject's; none where their tokenizers differ: targets are then other text."""
        told = self.teacher is not None and predicts(self.teacher) and one_tokenizer(role, self.teacher)
        return {"teacher_logits": self.answers if told else None, "align": shared_ids(role, self.teacher) if told else None}

    def closeness(self, student: Role) -> str | None:
        """The evaluator that tells how close a student, of which only the tokenizer matters, is to the teacher; None without one."""
        if self.teacher is None or not predicts(self.teacher):
            return None if self.teacher is None else self.teacher.compared_by
        return "agreement" if one_tokenizer(student, self.teacher) else "probe" if student.sees_targets else "aligned_bytes"

    def table(self, subject: str) -> Table:
        """One entry a held-out target; made once, then read from the run's folder. One that another version has written otherwise is made anew."""
        folder = self.folder / "tables" / subject
        if subject not in self.tables and is_sound(folder):
            found = load_tensors(folder / "table.safetensors")
            self.tables |= {subject: Table(**found)} if found.keys() <= {field.name for field in fields(Table)} else {}
        if subject not in self.tables:
            with self.open(subject) as role:
                began = time.perf_counter()
                table = score(role, self.rows.held_out, **self.beside(role))
                seconds = time.perf_counter() - began
            with new_folder(folder) as new:
                save_tensors(new / "table.safetensors", {name: x for name, x in vars(table).items() if x is not None})
                documents = [row.source or row.key for row in self.rows.held_out]
                write_json(new / "timing.json", {"seconds": seconds, "targets": len(table.row), "documents": documents})
            self.tables[subject] = table
        return self.tables[subject]

    @property
    def masked(self) -> bool:
        """Whether the student has seen what stands at its targets: where nothing is hidden, a masked model predicts nothing."""
        table = self.table("start") if self.rows.held_out else None
        return table is not None and table.pos is not None and table.label is None

    def about(self, student: Role) -> dict[str, Any]:
        """What tells how close a student is, and what one entry of its table is called."""
        table = self.table("start") if self.rows.held_out else None
        unit = "position" if self.masked else "token"
        unit = unit if table is None else "candidate" if table.score is not None else "image" if table.label_rank is not None else unit
        sounds = table is not None and "wave" in self.rows.held_out[0].content
        unit = "clip" if sounds and student.tokenizer is None else unit
        if table is not None and table.velocity_error is not None:
            unit = "image" if "pixels" in self.rows.held_out[0].content else "sample"
        alone = {} if unit != "token" or student.writes else {"writes": False}  # not without an image or a sound
        alone |= {"sources": "clips"} if sounds and unit == "token" else {}
        return {"closeness": self.closeness(student), "unit": unit, **alone}

    def seconds_a_target(self, subject: str) -> float:
        """What a forward pass of a subject cost, measured when its table was made."""
        self.table(subject)
        timing = read_json(self.folder / "tables" / subject / "timing.json")
        return timing["seconds"] / max(1, timing["targets"])

    def exam(self, **context: Any) -> Exam:
        """All subjects, teacher first."""
        context = {"evidence": self.folder / "evidence", **context}
        return Exam(self.rows.held_out, tuple(self.openers), self.open, self.table, self.recipe.seed, context)

    def metrics(self, subject: str) -> dict[str, float]:
        """The few numbers that are told while a run goes: kl, top1, perplexity, and what evaluators see at a glance."""
        return self.few(self.table(subject), self.rows.held_out)

    def before(self, rows: Sequence[Row]) -> dict[str, Any]:
        """KL of the student before training on those held-out rows that are looked at while it trains: where their curve begins."""
        table, keys = self.table("start") if rows else None, {row.key for row in rows}
        if table is None or table.kl is None:
            return {}
        some = torch.tensor([row.key in keys for row in self.rows.held_out], device=table.row.device)[table.row]
        return {"rows": len(rows), "kl": float(table.kl[some].double().mean())} if some.any() else {}

    def look(self, role: Role, rows: Sequence[Row] | None = None) -> dict[str, float]:
        """The same numbers of a role that is being trained, on some held-out rows or all: made anew, and not kept; leaves the role as it was."""
        training = role.training
        try:
            some = rows or self.rows.held_out
            return self.few(score(role.eval(), some, **self.beside(role)), some)
        finally:
            role.train(training)

    def few(self, table: Table, rows: Sequence[Row]) -> dict[str, float]:
        """Means over all targets."""
        found: dict[str, float] = {}
        if table.velocity_error is not None:
            found["velocity_error"] = float(table.velocity_error.double().mean())
        if table.label_rank is not None:
            found["accuracy"] = float((table.best == table.label).double().mean())
        elif table.label_logprob is not None:
            found["perplexity"] = float(table.label_logprob.double().mean().neg().exp())
        for evaluator in self.recipe.evaluate:
            found |= evaluator.glance(table, rows)
        if table.kl is not None and table.teacher_best is not None and table.best is not None:
            found |= {"kl": float(table.kl.double().mean()), "top1": float((table.best == table.teacher_best).double().mean())}
        return found


class Calibration:
    """Mean KL from the teacher to a role on some training rows, in nats a target: what surgeries are measured by.

    `heard` is called before each measurement, with how many there were and what the last one gave; it may raise, to stop.
    """

    def __init__(self, teacher: Role | None, rows: Sequence[Row], heard: Callable[[int, float], None] = lambda num, last: None):
        self.teacher, self.rows, self.heard, self.said, self.measured = teacher, rows, heard, [], (0, math.nan)

    def quiet(self) -> "Calibration":
        """The same, told to nobody: for a search, which tells by itself how far it is."""
        own = copy.copy(self)
        own.heard = lambda num, last: None
        return own

    def __call__(self, role: Role) -> float:
        self.heard(*self.measured)
        if self.teacher is None or not self.teacher.at_hand or not self.rows or not predicts(self.teacher):
            do = "choose without measuring, or give data and a teacher of probabilities"
            raise Refused("score", "student.surgery", "training rows and a teacher to measure with", "none", do)
        if not self.said:                                   # asked once, and only if something measures
            device = next(self.teacher.parameters()).device
            with torch.no_grad():
                self.said = [self.teacher.says(self.teacher.view([row]).to(device), ("logits",), {})["logits"] for row in self.rows]
        align = shared_ids(role, self.teacher)
        each = [score(role, [row], lambda rows, view, said=said: said, align=align).kl for row, said in zip(self.rows, self.said, strict=True)]
        self.measured = self.measured[0] + 1, float(torch.cat([kl for kl in each if kl is not None]).double().mean())
        return self.measured[1]


def trust(examiner: Examiner, sessions: int) -> list[dict[str, Any]]:
    """What was checked about the run itself, as lines of the report."""
    out = []
    if examiner.teacher is not None and not examiner.teacher.at_hand:
        result = "it is not at hand: no speed, size, samples or figures of its own; the student is compared with the answers that were kept"
        out.append({"name": "Teacher by itself", "open": True, "result": result})
    if "teacher" in examiner.openers and examiner.rows.held_out:
        itself = examiner.metrics("teacher")
    else:
        itself = {}
    if "kl" in itself:
        good = itself["kl"] < 1e-4 and itself["top1"] == 1
        out.append(
            {
                "name": "Evaluator on the teacher itself",
                "open": not good,
                "result": f"KL {itself['kl']:.4f}, agreement {itself['top1']:.0%}" + (": as it must be" if good else ": this should be 0 and 100 %"),
            }
        )
    if examiner.recipe.baseline:
        kind = examiner.recipe.baseline[0].replace("_", "-").capitalize()
        name = "Baseline without the teacher" if examiner.masked else f"{kind} baseline"
        out.append({"name": name, "result": "same start, data, order, steps and optimiser; only the objective differs", "open": False})
    if any(stage.select for stage in examiner.recipe.train):
        out.append({"name": "Best step chosen on the held-out rows", "result": "so their figures flatter the student", "open": True})
    stops = "once" if sessions == 2 else f"{sessions - 1} times"
    out.append({"name": "Interrupted", "result": "never" if sessions < 2 else f"{stops}; what goes on continues bit for bit", "open": False})
    return [*out, *({"name": note.split(":")[0], "result": note.partition(": ")[2] or note, "open": False} for note in examiner.rows.notes)]


def draw_samples(examiner: Examiner, seed: int, num: int = 3, prompt_tokens: int = 48, new_tokens: int = 48) -> list[dict[str, Any]]:
    """Held-out prompts, or beginnings of texts, drawn by seed and not chosen, with what teacher and student write (greedy), and where they differ."""
    rows = examiner.rows.held_out
    if (drawn := examiner.folder / "evidence" / MADE).is_file():
        made = read_json(drawn)
        of = [{name: one[name] for name in ("label", "prompt") if name in one} for one in made]
        images = [data_uri(torch.tensor(one["pixels"], dtype=torch.uint8)) for one in made]
        return [{"image": image, **one, "made": True} for image, one in zip(images, of, strict=True)]
    if rows and "pixels" in rows[0].content:
        return answered(examiner, seed) if rows[0].content.keys().isdisjoint({"prompt", "messages"}) else described(examiner, seed)
    if rows and "wave" in rows[0].content:
        return played(examiner, seed)
    pick = torch.randperm(len(rows), generator=Streams(seed)("samples")).tolist()[:num]
    out: list[dict[str, Any]] = [{"prompt": ""} for _ in pick]
    for subject in ("teacher", "student"):
        if subject not in examiner.openers:
            continue
        with examiner.open(subject) as role:
            if role.tokenizer is None or not predicts(role) or "text" not in role.offers and (subject == "student" or role.sees_targets):
                return []
            for sample, i in zip(out, pick, strict=True):
                ids = beginning(role, rows[i], prompt_tokens).to(next(role.parameters()).device)
                began = time.perf_counter()
                made = continued(role, ids, new_tokens)
                sample |= {
                    "prompt": role.tokenizer.decode(ids.tolist()),
                    subject: role.tokenizer.decode(made.tolist(), skip_special_tokens=True),
                    f"{subject}_seconds": time.perf_counter() - began,
                }
                if subject == "student" and examiner.teacher is not None and examiner.teacher.at_hand and one_tokenizer(role, examiner.teacher):
                    sample |= differences(examiner.teacher, role.tokenizer, ids, made)
    return out


def beginning(role: Role, row: Row, most: int) -> Int[Tensor, " pos"]:
    """What stands before the first answer of a row; of a text, so many of its first ids."""
    view = role.view([row])
    start = 0 if view.asked is None or not view.asked.any() else int(view.asked.nonzero()[0])
    return view.inputs["ids"][: start or most]


def answered(examiner: Examiner, seed: int, num: int = 24) -> list[dict[str, Any]]:
    """Held-out pictures, drawn by seed and not chosen, with their class and what teacher and student say; from the tables that are there."""
    rows = examiner.rows.held_out
    pick = torch.randperm(len(rows), generator=Streams(seed)("samples"))[:num].sort().values.tolist()
    names = {row.content.get("label"): row.tag for row in rows}
    out = []
    for i in pick:
        tables = {subject: examiner.table(subject).best for subject in ("teacher", "student") if subject in examiner.openers}
        said = {subject: int(best[i]) for subject, best in tables.items() if best is not None}
        shown = {subject: names.get(label) or str(label) for subject, label in said.items()}
        out.append({"image": data_uri(rows[i].content["pixels"]), "label": rows[i].tag or str(rows[i].content.get("label", "")), **shown})
    return out


def played(examiner: Examiner, seed: int, num: int = 10, new_tokens: int = 96) -> list[dict[str, Any]]:
    """Held-out sounds, drawn by seed and not chosen, with their class; or with what is said in them, and what teacher and student write of it."""
    rows = examiner.rows.held_out
    pick = torch.randperm(len(rows), generator=Streams(seed)("samples"))[:num].sort().values.tolist()
    if "answer" not in rows[0].content:
        return [{"sound": _wav.data_uri(rows[i].content["wave"], rows[i].content["rate"]), "label": rows[i].tag} for i in pick]
    some = [rows[i] for i in pick]
    out = [{"sound": _wav.data_uri(*over_telephone(row)), "label": row.content["answer"].strip()} for row in some]
    for subject in (name for name in ("teacher", "student") if name in examiner.openers):
        with examiner.open(subject) as role:
            if isinstance(role, Transcriber):
                for sample, words in zip(out, role.transcribe(some, new_tokens), strict=True):
                    sample[subject] = words or "(nothing)"
    return out


def over_telephone(row: Row) -> tuple[Float[Tensor, " instant"], int]:
    """The sound of a row and its rate; one that the report would cut off early is brought to 8 kHz, so that more of what is said is heard."""
    found, rate = row.content["wave"], row.content["rate"]
    if len(found) <= _wav.MOST_BYTES // 2 or rate <= TELEPHONE:
        return found, rate
    return resampled(found.float(), rate, TELEPHONE), TELEPHONE


def described(examiner: Examiner, seed: int, num: int = 8, new_tokens: int = 64) -> list[dict[str, Any]]:
    """Held-out pictures, drawn by seed and not chosen, with a question, its answer, and what teacher and student write (greedy)."""
    rows = examiner.rows.held_out
    pick = torch.randperm(len(rows), generator=Streams(seed)("samples"))[:num].sort().values.tolist()
    out: list[dict[str, Any]] = [{"image": data_uri(rows[i].content["pixels"])} for i in pick]
    for subject in (name for name in ("teacher", "student") if name in examiner.openers):
        with examiner.open(subject) as role, torch.no_grad():
            if not isinstance(role, VisionLanguage):
                continue
            end = role.tokenizer.eos_token_id
            for sample, i in zip(out, pick, strict=True):
                inputs, question, answer = role.question(rows[i])
                made = role.module.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=end, pad_token_id=end)  # type: ignore
                written = role.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True)
                sample |= {"prompt": question.strip(), "label": answer.strip(), subject: written.strip() or "(nothing)"}
    return [sample for sample in out if "prompt" in sample]


def continued(role: Role, ids: Int[Tensor, " pos"], new_tokens: int) -> Int[Tensor, " new"]:
    """What a role writes after some ids, greedily, up to an end of text."""
    end = role.tokenizer.eos_token_id
    with torch.no_grad():
        if role.writes:
            how = {"attention_mask": torch.ones_like(ids)[None], "max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": end}
            return role.module.generate(ids[None], **how)[0, len(ids) :]  # type: ignore[operator]
        made = ids
        while len(made) < len(ids) + new_tokens and not (len(made) > len(ids) and int(made[-1]) == end):
            asked = torch.arange(len(made) + 1, device=ids.device) == len(made)
            view = View({"ids": torch.cat([made, made[-1:]])}, asked.new_tensor([len(asked)], dtype=torch.long), asked, shift=role.shift)
            made = torch.cat([made, dense(role.says(view, ("logits",), {})["logits"]).argmax(-1)])
        return made[len(ids) :]


def differences(teacher: Role, tokenizer: Any, prompt: Any, answer: Any) -> dict[str, Any]:
    """Characters of the answer that the teacher, reading it, would not have put there, and the share of tokens that it would."""
    ids = torch.cat([prompt, answer])
    view = View({"ids": ids}, torch.tensor([len(ids)], device=ids.device), torch.arange(len(ids), device=ids.device) >= len(prompt))
    with torch.no_grad():
        same = dense(teacher.says(view, ("logits",), {})["logits"]).argmax(-1) == answer
    ends = [len(tokenizer.decode(answer[:i].tolist(), skip_special_tokens=True)) for i in range(len(answer) + 1)]
    return {
        "agreement": float(same.double().mean()),
        "marks": [[a, b] for a, b, ok in zip(ends, ends[1:], same.tolist(), strict=False) if not ok and b > a],
    }


def together(found: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """What two evaluators have found: of what both tell as mappings, the entries of both, at every depth."""

    def joined(old: Any, new: Any) -> Any:
        return together(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new

    return {**found, **{name: joined(found.get(name), value) for name, value in more.items()}}
