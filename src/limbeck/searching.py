"""What a student begins with: where its weights come from, and what a search has found, once, and kept in the run's folder."""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from limbeck.data.base import Rows
from limbeck.errors import Stopped
from limbeck.examine import Calibration
from limbeck.model.base import Role
from limbeck.recipe import Recipe
from limbeck.roles import Cast
from limbeck.store import is_sound, load_state, new_folder, read_json, save_state, write_json
from limbeck.student.replace_parts import ReplaceParts
from limbeck.tell import Tell

ORIGINS = Path("steps") / "parameters.json"
"""How each parameter of the student begins."""


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
        found = recipe.search.run(cast.fresh(), rows, score.rows, score.quiet(), recipe.seed, bar, stop)
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
    """How many parameters the student has, before and after its surgeries; writes down how each begins.

    `kept`: as in the model that it is made of; `changed`: of the same name, and otherwise, as where channels were cut; `copied: query` and the
    like, `initialised` (to one, to the identity, ...) and `new` (drawn): in what was put in.
    """
    before = cast.origin
    was = {} if before is None else dict(before.module.named_parameters())

    def how(name: str, p: torch.Tensor) -> str:
        old = was.get(name.replace(".base_layer.", "."))  # of a layer that an adapter stands beside
        return "new" if old is None else "kept" if torch.equal(p, old.to(p.device)) else "changed"

    told = {name: role.origins.get(name) or how(name, p) for name, p in role.module.named_parameters()}
    write_json(folder / ORIGINS, told)
    sizes = " -> ".join(f"{sum(p.numel() for p in one.parameters()) / 1e6:,.1f} M" for one in (before, role) if one is not None)
    counts = Counter(said.split(":")[0] for said in told.values())
    return f"{sizes} parameters" + (f"; of {len(told):,} tensors {', '.join(f'{n:,} {said}' for said, n in counts.items())}" if role.origins else "")


def grown(folder: Path, role: Role) -> None:
    """Brings what `made_of` wrote down up to what surgeries of stages have made of the student."""
    begun = read_json(folder / ORIGINS)
    others = {name: how if (how := begun.get(name)) in ("new", "changed") else "kept" for name, _ in role.module.named_parameters()}
    write_json(folder / ORIGINS, {name: role.origins.get(name, how) for name, how in others.items()})  # attention that came back is as it was
