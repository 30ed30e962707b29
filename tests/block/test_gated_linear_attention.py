import pytest
import torch

from limbeck.block.base import Shape, module_of
from limbeck.block.gated_linear_attention import GatedLinearAttention

SHAPE = Shape(width=10, heads=2, kv_heads=1, head_dim=4, scale=0.3, bias=True, out_bias=True, rotary=True)


def drawn(mixer, move=0.3):
    torch.manual_seed(0)
    module = module_of(mixer.spec(SHAPE), 0).double()
    with torch.no_grad():
        for p in module.parameters():
            p += move * torch.randn_like(p)
    return module, torch.randn(2, 11, SHAPE.width, dtype=torch.float64)


def by_loops(m, x, temperature):
    """As it is written."""
    _, length, _ = x.shape
    out = torch.zeros_like(x)
    for b, row in enumerate(x):
        q, k, v = ((row @ p.weight.T + p.bias).view(length, 2, 4) for p in (m.q_proj, m.k_proj, m.v_proj))
        low = row @ m.a_proj[0].weight.T
        keep = (torch.sigmoid(low @ m.a_proj[1].weight.T + m.a_proj[1].bias) ** (1 / temperature)).view(length, 2, 4)
        gate = row @ m.g_proj.weight.T + m.g_proj.bias
        said = torch.zeros(length, 2, 4, dtype=x.dtype)
        for h in range(2):
            s = torch.zeros(4, 4, dtype=x.dtype)
            for t in range(length):
                s = keep[t, h][:, None] * s + torch.outer(k[t, h], v[t, h])
                o = s.T @ q[t, h] * 0.3
                said[t, h] = o / (o.square().mean() + 1e-5).sqrt() * m.o_norm.weight
        out[b] = (said.flatten(1) * gate * torch.sigmoid(gate)) @ m.o_proj.weight.T + m.o_proj.bias
    return out


@pytest.mark.parametrize("fields", [{}, {"rank": 3, "temperature": 4.0}])
def test_it_is_the_recurrence_as_it_is_written(fields):
    mixer = GatedLinearAttention(**fields)
    module, x = drawn(mixer)
    assert module.a_proj[0].out_features == mixer.rank
    torch.testing.assert_close(module.mix(x, None, None, None)[0], by_loops(module, x, mixer.temperature), rtol=1e-10, atol=1e-10)


def test_channels_of_one_head_fade_at_rates_of_their_own():
    module, x = drawn(GatedLinearAttention())
    decay = module.rates(*module.project(x, None, None)[:3], x, None)[-1]
    assert decay.shape == (2, 11, 2, 4) and (decay.std(-1) > 0).all()


def test_to_begin_with_a_position_keeps_about_as_much_as_the_root_of_a_half():
    module, x = drawn(GatedLinearAttention(), move=0.0)
    decay = module.rates(*module.project(x, None, None)[:3], x, None)[-1].exp()
    assert decay.mean().item() == pytest.approx(0.5 ** (1 / 16), abs=0.01)  # 0.958: sigmoid near 0, to the power 1 / 16
