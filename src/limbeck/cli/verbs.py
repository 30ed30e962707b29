"""One function a verb; what they do stands in the modules that they call."""

import json
from typing import Annotated, Any

import typer

from limbeck.cli import Stop, app
from limbeck.cli.caching import cache
from limbeck.errors import Refused
from limbeck.text.show import visible

Changes = Annotated[list[str] | None, typer.Argument(help="Changes like train.0.steps=50; values are read as YAML, null removes.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Name = Annotated[str | None, typer.Option("--run", help="Name of the run's folder.")]
Toy = Annotated[bool, typer.Option("--toy", help="The recipe's toy form: seconds, no downloads.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Errors only.")]


app.add_typer(cache, name="cache")


def out(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, a shipped recipe's name, or a run.")],
    changes: Changes = None,
    name: Name = None,
    toy: Toy = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Runs a recipe to its end; the same command goes on, or prints a finished table again."""
    from limbeck.cli.running import begin

    return begin(recipe, changes or [], name, toy, quiet, as_json, Stop())


@app.command()
def resume(run: Annotated[str, typer.Argument(help="A run.")], quiet: Quiet = False, as_json: Json = False) -> int:
    """Goes on with a run that was stopped."""
    from limbeck.cli.running import begin, folder_of

    folder = folder_of(run)
    return begin(str(folder / "recipe.yaml"), [], folder.name, False, quiet, as_json, Stop(), folder.parent)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file, a shipped recipe's name, or a run.")],
    changes: Changes = None,
    toy: Toy = False,
    as_json: Json = False,
    probe: Annotated[bool, typer.Option(help="Measure this machine for 5 seconds, once.")] = True,
) -> None:
    """Says what a run will cost and whether it can work; loads no weights."""
    from limbeck.cli.running import recipe_of
    from limbeck.planning import plan_of

    found = plan_of(*recipe_of(recipe, changes or [], toy), probe=probe)
    out(found.as_json()) if as_json else print("\n".join(visible(line, 400) for line in str(found).split("\n")))


@app.command()
def capture(
    recipe: Annotated[str, typer.Argument(help="A recipe file, a shipped recipe's name, or a run.")],
    changes: Changes = None,
    into: Annotated[str | None, typer.Option(help="Folder of the recorded answers; none: in the cache, by all that they depend on.")] = None,
    toy: Toy = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Records what the teacher says about all rows of a recipe; the same command goes on, and asks nothing twice."""
    from limbeck.cli.caching import capture as captured

    return captured(recipe, changes or [], toy, into, quiet, as_json)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A run.")],
    kinds: Annotated[list[str] | None, typer.Argument(help="Evaluators; none: those of the recipe.")] = None,
    samples: Annotated[bool, typer.Option(help="Whether the report may hold held-out texts.")] = True,
    as_json: Json = False,
) -> None:
    """Measures a finished run again or further, and writes its report anew."""
    from limbeck.cli.running import again, folder_of
    from limbeck.terminal import summary_lines

    folder = folder_of(run)
    summary = again(folder, kinds or [], samples)
    out(summary) if as_json else print("\n".join(summary_lines(summary, folder)))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Finished runs.")],
    as_json: Json = False,
    anyway: Annotated[bool, typer.Option(help="Also runs that differ in more than one thing, marked.")] = False,
) -> None:
    """Puts finished runs side by side: what is equal, what differs, paired over documents."""
    from limbeck.cli.comparing import compare as compared
    from limbeck.cli.running import folder_of

    found = compared([folder_of(run) for run in runs], anyway)
    out(found) if as_json else print("\n".join(visible(line, 400) for line in found["lines"]))


@app.command()
def chat(
    run: Annotated[str, typer.Argument(help="A finished run.")], new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 96
) -> None:
    """Talks to teacher and student side by side; reads stdin."""
    from limbeck.cli.chatting import chat as talk
    from limbeck.cli.running import folder_of

    talk(folder_of(run), new_tokens)


@app.command("list")
def listing(
    what: Annotated[str, typer.Argument(help="A room (objective, student, ...), recipe, paper, family, or run.")] = "recipe",
    have: Annotated[str | None, typer.Option(help="Recipes for the rows that you have: text, images, rankings, ...")] = None,
    as_json: Json = False,
) -> None:
    """Lists what there is, with one sentence each."""
    from limbeck.cli.showing import listed
    from limbeck.terminal import columns

    rows = listed(what, have)
    heads = [list(rows[0])] if what == "paper" else []
    out(rows) if as_json else print("\n".join(columns([*heads, *([str(v) for v in row.values()] for row in rows)])) or f"no {what} yet")


@app.command()
def show(what: Annotated[str, typer.Argument(help="A recipe, a component's kind, or a run.")], as_json: Json = False) -> None:
    """Shows a recipe, a component with its fields and claims, or a run."""
    from limbeck.cli.showing import shown

    found = shown(what)
    out(found) if as_json else print(found["text"])


@app.command()
def check(
    what: Annotated[str | None, typer.Argument(help="MODULE:CLASS, or a kind like objective.skew_kl; none with --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every component of limbeck.")] = False,
    only: Annotated[str | None, typer.Option(help="One contract.")] = None,
    seed: int = 0,
    as_json: Json = False,
) -> int:
    """Runs the contracts of a component: a stranger's, or ours."""
    if not what and not every:
        raise Refused("usage", "command line", "MODULE:CLASS, ROOM.KIND or --all", "nothing", "limbeck check mylab.losses:RankedKL")
    if not what:
        from limbeck.check.conformance import conformance, rendered

        found = conformance(only, seed)
        reports = [report.as_json() for report in found["reports"]]
        out({**found, "schema": "limbeck.conformance/1", "reports": reports}) if as_json else print(rendered(found))
        return 0 if found["passed"] else 5
    from limbeck.check import check_path, render

    checked = check_path(what, only=only, seed=seed)
    out([report.as_json() for report in checked]) if as_json else print("\n".join(render(report) for report in checked))
    return 0 if all(report.passed for report in checked) else 5


@app.command()
def matrix(seed: int = 0, as_json: Json = False) -> int:
    """Every objective with every teacher and alignment: exact, approximate with its error, or refused and why."""
    from limbeck.check.matrix import cells, rendered

    found = list(cells(seed))
    out({"schema": "limbeck.matrix/1", "cells": [cell._asdict() for cell in found]}) if as_json else print(rendered(found))
    return 5 if any(cell.verdict == "wrong" for cell in found) else 0


@app.command()
def doctor(as_json: Json = False) -> int:
    """Looks at this machine: versions, extras, weights, disk, caches."""
    from limbeck.cli.doctoring import examined
    from limbeck.terminal import columns

    rows = examined()
    out(rows) if as_json else print("\n".join(columns([[r["mark"], r["what"], r["found"], r["do"]] for r in rows])))
    return 0 if all(r["mark"] != "✗" for r in rows) else 4
