"""Does every objective get what it needs? Asked backwards: objective, forward, alignment, role."""

from collections.abc import Sequence
from typing import NamedTuple

from limbeck.align.base import Align, expanded, raw
from limbeck.align.layer_map import LayerMap
from limbeck.align.shared_vocab import SharedVocab, same
from limbeck.data.base import Step
from limbeck.errors import Refused
from limbeck.model.base import Models, Role, matches
from limbeck.signals import VOCABULARY, Needs, unit_of
from limbeck.train.stage import Turn

PARTIAL = {"top_logits", "sampled_logits"}
"""Signals that hold some entries of a distribution only."""


class Settled(NamedTuple):
    """What a turn asks, with every alternative chosen."""

    needs: dict[str, tuple[str, ...]]
    """Role -> names, as objectives hear them."""
    align: tuple[Align, ...]
    """Alignments with everything written out that depends on the models."""
    notes: tuple[str, ...]
    """A line for each need that is not met exactly."""


def settle(turn: Turn, steps: Sequence[Step], models: Models, where: str) -> Settled:
    """Settles a turn against the models at hand; what cannot work is refused with place and reason, before anything runs."""
    roles = tuple(models)
    for field, role in (("trains", turn.trains), *(("through", name) for name in turn.through)):
        if role not in roles:
            raise Refused("role", f"{where}.{field}", f"one of {', '.join(roles)}", role, "add it under role:, or change the name")
    turn.forward.suits(models, where)
    align = tuple(a.settle(models) for a in turn.align)
    needs: dict[str, tuple[str, ...]] = {}
    for i, objective in enumerate(turn.objective):
        place = f"{where}.objective.{i}"
        taught = objective.role(objective.teaches)
        if taught != turn.trains:
            raise Refused(
                "seat",
                place,
                f"an objective that teaches {turn.trains}, which this turn trains",
                f"{objective.kind} teaches {taught}",  # type: ignore[attr-defined]
                f"trains: {taught}, or seats: {{{objective.teaches}: {turn.trains}}}",
            )
        for seat, names in objective.needs.items():
            role = objective.role(seat)
            for name in expanded(align, names):
                if name.endswith(".*"):
                    raise Refused(
                        "layer",
                        place,
                        "a layer map, which says what `all` is",
                        "layers: all without align: layer_map",
                        "add align: [layer_map], or name the layers",
                    )
                needs[role] = tuple(dict.fromkeys((*needs.get(role, ()), name)))
    settled, notes = match(needs, models.offers(), align, where)
    asked, _ = match(turn.forward.requires(settled), models.offers(), align, where)
    exist(asked, models, align, where)
    for a in align:
        match(a.looks, models.offers(), (), f"{where}, align {a.kind}")  # type: ignore[attr-defined]
        for role in a.looks:
            if role in (turn.trains, *turn.through):
                do = "let another role be looked at, or leave out what looks (merge of byte_chunks)"
                raise Refused("role", f"{where}.align", f"{a.kind} looks at a role that is frozen", f"{role}, which gets gradients", do)  # type: ignore[attr-defined]
    same_text(turn, models, where)
    log_odds(turn, models, where)
    align = same_ids(turn, settled, models, align, notes, where)
    for n, step in enumerate(turn.data):
        if type(step).window is Step.window:
            kind = dict(step)["kind"]
            do = "write it under data: of the recipe or the stage"
            raise Refused("data", f"{where}.data.{n}", "a step that changes windows", f"{kind}, which makes rows", do)
    for step in steps:
        match(step.needs, models.offers(), (), f"{where}, data {step.kind}")  # type: ignore[attr-defined]
    effective(turn, models, align, needs, where)
    if not models.trainable(turn.trains, turn.only, turn.freeze):
        raise Refused(
            "freeze",
            f"{where}.only",
            f"parameters of {turn.trains} that learn",
            "none: only and freeze leave nothing",
            "change the patterns",
        )
    return Settled(settled, align, tuple(notes))


def exist(needs: Needs, models: Models, align: Sequence[Align], where: str) -> None:
    """Refuses layers that a model does not have."""
    for role, names in needs.items():
        for name in raw(align, role, names):
            if "." in name:
                try:
                    models[role].layer(name)
                except Refused as error:
                    raise Refused("layer", where, f"{error.expected} of {role}", name, error.do) from None


def log_odds(turn: Turn, models: Models, where: str) -> None:
    """Refuses objectives that hear log-odds beside a role that knows probabilities alone."""
    for i, objective in enumerate(turn.objective):
        role = next((name for seat in objective.needs if not models[name := objective.role(seat)].odds), None)
        if objective.odds and role is not None:
            expected, got = f"log-odds of {role}, each entry by itself", "a mixture of models, which says probabilities of all entries together"
            do = f"teach {dict(objective)['kind']} by one model, or take forward_kl"
            raise Refused("need", f"{where}.objective.{i}", expected, got, do, code=3)


def same_text(turn: Turn, models: Models, where: str) -> None:
    """Refuses to compare roles of different tokenizers target by target or position by position: there they have not read the same.

    Nor roles that put other numbers of a unit into each row.
    """
    for i, objective in enumerate(turn.objective):
        asked = {objective.role(seat): {unit_of(name) for name in names} for seat, names in objective.needs.items()}
        for unit in sorted(set.union(*asked.values())):
            numbers = {role: models[role].puts_in[unit] for role, units in asked.items() if unit in units and unit in models[role].puts_in}
            if len(set(numbers.values())) > 1:
                got = " and ".join(f"{num:,} of {role}" for role, num in numbers.items())
                expected = f"as many in each row ({unit}) of all that {dict(objective)['kind']} compares"
                do = "compare targets, whose numbers agree, or other models"
                raise Refused("units", f"{where}.objective.{i}", expected, got, do)
        by_ids = {objective.role(seat) for seat, names in objective.needs.items() if whole(names)}
        compared = [role for role, units in asked.items() if units & {"target", "pos"} or role in by_ids]
        roles = {role: models[role].tokenizer for role in compared if models[role].tokenizer is not None}
        other = next((role for role, tokenizer in roles.items() if not same(tokenizer, next(iter(roles.values())))), None)
        if other is not None:
            kind, sizes = dict(objective)["kind"], " and ".join(f"{len(roles[role]):,}" for role in (next(iter(roles)), other))
            do = "start from a model with the teacher's tokenizer; or per: chunk with align: byte_chunks, or sorted_l1 with by_position"
            raise Refused("tokenizer", f"{where}.objective.{i}", "roles of one tokenizer, or chunks", f"{kind} between {sizes} ids", do)


def whole(names: Sequence[str]) -> bool:
    """Whether logits over all entries of a vocabulary are among these signals."""
    return any("logits" in name and unit_of(name) != "chunk" for name in names)


def same_ids(turn: Turn, settled: Needs, models: Models, align: tuple[Align, ...], notes: list[str], where: str) -> tuple[Align, ...]:
    """The alignments, before them one that cuts heads of one tokenizer to the ids they share, where an objective compares heads of other sizes."""
    heads: dict[str, Role] = {}
    compared: list[list[str]] = []
    """Roles without a tokenizer whose heads an objective compares."""
    for i, objective in enumerate(turn.objective):
        seats = [seat for seat, names in objective.needs.items() if whole(names)]
        said = {objective.role(seat): settled[objective.role(seat)] for seat in seats}
        if any(PARTIAL & set(names) for names in said.values()) and getattr(objective, "temperature", 1) != 1:
            raise Refused(
                "temperature",
                f"{where}.objective.{i}.temperature",
                "1, with a teacher that kept its best entries only",
                f"temperature: {dict(objective)['temperature']}",
                "leave temperature out, or take a teacher that says everything: live, or cached with keep: hidden",
            )  # type: ignore[attr-defined]
        known = [role for role in said if models[role].tokenizer is None and models[role].vocab is not None]
        compared += [known] if len(known) > 1 else []
        if len(said) > 1:
            heads |= {role: models[role] for role in said if models[role].tokenizer is not None and models[role].vocab is not None}
    other = next((pair for pair in compared if len({models[role].vocab for role in pair}) > 1), None)
    if other is not None:
        sizes = " and ".join(f"{models[role].vocab:,} of {role}" for role in other)
        do = "give the student as many classes as the teacher has, in the same order"
        raise Refused("vocab", where, "heads of the same classes", sizes, do)
    if len({role.vocab for role in heads.values()}) < 2 or any(isinstance(a, SharedVocab) for a in align):
        return align
    short = next((name for name in heads if PARTIAL & set(settled[name])), None)
    sizes = ", ".join(f"{name} ({role.vocab:,})" for name, role in heads.items())
    if short is not None:
        raise Refused("vocab", where, "heads of one size, with a teacher that kept its best entries only", sizes, f"let {short} keep: hidden")
    cut = SharedVocab().settle(Models(heads))
    notes.append(f"{where}: logits of {sizes} are cut to the {cut.num:,} ids they share")
    return (cut, *align)


def effective(turn: Turn, models: Models, align: Sequence[Align], needs: Needs, where: str) -> None:
    """Refuses what cannot have an effect: patterns that fit no parameter, a layer map that nobody asks, schedules without a loss to follow."""
    names = [name for name, _ in models.trainable(turn.trains)]
    groups = {f"optimiser.groups.{i}.match": group.match for i, group in enumerate(turn.optimiser.groups)}
    for field, patterns in {"only": turn.only, "freeze": turn.freeze, **groups}.items():
        for pattern in patterns:
            if not any(matches(name, (pattern,)) for name in names):
                expected = f"a pattern that fits parameters of {turn.trains}, such as {names[0]}"
                raise Refused("pattern", f"{where}.{field}", expected, pattern, "change or remove the pattern")
    for part, component in (("forward", turn.forward), *((f"align.{i}", a) for i, a in enumerate(turn.align))):
        for name in (name for name, schedule in component.schedules.items() if schedule.follows):
            expected = "a schedule of the step alone: there is no loss to follow"
            raise Refused("schedule", f"{where}.{part}.{name}", expected, "one that follows a loss", "use linear or cosine")
    last = models[turn.trains].last_layer
    if turn.balance != "none" and not any(name.startswith(last) for name, _ in models.trainable(turn.trains, turn.only, turn.freeze)):
        raise Refused("balance", f"{where}.balance", f"a last layer ({last}) that learns", "only and freeze leave it out", "write balance: none")
    crossing = [a.kind for a in turn.align if a.crosses]  # type: ignore[attr-defined]
    if crossing and not any(unit_of(name) == "chunk" for asked in needs.values() for name in asked):
        do = "remove the alignment, or add the objective: chunk_likelihood, sorted_l1, or a divergence with per: chunk"
        raise Refused("chunk", f"{where}.align", "an objective that compares chunks", f"{crossing[0]} without one", do)
    if len(crossing) > 1:
        raise Refused("chunk", f"{where}.align", "one alignment that makes chunks", " and ".join(crossing), "remove all but one")
    layered = any("." in name for asked in needs.values() for name in asked)
    if any(isinstance(a, LayerMap) for a in align) and not layered:
        do = "remove the map, or add the objective"
        raise Refused("layer", f"{where}.align", "an objective that compares layers", "a layer map without one", do)


def match(needs: Needs, offers: Needs, align: Sequence[Align], where: str) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Each need with its alternatives settled, and a line for each that is not met exactly."""
    settled: dict[str, tuple[str, ...]] = {}
    notes = []
    for role, names in needs.items():
        if role not in offers:
            raise Refused("role", where, f"a role called {role}", f"the recipe has {', '.join(offers)}", "add it under role:, or change seats")
        found = []
        for name in names:
            first, *others = name.split("|")
            pick = next((n for n in (first, *others) if all({r, r.split(".")[0]} & set(offers[role]) for r in raw(align, role, (n,)))), None)
            if pick is None:
                do = "use an objective that needs less (limbeck list objective), or a teacher that offers more"
                if first.split(".")[0] in VOCABULARY and unit_of(first) == "chunk" and raw(align, role, (first,)) == (first,):
                    either = " or by_position" if first in ("last_logits", "lead_logprob") else ""
                    which = "visible_chunks" if first.startswith("chunk_hidden") else f"byte_chunks{either}"
                    do = f"{'write' if any(a.crosses for a in align) else 'add'} align: {which}"
                raise Refused("need", where, f"{name} of {role}", f"it offers {', '.join(offers[role])}", do, code=3)
            if pick != first:
                notes.append(f"{where}: approximate: {pick} of {role} in place of {first}")
            found.append(pick)
        settled[role] = tuple(found)
    return settled, notes
