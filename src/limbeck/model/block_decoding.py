"""What a model that fills in masked blocks writes: block by block, several tokens in a pass where it is sure of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import Refused
from limbeck.model.block_mask import Seats, allowed, as_attention_mask
from limbeck.model.masked_blocks import MaskedBlocks
from limbeck.numerics import log_probs

Accept = Callable[[Float[Tensor, "masked vocab"]], Bool[Tensor, " masked"]]
"""Given log-probabilities at the places of a block that are still masked: where the best entry is written now, in one place at least."""


def confident(threshold: float = 0.95, least: int = 1) -> Accept:
    """Accepts where the best entry has more than a probability, and always in the `least` places where it has most."""

    def accept(log_q: Float[Tensor, "masked vocab"]) -> Bool[Tensor, " masked"]:
        best = log_q.max(-1).values
        return (best.exp() > threshold) | first(best, least)

    return accept


def certain(entropy: float = 0.4, least: int = 1) -> Accept:
    """Accepts where the entropy is at most so many nats, and always in the `least` places where it is lowest."""

    def accept(log_q: Float[Tensor, "masked vocab"]) -> Bool[Tensor, " masked"]:
        found = -(log_q.exp() * log_q).sum(-1)
        return (found <= entropy) | first(-found, least)

    return accept


def first(by: Float[Tensor, " masked"], num: int) -> Bool[Tensor, " masked"]:
    """The places with the greatest numbers; of equal ones the first."""
    order = by.argsort(descending=True, stable=True)[:num]
    return torch.zeros_like(by, dtype=torch.bool).index_fill(0, order, True)


@dataclass
class Written:
    """What came after a prompt."""

    ids: list[int]
    """At most as many as were asked for, up to an end of text."""
    forwards: int
    """How often the model was run."""
    passes: list[int]
    """Of every token that was written, also behind an end of text in its block: the pass that wrote it, from 0."""


@dataclass
class Pen:
    """A row that is being written: what stands there, what the model remembers of it, and how often it was run."""

    role: MaskedBlocks
    ids: Int[Tensor, " pos"]
    masked: Bool[Tensor, " pos"]
    cached: bool
    memory: Any = None
    remembered: int = 0
    """Clean positions in memory: those of finished blocks."""
    before: Tensor | None = None
    """The clean state just before the block."""
    forwards: int = 0
    passes: list[int] = field(default_factory=list)

    def states(self, start: int, end: int) -> Float[Tensor, "pos dim"]:
        """Final states of a block, with all that stands before it clean; what is clean and not in memory is run with it."""
        clean = torch.arange(self.remembered, start, device=self.ids.device)
        block = torch.arange(start, end, device=self.ids.device)
        past = torch.arange(self.remembered, device=self.ids.device)
        place, length = torch.cat([past, clean, block]), self.role.blocks.length
        noisy = torch.arange(len(place), device=place.device) >= start
        seats = Seats(torch.zeros_like(place), place // length, noisy)
        shown = self.ids.masked_fill(self.masked, self.role.blocks.mask_id)
        now = slice(len(past), None)
        body: Any = self.role.module.get_submodule(self.role.anatomy.path("body"))
        out = body(
            input_ids=shown[place[now]][None],
            position_ids=place[now][None],
            attention_mask=as_attention_mask(allowed(seats[now], seats), self.role.module),
            past_key_values=self.memory,
            use_cache=self.cached,
        )
        self.forwards += 1
        if len(clean):
            self.before = out.last_hidden_state[0, len(clean) - 1]
        if self.cached:  # of what was run, finished blocks alone are kept: no later token can change their states
            self.memory = out.past_key_values
            self.memory.crop(start - end)
            self.remembered = start
        return out.last_hidden_state[0, len(clean) :]

    def write(self, start: int, end: int, accept: Accept) -> None:
        """Fills a block, and leaves none of it masked."""
        while len(where := self.masked[start:end].nonzero()[:, 0]):
            states = self.states(start, end)
            if self.role.shift:
                before = states[:1] if self.before is None else self.before[None]  # of the first block nobody asks for it: its first token is given
                states = torch.cat([before, states[:-1]])
            log_q = log_probs(self.role.head(states[where]))
            taken = accept(log_q)
            assert taken.any(), "an acceptance must take one at least"
            self.ids[start + where[taken]] = log_q.argmax(-1)[taken]
            self.masked[start + where[taken]] = False
            self.passes += [self.forwards - 1] * int(taken.sum())


@torch.no_grad()
def fill(role: MaskedBlocks, prompt: Sequence[int], new_tokens: int, accept: Accept, cached: bool = True) -> Written:
    """Writes after a prompt, with the best entry in each place.

    Blocks are counted from the beginning of the prompt, whose last part may stand in the first block that is written: as in training. Each
    pass runs a block beside what is finished before it and not yet remembered, so that nothing is run only to be remembered. With blocks of
    one token, and `shift` 1, it is greedy decoding of the causal model.

    Args:
        role: the model, in eval mode.
        prompt: ids of its own tokenizer, one at least.
        new_tokens: at most so many.
        accept: `confident`, `certain`, or another function.
        cached: whether states of finished blocks are remembered: the same result, in less time.

    Raises:
        Refused: `prompt`, for an empty one; `context`, where blocks go beyond what the model was made for.
    """
    if not prompt:
        raise Refused("prompt", "fill", "a prompt of one token at least", "none", "begin with the begin of a text")
    length, end_of_text = role.blocks.length, role.tokenizer.eos_token_id
    total = role.whole(len(prompt) + new_tokens)
    role.fits([total], ["prompt and answer, in whole blocks"])
    device = next(role.parameters()).device
    ids = torch.zeros(total, dtype=torch.long, device=device)
    ids[: len(prompt)] = torch.tensor(list(prompt), device=device)
    pen = Pen(role, ids, torch.arange(total, device=device) >= len(prompt), cached)
    made: list[int] = []
    for start in range(len(prompt) // length * length, total, length):
        pen.write(start, start + length, accept)
        made = ids[len(prompt) : start + length].tolist()
        if end_of_text in made:
            made = made[: made.index(end_of_text) + 1]
            break
    return Written(made[:new_tokens], pen.forwards, pen.passes)
