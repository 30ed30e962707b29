"""Code for code against compressed-tensors and torchao, on 16,384 random numbers. Run where they are installed: `pip install 'limbeck[quant]'`."""

import pytest
import torch

from limbeck.formats.fp8 import FP8
from limbeck.formats.integer import Integer
from limbeck.formats.nvfp4 import NVFP4
from limbeck.model.packed import arguments, words_of

X = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 64)[:, None]


def theirs(how, x: torch.Tensor, groups: torch.Tensor):
    """Arguments, scales and global scale as compressed-tensors computes them."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = quantization.QuantizationArgs(**arguments(how))
    whole = generate_gparam(x.amin(), x.amax()) if isinstance(how, NVFP4) else None
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale=whole)
    return quantization.QuantizationScheme(targets=["Linear"], weights=args), scale, whole


def test_nvfp4_is_that_of_compressed_tensors_byte_for_byte():
    scheme, scale, whole = theirs(NVFP4(), X, X.unflatten(-1, (-1, 16)))
    from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor

    packed = NVFP4PackedCompressor.compress({"weight": X, "weight_scale": scale, "weight_global_scale": whole}, scheme)
    ours = NVFP4().encode(X)
    assert float(ours.scale.float().min()) > 2.0**-6, "no block at the floor, where the two differ"
    assert torch.equal(ours.whole, whole) and torch.equal(ours.scale.float(), packed["weight_scale"].float())
    assert torch.equal(ours.packed, packed["weight_packed"])
    assert torch.equal(NVFP4PackedCompressor.decompress(packed, scheme)["weight"], NVFP4().decode(ours, torch.bfloat16))


@pytest.mark.parametrize("how", [Integer(4, 64), Integer(4, 128), Integer(8, 64), Integer(8)], ids=str)
def test_whole_numbers_are_those_of_compressed_tensors_word_for_word(how):
    groups = X.unflatten(-1, (-1, how.group or X.shape[1]))
    scheme, scale, _ = theirs(how, X, groups)
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    packed = PackedQuantizationCompressor.compress({"weight": X, "weight_scale": scale}, scheme)
    ours = how.encode(X)
    assert torch.equal(ours.scale, packed["weight_scale"]) and torch.equal(words_of(ours.packed), packed["weight_packed"])
    assert torch.equal(PackedQuantizationCompressor.decompress(packed, scheme)["weight"], how.decode(ours))


def test_fp8_is_that_of_compressed_tensors():
    scheme, scale, _ = theirs(FP8(), X, X[:, None])
    from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor

    packed = FloatQuantizationCompressor.compress({"weight": X, "weight_scale": scale}, scheme)
    ours = FP8().encode(X)
    assert torch.equal(ours.scale, packed["weight_scale"]) and torch.equal(ours.packed.float(), packed["weight"].float())
    assert torch.equal(FloatQuantizationCompressor.decompress(packed, scheme)["weight"], FP8().decode(ours))


def test_what_layers_hear_is_rounded_as_compressed_tensors_does_it():
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    x = X.view(4, 16, 256)
    for how in (NVFP4(), FP8(), Integer(8)):
        args, frozen = quantization.QuantizationArgs(**arguments(how, heard=True)), how.frozen(5.0)
        scale, whole = torch.tensor([frozen]), None
        if isinstance(how, NVFP4):
            whole = scale
            scale, _ = compute_dynamic_scales_and_zp(x, args, torch.nn.Identity(), global_scale=whole)
        assert torch.equal(fake_quantize(x, scale, None, args, global_scale=whole), how.fake(x, frozen))


def test_nvfp4_is_that_of_torchao():
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    ours = NVFP4().encode(X)
    scale, packed = nvfp4.nvfp4_quantize(X, per_tensor_scale=1 / ours.whole)
    # it multiplies by the reciprocal of the step: a number within a rounding of a tie may get the neighbour's code; here none does
    assert torch.equal(scale.float(), ours.scale.float()) and torch.equal(packed, ours.packed)
