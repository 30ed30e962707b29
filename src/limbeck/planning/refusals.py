"""What cannot work whatever it costs: nothing to learn from, rows longer than a context, steps that nothing settles."""

from collections.abc import Mapping

from limbeck.data.base import Rows, Step
from limbeck.errors import Refused
from limbeck.model.base import Models, Role
from limbeck.recipe import Recipe
from limbeck.text.spans import encode

AROUND_TOKENS = 16
"""More tokens than any tokenizer puts around a text."""


def refuse_hopeless(recipe: Recipe, roles: Models) -> None:
    """Refuses what shows before a row is read: `steps`, `context`."""
    for i, stage in enumerate(recipe.train):
        if stage.steps == "auto" and recipe.minutes is None:
            raise Refused("steps", f"train.{i}.steps", "a number, or auto with minutes:", "auto", "write steps: 200")
    for i, step in enumerate(recipe.data):
        for name, role in ((name, roles[name]) for name in roles):
            context, length = getattr(role, "context", None), getattr(step, "length", 0)
            if context is not None and length > context:
                raise Refused(
                    "context", f"data.{i}.length", f"at most {context:,} tokens, the context of the {name}", f"{length:,}", f"write length: {context}"
                )


def refuse_rows(recipe: Recipe, rows: Rows, roles: Mapping[str, Role]) -> None:
    """Refuses rows that have been read: `data` where a stage has none, `context` where one is longer than a role can hear."""
    for stage in recipe.train:
        steps = [*recipe.data, *(step for turn in stage.turn for step in turn.data)]
        if stage.data is None and not rows.parts and all(type(step).window is Step.window for step in steps):
            raise Refused("data", "data", "a source of rows to train on", "none", "add one, like {kind: text, path: books/*.txt}")
    refuse_useless(recipe, rows)
    for name, role in roles.items():
        context = getattr(role, "context", None)
        if context is None or role.tokenizer is None:
            continue
        for row in (*rows.train, *rows.held_out):
            plain = row.content.get("text") if row.content.keys() == {"text"} else None
            if isinstance(plain, str) and len(plain.encode("utf-8", "replace")) + AROUND_TOKENS <= context:
                continue  # a token is a byte at least
            if (num := len(encode(row, role.tokenizer)[0])) > context:
                raise Refused(
                    "context",
                    f"data  row {row.key}",
                    f"at most {context:,} tokens, the context of the {name}",
                    f"{num:,}",
                    f"add a step: {{kind: pack, length: {context}}}",
                )


def refuse_useless(recipe: Recipe, rows: Rows) -> None:
    """Refuses what no row can serve: a selection without held-out rows, an objective for a tag that no row has."""
    tags = {row.tag for row in rows.train}
    for i, stage in enumerate(recipe.train):
        if stage.select is not None and not rows.held_out:
            do = "give a source a split or a held_out file, or remove select"
            raise Refused("data", f"train.{i}.select", "held-out rows to choose by", "none", do)
        for turn in stage.turn if stage.data is None and rows.parts else ():
            for n, objective in enumerate(turn.objective):
                if objective.tag is not None and objective.tag not in tags and all(type(s).window is Step.window for s in (*recipe.data, *turn.data)):
                    known = ", ".join(sorted(tags - {""})) or "no tags"
                    raise Refused("tag", f"train.{i}.objective.{n}.tag", f"a tag of the rows: {known}", objective.tag, "change the tag, or the rows")
