"""What a cached teacher keeps of each target, where the recipe leaves it to the planner."""

from limbeck.component import changed
from limbeck.planning.cost import cost
from limbeck.recipe import Recipe
from limbeck.roles import Cast
from limbeck.teacher.cached import Cached


def choose(cast: Cast) -> tuple[str, ...]:
    """Settles `keep: auto`, and says in a line why: the smaller one, if all that listens can do with the best entries."""
    recipe, teacher = cast.recipe, cast.recipe.teacher
    if not isinstance(teacher, Cached) or teacher.keep != "auto":
        return ()
    role = cast.originals["teacher"]
    sizes, forms = cost(role), {keep: changed(teacher, keep=keep) for keep in ("hidden", "top_k")}
    hidden, best = (form.bytes_a_target(sizes.width, sizes.vocab) for form in forms.values())
    whole = needs_all(recipe)
    keep = "hidden" if whole or hidden <= best else "top_k"
    why = f"{whole[0]} needs the whole distribution" if whole else f"{'exact' if keep == 'hidden' else f'k {teacher.k}, approximate'}"
    note = f"teacher: keep: auto is {keep} ({why}): {hidden:,.0f} bytes a target as hidden, {best:,.0f} as top_k, in {teacher.bits} bits"
    cast.recipe, role.offers = changed(recipe, teacher=forms[keep]), frozenset(forms[keep].offers)
    return (note,)


def needs_all(recipe: Recipe) -> list[str]:
    """Kinds of objectives that hear the recipe's teacher and cannot do with its best entries."""
    found = []
    for stage in (stage for stage in recipe.train if stage.teacher is None):
        for objective in (objective for turn in stage.turn for objective in turn.objective):
            asked = [name for seat, names in objective.needs.items() if objective.role(seat) == "teacher" for name in names if "logits" in name]
            partial = all("top_logits" in name.split("|") for name in asked)
            if not partial or asked and getattr(objective, "temperature", 1) != 1:
                found.append(str(dict(objective)["kind"]))
    return found
