"""list and show: what there is, without importing torch where files say it."""

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import limbeck.component
from limbeck.component import ROOMS, Component, find, members, nearest
from limbeck.errors import Refused
from limbeck.recipe import SHIPPED, Recipe, load
from limbeck.text import document
from limbeck.text.show import visible
from limbeck.workspace import runs_folder


def listed(what: str, have: str | None = None) -> list[dict[str, Any]]:
    """One mapping a thing: a room's members, recipes (with `have`: those for such rows), papers, families or runs."""
    if have is not None and what != "recipe":
        raise Refused("usage", f"list {what} --have {have}", "recipe, which alone asks for rows", what, f"limbeck list recipe --have {have}")
    if have is not None:
        return recipes_for(have)
    if what in ROOMS:
        return [{"kind": kind, "does": text, **asked(what, kind)} for kind, text in members(what).items()]
    if what == "recipe":
        return [{"recipe": path.stem, "does": visible(str(plain(path).get("about", "")))} for path in sorted(SHIPPED.glob("*.yaml"))]
    if what == "paper":
        return sorted(papers(), key=lambda row: not row["recipe"])  # what can be run comes first
    if what == "family":
        from limbeck.model.anatomy import describe

        return [{"family": name, "about": about} for name, about in describe().items()]
    if what == "run":
        return [run_of(path.parent) for path in sorted(runs_folder().glob("*/recipe.yaml"))]
    raise Refused(
        "usage", f"list {what}", f"one of {', '.join((*ROOMS, 'recipe', 'paper', 'family', 'run'))}", what, f"limbeck list {nearest(what, ROOMS)}"
    )


def recipes_for(have: str) -> list[dict[str, Any]]:
    """Recipes whose rows are such ones."""
    rows = {row["recipe"]: rows_of(load(row["recipe"])) for row in listed("recipe")}
    there = sorted({kind for kinds in rows.values() for kind in kinds})
    if have not in there:
        near = nearest(have, there)
        do = f"limbeck list recipe --have {near}" if near in there else "limbeck list recipe"
        raise Refused("usage", f"list recipe --have {have}", f"one of {', '.join(there)}", have, do)
    return [row for row in listed("recipe") if have in rows[row["recipe"]]]


def rows_of(recipe: Recipe) -> set[str]:
    """What the rows are that a recipe trains on: of each list of data steps, what the last one says that makes any."""
    every = (recipe.data, *(stage.data or () for stage in recipe.train), *(turn.data or () for stage in recipe.train for turn in stage.turn))
    made = ([step.makes for step in steps if step.makes] for steps in every)  # type: ignore[attr-defined]
    return {kinds[-1] for kinds in made if kinds}


def asked(room: str, kind: str) -> dict[str, Any]:
    """What an objective needs of each seat."""
    if room != "objective":
        return {}
    one = class_of(room, kind).example()
    return {"needs": " · ".join(f"{seat}: {', '.join(names)}" for seat, names in one.needs.items())}  # type: ignore[attr-defined]


def plain(path: Path) -> dict[str, Any]:
    return document.load(path.read_text(encoding="utf-8"), path.name)[0]


def papers() -> list[dict[str, Any]]:
    """Every published work that limbeck knows of: its recipe, its claim and what came of it, and mechanisms whose references name it."""
    works = json.loads((Path(limbeck.component.__file__).parent / "papers.json").read_text(encoding="utf-8"))
    every = {path.stem: plain(path) for path in sorted(SHIPPED.glob("*.yaml"))}
    recipes = {place(paper): (name, recipe) for name, recipe in every.items() if (paper := recipe.get("paper"))}
    arms = {arm: name for name, recipe in every.items() for arm in (recipe.get("claim") or {}).get("arms", ()) if arm in every and arm != name}
    texts = {
        f"{room}.{kind}": (Path(limbeck.component.__file__).parent / room / f"{kind}.py").read_text(encoding="utf-8")
        for room in ROOMS
        for kind in members(room)
    }
    known = {place(work) for work in works}
    works += [{**recipe["paper"], "area": "starter"} for at, (_, recipe) in recipes.items() if at not in known]
    out = []
    for work in works:
        name, recipe = recipes.get(place(work), ("", {}))
        cited = f"arXiv:{work['arxiv']}" if work.get("arxiv") else work["url"]
        found = [component for component, text in texts.items() if cited in text]
        out.append(
            {
                "recipe": name,
                "claim": status(name, recipe, arms) if name else "",
                "paper": work["title"],
                "area": work["area"],
                "arxiv": place(work),
                "mechanisms": " ".join(found),
                "expects": visible(str((recipe.get("claim") or {}).get("expects", ""))),
            }
        )
    return out


def place(paper: Mapping[str, str]) -> str:
    """The arXiv id of a work, or else its address."""
    return paper.get("arxiv") or paper["url"]


def status(name: str, recipe: Mapping[str, Any], arms: Mapping[str, str]) -> str:
    """What was found of a recipe's claim; of one without, the recipe in whose claim it is an arm."""
    if recipe.get("claim"):
        return found_of(name)
    return f"an arm of {arms[name]}" if name in arms else "none"


def found_of(name: str) -> str:
    """What was found of a recipe's claim: holds, not shown, reversed; or that nobody has measured it."""
    path = SHIPPED / "claims" / f"{name}.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["found"]) if path.is_file() else "not measured"


def run_of(folder: Path) -> dict[str, Any]:
    """A run's name and what came of it."""
    from limbeck.store import read_json

    done = folder / "summary.json"
    return {"run": folder.name, "verdict": read_json(done).get("verdict", "") if done.is_file() else "not finished"}


def class_of(room: str, kind: str) -> type[Component]:
    """The class of a kind; its room's base is found by name."""
    import importlib

    base = next(
        c
        for c in vars(importlib.import_module(f"limbeck.{room}.base")).values()
        if inspect.isclass(c) and issubclass(c, Component) and c.room == room and c.__module__ == f"limbeck.{room}.base"
    )
    return find(base, kind)


def shown(what: str) -> dict[str, Any]:
    """A recipe as it is written, a component with fields and claims, or a run's table."""
    room, _, kind = what.rpartition(".")
    found = [(room, kind)] if room in ROOMS and kind in members(room) else [(r, what) for r in ROOMS if what in members(r)]
    if found:
        return component(*found[0])
    if (SHIPPED / f"{what}.yaml").is_file() or Path(what).is_file():
        path = SHIPPED / f"{what}.yaml" if (SHIPPED / f"{what}.yaml").is_file() else Path(what)
        return recipe(path)
    if (runs_folder() / what / "recipe.yaml").is_file():
        from limbeck.store import read_json
        from limbeck.terminal import summary_lines

        folder = runs_folder() / what
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        summary = read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
        return {
            "run": what,
            "summary": summary,
            "text": visible(text, 1_000_000, 20_000)
            + "\n".join(summary_lines(summary, folder) if summary else ["not finished: limbeck resume " + what]),
        }
    kinds = [k for r in ROOMS for k in members(r)] + [p.stem for p in SHIPPED.glob("*.yaml")]
    raise Refused("usage", f"show {what}", "a recipe, a kind, or a run", what, f"limbeck show {nearest(what, kinds)}")


def component(room: str, kind: str) -> dict[str, Any]:
    """Docstring, fields with defaults, claims."""
    cls = class_of(room, kind)
    fields = [
        {"field": name, "default": repr(f.get_default(call_default_factory=True)), "about": f.description or ""}
        for name, f in cls.model_fields.items()
        if name != "kind"
    ]
    claims = {
        name: getattr(cls, name)
        for name in ("teaches", "zero_at_match", "descends", "special_cases", "keeps_function", "reduces", "policy", "symmetric")
        if getattr(cls, name, None)
    }
    lines = [
        f"{room}.{kind}",
        "",
        inspect.getdoc(cls) or "",
        "",
        "Fields",
        *(f"  {f['field']} = {f['default']}\n      {' '.join(f['about'].split())}" for f in fields),
    ]
    lines += (
        ["", "Claims (verified by its contracts: limbeck check " + f"{room}.{kind})", *(f"  {n}: {v}" for n, v in claims.items())] if claims else []
    )
    return {"room": room, "kind": kind, "fields": fields, "claims": {n: str(v) for n, v in claims.items()}, "text": "\n".join(lines)}


def recipe(path: Path) -> dict[str, Any]:
    """A recipe as written but for its claim and toy, with what it is and its paper in front and what was found of the claim behind."""
    checked, text = load(path), path.read_text(encoding="utf-8")
    method = re.sub(r"^(about|paper|claim|toy):.*?(?=^\S|\Z)", "", text, flags=re.M | re.S).rstrip()
    claim = [f"claim   {found_of(path.stem)}: {visible(checked.claim.expects)}"] if checked.claim else []
    head = [
        path.stem
        + (f" · {checked.paper.title} · " + (f"arXiv:{checked.paper.arxiv}" if checked.paper.arxiv else checked.paper.url) if checked.paper else "")
        + f" · version {checked.version}"
    ]
    return {
        "recipe": path.stem,
        "text": "\n".join(
            [
                *map(visible, [*head, checked.about]),
                "",
                visible(method, 1_000_000, 20_000),
                "",
                *claim,
                f"run it   limbeck run {path.stem}   (or --toy, seconds)",
            ]
        ),
    }
