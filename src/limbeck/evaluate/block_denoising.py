"""How well hidden tokens of held-out text are predicted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.evaluate._scoring import clustered, documents
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.numerics import Streams, log_probs, segment_sum
from limbeck.signals import Row, dense

ROWS, CHUNK = 8, 256
"""Rows in one pass, and targets whose logits exist at the same time."""
SHOWN = "Bound on held-out text"


class BlockDenoising(Evaluator):
    r"""Upper bound on the negative log-likelihood of held-out text, and how often hidden tokens are right, for models that fill in blocks.

    $$ \frac{1}{N} \sum_{i\ \mathrm{hidden}} \frac{-\log q(x_i)}{t_i}, \qquad t \sim U[0.001, 1] \text{ for each block} $$

    in nats a token that might have been hidden, from a fixed number of draws of what is: the same ones for every subject and every run of
    one seed, so that their differences have less error than each. Bounds of different block lengths are bounds on the same thing: blocks of
    one token hide least of what a causal model sees. Rows need not be whole blocks. Other subjects, which hide nothing, are left out.
    Errors are standard errors over documents. What `perplexity` says of such a model is another thing: all of a block hidden at once.

    Example:
        >>> BlockDenoising(block=16).ranges["denoising_accuracy"]
        (0.0, 1.0)

    References:
        Arriola et al., Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models, 2025, arXiv:2503.09573.
    """

    kind: Literal["block_denoising"] = "block_denoising"
    measures: ClassVar[Literal["logits", "label", "score", "blocks"]] = "blocks"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "denoising": (0.0, math.inf),
        "denoising_error": (0.0, math.inf),
        "denoising_accuracy": (0.0, 1.0),
    }
    block: Annotated[int, Field(gt=0)] | None = None
    """Tokens of a block; none: those of each subject."""
    draws: int = Field(default=4, gt=0)
    """How often tokens of each row are hidden anew."""

    def __call__(self, exam: Exam) -> dict[str, Any]:
        document = documents(exam.rows).repeat(self.draws)
        found: dict[str, tuple[Tensor, ...]] = {}
        for name in exam.subjects:
            with exam.open(name) as role:
                if "target_weight" in role.offers:
                    found[name] = self.measured(role, exam.rows, Streams(exam.seed))
        out: dict[str, Any] = {name: figures(each, document) for name, each in found.items()}
        if "student" in found:
            mine, might = found["student"][0], found["student"][3]
            others = {name: each[0] for name, each in found.items() if name != "student"}
            pairs = {name: clustered(mine - theirs, might, document) for name, theirs in others.items()}
            out["gaps"] = {name: {SHOWN: mean, f"{SHOWN}_error": error} for name, (mean, error) in pairs.items()}
        return out

    def measured(self, role: Role, rows: Sequence[Row], streams: Streams) -> tuple[Tensor, ...]:
        """The columns of `part` for all rows, draw after draw."""
        with listening(role), torch.no_grad():
            some = [(d, i) for d in range(self.draws) for i in range(0, len(rows), ROWS)]
            parts = [self.part(role, rows[i : i + ROWS], streams, d) for d, i in some]
        return tuple(torch.cat(x).cpu().double() for x in zip(*parts, strict=True))

    def part(self, role: Role, rows: Sequence[Row], streams: Streams, draw: int) -> tuple[Tensor, ...]:
        """Of some rows, each: the bound of all its tokens, how many hidden ones are right, how many there are, how many might be hidden."""
        from limbeck.model.block_mask import hidden_tokens, hiding

        view = role.view(rows).to(next(role.parameters()).device)
        if self.block is not None:
            view = replace(view, inputs={**view.inputs, "block_length": torch.full_like(view.inputs["block_length"], self.block)})
        masked, share = hidden_tokens(view, [row.key for row in rows], (1e-3, 1.0), "block", streams, ("held_out", draw))
        inputs = hiding(view, masked, 1 / share)
        view = replace(view, asked=masked, inputs={**view.inputs, **inputs})
        said = role.says(view, ("logits", "label", "target_weight"), {})
        slices = [slice(i, i + CHUNK) for i in range(0, max(len(said["label"]), 1), CHUNK)]
        cost, right = (torch.cat(x) for x in zip(*(told(said["logits"][i], said["label"][i]) for i in slices), strict=True))
        columns = cost * said["target_weight"], right, torch.ones_like(cost)
        return (*(segment_sum(x, view.rows("target"), len(rows)) for x in columns), inputs["maskable"])


def figures(found: tuple[Tensor, ...], document: Int[Tensor, " row"]) -> dict[str, Any]:
    """Bound, its error, and share of the hidden tokens that are right; the bound also as the table of a run shows it."""
    bound, right, hidden, might = found
    mean, error = clustered(bound, might, document)
    share = float(right.sum() / hidden.sum().clamp(min=1))
    shown = {
        SHOWN: {"value": mean, "error": error, "unit": "nats/token", "lower_is_better": True},
        "Hidden tokens right": {"value": 100 * share, "unit": "%", "lower_is_better": False},
    }
    return {"denoising": mean, "denoising_error": error, "denoising_accuracy": share, "metrics": shown}


def told(logits: Any, label: Int[Tensor, " target"]) -> tuple[Float[Tensor, " target"], Bool[Tensor, " target"]]:
    """What the labels of one slice cost, in nats, and which of them are the best entry."""
    log_q = log_probs(dense(logits))
    return -log_q.gather(-1, label[:, None])[:, 0], log_q.argmax(-1) == label
