"""Writes the generated documentation: one page a room, recipes, coverage, and the schema of recipes.

`python docs/generate.py` writes; `--check` fails if what is committed (docs/coverage.md, docs/recipe.schema.json) is stale.
"""

import inspect
import json
import re
import sys
from pathlib import Path

from limbeck.claims import record_of
from limbeck.cli.showing import class_of, listed
from limbeck.component import ROOMS, members, schema
from limbeck.recipe import SHIPPED, Recipe, load

DOCS = Path(__file__).parent
GENERATED = DOCS / "generated"
CLAIMS = ("teaches", "zero_at_match", "descends", "special_cases", "keeps_function", "reduces", "policy", "symmetric", "perfect", "ranges")


def room(name: str) -> str:
    """A page with every component of a room."""
    out = [
        f"# {name}",
        "",
        (inspect.getdoc(__import__(f"limbeck.{name}", fromlist=["x"])) or ""),
        "",
        "| kind | what it does |",
        "| --- | --- |",
        *(f"| [{kind}](#{kind}) | {text} |" for kind, text in members(name).items()),
    ]
    for kind in members(name):
        cls = class_of(name, kind)
        out += ["", f"## {kind}", "", body(inspect.getdoc(cls) or ""), "", "| field | default | |", "| --- | --- | --- |"]
        for field, info in cls.model_fields.items():
            if field != "kind":
                default = "required" if info.is_required() else f"`{json.dumps(plain_value(info.get_default(call_default_factory=True)))}`"
                out.append(f"| `{field}` | {default} | {' '.join((info.description or '').split())} |".replace("||", "| |"))
        claims = [f"- `{claim}`: {getattr(cls, claim)}" for claim in CLAIMS if getattr(cls, claim, None) not in (None, False, {}, frozenset())]
        out += ["", f"Claims, verified by `limbeck check {name}.{kind}`:", "", *claims] if claims else []
    return "\n".join(out) + "\n"


def plain_value(value: object) -> object:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return [plain_value(v) for v in value] if isinstance(value, (tuple, list)) else value


def body(text: str) -> str:
    """A docstring as Markdown: its sections become bold words, examples code."""
    text = re.sub(
        r"^Example:\n((?:    .*\n?)+)", lambda m: "**Example**\n\n```python\n" + re.sub("(?m)^    ", "", m[1]).rstrip() + "\n```\n", text, flags=re.M
    )
    return re.sub(
        r"^References:\n((?:    .*\n?)+)", lambda m: "**References**\n\n" + re.sub(r"(?m)^    (?=\S)", "- ", m[1]).rstrip() + "\n", text, flags=re.M
    )


def recipes() -> str:
    """Every shipped recipe, as written."""
    out = ["# Recipes", "", "One YAML a method or starter; `limbeck show NAME` prints one, `limbeck run NAME` runs it."]
    for path in sorted(SHIPPED.glob("*.yaml")):
        recipe = load(path)
        known = recipe.paper and (f"arXiv:{recipe.paper.arxiv}" if recipe.paper.arxiv else recipe.paper.url)
        paper = f"{recipe.paper.title}, {known}. " if recipe.paper else ""
        out += [
            "",
            f"## {path.stem}",
            "",
            f"{recipe.about} {paper}Version {recipe.version}.",
            "",
            *([f"Covered: {'; '.join(recipe.covers)}.", ""] if recipe.covers else []),
            *([f"The paper also does, and this does not: {'; '.join(recipe.leaves_out)}.", ""] if recipe.leaves_out else []),
            "```yaml",
            path.read_text(encoding="utf-8").rstrip(),
            "```",
            *claim(path.stem, recipe),
        ]
    return "\n".join(out) + "\n"


def claim(name: str, recipe: Recipe) -> list[str]:
    """What was claimed and what was found: every arm at every value of the grid."""
    if recipe.claim is None:
        claims = {path.stem: load(path).claim for path in sorted(SHIPPED.glob("*.yaml"))}
        other = next((of for of, known in claims.items() if known is not None and name in known.arms), "")
        return ["", f"**Claim.** Measured as an arm of the claim of `{other}`."] if other else []
    out, record = ["", f"**Claim.** {recipe.claim.expects}", ""], record_of(name)
    if record is None:
        return [*out, f"Not measured yet: `make claims NAME={name}`."]
    ((path, values),) = record["grid"].items()
    used = f" by the clock, {record['cpu_minutes']} of a processor" if record.get("cpu_minutes") is not None else " by the clock"
    out += [
        f"**Found: {record['found']}** ({record['date']}, `{record['command']}`, {record['machine']}, {record['minutes']} minutes{used}). "
        f"`{record['metric']}` on seeds {', '.join(map(str, record['seeds']))}, by `{path}`; bold is what each arm is compared at.",
        "",
        f"| arm | {' | '.join(str(value) for value in values)} |",
        f"| --- |{' --- |' * len(values)}",
    ]
    for arm, table in record["arms"].items():
        cells = [", ".join(f"{x:.4g}" for x in table[str(value)]) for value in values]
        cells = [f"**{cell}**" if str(value) == record["best"][arm] else cell for cell, value in zip(cells, values, strict=True)]
        out.append(f"| {arm} | {' | '.join(cells)} |")
    found = (
        f"{one.get('arm', recipe.claim.arm)} over {other}: {one['verdict']} "
        f"({'better' if one['mean'] >= 0 else 'worse'} by {abs(one['mean']):.3g} ± {one['standard_error']:.2g})"
        for other, one in record["differences"].items()
    )
    out += ["", f"{'; '.join(found)}."]
    if told := record.get("told"):
        paths = list(next(iter(told.values())))
        out += ["", f"| arm | {' | '.join(f'`{path}`' for path in paths)} |", f"| --- |{' --- |' * len(paths)}"]
        out += [f"| {arm} | {' | '.join(', '.join(f'{x:.4g}' for x in figures[path]) for path in paths)} |" for arm, figures in told.items()]
    return out


def coverage() -> str:
    """Every published work that limbeck knows of, and what exists of it here."""
    rows = listed("paper")
    done = [row for row in rows if row["recipe"] or row["mechanisms"]]
    out = [
        "# Coverage",
        "",
        f"Generated. {len(rows)} published works; {sum(bool(r['recipe']) for r in rows)} have a recipe, "
        f"{len(done)} have at least one mechanism here. An empty row is work that is not done.",
        "",
        "| work | arXiv | area | recipe | mechanisms | claim |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    out += [f"| {r['paper']} | {r['arxiv']} | {r['area']} | {r['recipe']} | {r['mechanisms']} | {r['claim']} |" for r in rows]
    return "\n".join(out) + "\n"


def committed() -> dict[Path, str]:
    """Generated files that are committed, so that they can be read without building."""
    return {DOCS / "coverage.md": coverage(), DOCS / "recipe.schema.json": json.dumps(schema(Recipe), indent=1, sort_keys=True) + "\n"}


def main() -> int:
    stale = [path for path, text in committed().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"stale: {path.relative_to(DOCS.parent)}; run python docs/generate.py")
        return 1 if stale else 0
    for path, text in committed().items():
        path.write_text(text, encoding="utf-8")
    GENERATED.mkdir(exist_ok=True)
    for name in ROOMS:
        (GENERATED / f"{name}.md").write_text(room(name), encoding="utf-8")
    (GENERATED / "recipes.md").write_text(recipes(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
