"""`steps/parameters.json` of a run: how each parameter of the student begins, all of them, and none that is not there."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from limbeck.start import run

SHORT = ("baseline=[]", "evaluate=[]", "train.0.steps=1")
PLAIN = ("train.0.reconstruct=null", "export=[safetensors]")
MIXER = "model.layers.{}.self_attn."


def told(folder: Path, recipe: str, *changes: str) -> tuple[dict[str, str], set[str]]:
    """What was written down, and the weights that were exported."""
    run(recipe, *SHORT, *changes, name="short", runs=folder, toy=True)
    with safe_open(folder / "short" / "student" / "model.safetensors", "pt") as file:
        return json.loads((folder / "short" / "steps" / "parameters.json").read_text()), set(file.keys())


def of_block(found: dict[str, str], layer: int) -> dict[str, str]:
    return {name.removeprefix(MIXER.format(layer)): how for name, how in found.items() if name.startswith(MIXER.format(layer))}


def test_every_weight_is_kept_copied_initialised_or_new(tmp_path: Path) -> None:
    found, exported = told(tmp_path, "llamba", "train.1.steps=1", "train.2.steps=1")
    assert found.keys() == exported
    drawn = {f"{part}_proj.weight": "new" for part in "qkvoa"}
    meant = dict.fromkeys(("z_proj.weight", "z_bias", "D", "conv.weight", "conv.bias"), "initialised")
    for layer in range(4):
        assert of_block(found, layer) == drawn | meant
    assert {how for name, how in found.items() if "self_attn" not in name} == {"kept"}


def test_attention_that_came_back_is_kept_and_what_stood_in_its_place_is_gone(tmp_path: Path) -> None:
    back: Any = json.dumps([{"kind": "restore_attention", "num": 2, "choose": "given", "layers": [0, 1]}])
    run("kl_guided", *SHORT, "train.1.steps=1", f"train.1.surgery={back}", "export=[]", name="short", runs=tmp_path, toy=True)
    found = json.loads((tmp_path / "short" / "steps" / "parameters.json").read_text())
    copied = {"q": "query", "k": "key", "v": "value", "o": "output"}
    for layer in (0, 1):
        assert of_block(found, layer) == {f"{part}_proj.weight": "kept" for part in copied}
    for layer in (2, 3):
        taken = {f"{part}_proj.weight": f"copied: {name}" for part, name in copied.items()}
        drawn = dict.fromkeys(("A_log", "dt_bias", "a_proj.weight", "b_proj.weight", "g_proj.weight"), "new")
        assert of_block(found, layer) == taken | drawn | {"o_norm.weight": "initialised"}


def test_what_was_cut_is_changed_and_all_else_is_kept(tmp_path: Path) -> None:
    found, exported = told(tmp_path, "quickstart", 'student.surgery=[{"kind": "keep_width", "mlp": 0.5}]', *PLAIN)
    assert found.keys() == exported
    assert {("mlp" in name, how) for name, how in found.items()} == {(True, "changed"), (False, "kept")}


def test_beside_adapters_the_weights_are_kept(tmp_path: Path) -> None:
    surgery = 'student.surgery=[{"kind": "lora", "rank": 2}]'
    run("quickstart", *SHORT, surgery, "train.0.reconstruct=null", "export=[]", name="short", runs=tmp_path, toy=True)
    found = json.loads((tmp_path / "short" / "steps" / "parameters.json").read_text())
    assert {("lora_" in name, how) for name, how in found.items()} == {(True, "new"), (False, "kept")}
