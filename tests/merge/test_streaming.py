"""Merges work in parts, one tensor at a time; states are read when they are asked for."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.component import find, members
from limbeck.merge import arcee_fusion
from limbeck.merge import base as merging
from limbeck.merge.average import Average
from limbeck.merge.base import Merge, merge
from limbeck.store import Later, load_state, load_tensors, save_state, save_tensors


@pytest.mark.parametrize("kind", sorted(members("merge")))
@pytest.mark.parametrize("shape", [(13, 5), (29,), ()])
def test_the_size_of_parts_changes_nothing(kind: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    how = find(Merge, kind)()  # type: ignore[type-abstract]
    random = torch.Generator().manual_seed(0)
    start, *others = (torch.randn(shape, generator=random) for _ in range(3 if how.pair else 4))
    whole = how("w", others, start)
    monkeypatch.setattr(merging, "PART", 7)
    monkeypatch.setattr(arcee_fusion, "PART", 7)
    in_parts = how("w", others, start)
    torch.testing.assert_close(in_parts, whole, rtol=1e-6, atol=0)
    assert whole.shape == shape and (not shape or not torch.equal(whole, start))


def written(folder: Path, tensors: dict[str, Tensor]) -> Any:
    folder.mkdir()
    save_state(folder, "state", tensors)
    return load_state(folder, "state", later=True)


def test_a_tensor_is_gone_before_the_next_is_read(tmp_path: Path) -> None:
    states = [written(tmp_path / str(i), {str(n): torch.full((4,), float(i)) for n in range(5)}) for i in range(3)]
    alive: list[tuple[str, weakref.ref[Tensor]]] = []

    def watched(name: str, later: Later) -> Later:
        def make() -> Tensor:
            assert all(other == name or ref() is None for other, ref in alive), f"when {name} is read, an earlier tensor is still there"
            made = later.make()
            alive.append((name, weakref.ref(made)))
            return made

        return Later(later.like, make)

    merged = merge(Average(), [{name: watched(name, later) for name, later in state.items()} for state in states], None)
    save_state(tmp_path, "out", merged)
    assert len(alive) == 15
    assert all(torch.equal(x, torch.ones(4)) for x in load_state(tmp_path, "out").values())


def test_one_tensor_with_two_names_is_merged_once_and_stays_one(tmp_path: Path) -> None:
    states = []
    for i in range(2):
        x = torch.full((3,), float(i))
        states.append(written(tmp_path / str(i), {"embed": x, "head": x, "steps": torch.tensor([i])}))
    asked: list[str] = []

    class Watched(Merge):
        def __call__(self, name, tensors, base):
            asked.append(name)
            return tensors[0]

    merged = merge(Watched(), states, None)
    save_state(tmp_path, "out", merged)
    out = load_state(tmp_path, "out")
    assert asked == ["embed"] and out["head"] is out["embed"] and out["steps"].tolist() == [0]


def test_what_is_read_later_is_what_is_read_now(tmp_path: Path) -> None:
    nested = {"a": [torch.arange(6).reshape(2, 3), torch.zeros(0)], "b": {"c": torch.tensor(1.5, dtype=torch.bfloat16)}, "d": 3}
    save_state(tmp_path, "state", nested)
    later = load_state(tmp_path, "state", later=True)
    assert later["d"] == 3 and later["a"][0].like.is_meta and tuple(later["a"][0].like.shape) == (2, 3)
    for one, expected in ((later["a"][0], nested["a"][0]), (later["a"][1], nested["a"][1]), (later["b"]["c"], nested["b"]["c"])):
        assert one.like.dtype == expected.dtype and torch.equal(one.make(), expected)


def test_a_file_of_tensors_made_later_has_the_bytes_of_one_made_at_once(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    tensors = {"x": shared, "y": shared, "z": torch.ones(2, dtype=torch.int64)}
    like = torch.empty_like(shared, device="meta")
    laters = {"x": Later(like, lambda: shared), "y": Later(like, lambda: shared), "z": Later(tensors["z"].to("meta"), lambda: tensors["z"])}
    save_tensors(tmp_path / "now", tensors)
    save_tensors(tmp_path / "later", laters)
    assert (tmp_path / "now").read_bytes() == (tmp_path / "later").read_bytes()
    assert load_tensors(tmp_path / "later").keys() == tensors.keys()
