"""Model folders merged without a run: shards, what stands beside the weights, and what is refused before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.check.models import family_of, quiet
from limbeck.errors import Failed, LimbeckError, Refused
from limbeck.export.base import Parcel
from limbeck.export.packed import Packed
from limbeck.export.safetensors import Safetensors
from limbeck.merge.average import Average
from limbeck.merge.folders import files_of, merge_folders
from limbeck.merge.slerp import Slerp
from limbeck.merge.task_arithmetic import TaskArithmetic
from limbeck.student.linearize import Linearize
from limbeck.student.quantize import Quantize

VOCAB = {"a": 0, "b": 1, "c": 2}
MEAN = Average()


def model(path: Path, seed: int, shards: int = 2, vocab: dict[str, int] = VOCAB, change: Any = None) -> dict[str, Tensor]:
    """A folder as `save_pretrained` writes it, with six tensors; returns them."""
    path.mkdir()
    random = torch.Generator().manual_seed(seed)
    tensors = {f"layers.{i}.weight": torch.randn(3, 4, generator=random).bfloat16() for i in range(6)}
    tensors = change(tensors) if change else tensors
    places = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        mine = {name: x for name, x in tensors.items() if places[name] == file}
        save_file(mine, path / ("model.safetensors" if shards == 1 else file), {"format": "pt"})
    if shards > 1:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "seed": seed}))
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": [{"content": "<end>", "id": 9}]}))
    (path / "chat_template.jinja").write_text(str(seed))
    (path / "README.md").write_text("the card of another model")
    return tensors


def test_shards_are_merged_and_what_stands_beside_them_is_the_first_ones(tmp_path: Path) -> None:
    one, two, three = model(tmp_path / "one", 1), model(tmp_path / "two", 2, shards=3), model(tmp_path / "three", 3, shards=1)
    merge_folders(Average(weights=(1, 1, 2)), [tmp_path / "one", tmp_path / "two", tmp_path / "three"], None, tmp_path / "out")
    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((tmp_path / "one" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["metadata"]["total_size"] == 6 * 12 * 2
    found = {name: x for file in set(index["weight_map"].values()) for name, x in load_file(out / file).items()}
    for name, x in found.items():
        expected = (one[name].double() + two[name].double() + 2 * three[name].double()) / 4
        assert x.dtype == torch.bfloat16 and torch.equal(x, expected.bfloat16())
    assert found.keys() == one.keys() and json.loads((out / "config.json").read_text())["seed"] == 1
    beside = {path.name for path in out.iterdir() if path.suffix != ".safetensors"}
    assert beside == {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json", "manifest.json"}


def test_a_base_in_one_file_gives_changes(tmp_path: Path) -> None:
    base, one, two = (model(tmp_path / name, i, shards=1) for i, name in enumerate(("base", "one", "two")))
    for _ in range(2):  # written again, it is replaced
        merge_folders(TaskArithmetic(scale=0.5), [tmp_path / "one", tmp_path / "two"], tmp_path / "base", tmp_path / "out")
    for name, x in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(x, ((one[name].double() + two[name].double()) / 2).bfloat16()), name
    assert base.keys() == one.keys() and not (tmp_path / "out" / "model.safetensors.index.json").exists()


def refused(tmp_path: Path, how: Any = MEAN, base: Path | None = None, out: str = "out", num: int = 2) -> LimbeckError:
    folders = [tmp_path / "one", tmp_path / "two"][:num]
    with pytest.raises(LimbeckError) as caught:
        merge_folders(how, folders, base, tmp_path / out)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    return caught.value


def longer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "layers.4.weight": torch.zeros(3, 5)}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("layers.2", "blocks.2"): x for name, x in tensors.items()}


def more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "lm_head.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    "change, words",
    [
        (longer, ("'layers.4.weight' of shape (3, 4)", "shape (3, 5)")),
        (renamed, ("'layers.2.weight' of shape (3, 4)", "no such tensor")),
        (more, ("no 'lm_head.weight'", "shape (2,)")),
    ],
)
def test_the_first_tensor_that_is_not_alike_is_named(tmp_path: Path, change: Any, words: tuple[str, str]) -> None:
    model(tmp_path / "one", 1)
    model(tmp_path / "two", 2, change=change)
    error = refused(tmp_path)
    assert isinstance(error, Failed) and error.code == 5 and words[0] in error.expected and words[1] in error.got
    assert str(tmp_path / "two") in error.got
    model(tmp_path / "three", 3)
    (tmp_path / "two").rename(tmp_path / "base")
    (tmp_path / "three").rename(tmp_path / "two")
    assert "in the base" in refused(tmp_path, TaskArithmetic(), tmp_path / "base").got


def test_other_vocabularies_of_one_size_are_refused_with_the_first_entry(tmp_path: Path) -> None:
    model(tmp_path / "one", 1)
    model(tmp_path / "two", 2, vocab={"a": 0, "c": 1, "b": 2})
    error = refused(tmp_path)
    assert error.slug == "tokenizer" and "1 is 'b'" in error.expected and "1 is 'c'" in error.got


def test_without_a_base_where_one_is_needed_it_says_so_and_too_many_are_counted(tmp_path: Path) -> None:
    model(tmp_path / "one", 1)
    model(tmp_path / "two", 2)
    error = refused(tmp_path, TaskArithmetic())
    assert isinstance(error, Refused) and error.slug == "merge" and "weights before training" in error.expected and "without a base" in error.do
    assert "two names" in refused(tmp_path, Slerp(), num=1).expected
    assert "one for each of 2" in refused(tmp_path, Average(weights=(1.0, 2.0, 3.0))).expected
    assert refused(tmp_path, out="two").slug == "exists"


def test_a_tokenizer_that_is_none_is_said_to_be_corrupt(tmp_path: Path) -> None:
    model(tmp_path / "one", 1)
    model(tmp_path / "two", 2)
    (tmp_path / "two" / "tokenizer.json").write_text('{"model": {"vocab": [1]}}')
    assert refused(tmp_path).slug == "corrupt"


def test_code_that_lies_beside_weights_is_kept_beside_the_merged_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with quiet():
            Safetensors()(Parcel(Linearize(layers=(0,))(family_of("llama", dtype=torch.float32)), tmp_path / name, {}, ()))
    merge_folders(MEAN, [tmp_path / "a", tmp_path / "b"], None, tmp_path / "out")
    assert (tmp_path / "out" / "modeling_hybrid.py").read_text() == (tmp_path / "a" / "modeling_hybrid.py").read_text()


def test_a_folder_of_codes_is_refused(tmp_path: Path) -> None:
    role = Quantize(weights="int4")(family_of("llama", dtype=torch.float32, width=64, mlp_width=64, head_dim=32))
    with quiet():
        Packed()(Parcel(role, tmp_path, {}, ()))
    with pytest.raises(Refused, match="weights as numbers"):
        files_of(tmp_path)
