r"""The recurrence of linear attention with decay: step by step, in chunks, and as one matrix.

$$ S_t = \mathrm{diag}(e^{a_t}) S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t $$

Shapes, here and below: q and k [B, T, H, K], v [B, T, H, V], state S [B, H, K, V]. The log of the decay, a, is [B, T, H] (one number a head),
[B, T, H, K] (one a channel of the keys), or None (nothing fades). Sums, products and the state are at least float32, under autocast too; float64
stays; outputs have the dtype of v. A decay may be so strong that nothing is left, even -inf: a sum of logs is never taken as a difference of two
longer ones, and nothing above 1 is computed on the way to something below it.

This file is carried along beside exported weights: it imports torch, and its neighbour.

References:
    Yang et al., Gated Linear Attention Transformers with Hardware-Efficient Training, 2023, arXiv:2312.06635 (chunks; decay by channel).
    Dao and Gu, Transformers are SSMs, 2024, arXiv:2405.21060 (sums of segments; the matrix).
"""

import functools
from typing import Any

import torch
from torch.nn import functional as F

from limbeck.block._fused import fused


def at_full_precision(function):
    """The same function, with autocast off inside."""

    @functools.wraps(function)
    def run(q, *args, **kwargs):
        if q.is_meta or not torch.is_autocast_enabled(q.device.type):
            return function(q, *args, **kwargs)
        with torch.autocast(q.device.type, enabled=False):
            return function(q, *args, **kwargs)

    return run


def upcast(*tensors) -> Any:
    """All in one dtype, float32 or better; None stays."""
    if all(x is None or x.dtype == torch.float32 for x in tensors):
        return tensors
    dtype = torch.float32
    for x in tensors:
        dtype = dtype if x is None else torch.promote_types(dtype, x.dtype)
    return [None if x is None else x.to(dtype) for x in tensors]


@at_full_precision
def linear_recurrence_steps(q, k, v, log_decay, state=None):
    """The recurrence as it is written, one position after the other: o [B, T, H, V] and the state after the last."""
    dtype = v.dtype
    q, k, v, log_decay, state = upcast(q, k, v, log_decay, state)
    if state is None:
        state = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[-1])
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    said, fade = [], None if log_decay is None else log_decay.exp().transpose(1, 2)
    for query, key, value, fades in positions(*(x.transpose(1, 2) for x in (q, k, v)), fade):
        state = torch.addcmul(state if fades is None else fades.mT * state, key.mT, value)
        said.append(query @ state)
    return (torch.cat(said, 2).transpose(1, 2) if said else torch.zeros_like(v)).to(dtype), state


def positions(*parts):
    """Of [B, H, T, .] each position by itself, of None as often nothing. One position is not cut out: decoding is made of small operations."""
    length = parts[0].shape[2]
    return [parts] if length == 1 else zip(*([None] * length if x is None else x.split(1, 2)[:length] for x in parts), strict=True)


@at_full_precision
def linear_recurrence(q, k, v, log_decay, state=None, chunk=64):
    """The same in chunks of `chunk` positions: inside a chunk by one matrix, between chunks by the state; time and memory grow with T.

    With one decay a channel, the length of a chunk is rounded up to a power of two.
    """
    if q.shape[1] <= 1:
        return linear_recurrence_steps(q, k, v, log_decay, state)
    by_channel = log_decay is not None and log_decay.ndim == 4
    place, name = ("gla", "chunk_gla") if by_channel else ("simple_gla", "chunk_simple_gla")
    found = fused(place, name, q, k, v, state, g=None if log_decay is None else log_decay.float())
    if found is not None:
        return found
    dtype, length = v.dtype, q.shape[1]
    q, k, v, log_decay, state = upcast(q, k, v, log_decay, state)
    size = chunk_length(log_decay, min(chunk, length))
    q, k, v = (in_chunks(x, size) for x in (q, k, v))
    if log_decay is None:
        inside, enter, leave = (q @ k.mT).tril(), None, None
    else:
        inside, enter, leave = weights_inside(q, k, in_chunks(log_decay if log_decay.ndim == 4 else log_decay[..., None], size))
    added = ((k if leave is None else k * leave.exp()).mT @ v).unbind(2)
    fades = [None] * len(added) if enter is None else enter[..., -1, :, None].exp().unbind(2)
    states = [torch.zeros_like(added[0]) if state is None else state]
    for fade, new in zip(fades, added, strict=True):
        states.append((states[-1] if fade is None else states[-1] * fade) + new)
    o = inside @ v + (q if enter is None else q * enter.exp()) @ torch.stack(states[:-1], 2)
    return o.flatten(2, 3)[:, :, :length].transpose(1, 2).to(dtype), states[-1]


@at_full_precision
def linear_matrix(q, k, log_decay):
    r"""M [B, H, T, T], float32 or better, with o = M v: $M_{ts} = \sum_c q_{tc} k_{sc} \exp(\sum_{r=s+1}^t a_{rc})$ for s <= t, else 0."""
    length = q.shape[1]
    q, k, log_decay = upcast(q, k, log_decay)
    if log_decay is None or not length:
        return (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).tril()
    size = chunk_length(log_decay, length)
    log_decay = log_decay if log_decay.ndim == 4 else log_decay[..., None]
    matrix = weights_inside(*(in_chunks(x, size) for x in (q, k, log_decay)))[0]
    return matrix[:, :, 0, :length, :length]


def chunk_length(log_decay, chunk):
    """The length of a chunk: any, but with one decay a channel a power of two."""
    return 1 << (chunk - 1).bit_length() if log_decay is not None and log_decay.ndim == 4 else chunk


def in_chunks(x, size):
    """[B, T, H, D] -> [B, H, chunk, position, D]; the last chunk is filled up with zeros, which add nothing and let nothing fade."""
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % size))
    return x.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4)


def weights_inside(q, k, log_decay):
    """Of chunks [..., c, K] with decay [..., c, 1 or K]: their matrices [..., c, c], and the sums of the decay from the beginning up to each
    position, and from each position on (without its own) to the end."""
    if log_decay.shape[-1] == k.shape[-1] != 1:
        return by_halves(q, k, log_decay)
    segments = segment_sums(log_decay[..., 0])
    return (q @ k.mT) * segments.exp().tril(), log_decay.cumsum(-2), segments[..., -1, :, None]


def segment_sums(x):
    """[..., c] -> [..., c, c]: at t, s the sum from s + 1 up to t, each added up by itself; above the diagonal 0."""
    return x[..., None].expand(*x.shape, x.shape[-1]).tril(-1).cumsum(-2).tril()


def by_halves(q, k, log_decay):
    """`weights_inside` for one decay a channel, c a power of two: blocks of 1, 2, 4, ... are joined in pairs. What the later block reads in the
    earlier fades from the key to the end of the earlier, and from the beginning of the later to the query: two factors, both at most 1."""
    q, k, enter = (x.unsqueeze(-2) for x in (q, k, log_decay))
    matrix, leave = (q * k).sum(-1, keepdim=True), torch.zeros_like(enter)
    while matrix.shape[-3] > 1:
        q, k, enter, leave, matrix = (x.unflatten(-3, (-1, 2)) for x in (q, k, enter, leave, matrix))
        (enter_one, enter_two), (leave_one, leave_two), (one, two) = (x.unbind(-3) for x in (enter, leave, matrix))
        across = (q[..., 1, :, :] * enter_two.exp()) @ (k[..., 0, :, :] * leave_one.exp()).mT
        matrix = torch.cat([torch.cat([one, torch.zeros_like(across)], -1), torch.cat([across, two], -1)], -2)
        enter, leave = (
            torch.cat([enter_one, enter_two + enter_one[..., -1:, :]], -2),
            torch.cat([leave_one + enter_two[..., -1:, :], leave_two], -2),
        )
        q, k = q.flatten(-3, -2), k.flatten(-3, -2)
    return matrix.squeeze(-3), enter.squeeze(-3), leave.squeeze(-3)
