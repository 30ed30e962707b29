"""Scoring: one pass of a role over held-out rows, and means over targets with their errors over documents."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import Refused
from limbeck.evaluate._denoising import velocity_errors
from limbeck.evaluate._token_bytes import token_bytes
from limbeck.evaluate.base import Table
from limbeck.model.base import Role, listening
from limbeck.numerics import coarsen, kl, log_probs
from limbeck.signals import Batch, Row, Signals, TopK, View, dense

CHUNK = 256
"""Targets whose logits exist at the same time."""
BINS = 10
"""Bins of probabilities, all of one width."""

Answers = Callable[[Sequence[Row], View], Any]
"""The teacher's logits (Logits, a dense tensor or TopK) at the targets of some rows, given the subject's view of them."""
Aligner = Callable[[str, Signals, Batch], Signals]
"""Lays what a role says beside what the other says: an alignment of `limbeck.align`."""


def score(role: Role, rows: Sequence[Row], teacher_logits: Answers | None, *, rows_at_once: int | None = None, align: Aligner | None = None) -> Table:
    """One pass over held-out rows, in eval mode and without gradients; afterwards the role is as it was.

    Args:
        role: the subject; it must say logits. Of one that only represents rows, the table has its rows, and nothing about them.
        rows: a target of `rows[i]` has the number i in the table.
        teacher_logits: what the teacher says; without it the table has no KL.
        rows_at_once: rows in one forward pass, none: 8, or 128 that have no positions; the table does not depend on it.
        align: laid over what subject and teacher say, by the names `student` and `teacher`.

    Raises:
        Refused: `data`, where nothing is to be predicted; `logits`, of a role without; `tokenizer`, where the teacher predicts something else.
    """
    if role.compared_by == "probe" or not role.exclusive:
        return Table(torch.arange(len(rows), device="cpu"))
    if "denoised" in role.offers:
        return Table(torch.arange(len(rows), device="cpu"), velocity_error=velocity_errors(role, rows, rows_at_once or 128))
    if not predicts(role) and "score" not in role.offers:
        got, do = ", ".join(sorted(role.offers)) or "nothing", "leave out this evaluation"
        raise Refused("logits", "evaluate", "a role that says logits, or a score of each row", got, do)
    device = next((p.device for p in role.parameters()), torch.device("cpu"))
    parts: list[dict[str, Tensor]] = []
    at_once = rows_at_once or (8 if role.ragged else 128)
    if not predicts(role):
        with listening(role), torch.no_grad():
            every = [role.says(role.view(rows[i : i + at_once]).to(device), ("score",), {}) for i in range(0, len(rows), at_once)]
        return Table(torch.arange(len(rows), device="cpu"), score=torch.cat([said["score"].float().cpu() for said in every]))
    sizes = token_bytes(role.tokenizer)
    with listening(role), torch.no_grad():
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            view = role.view(some).to(device)
            part = compare(role, some, view, teacher_logits, align) | {"row": view.rows("target") + first}
            if view.lengths is not None:
                part["pos"] = view.offsets[view.targets]
            if view.lengths is not None and sizes is not None:
                part["num_bytes"] = sizes.at_targets(view)
            parts.append({name: x.cpu() for name, x in part.items()})
    if not sum(len(part["row"]) for part in parts):
        raise Refused(
            "data",
            "evaluate",
            "held-out rows with something to predict",
            f"{len(rows)} rows, none of them with a target",
            "hold out more: split of the data source, or its held_out file",
        )
    return Table(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def predicts(role: Role) -> bool:
    """Whether it says probabilities of one thing out of many; else it may score each row as a whole."""
    return role.exclusive and bool(role.offers & {"logits", "top_logits", "sampled_logits"})


def compare(role: Role, rows: Sequence[Row], view: View, teacher_logits: Answers | None, align: Aligner | None) -> dict[str, Tensor]:
    """The columns of some rows, a slice of targets at a time."""
    labelled = "label" in view.inputs if view.lengths is None else not role.sees_targets  # text is its own label
    said = role.says(view, ("logits", "label") if labelled else ("logits",), {})
    answer = None if teacher_logits is None else teacher_logits(rows, view)
    heard = {} if answer is None else {"top_logits" if isinstance(answer, TopK) else "logits": answer}
    if align is not None:
        batch = Batch(
            {"student": view},
            tuple(row.tag for row in rows),
            torch.arange(len(rows), device=view.device),
            tuple(row.key for row in rows),
            torch.ones(len(rows), device=view.device),
        )
        said = align("student", batch.signals("student", said), batch).values
        heard = align("teacher", batch.signals("student", heard), batch).values if heard else {}
    ours, theirs = said["logits"], next(iter(heard.values()), None)
    if theirs is not None and len(theirs) != len(ours):
        raise Refused(
            "tokenizer",
            "evaluate",
            f"what the teacher says at the student's {len(ours):,} targets",
            f"{len(theirs):,} targets of its own",
            "compare models of one tokenizer, or leave out agreement",
        )
    slices = [slice(i, i + CHUNK) for i in range(0, max(len(ours), 1), CHUNK)]
    ranked = view.lengths is None
    parts = [columns(ours[i], None if theirs is None else theirs[i], said["label"][i] if labelled else None, ranked) for i in slices]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def columns(ours: Any, theirs: Any, label: Int[Tensor, " target"] | None, ranked: bool) -> dict[str, Tensor]:
    """The columns of one slice; its logits are gone when this returns."""
    log_q = log_probs(dense(ours))
    out = {"best": log_q.argmax(-1), "best_prob": log_q.max(-1).values.exp()}
    if label is not None:
        out |= {"label": label, "label_logprob": log_q.gather(-1, label[:, None])[:, 0]}
        out |= {"label_rank": (log_q > out["label_logprob"][:, None]).sum(-1)} if ranked else {}
    if theirs is None:
        return out
    if isinstance(theirs, TopK):  # both on the teacher's k entries, and one bucket for all the others
        within(int(theirs.ids.max()) + 1 if theirs.ids.numel() else 0, log_q.shape[-1], exact=False)
        log_p = torch.cat([theirs.log_probs, theirs.tail[:, None]], -1).to(log_q)
        best, ids = theirs.log_probs.max(-1, keepdim=True), theirs.ids
        chosen, log_q = ids.gather(-1, best.indices)[:, 0], coarsen(log_q, ids)
        top = best.values[:, 0]
    else:
        log_p = log_probs(dense(theirs)).to(log_q)
        within(log_p.shape[-1], log_q.shape[-1], exact=True)
        chosen, top = log_p.argmax(-1), log_p.max(-1).values
    return out | {"teacher_best": chosen, "teacher_best_prob": top.exp(), "kl": kl(log_p, log_q).clamp(min=0)}  # below 0 is rounding


def within(teacher: int, student: int, exact: bool) -> None:
    """Raises where the teacher gives probabilities to ids that the subject does not have, or fewer."""
    if teacher > student or exact and teacher != student:
        raise Refused(
            "vocabulary",
            "evaluate",
            f"the same ids of teacher and student: {student:,}",
            f"{teacher:,} of the teacher",
            "add align: shared_vocab, where both have one tokenizer",
        )


def by_document(
    values: Float[Tensor, " target"], table: Table, rows: Sequence[Row], per: Float[Tensor, " target"] | None = None
) -> tuple[float, float | None]:
    """(mean over targets, standard error over documents); with `per`, the sum of values over the sum of `per`."""
    return clustered(values, torch.ones(len(values)) if per is None else per, documents(rows)[table.row])


def documents(rows: Sequence[Row]) -> Int[Tensor, " row"]:
    """The number of the document of each row: what it was cut from, else its group, else the row itself."""
    names = [row.source or row.group or row.key for row in rows]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names], dtype=torch.long)


def clustered(values: Float[Tensor, " unit"], sizes: Float[Tensor, " unit"], document: Int[Tensor, " unit"]) -> tuple[float, float | None]:
    r"""A ratio of sums and its standard error, where the units of a document hang together.

    $R = \sum_g S_g / \sum_g n_g$ over G documents; linearised, $\mathrm{SE}^2 = \frac{G}{G-1} \sum_g (S_g - R n_g)^2 / (\sum_g n_g)^2$.
    Documents without anything do not count; of one document there is no error: None.
    """
    sums = torch.zeros(int(document.max()) + 1, dtype=torch.float64)
    total, size = sums.index_add(0, document, values.double()), sums.index_add(0, document, sizes.double())
    ratio = float(total.sum() / size.sum())
    there = (size != 0) | (total != 0)
    num = int(there.sum())
    if num < 2:
        return ratio, None
    return ratio, math.sqrt(num / (num - 1) * float(((total - ratio * size)[there] ** 2).sum())) / float(size.sum())


def bin_of(probability: Float[Tensor, " target"]) -> Int[Tensor, " target"]:
    """The bin of each probability, from 0; an edge belongs to the bin above it, 1 to the last."""
    return (probability * BINS).long().clamp(0, BINS - 1)
