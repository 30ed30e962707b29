import pytest
import torch
from torch.nn import functional as F

from limbeck.block.base import Attention, Shape, module_of
from limbeck.block.gated_delta_net import GatedDeltaNet

SHAPE = Shape(width=10, heads=2, kv_heads=1, head_dim=4, scale=0.5, bias=True, out_bias=False, rotary=True)


def drawn(mixer, shape=SHAPE, move=0.3):
    torch.manual_seed(0)
    module = module_of(mixer.spec(shape), 0).double()
    with torch.no_grad():
        for p in module.parameters():
            p += move * torch.randn_like(p)
    return module, torch.randn(2, 11, shape.width, dtype=torch.float64)


def by_loops(m, x, taps):
    """As it is written, with the value's index in rows of S."""
    _, length, _ = x.shape
    out = torch.zeros_like(x)
    for b, row in enumerate(x):
        joined = torch.cat([row @ p.weight.T + p.bias for p in (m.q_proj, m.k_proj, m.v_proj)], -1)
        if taps:
            late = torch.cat([torch.zeros(taps - 1, 24, dtype=x.dtype), joined])
            joined = torch.stack([sum(late[t + j] * m.conv.weight[:, 0, j] for j in range(taps)) + m.conv.bias for t in range(length)])
        q, k, v = (part.view(length, 2, 4) for part in joined.split(8, -1))
        q, k = (u * torch.sigmoid(u) for u in (q, k))
        q, k = (u / u.square().sum(-1, keepdim=True).sqrt() for u in (q, k))
        alpha = torch.exp(-torch.exp(m.A_log) * torch.log1p(torch.exp(row @ m.a_proj.weight.T + m.dt_bias)))
        beta, gate = torch.sigmoid(row @ m.b_proj.weight.T), row @ m.g_proj.weight.T
        said = torch.zeros(length, 2, 4, dtype=x.dtype)
        for h in range(2):
            s = torch.zeros(4, 4, dtype=x.dtype)
            for t in range(length):
                key = k[t, h]
                s = alpha[t, h] * s @ (torch.eye(4, dtype=x.dtype) - beta[t, h] * torch.outer(key, key)) + beta[t, h] * torch.outer(v[t, h], key)
                o = s @ q[t, h]
                said[t, h] = o / (o.square().mean() + 1e-5).sqrt() * m.o_norm.weight
        out[b] = (said.flatten(1) * gate * torch.sigmoid(gate)) @ m.o_proj.weight.T
    return out


@pytest.mark.parametrize("taps", [0, 3])
def test_it_is_the_rule_as_it_is_written(taps):
    module, x = drawn(GatedDeltaNet(conv=taps))
    torch.testing.assert_close(module.mix(x, None, None, None)[0], by_loops(module, x, taps), rtol=1e-10, atol=1e-10)


def test_a_convolution_changes_nothing_to_begin_with():
    plain, x = drawn(GatedDeltaNet(), move=0.0)
    other, _ = drawn(GatedDeltaNet(conv=4), move=0.0)
    other.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(other.mix(x, None, None, None)[0], plain.mix(x, None, None, None)[0], rtol=1e-12, atol=1e-12)


def test_decays_begin_within_the_range_that_is_usual():
    shape = Shape(width=8, heads=400, kv_heads=1, head_dim=1, scale=1.0, bias=False, out_bias=False, rotary=True)
    module, _ = drawn(GatedDeltaNet(), shape, move=0.0)
    rate, step = module.A_log.detach().exp(), F.softplus(module.dt_bias.detach())
    assert 1 <= rate.min() < 1.5 and 15.5 < rate.max() <= 16  # of 400 draws from 1 to 16, one in 30 lies within the outer 0.5
    assert 0.001 * (1 - 1e-5) <= step.min() < 0.0011 and 0.09 < step.max() <= 0.1 * (1 + 1e-5)
    assert step.log().mean().item() == pytest.approx(-4.6, abs=0.2)  # drawn evenly in its logarithm: in the middle 0.01


def test_the_length_of_a_key_does_not_count_but_its_sign_does():
    module, x = drawn(GatedDeltaNet())
    q, k, v, beta, decay = module.rates(*module.project(x, None, None)[:3], x, None)
    torch.testing.assert_close(k.norm(dim=-1), torch.ones(2, 11, 2, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(2, 11, 2, dtype=torch.float64), rtol=1e-12, atol=0)
    raw = module.k_proj(x).unflatten(-1, (2, 4))
    assert torch.equal(k.sign(), raw.sign()) and ((beta > 0) & (beta < 1)).all() and (decay < 0).all()
    assert torch.equal(v, module.v_proj(x).unflatten(-1, (2, 4)))


@pytest.mark.parametrize("expand, heads", [(True, 3), (False, 1)])
def test_attention_is_taken_over_with_its_heads_or_a_copy_for_each_query_head(expand, heads):
    shape = Shape(width=5, heads=3, kv_heads=1, head_dim=4, scale=0.5, bias=True, out_bias=False, rotary=True)
    draw = torch.Generator().manual_seed(0)
    sizes = {"query": 12, "key": 4, "value": 4}
    weights = {name: torch.randn(size, 5, generator=draw) for name, size in sizes.items()} | {"output": torch.randn(5, 12, generator=draw)}
    biases = {name: torch.randn(size, generator=draw) for name, size in sizes.items()} | {"output": None}
    mixer = GatedDeltaNet(expand=expand)
    module = module_of(mixer.spec(shape), 0)
    mixer.begin(module, Attention(shape, weights, biases, {}))
    for part, name in (("key", "k_proj"), ("value", "v_proj")):
        assert torch.equal(getattr(module, name).weight, weights[part].repeat(heads, 1))
        assert torch.equal(getattr(module, name).bias, biases[part].repeat(heads))
    assert torch.equal(module.q_proj.weight, weights["query"]) and torch.equal(module.o_proj.weight, weights["output"])
