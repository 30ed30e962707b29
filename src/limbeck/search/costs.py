"""What each option of a shelf costs: parameters, memory and operations by formula, seconds by the clock."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.block.base import Block, Mixer, Shape
from limbeck.block.grouped_attention import GroupedAttention
from limbeck.block.no_mixer import NoMixer
from limbeck.block.no_mlp import NoMlp
from limbeck.errors import Refused
from limbeck.model.blocks import attention_of
from limbeck.search.blockwise import Shelf, Slot
from limbeck.search.library import Cost, Library, Variant, Workload
from limbeck.student._parts import NORMS, SILENT, begun

REPEATS = 15
REST, SILENCE = "the rest", "nothing"
TIMES = ("prefill_seconds", "decode_seconds")
Clock = Callable[[], float]


def library(shelf: Shelf, workloads: Sequence[Workload] = (), clock: Clock = time.perf_counter) -> Library:
    """The options of a shelf with their costs, without scores.

    `parameters`; `memory_bytes`: weights, and what is remembered of all rows after the answer; `flops`: multiplications and additions of the
    whole workload; and, where workloads are given, `prefill_seconds` and `decode_seconds` of each of them, measured here, in the model. The rest
    (head, norms, what the model does around its parts) costs what the whole model takes longer than its own parts together.
    """
    timed = {} if not workloads else seconds(shelf, workloads, clock)
    known = {
        (part, n, i): costs(shelf, part, n, i, timed) for part, num in counted(shelf).items() for n in range(num + 1) for i in range(shelf.num_layers)
    }
    layers = [[variant(shelf, known, [(part, n, layer) for part, n in option.items()]) for option in options] for layer, options in shelf.places]
    parameters = {id(p): p for p in shelf.whole.module.parameters()}  # tied ones once
    places = [(part, layer) for part in ("mixer", "mlp") for layer in range(shelf.num_layers)]
    for p in (p for place in places for m in (stock(shelf, *place), *norms(shelf, *place)) for p in m.parameters()):
        parameters.pop(id(p), None)
    rest: dict[str, Cost] = {"parameters": sum(p.numel() for p in parameters.values())}
    rest["memory_bytes"] = sum(p.numel() * p.element_size() for p in parameters.values())
    head = 2 * shelf.whole.module.get_output_embeddings().weight.numel()  # type: ignore[operator, union-attr]
    rest["flops"] = lambda workload: float(workload.batch * (workload.answer + 1) * head)  # of a prompt, the last position alone
    if timed:
        rest |= {name: lambda workload, i=i: looked_up(timed, REST, workload)[i] for i, name in enumerate(TIMES)}
    return Library(layers, Variant(REST, costs=rest))


def counted(shelf: Shelf) -> dict[str, int]:
    """How many parts stand for the mixer and for the MLP of a block."""
    return {part: max((n for other, n, _ in shelf.parts if other == part), default=0) for part in ("mixer", "mlp")}


def stock(shelf: Shelf, part: str, layer: int) -> nn.Module:
    """What is in the model itself."""
    return shelf.whole.module.get_submodule(shelf.whole.anatomy.path(part, layer))


def norms(shelf: Shelf, part: str, layer: int) -> list[nn.Module]:
    """The norms around a part, which go where it is taken out."""
    anatomy = shelf.whole.anatomy
    return [shelf.whole.module.get_submodule(anatomy.path(norm, layer)) for norm in NORMS[part] if anatomy.has(norm)]


def variant(shelf: Shelf, known: Mapping[Slot, Mapping[str, Cost]], slots: Sequence[Slot]) -> Variant:
    """An option: what its parts cost together."""

    def added(name: str) -> Cost:
        each = [known[slot][name] for slot in slots]
        if not any(callable(cost) for cost in each):
            return sum(cost for cost in each if not callable(cost))
        return lambda workload: sum(cost(workload) if callable(cost) else cost for cost in each)

    return Variant(" + ".join(told(shelf.blocks.get(slot), slot[0]) for slot in slots), costs={name: added(name) for name in known[slots[0]]})


def told(block: Block | None, part: str) -> str:
    """A part in a few words: its kind, and what differs from its defaults; lists by their length."""
    if block is None:
        return {"mixer": "attention"}.get(part, part)
    fields = {name: value for name, value in block.model_dump(exclude_defaults=True).items() if name != "kind"}
    inside = ", ".join(f"{name}={f'{len(value)} of them' if isinstance(value, (list, tuple)) else value}" for name, value in fields.items())
    return dict(block)["kind"] + (f"({inside})" if inside else "")


def costs(shelf: Shelf, part: str, n: int, layer: int, timed: Mapping[Any, tuple[float, float]]) -> dict[str, Cost]:
    """What one part costs in one block."""
    module, block = shelf.parts[part, n, layer].module if n else stock(shelf, part, layer), shelf.blocks.get((part, n, layer))
    around = [] if isinstance(block, SILENT) else norms(shelf, part, layer)
    sizes = [(p.numel(), p.numel() * p.element_size(), p.ndim) for m in (module, *around) for p in m.parameters()]
    parameters, weights = sum(num for num, _, _ in sizes), sum(size for _, size, _ in sizes)
    matrices = 2 * sum(num for num, _, axes in sizes if axes == 2)
    shape = attention_of(shelf.whole.module, layer).shape if part == "mixer" else None
    itemsize = next(shelf.whole.parameters()).element_size()

    def memory(workload: Workload) -> float:
        return weights + (0 if shape is None else workload.batch * kept(block, shape, workload.prompt + workload.answer, itemsize))

    def flops(workload: Workload) -> float:
        mixing = 0.0 if shape is None else mixed(block, shape, workload.prompt + workload.answer)
        return workload.tokens * (matrices + mixing)

    out: dict[str, Cost] = {"parameters": parameters, "memory_bytes": memory, "flops": flops}
    if timed:
        key = spec_of(shelf, part, 0, layer), spec_of(shelf, part, n, layer)
        out |= {name: lambda workload, i=i: looked_up(timed, key, workload)[i] for i, name in enumerate(TIMES)}
    return out


def looked_up(timed: Mapping[Any, tuple[float, float]], key: Any, workload: Workload) -> tuple[float, float]:
    """What was timed.

    Raises:
        Refused: `limit`, for a workload that was not.
    """
    if (key, workload) not in timed:
        known = ", ".join(dict.fromkeys(str(other) for _, other in timed))
        raise Refused("limit", "search.costs", f"a workload that was timed: {known}", str(workload), "give it to library as well")
    return timed[key, workload]


def kept(block: Block | None, shape: Shape, length: int, itemsize: int) -> float:
    """Bytes that a mixer remembers of a row; attention itself keeps keys and values."""
    own = 2 * shape.kv_heads * shape.head_dim * itemsize * shape.remembered(length)
    return block.state_bytes(shape, length, itemsize) if isinstance(block, Mixer) else own


def mixed(block: Block | None, shape: Shape, length: int) -> float:
    """Operations of one position of a mixer beyond its matrices."""
    return block.flops(shape, length) if isinstance(block, Mixer) else 4.0 * shape.heads * shape.head_dim * shape.seen(length)


def spec_of(shelf: Shelf, part: str, n: int, layer: int) -> str:
    """What the time of a part depends on; of attention itself the spec of the same attention in a module of ours."""
    if n:
        return json.dumps(shelf.parts[part, n, layer].spec, sort_keys=True)
    if part == "mlp":
        return json.dumps({"mlp": [list(p.shape) for p in stock(shelf, part, layer).parameters()]})
    shape = attention_of(shelf.whole.module, layer).shape
    return json.dumps(GroupedAttention(kv_heads=shape.kv_heads).spec(shape), sort_keys=True)


def seconds(shelf: Shelf, workloads: Sequence[Workload], clock: Clock) -> dict[tuple[Any, Workload], tuple[float, float]]:
    """Specs of what was there and of a part in its place (or `REST`), workload -> seconds to read all prompts, and to write all answers.

    A part by itself would find its weights in a cache, where the model reads them from memory, and would lack all that goes on around it. So
    the model is timed as it is, with each kind of part in all blocks that it fits at once, and without any: what was there costs what the model
    takes less without it, and another part as much more or less as the model takes with it, shared out to the blocks.
    """
    stocks = {(part, layer): spec_of(shelf, part, 0, layer) for part in counted(shelf) for layer in range(shelf.num_layers)}
    slots: dict[tuple[str, str], dict[tuple[str, int], nn.Module]] = {}
    for (part, layer), stock_spec in stocks.items():
        kinds = {spec_of(shelf, part, n, layer): shelf.parts[part, n, layer].module for n in range(1, counted(shelf)[part] + 1)}
        kinds.pop(stock_spec, None)  # the same once more
        silent = begun(NoMixer() if part == "mixer" else NoMlp(), shelf.whole, layer).module
        for key, module in {SILENCE: silent, **kinds}.items():
            slots.setdefault((stock_spec, key), {})[part, layer] = module
    arms: dict[Any, dict[tuple[str, int], nn.Module]] = {None: {}, **slots}
    found: dict[tuple[Any, Workload], tuple[float, float]] = {}
    for workload in workloads:
        took = durations(shelf, arms, workload, clock)

        def spent(arm: tuple[str, str], took: Mapping[Any, tuple[float, float]] = took) -> list[float]:
            """What one part takes beyond what was there, which may be less."""
            return [(with_it - whole) / len(slots[arm]) for with_it, whole in zip(took[arm], took[None], strict=True)]

        own = {stock_spec: [max(0.0, -x) for x in spent((stock_spec, SILENCE))] for stock_spec in stocks.values()}
        for arm in slots:
            x, y = (max(0.0, here + more) for here, more in zip(own[arm[0]], spent(arm), strict=True))
            found[arm, workload] = x, y
        found |= {((stock_spec, stock_spec), workload): (x, y) for stock_spec, (x, y) in own.items()}
        rest = [max(0.0, took[None][i] - math.fsum(own[stock_spec][i] for stock_spec in stocks.values())) for i in (0, 1)]
        found[REST, workload] = rest[0], rest[1]
    return found


def durations(
    shelf: Shelf, arms: Mapping[Any, Mapping[tuple[str, int], nn.Module]], workload: Workload, clock: Clock
) -> dict[Any, tuple[float, float]]:
    """Arm -> the seconds that the model takes for a workload with some modules in its blocks: one reading of the prompts, and as many single
    positions as are written, each as long as one half way. The shortest of some runs, in which arms take turns."""
    from limbeck.block._mixing import hear_padding  # imports transformers

    module: Any = shelf.whole.module
    like, half = next(module.parameters()), max(workload.prompt + workload.answer // 2, 1)
    ids = torch.zeros(workload.batch, half, dtype=torch.long, device=like.device)

    def read(length: int) -> Any:
        return module(ids[:, :length], use_cache=True, logits_to_keep=1).past_key_values

    def timed(work: Callable[[], Any]) -> float:
        settle(like)
        begin = clock()
        work()
        settle(like)
        return clock() - begin

    best = {arm: [math.inf if workload.prompt else 0.0, math.inf if workload.answer else 0.0] for arm in arms}
    with torch.no_grad():
        for _ in range(REPEATS):
            for arm, modules in arms.items():
                heard = [module.base_model.register_forward_pre_hook(hear_padding, with_kwargs=True)] if modules else []  # as students have it
                with shelf.standing({place: one.to(device=like.device, dtype=like.dtype) for place, one in modules.items()}):
                    cache = read(half)  # each time anew: it warms up, and what one arm remembers is held at a time
                    works = (lambda: read(workload.prompt), lambda cache=cache: module(ids[:, :1], past_key_values=cache, use_cache=True))
                    best[arm] = [min(known, timed(work)) if known else 0.0 for known, work in zip(best[arm], works, strict=True)]
                for hook in heard:
                    hook.remove()
    return {arm: (prefill, token * workload.answer) for arm, (prefill, token) in best.items()}


def settle(like: torch.Tensor) -> None:
    """Waits until the device has done what it was asked."""
    if like.device.type != "cpu":
        torch.accelerator.synchronize(like.device)
