"""What cannot work whatever it costs: nothing to learn from, rows longer than a context, steps that nothing settles."""

from collections.abc import Iterable, Sequence

from limbeck.data.base import Rows, Step
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.recipe import Recipe
from limbeck.text.spans import encode
from limbeck.text.tokens import fingerprint
from limbeck.train.stage import Stage

AROUND_TOKENS = 16
"""More tokens than any tokenizer puts around a text."""


def refuse_hopeless(recipe: Recipe, roles: Models) -> None:
    """Refuses what shows before a row is read: `steps`, `stage`, `context`, and what an evaluator lacks."""
    for i, evaluator in enumerate(recipe.evaluate):
        evaluator.ready()
        evaluator.suits(roles, f"evaluate.{i}")
        last = recipe.train[-1].turn if recipe.train else ()
        evaluator.agrees([turn.forward for turn in last if turn.trains == "student"], f"evaluate.{i}")
    for i, stage in enumerate(recipe.train):
        if stage.steps == "auto" and recipe.minutes is None:
            raise Refused("steps", f"train.{i}.steps", "a number, or auto with minutes:", "auto", "write steps: 200")
    refuse_tries(recipe)
    for i, step in enumerate(recipe.data):
        for name, role in ((name, roles[name]) for name in roles):
            context, length = getattr(role, "context", None), getattr(step, "length", 0)
            if context is not None and length > context:
                raise Refused(
                    "context", f"data.{i}.length", f"at most {context:,} tokens, the context of the {name}", f"{length:,}", f"write length: {context}"
                )


def refuse_tries(recipe: Recipe) -> None:
    """Refuses surgeries whose candidates learn first, but in a stage of at least so many steps, with the recipe's data and a teacher that stays."""
    begun = {"student": recipe.student, **recipe.role}
    for name, i in ((name, i) for name, how in begun.items() for i, surgery in enumerate(how.surgery) if surgery.tries):
        do = "write it under surgery: of the stage that follows"
        raise Refused("stage", f"{name}.surgery.{i}", "a stage in which its candidates can learn", "none", do)
    moves = recipe.teacher is not None and (recipe.teacher.moves or recipe.teacher.of_student)
    for i, stage in enumerate(recipe.train):
        tries = max((surgery.tries for surgery in stage.surgery), default=0)
        if tries and (stage.data is not None or stage.teacher is not None or moves):
            got, do = "a stage with data or a teacher of its own, or a teacher that moves", "choose blocks without learning"
            raise Refused("stage", f"train.{i}.surgery", "the recipe's data and a teacher that stays, for candidates that learn", got, do)
        if stage.steps != "auto" and tries > stage.steps:
            raise Refused("steps", f"train.{i}.surgery", f"at most {stage.steps} steps, as many as the stage has", f"{tries}", "lower steps")


def refuse_rows(recipe: Recipe, rows: Rows, roles: Models) -> None:
    """Refuses rows that have been read: `data` where a stage has none, `context` where one is longer than a role can hear."""
    for stage in recipe.train:
        steps = [*recipe.data, *(step for turn in stage.turn for step in turn.data)]
        if stage.data is None and not rows.parts and same_windows(steps):
            raise Refused("data", "data", "a source of rows to train on", "none", "add one, like {kind: text, path: books/*.txt}")
    for i, stage in enumerate(recipe.train):
        if stage.select is not None and not rows.held_out:
            do = "give a source a split or a held_out file, or remove select"
            raise Refused("data", f"train.{i}.select", "held-out rows to choose by", "none", do)
        if stage.data is None and rows.parts:
            refuse_tags(stage, recipe.data, rows, f"train.{i}")
    refuse_long(rows, roles)


def refuse_own(stage: Stage, number: int, rows: Rows, roles: Models) -> None:
    """Refuses rows that a stage has brought itself: `data` where there are none, `tag` and `context` as of others."""
    assert stage.data is not None
    if not rows.parts and same_windows((*stage.data, *(step for turn in stage.turn for step in turn.data))):
        raise Refused("data", f"data of stage {number}", "rows to train on", "none", "look at what the stage's steps leave, or add a source")
    refuse_tags(stage, stage.data, rows, f"stage {number}")
    refuse_long(rows, roles)


def same_windows(steps: Iterable[Step]) -> bool:
    """Whether windows hold the rows that were drawn, and no others."""
    return all(type(step).window is Step.window for step in steps)


def refuse_tags(stage: Stage, data: Sequence[Step], rows: Rows, where: str) -> None:
    """Refuses an objective for a tag that no row has."""
    tags = {row.tag for row in rows.train}
    for turn in stage.turn:
        for n, objective in enumerate(turn.objective):
            if objective.tag is not None and objective.tag not in tags and same_windows((*data, *turn.data)):
                known = ", ".join(sorted(tags - {""})) or "no tags"
                raise Refused("tag", f"{where}.objective.{n}.tag", f"a tag of the rows: {known}", objective.tag, "change the tag, or the rows")


def refuse_long(rows: Rows, roles: Models) -> None:
    """Refuses rows that are longer than a role can hear."""
    for name, role in ((name, roles[name]) for name in roles):
        role.refuse((*rows.train, *rows.held_out))
        context = getattr(role, "context", None)
        if context is None or role.tokenizer is None:
            continue
        for row in (*rows.train, *rows.held_out):
            plain = row.content.get("text") if row.content.keys() == {"text"} else None
            if isinstance(plain, str) and len(plain.encode("utf-8", "replace")) + AROUND_TOKENS <= context:
                continue  # a token is a byte at least
            if (num := len(encode(row, role.tokenizer)[0])) > context:
                own = roles["student"].tokenizer if "student" in roles else role.tokenizer
                alike = own is None or fingerprint(own) == fingerprint(role.tokenizer)
                do = f"add a step: {{kind: pack, length: {context}}}"
                do = do if alike else f"a smaller length of pack: the {name} reads more tokens than it counts"
                raise Refused("context", f"data  row {row.key}", f"at most {context:,} tokens, the context of the {name}", f"{num:,}", do)
