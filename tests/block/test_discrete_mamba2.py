import pytest
import torch
from torch.nn import functional as F
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from limbeck.block.base import Attention, Shape, module_of
from limbeck.block.discrete_mamba2 import DiscreteMamba2
from limbeck.errors import Refused

SHAPE = Shape(width=10, heads=2, kv_heads=1, head_dim=4, scale=0.5, bias=True, out_bias=True, rotary=True)


def drawn(mixer, shape=SHAPE, move=0.3):
    torch.manual_seed(0)
    module = module_of(mixer.spec(shape), 0).double()
    with torch.no_grad():
        for p in module.parameters():
            p += move * torch.randn_like(p)
    return module, torch.randn(2, 11, shape.width, dtype=torch.float64)


def by_loops(m, x):
    """As it is written: project, convolve, S = sigmoid(-a) S + B x', y = S' C + D x, gate, project."""
    _, length, _ = x.shape
    sizes = [m.q_proj.out_features, m.k_proj.out_features, m.v_proj.out_features]
    heads, channels = m.heads, sum(sizes)
    out = torch.zeros_like(x)
    for b, row in enumerate(x):
        joined = torch.cat([row @ p.weight.T + (0 if p.bias is None else p.bias) for p in (m.q_proj, m.k_proj, m.v_proj)], -1)
        late = torch.cat([torch.zeros(3, channels, dtype=x.dtype), joined])
        convolved = torch.stack([sum(late[t + j] * m.conv.weight[:, 0, j] for j in range(4)) + m.conv.bias for t in range(length)])
        c, k, v = (part.view(length, heads, -1) for part in convolved.split(sizes, -1))
        keep, gate = torch.sigmoid(-(row @ m.a_proj.weight.T)), row @ m.z_proj.weight.T + m.z_bias
        said = torch.zeros(length, heads, v.shape[-1], dtype=x.dtype)
        for h in range(heads):
            s = torch.zeros(k.shape[-1], v.shape[-1], dtype=x.dtype)
            for t in range(length):
                s = keep[t, h] * s + torch.outer(k[t, h], v[t, h])
                said[t, h] = s.T @ c[t, h] + m.D[h] * v[t, h]
        out[b] = (said.flatten(1) * gate * torch.sigmoid(gate)) @ m.o_proj.weight.T + (0 if m.o_proj.bias is None else m.o_proj.bias)
    return out


@pytest.mark.parametrize("mixer", [DiscreteMamba2(), DiscreteMamba2(transfer=True), DiscreteMamba2(state=3, head_dim=5)], ids=repr)
def test_it_is_the_recurrence_as_it_is_written(mixer):
    module, x = drawn(mixer)
    torch.testing.assert_close(module.mix(x, None, None, None)[0], by_loops(module, x), rtol=1e-10, atol=1e-10)


def test_its_core_is_the_scan_of_mamba2_with_the_step_taken_out():
    # x / softplus(a) with steps softplus(a) and A = -1: how kernels of Mamba-2 are made to compute it
    module, x = drawn(DiscreteMamba2())
    q, k, v, _ = module.project(x, None, None)
    step = F.softplus(module.a_proj(x))
    scanned = mamba2_chunk_scan(v / step[..., None], step, -torch.ones(2, dtype=x.dtype), k, q, chunk_size=4)
    matrix, values = module.materialize(x, None, None)
    wanted = scanned + module.D[:, None] * v  # what is skipped past the state is no part of a step
    torch.testing.assert_close((matrix @ values).transpose(1, 2), wanted.double(), rtol=1e-4, atol=1e-5)  # it computes in float32


def test_convolution_gate_and_skip_begin_as_the_identity():
    module, x = drawn(DiscreteMamba2(), move=0.0)
    q, k, v, _ = module.project(x, None, None)
    for got, proj in ((q, module.q_proj), (k, module.k_proj), (v, module.v_proj)):
        torch.testing.assert_close(got.flatten(2), proj(x), rtol=0, atol=1e-15)
    o = torch.randn(2, 2, 11, 4, dtype=torch.float64)
    torch.testing.assert_close(module.output(o, x), module.o_proj(o.transpose(1, 2).flatten(2)), rtol=1e-7, atol=1e-7)  # b_z is a float32
    assert (module.D == 1).all()


@pytest.mark.parametrize("expand", [True, False])
def test_with_transfer_the_matrix_without_its_decay_holds_the_scores_of_attention(expand):
    draw = torch.Generator().manual_seed(3)
    sizes = {"query": (8, 10), "key": (4, 10), "value": (4, 10), "output": (10, 8)}
    weights = {name: torch.randn(size, generator=draw, dtype=torch.float64) for name, size in sizes.items()}
    biases = {name: torch.randn(size[0], generator=draw, dtype=torch.float64) for name, size in sizes.items()}
    mixer = DiscreteMamba2(transfer=True, expand=expand)
    module, x = drawn(mixer, move=0.0)
    copied = mixer.begin(module, Attention(SHAPE, weights, biases, {}))
    assert set(copied) == {f"{part}_proj.{kind}" for part in "qkvo" for kind in ("weight", "bias")}
    q, k = (F.linear(x, weights[name], biases[name]) for name in ("query", "key"))
    scores = torch.stack([q[..., 4 * h : 4 * h + 4] @ k.mT for h in range(2)], 1)  # both query heads read the one key head
    keep = -F.softplus(module.a_proj(x)).cumsum(1).transpose(1, 2)
    matrix = module.materialize(x, None, None)[0] - torch.eye(11, dtype=torch.float64)
    torch.testing.assert_close(matrix / (keep[..., None] - keep[..., None, :]).exp(), scores.tril(), rtol=1e-8, atol=1e-8)


def test_without_transfer_nothing_is_copied_and_there_are_no_biases_and_no_norms():
    shape = Shape(width=10, heads=2, kv_heads=1, head_dim=4, scale=0.5, bias=True, out_bias=True, rotary=True, norm_eps=1e-6)
    module, _ = drawn(DiscreteMamba2(), shape)
    names = {name for name, _ in module.named_parameters()}
    assert {name for name in names if name.endswith("bias")} == {"z_bias", "conv.bias"} and not any("norm" in name for name in names)
    assert DiscreteMamba2().begin(module, Attention(shape, {}, {}, {})) == {}


@pytest.mark.parametrize("sizes", [{"state": 8}, {"head_dim": 2}])
def test_a_transfer_into_other_sizes_is_refused(sizes):
    with pytest.raises(Refused, match="leave out state and head_dim"):
        DiscreteMamba2(transfer=True, **sizes).spec(SHAPE)
    DiscreteMamba2(transfer=True, **dict.fromkeys(sizes, 4)).spec(SHAPE)
