"""What a student begins with: where its weights come from, and what a search has found, once, and kept in the run's folder."""

import functools
from collections.abc import Callable
from pathlib import Path

from limbeck.data.base import Rows
from limbeck.examine import Calibration
from limbeck.model.base import Role
from limbeck.recipe import Recipe
from limbeck.roles import Cast
from limbeck.store import is_sound, load_state, new_folder, read_json, save_state, write_json
from limbeck.student.replace_parts import ReplaceParts
from limbeck.tell import Stopped, Tell


def searched(recipe: Recipe, folder: Path, cast: Cast, rows: Rows, score: Calibration, tell: Tell, stop: Callable[[], bool]) -> list[str]:
    """Searches, if a recipe asks for it and that was not done; has the cast begin students with what was found; returns what is told of it.

    Raises:
        Stopped: nothing is kept then; what was measured in seconds is measured anew when it goes on.
    """
    if recipe.search is None:
        return []
    place = folder / "search"
    if not is_sound(place):
        bar = functools.partial(tell.bar, "search")
        found = recipe.search.run(cast.fresh(), rows, score.rows, score, recipe.seed, bar, stop)
        if found is None:
            raise Stopped
        with new_folder(place) as new:
            save_state(new, "state", {"surgery": found.surgery.model_dump(mode="json"), "state": dict(found.state)})
            write_json(new / "about.json", dict(found.about))
    kept, about = load_state(place, "state"), read_json(place / "about.json")

    def begun(role: Role) -> Role:
        surgery = ReplaceParts.model_validate(kept["surgery"])
        role = surgery(role) if any(parts.named for parts in surgery.blocks) else role  # nothing to change may be the best choice
        role.module.load_state_dict(kept["state"])
        return role

    cast.searched = begun
    shares = ", ".join(f"{name} {one['chosen'] / one['whole']:.0%}" for name, one in about["costs"].items() if one["whole"])
    return [f"searched: score {about['score']:.4g}, foretold {about['foretold']:.4g}; of the whole model: {shares}"]


def made_of(folder: Path, cast: Cast, role: Role) -> str:
    """How many parameters the student has, before and after its surgeries; writes down where those come from that were made anew."""
    write_json(folder / "steps" / "parameters.json", dict(role.origins))
    before, copied = cast.originals.get("student", cast.originals.get("teacher")), sum(how != "new" for how in role.origins.values())
    sizes = " -> ".join(f"{sum(p.numel() for p in one.parameters()) / 1e6:,.1f} M" for one in (before, role) if one is not None)
    return f"{sizes} parameters" + (f"; of {len(role.origins):,} tensors made anew {copied:,} are copied" if role.origins else "")
