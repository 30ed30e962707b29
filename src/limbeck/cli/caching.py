"""capture and cache: what a teacher says is recorded once, looked at, checked, put together and collected."""

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.errors import Refused
from limbeck.text.show import duration, size, visible

cache = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Recorded answers of teachers, and other finished steps.")
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Place = Annotated[str, typer.Argument(help="A folder that limbeck capture wrote, or the beginning of a name that `cache inspect` lists.")]
TRIED_ROWS = 8
"""Rows on which what is read back is compared with the teacher."""
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def out(value: Any, as_json: bool, lines: Sequence[str]) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False) if as_json else "\n".join(visible(line, 400) for line in lines))


def capture(source: str, changes: list[str], toy: bool, into: str | None, quiet: bool, as_json: bool) -> int:
    """Asks the recipe's teacher about all rows of its data, each once; the same command goes on. Returns the exit code."""
    from limbeck.cli import Stop
    from limbeck.cli.running import recipe_of
    from limbeck.component import changed
    from limbeck.model.recorded import furnish
    from limbeck.planning import read
    from limbeck.planning.keeping import choose
    from limbeck.roles import Cast
    from limbeck.store import Answers, Cache
    from limbeck.teacher._capture import capture as ask
    from limbeck.teacher._remembering import AbstractRemembering
    from limbeck.teacher.cached import Cached
    from limbeck.teacher.live import Live
    from limbeck.terminal import Progress

    recipe, _, base = recipe_of(source, changes, toy)
    if isinstance(recipe.teacher, Live):
        recipe = changed(recipe, teacher=Cached(model=recipe.teacher.model))  # type: ignore[call-arg]
    if not isinstance(teacher := recipe.teacher, AbstractRemembering) or any(text.startswith("cache:") for text in teacher.references):
        got = ", ".join(teacher.references) if teacher is not None else "none"
        raise Refused("teacher", f"{source}  teacher", "one that can be asked: a model, cached or served", got, "write teacher: path:FOLDER")
    stop, progress, began = Stop(), Progress(quiet), time.perf_counter()
    cast = Cast(recipe, Cache(), base)
    choose(cast)
    recipe, teacher = cast.recipe, cast.recipe.teacher
    assert isinstance(teacher, AbstractRemembering)
    cast.place = Path(into) if into else None
    role, rows = cast.originals["teacher"], read(recipe, cast, base)
    answers, every = cast.answers(teacher, role), (*rows.train, *rows.held_out)
    assert isinstance(answers, Answers)

    def tell(done: int, total: int) -> None:
        progress.bar("capture", done, total, "rows")
        if stop():
            progress.line(f"saved in {answers.folder}: {len(answers):,} rows. The same command goes on")
            raise typer.Exit(128 + stop.signal)

    asked = ask(teacher, role, every, answers, tell)
    furnish(answers, role)
    found = {"schema": "limbeck.capture/1", **described(answers), "asked_rows": asked, "use": f"teacher=cache:{answers.folder.absolute()}"}
    found |= tried(teacher, role, every, answers) if role.at_hand else {}
    progress.done("capture", f"the teacher on {asked:,} of {len(every):,} rows", time.perf_counter() - began)
    compared = f"KL to the live teacher {found['kl']:.2g}, top-1 {found['top1']:.2%}, mass kept {found['mass']:.1%}" if "kl" in found else ""
    out(found, as_json, [*lines_of(found), *([f"  trial    {compared}"] if compared else []), f"  use      {found['use']}"])
    return 0


def tried(teacher: Any, role: Any, rows: Sequence[Any], answers: Any) -> dict[str, Any]:
    """What is read back against the live teacher, on the last few rows; nothing for draws, which are right on average only."""
    import torch

    from limbeck.evaluate._scoring import score
    from limbeck.model.base import Models
    from limbeck.signals import TopK

    models, some = Models({"student": role, "teacher": role}), list(rows)[-TRIED_ROWS:]
    said = teacher.attach(models.batch(some).to(next((p.device for p in role.parameters()), "cpu")), models, answers).said["teacher"].values
    if "sampled_logits" in said:
        return {}
    role.offers = frozenset(type(role).offers) or role.offers
    kept = said.get("logits", said.get("top_logits"))
    table = score(role, some, lambda *_: kept, rows_at_once=TRIED_ROWS)
    assert table.kl is not None and table.teacher_best is not None
    mass = 1 - float(kept.tail.exp().mean()) if isinstance(kept, TopK) else 1.0
    assert table.best is not None
    top1 = float((table.best == table.teacher_best).double().mean())
    return {"kl": float(table.kl.to(torch.float64).mean()), "top1": top1, "mass": mass, "tried_targets": len(table.row)}


def described(answers: Any) -> dict[str, Any]:
    """What a folder of answers holds."""
    names = {name for part in answers.parts.values() for name in part.ends}
    targets = answers.num("hidden" if any(name.split("/")[0] == "hidden" for name in names) else "ids") if names else 0
    written = sum((part.path / "answers.safetensors").stat().st_size for part in answers.parts.values())
    aside = [path.name for path in (answers.folder / "parts").glob("*.corrupt-*")]
    about = answers.about
    return {
        "folder": str(answers.folder),
        "models": about["facts"].get("models", []),
        "keeps": about["identity"].get("teacher", {}),
        "tokenizer": about["identity"].get("tokenizer"),
        "parts": len(answers.parts),
        "rows": len(answers),
        "targets": targets,
        "bytes": answers.size_bytes,
        "bytes_a_target": written / targets if targets else 0.0,
        "set_aside": aside,
        "versions": about["facts"].get("versions", {}),
    }


def lines_of(found: dict[str, Any]) -> list[str]:
    """The same for a reader."""
    keeps = ", ".join(f"{name} {value}" for name, value in found["keeps"].items() if name not in ("revision", "kind") and value != [])
    return [
        f"{found['folder']}",
        f"  teacher  {', '.join(found['models'])}: {keeps}",
        f"  holds    {found['rows']:,} rows, {found['targets']:,} targets in {found['parts']:,} parts",
        f"  size     {size(found['bytes'])}, {found['bytes_a_target']:,.1f} bytes a target",
        *(f"  aside    {name}: altered, not used" for name in found["set_aside"]),
    ]


def opened(place: str, **more: Any) -> Any:
    """The answers in a folder, or in the cache by the beginning of their name."""
    from limbeck.store import ANSWERS, Answers, home

    if Path(place).is_dir() or not re.fullmatch("[0-9a-f]{4,64}", place):
        return Answers(place, **more)
    there = sorted(path for path in (home() / ANSWERS).glob(f"{place}*") if "." not in path.name)
    if len(there) != 1:
        got = f"{len(there)} of them" if there else "none"
        raise Refused("cache", place, f"a folder, or the beginning of one name in {home() / ANSWERS}", got, "limbeck cache inspect")
    return Answers(there[0], **more)


@cache.command()
def inspect(place: Annotated[str | None, typer.Argument(help="A folder, or the beginning of a name; none: list all.")] = None, as_json: Json = False):
    """Says what a cache holds and what it depends on, or lists everything in the cache."""
    from limbeck.store import Cache
    from limbeck.terminal import columns

    if place is not None:
        found = {"schema": "limbeck.cache/1", **described(opened(place))}
        return out(found, as_json, lines_of(found))
    entries = sorted(Cache().entries(), key=lambda entry: -entry.used)
    rows = [{"name": e.name, "bytes": e.size_bytes, "used": e.used, "about": e.about} for e in entries]
    table = [[e.name.removeprefix("answers/")[:12], size(e.size_bytes), f"{duration(time.time() - e.used)} ago", what(e.about)] for e in entries]
    total = f"{len(entries)} entries, {size(sum(e.size_bytes for e in entries))} in {Cache().root}"
    out({"schema": "limbeck.cache/1", "entries": rows}, as_json, [*columns(table), total])


def what(about: Any) -> str:
    """What an entry is, from what it says about itself."""
    if not isinstance(about, dict):
        return "cannot be read"
    facts = about.get("facts")
    if isinstance(facts, dict):
        return f"answers of {', '.join(map(str, facts.get('models', [])))}"
    return " ".join(str(about.get(name)) for name in ("what", "of", "step", "teacher") if about.get(name))


@cache.command()
def verify(place: Place, repair: Annotated[bool, typer.Option("--repair", help="Set altered parts aside.")] = False, as_json: Json = False) -> int:
    """Compares every part with its checksums, and reads every row."""
    from limbeck.errors import LimbeckError
    from limbeck.store import verify as compare
    from limbeck.teacher._packing import unpack

    answers, bad = opened(place, unpack=unpack), {}
    for name, part in sorted(answers.parts.items()):
        try:
            compare(part.path)
            for key in part.rows:
                if answers.where[key] == name:
                    answers[key]
        except LimbeckError as error:
            bad[name] = f"{error.where}: expected {error.expected}, got {error.got}"
    if repair:
        answers.missing(answers)
    found = {"schema": "limbeck.verify/1", "folder": str(answers.folder), "parts": len(answers.parts), "rows": len(answers), "altered": bad}
    said = "set aside; the next capture asks again" if repair else "limbeck cache verify --repair sets them aside"
    whole = f"{found['parts']:,} parts, {found['rows']:,} rows"
    end = f"{len(bad)} of {whole} altered: {said}" if bad else f"{whole}: as they were written"
    out(found, as_json, [*(f"✗ {name}  {why}" for name, why in bad.items()), end])
    return 5 if bad else 0


@cache.command()
def merge(
    into: Annotated[str, typer.Argument(help="A folder, which may be new.")], others: Annotated[list[str], typer.Argument(help="Caches to add.")],
    as_json: Json = False,
) -> None:  # fmt: skip
    """Adds the rows of other caches of the same teacher that are missing in the first."""
    from limbeck.model.recorded import TEACHER
    from limbeck.store import Answers, new_folder
    from limbeck.store import merge as merged

    found = [opened(other) for other in others]
    target = Answers(into, found[0].about["identity"], found[0].about["facts"])
    added = merged(target, found)
    lent = next((other.folder / TEACHER for other in found if (other.folder / TEACHER).is_dir()), None)
    if lent is not None and not (target.folder / TEACHER).is_dir():
        with new_folder(target.folder / TEACHER) as folder:
            for file in lent.iterdir():
                if file.is_file() and file.name != "manifest.json":
                    shutil.copyfile(file, folder / file.name)
    told = {"schema": "limbeck.cache/1", **described(target), "added_rows": added}
    out(told, as_json, [f"{added:,} rows added", *lines_of(told)])


@cache.command()
def gc(keep: Annotated[str, typer.Option(help="How much may stay, like 20GB.")], as_json: Json = False) -> None:
    """Removes what was used longest ago, answers and other finished steps, until so much is left; spares what is in use, and what servers
    have answered, which was paid for."""
    from limbeck.store import Cache

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", keep.strip().upper())
    if match is None:
        raise Refused("usage", "command line  --keep", "a size, like 20GB or 500MB", keep, "limbeck cache gc --keep 20GB")
    store = Cache()
    removed = store.gc(int(float(match[1]) * UNITS[match[2] or "B"]))
    left = sum(entry.size_bytes for entry in store.entries())
    paid = sum(file.stat().st_size for file in (store.root / "responses").rglob("*") if file.is_file())
    told = [*(f"removed {name}" for name in removed), f"{size(left)} left"]
    told += [f"{size(paid)} of answers of servers stay: remove {store.root / 'responses'} yourself"] * bool(paid)
    out({"schema": "limbeck.gc/1", "removed": removed, "bytes": left, "responses_bytes": paid}, as_json, told)
