r"""The gated delta rule: a state that fades, and in which what stood under a key is replaced; step by step, in chunks, and as one matrix.

With the value's index in rows, $S_t = \alpha_t S_{t-1} (I - \beta_t k_t k_t^\top) + \beta_t v_t k_t^\top$ and $o_t = S_t q_t$. Here the state is kept
the other way round, as in `_linear_recurrence`: S is [B, H, K, V], the key's index in rows, so that

$$ S_t = \alpha_t (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \qquad o_t = S_t^\top q_t $$

Shapes: q and k [B, T, H, K], v [B, T, H, V], beta [B, T, H], and the log of alpha [B, T, H] or None (nothing fades). Sums, products and the state are
at least float32, under autocast too; float64 stays; outputs have the dtype of v. A decay may be so strong that nothing is left, even -inf. Keys of
length 1 and beta within [0, 2] never make the state longer; with others it is computed as it is written, and may grow.

This file is carried along beside exported weights: it imports torch, and its neighbours.

References:
    Yang et al., Parallelizing Linear Transformers with the Delta Rule over Sequence Length, 2024, arXiv:2406.06484 (chunks).
    Yang et al., Gated Delta Networks: Improving Mamba2 with Delta Rule, 2024, arXiv:2412.06464 (the decay).
"""

import torch

from limbeck.block._fused import fused
from limbeck.block._linear_recurrence import at_full_precision, in_chunks, positions, segment_sums, upcast


@at_full_precision
def gated_delta_rule_steps(q, k, v, beta, log_decay, state=None):
    """The rule as it is written, one position after the other: o [B, T, H, V] and the state after the last."""
    dtype = v.dtype
    q, k, v, beta, log_decay, state = upcast(q, k, v, beta, log_decay, state)
    if state is None:
        state = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[-1])
    said, rows = [], [x.transpose(1, 2) for x in (q, k, v, beta[..., None])]
    fade = None if log_decay is None else log_decay[..., None].exp().transpose(1, 2)
    for query, key, value, rate, fades in positions(*rows, fade):
        state = state if fades is None else fades * state
        state = torch.addcmul(state, key.mT, rate * (value - key @ state))
        said.append(query @ state)
    return (torch.cat(said, 2).transpose(1, 2) if said else torch.zeros_like(v)).to(dtype), state


@at_full_precision
def gated_delta_rule(q, k, v, beta, log_decay, state=None, chunk=64):
    r"""The same in chunks of `chunk` positions; time and memory grow with T.

    Position t of a chunk writes $u_t = \beta_t (v_t - \gamma_t S_0^\top k_t - \sum_{s<t} \gamma_t / \gamma_s \; (k_t \cdot k_s) \, u_s)$ under its
    key, with the state S_0 before the chunk and the decay since then, gamma: a triangular system, which is solved once for all chunks, for what does
    not depend on S_0 and for its factor.
    """
    if q.shape[1] <= 1:
        return gated_delta_rule_steps(q, k, v, beta, log_decay, state)
    decay = torch.zeros_like(beta) if log_decay is None else log_decay
    found = fused("gated_delta_rule", "chunk_gated_delta_rule", q, k, v, state, g=decay.float(), beta=beta.float())
    if found is not None:
        return found
    dtype, (length, values) = v.dtype, (q.shape[1], v.shape[-1])
    q, k, v, beta, log_decay, state = upcast(q, k, v, beta, log_decay, state)
    size = min(chunk, length)
    log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
    q, k, v, beta, log_decay = (in_chunks(x, size) for x in (q, k, v, beta[..., None], log_decay[..., None]))
    inside, system, leave = weights_inside(q, k, beta, log_decay)
    enter = log_decay.cumsum(-2).exp()
    alone, through = solve(system, beta * torch.cat([v, enter * k], -1)).split([values, k.shape[-1]], -1)
    states, written = [alone.new_zeros(*k.shape[:2], k.shape[-1], values) if state is None else state], []
    kept = enter[..., -1:, :].unbind(2)
    for n, (one, factor, key) in enumerate(zip(alone.unbind(2), through.unbind(2), (leave * k).mT.unbind(2), strict=True)):
        written.append(one - factor @ states[-1])
        states.append(kept[n] * states[-1] + key @ written[-1])
    o = inside @ torch.stack(written, 2) + (enter * q) @ torch.stack(states[:-1], 2)
    return o.flatten(2, 3)[:, :, :length].transpose(1, 2).to(dtype), states[-1]


@at_full_precision
def delta_matrix(q, k, beta, log_decay):
    """M [B, H, T, T], float32 or better, with o = M v: the chunk's matrix, were all positions one chunk."""
    q, k, beta, log_decay = upcast(q, k, beta, log_decay)
    if not q.shape[1]:
        return q.new_zeros(q.shape[0], q.shape[2], 0, 0)
    log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
    q, k, beta, log_decay = (in_chunks(x, q.shape[1]) for x in (q, k, beta[..., None], log_decay[..., None]))
    inside, system, _ = weights_inside(q, k, beta, log_decay)
    return (inside @ solve(system, torch.diag_embed(beta[..., 0])))[:, :, 0]


def weights_inside(q, k, beta, log_decay):
    """Of chunks [..., c, K]: what queries read of what was written [..., c, c]; the system that what is written solves [..., c, c], whose diagonal is
    left out (it is 1); and what is left of it at the end [..., c, 1]."""
    segments = segment_sums(log_decay[..., 0])
    fade = segments.exp().tril()
    return fade * (q @ k.mT), (beta * fade * (k @ k.mT)).tril(-1), fade[..., -1, :, None]


def solve(system, right):
    """x with (1 + system) x = right, for a strictly lower triangular system."""
    return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
