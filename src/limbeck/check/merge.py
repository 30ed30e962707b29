"""Contracts of merges: what is the same stays the same, and dtypes, shapes and inputs are kept."""

import torch
from torch import Tensor

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.component import changed
from limbeck.merge.base import Merge, merge

SHAPES = {"model.layers.0.mlp.up_proj.weight": (6, 4), "model.norm.weight": (4,), "model.embed_tokens.weight": (9, 4)}


def tensors(seed: int, num: int = 2, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """Weights of some students that came from one start, which is the first."""
    random = torch.Generator().manual_seed(seed)
    start = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    others = [{name: x + 0.1 * torch.randn(x.shape, generator=random) for name, x in start.items()} for _ in range(num)]
    return [{name: x.to(dtype) for name, x in state.items()} for state in (start, *others)]


def exercise(how: Merge) -> None:
    """One ordinary use."""
    start, *others = tensors(0)
    merge(how, others, start)


@contract
def self_merge(how: Merge, seed: int = 0) -> None:
    """A model merged with itself is itself, to the last bit."""
    for dtype in (torch.float32, torch.bfloat16):
        start, one = tensors(seed, 1, dtype)
        merged = merge(how, [one, one], start)
        for name, x in one.items():
            assert torch.equal(merged[name], x), f"{name} in {dtype} moves by {(merged[name].float() - x.float()).abs().max().item():.3g}"


@contract
def keeps_dtype(how: Merge, seed: int = 0) -> None:
    """Dtype, shape and names come out as they went in; numbers are finite; what is no floating-point number stays."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        start, *others = ({**state, "steps": torch.tensor([3])} for state in tensors(seed, dtype=dtype))
        merged = merge(how, others, start)
        assert merged.keys() == start.keys(), "names are lost or added"
        for name, x in others[0].items():
            y = merged[name]
            assert y.dtype == x.dtype and y.shape == x.shape, f"{name}: {y.dtype} {tuple(y.shape)}, was {x.dtype} {tuple(x.shape)}"
            assert y.isfinite().all(), f"{name} is not finite"


@contract
def symmetric(how: Merge, seed: int = 0) -> None:
    """Where claimed: the order of what is merged does not matter."""
    if not how.symmetric:
        raise NotClaimed("symmetric is not claimed")
    start, a, b = tensors(seed)
    one, other = merge(how, [a, b], start), merge(how, [b, a], start)
    for name in one:
        close(other[name], one[name], (1e-6, 1e-7), f"claimed; but {name} depends on the order")


@contract
def same_again(how: Merge, seed: int = 0) -> None:
    """The same weights give the same merge, and are not changed by it."""
    start, *others = tensors(seed)
    before = [{name: x.clone() for name, x in state.items()} for state in (start, *others)]
    first, second = merge(how, others, start), merge(how, others, start)
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name} differs when merged again"
    for was, state in zip(before, (start, *others), strict=True):
        for name, x in was.items():
            assert torch.equal(x, state[name]), f"{name} is changed in place"


@contract
def in_a_recipe(how: Merge) -> None:
    """It can stand in a recipe after the stages that it names."""
    from limbeck.recipe import Recipe, graph

    stages = [{"name": name, "start": "student", "objective": ["cross_entropy"], "steps": 1} for name in ("a", "b")]
    recipe = Recipe.model_validate({"train": stages, "merge": [changed(how, of=("a", "b"))]})
    assert graph(recipe)[-1].name == how.name and graph(recipe)[-1].after == ("a", "b"), "it does not come after what it merges"
