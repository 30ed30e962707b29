"""A sum over many targets and its gradient through the head, never more than a chunk of logits alive.

With final states $h$, head $W$, targets' factors $f$ and a divergence $D$ of $\\log q = \\mathrm{log\\,softmax}(W h / \\tau)$:

$$ L = \\sum_i f_i D_i, \\quad s = \\frac{\\partial D}{\\partial \\log q}, \\quad
   \\frac{\\partial D}{\\partial z} = \\frac1\\tau \\Big(s - q \\sum_v s_v\\Big), \\quad
   \\frac{\\partial L}{\\partial h_i} = f_i W^\\top \\frac{\\partial D_i}{\\partial z_i}, \\quad
   \\frac{\\partial L}{\\partial W} = \\sum_i \\frac{\\partial D_i}{\\partial z_i} (f_i h_i)^\\top $$

All of it is known once a chunk's logits are there, so they are made once, and not a second time in the backward pass, which only
multiplies by what comes from above. Gradients are returned to autograd; nothing is written to `.grad`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.numerics import RULED_OUT, upcast
from limbeck.signals import Head, Logits, TopK, products


class Sparse(NamedTuple):
    """A derivative that is 0 but for some entries of each target."""

    ids: Int[Tensor, "target k"]
    values: Float[Tensor, "target k"]


SLICE, SLICE_BYTES = 32, 1 << 20
"""Targets that are worked on at a time once a chunk's logits are there: at most so many, and about as few as make a piece of that size, since
several such pieces are alive."""
PART = 4
"""A head that is more than a matrix makes several tensors of the size of its logits: it says so small a part of a chunk at a time."""
Slope = Callable[..., tuple[Float[Tensor, " target"], Any]]
"""Log q of a chunk, and what else belongs to it -> the value of each target, and its derivative by log q: [target, vocab] or Sparse."""


def foldable(q: Any, *aligned: Any) -> bool:
    """Whether `fold` will do: a head that is known as a matrix, and nothing else that learns."""
    return isinstance(q, Logits) and isinstance(q.head, Head) and all(map(constant, aligned))


def constant(x: Any) -> bool:
    """Whether no gradient can flow into what a role said."""
    if isinstance(x, Logits):
        return not x.learns or isinstance(x.head, Head) and not any(t.requires_grad for t in (x.hidden, *x.head.tensors))
    return not any(t.requires_grad for t in ((x.log_probs, x.tail) if isinstance(x, TopK) else (x,)))


class Folding(NamedTuple):
    """A sum of factor times value over all targets."""

    slope: Slope
    """Value and derivative of a chunk."""
    q: Logits
    """What is taught; its head must be a `Head`."""
    aligned: Sequence[Any]
    """Whatever else has one entry a target, and is constant: the teacher, labels."""
    factors: Float[Tensor, " target"]
    """Of the targets; no gradient flows to them."""
    chunk: int
    """Rows of logits that exist at the same time: of q, and of what else is there that makes its own."""
    temperature: float = 1.0
    """Softens q."""

    def beside(self, other: "Folding") -> bool:
        """Whether both hear the same logits, in the same chunks, softened alike."""
        return self.q is other.q and (self.chunk, self.temperature) == (other.chunk, other.temperature)


def fold(folding: Folding) -> Float[Tensor, ""]:
    """The sum; its gradients are made with it."""
    slope, q, aligned, factors, chunk, temperature = folding
    head = q.selected
    assert isinstance(head, Head), "the head is not known as a matrix"
    weight, bias = head.weight, head.bias
    if not q.learns:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    return Fold.apply(q.hidden, weight, bias, factors.detach(), (head, slope, aligned, chunk, temperature))  # type: ignore[no-any-return]


def fold_together(foldings: Sequence[Folding], weights: Sequence[float]) -> tuple[Float[Tensor, ""], list[Float[Tensor, ""]]]:
    """The weighted sum of sums that hear the same logits, which are made once, as their gradients are; and each sum, without gradient."""
    first, ends = foldings[0], list(itertools.accumulate(len(one.aligned) for one in foldings))
    sums = [first.factors.new_zeros(()) for _ in foldings]

    def slope(log_q: Tensor, *said: Any) -> tuple[Tensor, Any]:
        factors, value, derivatives = said[ends[-1] :], first.factors.new_zeros(len(log_q)), []
        for i, (one, end, f, weight) in enumerate(zip(foldings, ends, factors, weights, strict=True)):
            mine, s = one.slope(log_q, *said[end - len(one.aligned) : end])
            sums[i] += (mine * f).sum()
            value += mine * (f * weight)
            derivatives.append(scaled(s, (f * weight)[:, None]))
        return value, added(derivatives)

    aligned = [*(x for one in foldings for x in one.aligned), *(one.factors.detach() for one in foldings)]
    whole = fold(Folding(slope, first.q, aligned, torch.ones_like(first.factors), first.chunk, first.temperature))
    return whole, [x.clone() for x in sums]  # a backward pass that has to make its gradients anew adds to them again


def scaled(s: Any, factors: Float[Tensor, "target 1"]) -> Any:
    """A derivative, each target times its factor; a dense one is used up."""
    return Sparse(s.ids, s.values * factors) if isinstance(s, Sparse) else s.mul_(factors)


def added(derivatives: Sequence[Any]) -> Any:
    """The sum of derivatives; the first dense one is used up."""
    sparse, dense = ([s for s in derivatives if isinstance(s, Sparse) == kind] for kind in (True, False))
    if not dense:
        return Sparse(*(torch.cat(parts, -1) for parts in zip(*sparse, strict=True)))
    for s in dense[1:]:
        dense[0].add_(s)
    for s in sparse:
        dense[0].scatter_add_(-1, s.ids, s.values)
    return dense[0]


def at_entries(value: Callable[[Tensor], Tensor], log_q: Float[Tensor, "target vocab"], ids: Int[Tensor, "target k"]) -> tuple[Tensor, Sparse]:
    """A value that looks at some entries of log q only, and its derivative there."""
    with torch.enable_grad():
        kept = log_q.detach().gather(-1, ids).requires_grad_()
        found = value(kept)
        return found.detach(), Sparse(ids, torch.autograd.grad(found.sum(), kept)[0])


class Fold(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, factors: Tensor, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, factors)
        ctx.how, ctx.wants = how, ctx.needs_input_grad[:3]
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64 else hidden.dtype
        with torch.autocast(device, enabled=False):
            total, ctx.gradients = walk(hidden, weight, bias, factors, how, ctx.wants, ctx.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Any, ...]:
        found, ctx.gradients = ctx.gradients, None  # they are handed over: a second pass makes them anew
        if found is None:
            hidden, weight, bias, factors = ctx.saved_tensors
            found = walk(hidden, weight, bias, factors, ctx.how, ctx.wants, ctx.dtype)[1]
        kinds = [None if x is None else x.dtype for x in ctx.saved_tensors[:3]]
        return (*(None if x is None else x.mul_(above).to(kind) for x, kind in zip(found, kinds, strict=True)), None, None)


def walk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, factors: Tensor, how: tuple[Any, ...], wants: Sequence[bool], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum, and its gradients by hidden states, weight and bias as far as they are wanted; sums over chunks are at least float32."""
    head, slope, aligned, chunk, temperature = how
    head = head.of(weight.to(dtype), None if bias is None else bias.to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    total = factors.new_zeros((), dtype=wide)
    by_hidden = torch.empty_like(hidden, dtype=dtype) if wants[0] else None
    by_weight = (torch.empty_like if len(hidden) else torch.zeros_like)(weight, dtype=wide) if wants[1] else None
    by_bias = torch.zeros_like(weight[:, 0], dtype=wide) if wants[2] else None
    size = slice_of(wide.itemsize * len(weight))
    once = {id(x): x for x in aligned}  # what two sums hear is made once
    heads = [x.head for x in once.values() if isinstance(x, Logits)]
    chunk = max(1, chunk // (1 + len(heads)))  # all heads as many targets: no product of a few rows
    part = chunk if all(isinstance(x, Head) for x in heads) else max(1, chunk // PART)
    say, others = Room(head, min(chunk, len(hidden))), {key: roomy(x, part) for key, x in once.items()}
    for i in range(0, len(hidden), chunk):
        here = slice(i, i + chunk)
        h, f = hidden[here].to(dtype), factors[here].to(wide)
        logits = say(h)
        for some, said in pieces(i, len(h), others, part, size):  # in place, and small enough for the cache of a processor
            log_q = torch.log_softmax(upcast(logits[some]) if temperature == 1 else upcast(logits[some]) / temperature, -1)
            if bias is not None:
                log_q.clamp_(min=RULED_OUT)  # a bias may rule entries out
            value, s = slope(log_q, *(said[id(x)] for x in aligned))
            total += (value * f[some]).sum()
            if any(wants):
                logits[some] = head.back(upstream(s, log_q), logits[some]).mul_(f[some, None] / temperature)
        if by_hidden is not None:
            torch.mm(logits, head.weight, out=by_hidden[here])
        if by_weight is not None:
            add_product(by_weight, logits.mT, h, first=not i)
        if by_bias is not None:
            by_bias += logits.sum(0, dtype=wide)
    return total, [by_hidden, by_weight, by_bias]


def add_product(to: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """Adds a matrix product in its own precision; the first one is written over what stood there, which spares a pass over it."""
    if to.dtype == a.dtype:
        torch.mm(a, b, out=to) if first else to.addmm_(a, b)
    else:
        to.copy_(a @ b) if first else to.add_(a @ b)


def pieces(begin: int, num: int, others: Mapping[int, Callable[[slice], Any]], part: int, size: int) -> Iterator[tuple[slice, dict[int, Any]]]:
    """Slices of a chunk of `num` targets that begins at `begin`, and what else is there at each: `part` targets of that are made at a time."""
    for j in range(0, num, part):
        here, many = slice(begin + j, begin + min(j + part, num)), min(part, num - j)
        said = {key: other(here) for key, other in others.items()}
        for k in range(0, many, size):
            yield slice(j + k, j + min(k + size, many)), {key: x[k : k + size] for key, x in said.items()}


def slice_of(bytes_each: int) -> int:
    """Targets of a slice, as many for each thread, which takes whole ones: as fit into `SLICE_BYTES` together, and one each at least."""
    threads = min(SLICE, torch.get_num_threads())
    return threads * max(1, min(SLICE // threads, SLICE_BYTES // (threads * bytes_each)))


class Room:
    """Runs a head into one piece of memory, again and again: what it gave before is lost."""

    def __init__(self, head: Head, num: int, coarse: bool = False):
        self.head, self.room, self.coarse = head, head.weight.new_empty(num, len(head.weight)), coarse

    def __call__(self, hidden: Float[Tensor, "target dim"]) -> Float[Tensor, "target vocab"]:
        with products(self.coarse):
            return self.head.into(hidden, self.room[: len(hidden)])


def roomy(x: Any, part: int) -> Callable[[slice], Any]:
    """Parts of what else is there, with logits made when they are due."""
    if not isinstance(x, Logits):
        return lambda here: x[here]
    head = x.selected
    if not isinstance(head, Head):
        return lambda here: x[here].dense()
    run = Room(head, min(part, len(x)), x.coarse)
    return lambda here: run(x.hidden[here])


def upstream(s: Any, log_q: Float[Tensor, "target vocab"]) -> Float[Tensor, "target vocab"]:
    """The derivative by logits from that by log q; log q is used up."""
    if isinstance(s, Sparse):
        return log_q.exp_().mul_(-s.values.sum(-1, keepdim=True)).scatter_add_(-1, s.ids, s.values)
    return s.addcmul_(log_q.exp_(), s.sum(-1, keepdim=True), value=-1)
