"""Codes and scales on the disk: how many bits, which tensors, and that limbeck and others read them as the student was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from limbeck.check.export import PROVENANCE
from limbeck.check.models import family_of, fresh, move, quiet
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.packed import Packed
from limbeck.formats.nvfp4 import NVFP4
from limbeck.model.adapters import merged
from limbeck.model.headers import check_safetensors
from limbeck.model.opening import open_pretrained
from limbeck.model.packed import scheme_of
from limbeck.model.quantised import latent, quantised
from limbeck.student.quantize import Quantize

SIZES = {"width": 128, "mlp_width": 256, "head_dim": 32}
IDS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(1))
EVERY = [
    ("nvfp4", "none"),
    ("nvfp4", "nvfp4"),
    ("fp8", "none"),
    ("fp8", "fp8"),
    ("int8", "none"),
    ("int8", "int8"),
    ("int4", "none"),
    ("binary", "none"),
]
every = pytest.mark.parametrize("weights, activations", EVERY)
LAYER = "model.layers.1.mlp.down_proj"
"""[128, 256]"""
TENSORS = {
    # what compressed-tensors 0.20 writes of such a layer, by name, dtype and shape; signs are limbeck's own
    ("nvfp4", "none"): {"weight_packed": ("U8", (128, 128)), "weight_scale": ("F8_E4M3", (128, 16)), "weight_global_scale": ("F32", (1,))},
    ("fp8", "none"): {"weight": ("F8_E4M3", (128, 256)), "weight_scale": ("F32", (128, 1))},
    ("int8", "none"): {"weight_packed": ("I32", (128, 64)), "weight_scale": ("F32", (128, 1)), "weight_shape": ("I64", (2,))},
    ("int8", "int8"): {"weight": ("I8", (128, 256)), "weight_scale": ("F32", (128, 1)), "input_scale": ("F32", (1,))},
    ("int4", "none"): {"weight_packed": ("I32", (128, 32)), "weight_scale": ("F32", (128, 2)), "weight_shape": ("I64", (2,))},
    ("binary", "none"): {"weight_packed": ("U8", (128, 32)), "weight_scale": ("F32", (128, 2))},
}
TENSORS["nvfp4", "nvfp4"] = {**TENSORS["nvfp4", "none"], "input_global_scale": ("F32", (1,))}
TENSORS["fp8", "fp8"] = {**TENSORS["fp8", "none"], "input_scale": ("F32", (1,))}
LAYOUTS = {"nvfp4": "nvfp4-pack-quantized", "fp8": "float-quantized", "int4": "pack-quantized", "binary": "limbeck-binary"}


def says(module: Any) -> torch.Tensor:
    with torch.no_grad():
        return module(IDS).logits


def student(weights: str, activations: str = "none", **fields: Any) -> Any:
    """A small model, rounded, that has learned a little since."""
    surgery = Quantize(weights=weights, activations=activations, **fields)
    role = surgery.settle(fresh(**SIZES), lambda role: float(says(role.module).sum()))(fresh(**SIZES))
    move(role)
    return role.eval()


def written(role: Any, folder: Path, **fields: Any) -> list[dict[str, Any]]:
    with quiet():
        return Packed(**fields)(Parcel(role, folder, {"verdict": "x"}, PROVENANCE))


def opened(folder: Path, dtype: str = "auto") -> Any:
    with quiet():
        module = open_pretrained(f"path:{folder}", dtype=dtype).module
    module.set_attn_implementation("eager")
    return module


@every
def test_the_student_is_read_back_to_the_last_bit(weights, activations, tmp_path):
    role = student(weights, activations)
    checks = written(role, tmp_path)
    again = opened(tmp_path)
    assert torch.equal(says(again), says(role.module)) and [check["open"] for check in checks] == [False, False]
    for name, p in merged(role).module.state_dict().items():
        assert torch.equal(again.state_dict()[name], p), name
    assert len(quantised(again)) == (0 if activations == "none" else 28) and not latent(again)
    assert latent(role.module), "the student in memory is left alone"


@every
def test_it_holds_the_tensors_that_others_look_for(weights, activations, tmp_path):
    written(student(weights, activations), tmp_path)
    stored = {name: (at.dtype, at.shape) for name, at in check_safetensors(tmp_path / "model.safetensors").items()}
    assert {name.removeprefix(LAYER + "."): at for name, at in stored.items() if name.startswith(LAYER)} == TENSORS[weights, activations]
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= stored.keys()
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    layout = LAYOUTS.get(weights) or ("pack-quantized" if activations == "none" else "int-quantized")
    assert (said["format"], said["ignore"]) == (layout, ["lm_head"])
    assert said["quant_method"] == ("limbeck" if weights == "binary" else "compressed-tensors")
    (group,) = said["config_groups"].values()
    assert group["targets"] == ["Linear"] and (group["input_activations"] is None) == (activations == "none")


WEIGHTS, ROWS, LAYERS = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 256, 128 + 64 + 64 + 128 + 256 + 256 + 128, 7
"""Of one block: queries and outputs, keys and values, and the MLP."""


@pytest.mark.parametrize(
    "weights, bits",
    [
        ("nvfp4", 4 + 8 / 16 + LAYERS * 32 / WEIGHTS),  # codes, scales of 8 bits for 16, one of 32 bits a layer
        ("int4", 4 + 32 / 128 + LAYERS * 128 / WEIGHTS),  # codes, scales of 32 bits for 128, two numbers of 64 bits for the shape
        ("fp8", 8 + 32 * ROWS / WEIGHTS),
        ("binary", 1 + 32 / 128),
    ],
)
def test_bits_a_weight_are_those_of_the_format(weights, bits, tmp_path):
    told, _ = written(student(weights), tmp_path)
    assert told["bits_a_weight"] == pytest.approx(bits, rel=1e-12) and f"{bits:.3f} bits a weight" in told["result"]
    assert weights == "fp8" or bits <= 4.6
    sizes = {name: 8 * at_bytes for name, at_bytes in bytes_of(tmp_path).items() if "_proj" in name}
    assert sum(sizes.values()) / (4 * WEIGHTS) == pytest.approx(bits, rel=1e-12), "what the file itself holds"


def bytes_of(folder: Path) -> dict[str, int]:
    """Name -> bytes of a tensor, from the header of the file."""
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {name: at["data_offsets"][1] - at["data_offsets"][0] for name, at in header.items() if name != "__metadata__"}


def test_weights_are_written_as_codes_of_the_exact_ones_and_not_of_rounded_ones(tmp_path):
    role = student("nvfp4")
    written(role, tmp_path)
    from safetensors.torch import load_file

    packed = load_file(tmp_path / "model.safetensors")[f"{LAYER}.weight_packed"]
    assert torch.equal(packed, NVFP4().encode(role.module.get_submodule(LAYER).weight).packed)


def test_the_rest_may_be_narrower_and_the_student_in_memory_is_not(tmp_path):
    role = student("nvfp4", "nvfp4")
    before = says(role.module)
    written(role, tmp_path, dtype="bfloat16")
    assert {at.dtype for name, at in check_safetensors(tmp_path / "model.safetensors").items() if "norm" in name or "embed" in name} == {"BF16"}
    assert opened(tmp_path).dtype == torch.bfloat16 and opened(tmp_path, "float32").dtype == torch.float32
    assert torch.equal(says(role.module), before)


def test_layers_that_stayed_exact_are_written_as_they_are(tmp_path):
    role = student("fp8", skip=("down_proj",), edges=1)
    (told, _) = written(role, tmp_path)
    assert told["result"].startswith("12 of 12") and len(json.loads((tmp_path / "config.json").read_text())["quantization_config"]["ignore"]) == 17
    assert torch.equal(says(opened(tmp_path)), says(role.module))


def test_a_head_of_its_own_is_packed_and_a_tied_one_is_kept_once(tmp_path):
    role = student("nvfp4", head=True)
    (told, _) = written(role, tmp_path / "own")
    assert told["result"].startswith("29 of 29") and torch.equal(says(opened(tmp_path / "own")), says(role.module))
    role = family_of("llama", 0, torch.float32, **SIZES)
    role.module.config.tie_word_embeddings = True
    role.module.lm_head.weight = role.module.model.embed_tokens.weight
    written(Quantize()(role), tmp_path / "tied")
    assert "lm_head.weight" not in check_safetensors(tmp_path / "tied" / "model.safetensors")
    again = opened(tmp_path / "tied")
    assert again.lm_head.weight is again.model.embed_tokens.weight and torch.equal(says(again), says(role.module))


def test_layers_that_no_layout_is_for_are_written_as_numbers_and_told(tmp_path):
    role = Quantize()(family_of("gpt2", 0, torch.float32))
    (told, _) = written(role, tmp_path)
    assert told["open"] and "none: of 8 rounded layers" in told["result"]
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(says(opened(tmp_path)), says(merged(role).module))


def test_adapters_beside_rounded_weights_are_written_as_numbers_and_told(tmp_path):
    pytest.importorskip("peft")
    from limbeck.student.lora import Lora

    role = Lora(rank=2)(student("nvfp4", "nvfp4"))
    move(role)
    (told, _) = written(role, tmp_path)
    assert told["open"] and "none: of 28 rounded layers" in told["result"] and "what layers hear is not rounded here" in told["result"]
    assert not quantised(opened(tmp_path))


def test_a_class_that_transformers_has_not_is_refused(tmp_path):
    class Own(LlamaForCausalLM):
        pass

    role = student("nvfp4")
    role.module.__class__ = Own
    with pytest.raises(Refused) as caught:
        written(role, tmp_path)
    assert caught.value.slug == "packed" and caught.value.got == "Own"


def test_the_card_says_who_reads_it(tmp_path):
    for weights, words in (("nvfp4", "needs the package `compressed-tensors`"), ("binary", "limbeck alone opens this folder")):
        written(student(weights), tmp_path / weights)
        card = (tmp_path / weights / "README.md").read_text()
        assert words in card and "needs nothing of limbeck" not in card


def test_a_student_that_is_not_finite_is_not_written(tmp_path):
    role = student("int8")
    with torch.no_grad():
        role.module.get_submodule(LAYER).weight[3, 4] = float("nan")
    with pytest.raises(Refused) as caught:
        written(role, tmp_path)
    assert caught.value.slug == "finite"


@pytest.mark.parametrize("weights, activations", [pair for pair in EVERY if pair[0] in ("fp8", "int8", "int4")])
def test_transformers_says_the_same_to_the_last_bit(weights, activations, tmp_path):
    pytest.importorskip("compressed_tensors")
    role = student(weights, activations)
    written(role, tmp_path)
    with quiet():
        again, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(says(again.eval()), says(role.module))


@pytest.mark.parametrize("activations", ["none", "nvfp4"])
def test_transformers_reads_the_same_weights_of_nvfp4_and_rounds_what_layers_hear_alike(activations, tmp_path):
    pytest.importorskip("compressed_tensors")
    role = student("nvfp4", activations)
    written(role, tmp_path, dtype="bfloat16")  # compressed-tensors decodes NVFP4 into bfloat16, whatever the model's dtype
    with quiet():
        again = LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto", attn_implementation="eager").eval()
    said, ours = says(again), opened(tmp_path)  # it decodes when it is asked first
    theirs = dict(again.named_parameters())
    assert all(torch.equal(theirs[name], p) for name, p in ours.named_parameters())
    assert activations != "none" or torch.equal(said, says(ours))
    nn.Module.float(again)  # in bfloat16 it measures blocks in bfloat16, and may say another scale: in float32 both do the same
    assert torch.equal(says(again), says(nn.Module.float(ours)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_compressed_tensors_has_written_is_read(dtype, tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    module: Any = fresh(**SIZES).module.to(dtype)
    config = QuantizationConfig(config_groups={"group_0": preset_name_to_scheme("W4A16", ["Linear"])}, ignore=["lm_head"], format="pack-quantized")
    apply_quantization_config(module, config)
    for part in module.modules():
        if hasattr(part, "weight_scale"):
            groups = part.weight.detach().unflatten(-1, (-1, 128))
            part.weight_scale.data = calculate_qparams(groups.amin(-1), groups.amax(-1), part.quantization_scheme.weights)[0].to(dtype)
    compressor = ModelCompressor.from_pretrained_model(module)
    compressor.compress_model(module)
    with quiet():
        nn.Module.to(module, dtype)
        LlamaForCausalLM.save_pretrained(module, tmp_path)
        compressor.update_config(tmp_path)
    assert scheme_of(json.loads((tmp_path / "config.json").read_text())) is not None, "limbeck reads it itself"
    ours = opened(tmp_path).get_submodule(LAYER).weight
    compressor.decompress_model(module)
    torch.testing.assert_close(ours, module.get_submodule(LAYER).weight, rtol=0 if dtype == torch.float32 else 2**-7, atol=0)
