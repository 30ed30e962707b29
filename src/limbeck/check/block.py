"""Contracts of what may stand in a block: three forms that agree, a state of constant size, and what transformers makes of it."""

import copy
import json
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.block.base import Attention, Block, FeedForward, Mixer, Mlp, module_of
from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.models import TOKENIZER, fresh
from limbeck.check.reads import over_choices
from limbeck.model.blocks import attention_of, mlp_of
from limbeck.model.hybrid import become, parts_of

LENGTH, ROWS = 21, 3
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-5)}


@cache
def taught(seed: int, dtype: torch.dtype) -> tuple[Attention, Mlp]:
    """Attention with grouped keys, and an MLP, of a small model."""
    module = copy.deepcopy(fresh(seed).module).to(dtype)
    return attention_of(module, 0), mlp_of(module, 0)


def made(block: Block, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Any, dict[str, str]]:
    """Its module, as it begins, moved a little so that nothing is zero by its beginning; and what was copied."""
    begun = taught(seed, dtype)[isinstance(block, FeedForward)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = module_of(block.spec(begun.shape), 0).to(dtype)
        copied = block.begin(module, begun)
        with torch.no_grad():
            for p in module.parameters():
                p += 0.05 * torch.randn_like(p)
    return module.eval(), copied


def heard(seed: int = 0, dtype: torch.dtype = torch.float64, length: int = LENGTH, rows: int = ROWS) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What a block hears, and the angles of its positions."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, length, taught(seed, dtype)[0].shape.width, generator=draw, dtype=torch.float64).to(dtype)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10 ** (torch.arange(4, dtype=torch.float64) / 2)
    angle = torch.cat([angle, angle], -1)[None].expand(rows, -1, -1)
    return x, (angle.cos().to(dtype), angle.sin().to(dtype))


def mixer_of(block: Block) -> Mixer:
    if not isinstance(block, Mixer):
        raise NotClaimed("it mixes no positions")
    return block


def decoding(block: Block) -> Mixer:
    mixer = mixer_of(block)
    if not mixer.causal:
        raise NotClaimed("it looks ahead, and keeps no state")
    return mixer


def cut(rope: tuple[Tensor, Tensor], some: slice) -> tuple[Tensor, Tensor]:
    return rope[0][:, some], rope[1][:, some]


def stepwise(module: Any, x: Tensor, rope: tuple[Tensor, Tensor], state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any]:
    """One position after the other; the first by `mix`, which makes the state."""
    out = []
    for t in range(x.shape[1]):
        here = slice(t, t + 1)
        run = module.mix if state is None else module.step
        y, state = run(x[:, here], cut(rope, here), None if mask is None else mask[:, here], state)
        out.append(y)
    return torch.cat(out, 1), state


def exercise(block: Block) -> None:
    """One ordinary use."""
    module, _ = made(block)
    x, rope = heard()
    if isinstance(block, Mixer):
        module.mix(x, rope, None, None)
        block.state_bytes(taught(0, x.dtype)[0].shape, LENGTH)
        block.flops(taught(0, x.dtype)[0].shape, LENGTH)
    else:
        module(x)


@contract
@over_choices
def described(block: Block, seed: int = 0) -> None:
    """Its spec is plain JSON from which the same module is made, and what it says it copied is there."""
    begun = taught(seed, torch.float32)[isinstance(block, FeedForward)]
    spec = block.spec(begun.shape)
    assert spec["kind"] == dict(block)["kind"] and json.loads(json.dumps(spec)) == spec, f"the spec {spec} is not plain JSON with its kind"
    module, copied = made(block, seed, torch.float32)
    names = dict(module.named_parameters())
    assert copied.keys() <= names.keys(), f"copied, but not there: {', '.join(sorted(copied.keys() - names.keys()))}"
    assert not list(module.buffers()), "a buffer is not told apart from what is learned: use parameters, or make it when it is needed"
    module_of(json.loads(json.dumps(spec)), 3).load_state_dict(module.state_dict())


@contract
@over_choices
def forms_agree(block: Block, seed: int = 0) -> None:
    """All positions at once, one after the other, and the matrix that mixes them give the same, in double and in single precision."""
    mixer = mixer_of(block)
    for dtype, tolerance in TOLERANCE.items():
        module, _ = made(block, seed, dtype)
        x, rope = heard(seed, dtype)
        with torch.no_grad():
            y, _ = module.mix(x, rope, None, None)
            matrix, values = module.materialize(x, rope, None)
            whole = module.output(matrix.to(values.dtype) @ values, x)
        name = str(dtype).removeprefix("torch.")
        close(whole, y, tolerance, f"in {name}, the matrix against all at once")
        if mixer.causal:
            with torch.no_grad():
                steps, _ = stepwise(module, x, rope)
            close(steps, y, tolerance, f"in {name}, one position after the other against all at once")
        assert bool(matrix.triu(1).any()) != mixer.causal or not matrix.any(), "the matrix looks ahead, or does not, other than it claims"


@contract
@over_choices
def goes_on(block: Block, seed: int = 0) -> None:
    """From the state of the first positions it goes on as if it had heard all at once, wherever they are cut, and ends in the same state."""
    decoding(block)
    module, _ = made(block, seed)
    x, rope = heard(seed)
    with torch.no_grad():
        y, end = module.mix(x, rope, None, None)
        for at in (1, 2, LENGTH // 2, LENGTH - 1):
            first, state = module.mix(x[:, :at], cut(rope, slice(at)), None, None)
            then, state = module.mix(x[:, at:], cut(rope, slice(at, None)), None, state)
            close(torch.cat([first, then], 1), y, TOLERANCE[y.dtype], f"cut after {at}")
            assert state.keys() == end.keys(), "the state has other parts"
            for name in end:
                close(state[name], end[name], TOLERANCE[y.dtype], f"cut after {at}, the state {name}")
        for name, value in stepwise(module, x, rope)[1].items():
            close(value, end[name], TOLERANCE[y.dtype], f"one position after the other, the state {name}")


@contract
@over_choices
def constant_state(block: Block, seed: int = 0) -> None:
    """Where claimed: the state takes as many bytes after many positions as after few, and as many as its formula says."""
    mixer = decoding(block)
    module, _ = made(mixer, seed, torch.float32)
    sizes = []
    for length in (2, LENGTH, 4 * LENGTH):
        x, rope = heard(seed, torch.float32, length, rows=1)
        with torch.no_grad():
            state = module.mix(x, rope, None, None)[1]
        sizes.append(sum(value.numel() * value.element_size() for value in state.values()))
        said = mixer.state_bytes(taught(seed, torch.float32)[0].shape, length)
        assert said == sizes[-1], f"after {length} positions it takes {sizes[-1]:,} bytes, its formula says {said:,}"
    if not mixer.constant:
        raise NotClaimed("it says that its state grows")
    assert len(set(sizes)) == 1, f"claimed; but the state grows: {sizes}"


@contract
@over_choices
def looks_back_only(block: Block, seed: int = 0) -> None:
    """Where claimed: what comes later changes nothing before it. A mixer that looks ahead says so, and refuses to decode."""
    mixer = mixer_of(block)
    module, _ = made(block, seed)
    x, rope = heard(seed)
    other = x.clone()
    other[:, LENGTH // 2 :] += 1
    with torch.no_grad():
        a, b = (module.mix(some, rope, None, None)[0] for some in (x, other))
    if not mixer.causal:
        assert not torch.allclose(a[:, : LENGTH // 2], b[:, : LENGTH // 2]), "claims to look ahead, and does not"
        for refused in (lambda: module.step(x[:, :1], cut(rope, slice(1)), None, None), lambda: module(x, rope, past_key_values=object())):
            try:
                refused()
            except ValueError:
                continue
            raise AssertionError("it looks ahead, and yet takes part in decoding")
        return
    close(b[:, : LENGTH // 2], a[:, : LENGTH // 2], TOLERANCE[a.dtype], "before the change")
    assert not a.any() or not torch.allclose(a[:, LENGTH // 2 :], b[:, LENGTH // 2 :]), "nothing depends on what it hears"


@contract
@over_choices
def padding(block: Block, seed: int = 0) -> None:
    """Positions that are not there, in front or behind, change nothing; rows packed into one are told apart."""
    mixer_of(block)
    module, _ = made(block, seed)
    x, rope = heard(seed, rows=1)
    short = LENGTH - 8
    with torch.no_grad():
        alone, end = module.mix(x[:, :short], cut(rope, slice(short)), None, None)
        mask = torch.zeros(1, LENGTH, dtype=torch.bool)
        mask[:, -short:] = True
        front = torch.cat([torch.full_like(x[:, :8], 3.0), x[:, :short]], 1)
        turned = tuple(torch.cat([angle[:, :8], angle[:, :short]], 1) for angle in rope)
        y, state = module.mix(front, turned, mask, None)
        close(y[:, -short:], alone, TOLERANCE[y.dtype], "padded in front")
        for name in end:
            close(state[name], end[name], TOLERANCE[y.dtype], f"padded in front, the state {name}")
        behind = torch.cat([x[:, :short], torch.full_like(x[:, :8], 3.0)], 1)
        close(module(behind, rope, token_mask=mask.flip(1))[0][:, :short], alone, TOLERANCE[y.dtype], "padded behind")
        places = torch.cat([torch.arange(short), torch.arange(LENGTH)])[None]
        packed = torch.cat([x[:, :short], x], 1)
        angles = tuple(torch.cat([angle[:, :short], angle], 1) for angle in rope)
        both = module(packed, angles, position_ids=places)[0]
        close(both[:, :short], alone, TOLERANCE[y.dtype], "packed, the first row")
        close(both[:, short:], module.mix(x, rope, None, None)[0], TOLERANCE[y.dtype], "packed, the second row")


@contract
@over_choices
def learns(block: Block, seed: int = 0) -> None:
    """Every parameter gets a gradient that is finite, and is not zero."""
    module, _ = made(block, seed)
    if not any(True for _ in module.parameters()):
        raise NotClaimed("it has no parameters")
    x, rope = heard(seed)
    y = module.mix(x, rope, None, None)[0] if isinstance(block, Mixer) else module(x)
    weigh = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    (y * weigh).sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), f"{name} gets no finite gradient"
        assert p.grad.any(), f"the gradient of {name} is zero"


def converted(block: Block, seed: int) -> Any:
    """A small causal model whose first block holds it, in the place where it belongs."""
    role = fresh(seed)
    module: Any = role.module.double()
    module.config._attn_implementation = "sdpa"  # eager attention gives NaN where a padded position sees nothing, in double precision
    place = role.anatomy.place(block.place)
    parts = parts_of(module)
    begun: Any = attention_of(module, 0) if isinstance(block, Mixer) else mlp_of(module, 0)
    parts[0] = {place: block.spec(begun.shape)}
    become(role, parts, {(0, place): made(block, seed)[0]})
    return module.eval()


@contract
@over_choices
def decodes(block: Block, seed: int = 0) -> None:
    """With a cache, transformers' `generate` writes what it writes without: alone, in a batch padded on the left, read in pieces, with beams."""
    if isinstance(block, Mixer):
        decoding(block)
    module = converted(block, seed)
    first, second = torch.arange(5, 14)[None], torch.arange(30, 35)[None]
    end = TOKENIZER.pad_token_id
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": end, "eos_token_id": None}

    def write(ids: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
        mask = torch.ones_like(ids) if mask is None else mask
        with torch.no_grad():
            return module.generate(ids, attention_mask=mask, **{**how, **more})[:, ids.shape[1] :]

    alone = [write(ids, use_cache=False) for ids in (first, second)]
    for ids, expected in zip((first, second), alone, strict=True):
        assert torch.equal(write(ids), expected), f"with a cache it writes {write(ids).tolist()}, without {expected.tolist()}"
    gap = first.shape[1] - second.shape[1]
    padded = torch.cat([first, nn.functional.pad(second, (gap, 0), value=end)])
    mask = torch.cat([torch.ones_like(first), nn.functional.pad(torch.ones_like(second), (gap, 0))])
    assert torch.equal(write(padded, mask), torch.cat(alone)), "in a batch padded on the left it writes something else"
    assert torch.equal(write(first, prefill_chunk_size=4), alone[0]), "when it reads in pieces it writes something else"
    beams = [write(first, num_beams=3, use_cache=cached) for cached in (False, True)]
    assert torch.equal(*beams), "with beams it writes something else when it keeps a cache"
