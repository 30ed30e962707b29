"""What the linear mixers take over from attention of real families, held against transformers' own repetition of key heads."""

import warnings

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import repeat_kv

from limbeck.block.base import Attention, Shape, module_of
from limbeck.block.discrete_mamba2 import DiscreteMamba2
from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.block.gated_linear_attention import GatedLinearAttention
from limbeck.block.linear_attention import LinearAttention
from limbeck.model.blocks import attention_of

SIZES = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,  # six heads of 8 are 48 channels: twice the width
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": (transformers.LlamaForCausalLM, {}),
    "qwen2": (transformers.Qwen2ForCausalLM, {"head_dim": 4}),  # biases; its config has no other head size than width / heads
    "qwen3": (transformers.Qwen3ForCausalLM, {}),  # norms of queries and keys
}
MIXERS = (DiscreteMamba2(transfer=True), GatedDeltaNet(), GatedLinearAttention(), LinearAttention())


def teacher(family):
    model_class, changes = FAMILIES[family]
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**SIZES | changes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model


def begun(mixer, model):
    """The module that stands in the place of the first attention, and what it says was copied."""
    taught = attention_of(model, 0)
    torch.manual_seed(1)
    module = module_of(mixer.spec(taught.shape), 0).double()
    return module, mixer.begin(module, taught)


def heard(model):
    """What attention makes of an input: queries, and keys and values for each query head, before they are turned."""
    part = model.model.layers[0].self_attn
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    q, k, v = (proj(x).unflatten(-1, (-1, part.head_dim)) for proj in (part.q_proj, part.k_proj, part.v_proj))
    if hasattr(part, "q_norm"):
        q, k = part.q_norm(q), part.k_norm(k)
    return x, q, *(repeat_kv(y.transpose(1, 2), part.num_key_value_groups).transpose(1, 2) for y in (k, v))


def taken_over(mixer, model):
    """Whether queries, keys and values are those of attention."""
    module, _ = begun(mixer, model)
    x, *wanted = heard(model)
    got = list(module.project(x, None, None)[:3])
    if isinstance(mixer, LinearAttention):
        got = [y.repeat_interleave(6 // y.shape[2], 2) for y in got]
    near = 1e-6 if mixer.spec(attention_of(model, 0).shape)["norm_eps"] else 1e-10  # norms of transformers compute in float32
    return all(torch.allclose(a, b, rtol=near, atol=near) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: m.kind)
def test_each_head_has_the_queries_keys_and_values_of_attention(mixer, family):
    assert taken_over(mixer, teacher(family))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("mixer", MIXERS[:3], ids=lambda m: m.kind)
def test_rows_repeated_one_by_one_in_place_of_whole_heads_are_noticed(mixer, family, monkeypatch):
    monkeypatch.setattr(Attention, "expanded", lambda self, x: x.repeat_interleave(self.shape.group, 0))
    assert not taken_over(mixer, teacher(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: m.kind)
def test_the_output_is_that_of_attention_and_what_is_said_to_be_copied_is_no_longer_what_it_was_born_with(mixer, family):
    model = teacher(family)
    module, copied = begun(mixer, model)
    torch.manual_seed(1)
    born = dict(module_of(mixer.spec(attention_of(model, 0).shape), 0).double().named_parameters())
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, born[name])}
    assert moved == set(copied)
    assert torch.equal(module.o_proj.weight, model.model.layers[0].self_attn.o_proj.weight)


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: m.kind)
def test_in_bfloat16_the_state_is_float32_and_takes_the_bytes_that_are_said(mixer):
    shape = Shape(width=24, heads=6, kv_heads=2, head_dim=8, scale=8**-0.5, bias=False, out_bias=False, rotary=True)
    module = module_of(mixer.spec(shape), 0).bfloat16()
    x = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        y, state = module.mix(x, None, None, None)
    assert y.dtype == torch.bfloat16 and state["memory"].dtype == torch.float32
    assert mixer.state_bytes(shape, 7, itemsize=2) == sum(part.numel() * part.element_size() for part in state.values())


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: m.kind)
def test_under_autocast_the_state_is_float32_and_what_is_put_out_is_near(mixer):
    shape = Shape(width=24, heads=6, kv_heads=2, head_dim=8, scale=8**-0.5, bias=False, out_bias=False, rotary=True)
    torch.manual_seed(0)
    module = module_of(mixer.spec(shape), 0)
    x = torch.randn(1, 40, 24)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of a norm whose weight has another dtype
        wanted, _ = module.mix(x, None, None, None)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, state = module.mix(x, None, None, None)
            then, _ = module.step(x[:, :1], None, None, state)
    assert state["memory"].dtype == torch.float32 and then.isfinite().all()
    assert F.cosine_similarity(y.float().flatten(), wanted.flatten(), dim=0) > 0.999  # rounding to 8 bits, a few times in a row


def test_the_work_of_a_position_is_counted_by_hand():
    # 2 heads, 4 channels: 2 * 4 * 4 = 32 entries; linear attention 2 * 8 * 5 = 80
    shape = Shape(width=6, heads=2, kv_heads=1, head_dim=4, scale=0.5, bias=False, out_bias=False, rotary=True)
    assert GatedLinearAttention().flops(shape, 9) == 5 * 32
    assert GatedDeltaNet().flops(shape, 9) == 7 * 32
    assert LinearAttention().flops(shape, 9) == 4 * 80 + 4 * 2 * 4**2  # the recurrence, and a matrix a head for queries and keys
    assert DiscreteMamba2().flops(shape, 9) == 5 * 32 + 2 * 4 * 24  # 3 * 8 channels with 4 taps
    assert DiscreteMamba2(state=2, head_dim=3, conv=0).state_bytes(shape, 9) == 2 * 2 * 3 * 4


def moved(mixer, shape):
    torch.manual_seed(0)
    module = module_of(mixer.spec(shape), 0).double()
    with torch.no_grad():
        for p in module.parameters():
            p += 0.3 * torch.randn_like(p)
    return module, torch.randn(2, 11, shape.width, dtype=torch.float64)


@pytest.mark.parametrize("mixer", [GatedDeltaNet(), GatedDeltaNet(conv=3), DiscreteMamba2(conv=3), DiscreteMamba2(transfer=True)], ids=repr)
def test_heads_that_are_shared_as_in_attention_say_what_their_copies_would(mixer):
    """Six query heads and two of keys: of the module with a key head each, every weight of a shared head stands three times."""
    shape = Shape(width=10, heads=6, kv_heads=2, head_dim=4, scale=0.5, bias=True, out_bias=False, rotary=True, norm_eps=1e-6)
    shared, x = moved(mixer.model_copy(update={"expand": False}), shape)
    copies, _ = moved(mixer, shape)
    weights = shared.state_dict()

    def repeated(y):
        return y.unflatten(0, (2, 4)).repeat_interleave(3, 0).flatten(0, 1)

    for name in weights:
        if name.startswith(("k_proj", "v_proj")):
            weights[name] = repeated(weights[name])
        elif name.startswith("conv"):  # queries, keys, values
            q, k, v = weights[name].split([24, 8, 8])
            weights[name] = torch.cat([q, repeated(k), repeated(v)])
    copies.load_state_dict(weights)
    (said, state), (wanted, full) = (module.mix(x, None, None, None) for module in (shared, copies))
    torch.testing.assert_close(said, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared.step(x[:, :1], None, None, state)[0], copies.step(x[:, :1], None, None, full)[0], rtol=1e-12, atol=1e-12)
    more, fewer = (sum(p.numel() for p in module.parameters()) for module in (copies, shared))
    assert more - fewer == 2 * 16 * (10 + (shared.k_proj.bias is not None)) + (mixer.conv > 0) * 2 * 16 * (mixer.conv + 1)


@pytest.mark.parametrize("kind", [GatedDeltaNet, DiscreteMamba2])
@pytest.mark.parametrize("expand", [True, False])
def test_a_convolution_of_shared_heads_remembers_as_many_channels_as_there_are(kind, expand):
    shape = Shape(width=10, heads=6, kv_heads=2, head_dim=4, scale=0.5, bias=False, out_bias=False, rotary=True)
    mixer = kind(conv=3, expand=expand)
    state = module_of(mixer.spec(shape), 0).mix(torch.randn(1, 5, 10), None, None, None)[1]
    assert mixer.state_bytes(shape, 5) == sum(x.numel() * x.element_size() for x in state.values())
