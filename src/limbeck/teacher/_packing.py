r"""What teachers say, in fewer bytes: hidden states and truncated distributions, written and read back.

A packed tensor has its name, and behind a `/` what a piece of it is; pieces in `WHOLE` belong to all entries of a part. What
is packed can be told from the pieces alone, so `unpack` needs to know nothing else.

Hidden states in 8 bits: channels differ in size by a factor of a hundred, and a few are huge. With mean $m_c$ and deviation
$s_c$ of each channel, measured on *other* rows, $z = (h - m) / s$; the channels that reach furthest from their mean, one in 32,
are kept in 16 bits, all others as $\mathrm{round}(z / d)$, with a step $d = \max_c |z_c| / 127$ for each target: nothing is ever cut off.

Truncated distributions: how far an entry lies below the best one, $\delta = \ell_1 - \ell$, is kept as the nearest of $n$
levels of $\sqrt{\delta / \max\delta}$: finest where the mass is. The mass of all other entries (the tail) is exact, and the
entries read back are scaled so that with it they make one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import Failed
from limbeck.numerics import RULED_OUT, log1mexp, upcast

WHOLE = frozenset({"mean", "deviation", "far"})
"""Pieces that belong to all entries of a part."""
FEWEST = 64
"""Entries of other rows that means and deviations are measured on, at least: before, 16 bits are written in place of 8."""
WIDE = 32
"""One channel in so many is kept in 16 bits: those that reach furthest."""
LEVELS = {8: (1 << 8) - 1, 16: (1 << 16) - 1}
SMALL = {8: torch.uint8, 16: torch.uint16}
Tensors = Mapping[str, Tensor]


def narrow(x: Float[Tensor, "entry dim"]) -> Float[Tensor, "entry dim"]:
    """In 16 bits: float16, or bfloat16 where that has the smaller error (numbers that float16 cannot hold)."""
    both = [x.to(dtype) for dtype in (torch.float16, torch.bfloat16)]
    return min(both, key=lambda y: float((x - y.to(x.dtype)).square().sum().nan_to_num(torch.inf, torch.inf)))


def pack_states(x: Float[Tensor, "entry dim"], bits: int, other: Float[Tensor, "other dim"] | None = None) -> dict[str, Tensor]:
    """Pieces of hidden states; an empty name is the tensor itself. In 8 bits only where there are enough entries of other rows."""
    if bits == 32:
        return {"": x}
    if bits == 16 or other is None or len(other) < FEWEST:
        return {"": narrow(upcast(x))}
    other = upcast(other)
    mean, deviation = other.mean(0), other.std(0)
    deviation = deviation.clamp(min=float(deviation.max()) * 1e-6 or 1.0)
    z = (upcast(x) - mean) / deviation
    far = (other - mean).abs().amax(0).topk(x.shape[-1] // WIDE).indices.sort().values
    near = left(far, x.shape[-1])
    step = z[:, near].abs().amax(-1) / 127
    codes = (z[:, near] / step.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-127, 127).to(torch.int8)
    pieces = {"codes": codes, "step": step.float(), "wide": narrow(upcast(x)[:, far])}
    return {**pieces, "mean": mean.float(), "deviation": deviation.float(), "far": far.to(torch.int32)}


def unpack_states(pieces: Tensors) -> Float[Tensor, "entry dim"]:
    """What `pack_states` was given, in float32 or more."""
    if "" in pieces:
        return upcast(pieces[""])
    far, mean = pieces["far"].long(), pieces["mean"]
    near, out = left(far, len(mean)), mean.new_empty(len(pieces["codes"]), len(mean))
    out[:, near] = pieces["codes"] * pieces["step"][:, None] * pieces["deviation"][near] + mean[near]
    out[:, far] = upcast(pieces["wide"])
    return out


def left(far: Int[Tensor, " some"], num: int) -> Int[Tensor, " others"]:
    """The channels that are not among some."""
    near = torch.ones(num, dtype=torch.bool, device=far.device)
    near[far] = False
    return near.nonzero()[:, 0]


def pack_ids(ids: Int[Tensor, "target k"]) -> Int[Tensor, "target k"]:
    """Ids in the smallest type that holds them: 16 bits up to 65,536 ids."""
    return ids.to(torch.uint16 if not ids.numel() or int(ids.max()) < 1 << 16 else torch.int32)


def pack_entries(log_probs: Float[Tensor, "target k"], bits: int) -> dict[str, Tensor]:
    """Pieces of log-probabilities, the best one first."""
    if bits == 32:
        return {"": log_probs}
    gap = log_probs[:, :1] - log_probs
    span = gap.amax(-1).to(torch.float16 if bits == 8 else torch.float32)
    share = gap / upcast(span).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return {"codes": (share.sqrt() * LEVELS[bits]).round().clamp(0, LEVELS[bits]).to(SMALL[bits]), "span": span}


def unpack_entries(pieces: Tensors, tail: Float[Tensor, " target"]) -> Float[Tensor, "target k"]:
    """Log-probabilities that make one with the tail."""
    if "" in pieces:
        return pieces[""]
    share = pieces["codes"].float() / LEVELS[8 * pieces["codes"].element_size()]
    return scaled(-share.square() * upcast(pieces["span"])[:, None], tail)


def scaled(log_probs: Float[Tensor, "target k"], tail: Float[Tensor, " target"]) -> Float[Tensor, "target k"]:
    """Entries of which with the tail there is exactly one; a softmax over many ids loses small ones beside a large one."""
    return log_probs + (log1mexp(tail) - log_probs.logsumexp(-1))[:, None]


def pack_draws(log_weights: Float[Tensor, "target k"], k: int) -> dict[str, Tensor]:
    """Pieces of the weights of draws: how often each id was drawn, where that is all there is to them."""
    counts = (log_weights.exp() * k).round()
    exact = bool(((log_weights.exp() * k - counts).abs() < 1e-3).all()) and k < 1 << 16
    return {"counts": counts.to(SMALL[8] if k < 1 << 8 else SMALL[16])} if exact else {"": log_weights.float()}


def unpack_draws(pieces: Tensors) -> Float[Tensor, "target k"]:
    """Log-weights; places without a draw are ruled out."""
    if "" in pieces:
        return pieces[""]
    counts = pieces["counts"].float()
    return (counts / counts.sum(-1, keepdim=True)).log().clamp(min=RULED_OUT)


def pack(said: Tensors, bits: int, other: Tensors | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was said of some entries, in so many bits: tensors with one entry each, and those that belong to all.

    Args:
        said: `hidden` and other states; or `ids`, `log_probs` and `tail`; or `ids` and `log_weights`.
        bits: 8, 16, or 32 (as it is).
        other: states of other rows.

    Raises:
        Failed: `decode`, if what is read back is not what was said, within the error that the bits allow.
    """
    packed: dict[str, Tensor] = {}
    for name, x in said.items():
        if name == "ids":
            pieces = {"": pack_ids(x)}
        elif name == "log_probs":
            pieces = pack_entries(x, bits)
        elif name == "log_weights":
            pieces = pack_draws(x, x.shape[-1])
        else:
            pieces = {"": x} if name == "tail" else pack_states(x, bits, (other or {}).get(name))
        packed |= {f"{name}/{piece}".rstrip("/"): y for piece, y in pieces.items()}
    same(said, unpack(packed), packed)
    whole = {name: x for name, x in packed.items() if name.partition("/")[2] in WHOLE}
    return {name: x for name, x in packed.items() if name not in whole}, whole


def unpack(packed: Tensors) -> dict[str, Tensor]:
    """What `pack` was given, from all pieces of some entries."""
    named: dict[str, dict[str, Tensor]] = {}
    for name, x in packed.items():
        root, _, piece = name.partition("/")
        named.setdefault(root, {})[piece] = x
    out: dict[str, Tensor] = {}
    for name, pieces in named.items():
        if name == "ids":
            out[name] = pieces[""].long()
        elif name == "log_probs":
            out[name] = unpack_entries(pieces, named["tail"][""])
        elif name == "log_weights":
            out[name] = unpack_draws(pieces)
        else:
            out[name] = pieces[""] if name == "tail" else unpack_states(pieces)
    return out


def allowed(name: str, packed: Tensors, said: Tensor) -> Any:
    """How far what is read back may lie from what was said."""
    size = upcast(said).abs()
    if f"{name}/codes" not in packed:
        lost = 2**-8 if name in packed and packed[name].dtype == torch.bfloat16 else 2**-11
        return size * lost * 1.01 + 1e-6
    codes = packed[f"{name}/codes"]
    if name == "log_probs":  # half a level of the root, at its steepest; as much again where it moves the scale of all
        level = 1 / LEVELS[8 * codes.element_size()]
        return (2.5 * level + 2**-10 * (codes.element_size() == 1)) * upcast(packed[f"{name}/span"])[:, None] + 1e-5
    step = packed[f"{name}/step"][:, None] * packed[f"{name}/deviation"]
    return 0.51 * step + size * (2**-8 if packed[f"{name}/wide"].dtype == torch.bfloat16 else 2**-11) + 1e-6


def same(said: Tensors, back: Tensors, packed: Tensors) -> None:
    """Raises where what is read back is not what was said."""
    for name, x in said.items():
        y = back[name]
        if name == "log_probs" and name not in packed:
            x = scaled(x, said["tail"])
        good = torch.equal(x, y) if not x.is_floating_point() else bool(((upcast(x) - upcast(y)).abs() <= allowed(name, packed, x)).all())
        if x.shape != y.shape or not good:
            gap = f"up to {float((upcast(x) - upcast(y)).abs().max()):.3g} apart" if x.shape == y.shape else "another shape"
            raise Failed("decode", f"capture  {name}", "what was written, when it is read back", gap, "write bits: 32, and report this", code=5)
