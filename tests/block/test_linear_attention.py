import math

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from limbeck.block._linear_attention import one_softmax, two_softmaxes
from limbeck.block.base import Shape, module_of
from limbeck.block.linear_attention import LinearAttention

SHAPE = Shape(width=10, heads=2, kv_heads=1, head_dim=4, scale=0.5, bias=True, out_bias=True, rotary=True)
FORMS = ("one_softmax", "two_softmaxes")


def drawn(feature_map, move=0.3, **changes):
    torch.manual_seed(0)
    shape = Shape(**{**vars(SHAPE), **changes})
    module = module_of(LinearAttention(feature_map=feature_map).spec(shape), 0).double()
    with torch.no_grad():
        for p in module.parameters():
            p += move * torch.randn_like(p)
    angle = torch.arange(11.0, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1], dtype=torch.float64)
    return module, torch.randn(2, 11, shape.width, dtype=torch.float64), (angle.cos().expand(2, -1, -1), angle.sin().expand(2, -1, -1))


def features(u, form):
    """By the definition of softmax, on a list of numbers."""
    if form == "one_softmax":
        up = [math.exp(2 * x) for x in u] + [math.exp(-2 * x) for x in u]
        return torch.tensor([x / sum(up) for x in up], dtype=torch.float64)
    one, two = [math.exp(x) for x in u], [math.exp(-x) for x in u]
    return torch.tensor([x / sum(one) for x in one] + [x / sum(two) for x in two], dtype=torch.float64)


def by_loops(m, x, rope, form):
    """A mean of values by products of features, over all positions so far; queries and keys turned by transformers."""
    length = x.shape[1]
    q, k, v = ((x @ p.weight.T + p.bias).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (m.q_proj, m.k_proj, m.v_proj))
    if rope is not None:
        q, k = apply_rotary_pos_emb(q, k, *rope)
    said = torch.zeros(2, length, 2, 4, dtype=x.dtype)
    for b in range(2):
        for h in range(2):
            fq = [features((m.q_map.weight[h] @ q[b, h, t]).tolist(), form) for t in range(length)]
            fk = [features((m.k_map.weight[h] @ k[b, 0, t]).tolist(), form) for t in range(length)]
            for t in range(length):
                weights = torch.stack([fq[t] @ fk[s] for s in range(t + 1)])
                said[b, t, h] = weights @ v[b, 0, : t + 1] / weights.sum()
    return said.flatten(2) @ m.o_proj.weight.T + m.o_proj.bias


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rotary", [True, False])
def test_it_is_a_mean_by_products_of_features_of_turned_queries_and_keys(form, rotary):
    module, x, rope = drawn(form, rotary=rotary)
    with torch.no_grad():
        wanted = by_loops(module, x, rope if rotary else None, form)
        torch.testing.assert_close(module.mix(x, rope, None, None)[0], wanted, rtol=1e-10, atol=1e-10)


def test_the_two_forms_of_features_by_hand():
    # u = (ln 2, 0): e^u = (2, 1), e^-u = (1/2, 1). Two softmaxes: (2, 1) / 3 and (1, 2) / 3. One, twice as sharp: (4, 1, 1/4, 1) / 6.25.
    u = torch.tensor([math.log(2), 0.0], dtype=torch.float64)
    assert two_softmaxes(u).tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 2 / 3], rel=1e-12)
    assert one_softmax(u).tolist() == pytest.approx([0.64, 0.16, 0.04, 0.16], rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_maps_begin_as_the_identity_and_weights_of_a_row_are_a_mean(form):
    module, x, rope = drawn(form, move=0.0)
    for part in (module.q_map, module.k_map):
        assert torch.equal(part.weight, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    matrix, _ = module.materialize(x, rope, None)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 2, 11, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (matrix >= 0).all() and not matrix.triu(1).any()


@pytest.mark.parametrize("form", FORMS)
def test_features_so_far_apart_that_nothing_is_left_give_zeros_with_finite_gradients(form):
    module, x, rope = drawn(form)
    module, x, rope = module.float(), (1e4 * x).float().requires_grad_(), tuple(angle.float() for angle in rope)
    y = module.mix(x, rope, None, None)[0]
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


def test_what_is_padded_in_front_says_nothing_and_stays_finite():
    module, x, rope = drawn("two_softmaxes")
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[:, :3] = False
    x = x.clone().requires_grad_()
    y, state = module.mix(x, rope, mask, None)
    assert y.isfinite().all() and torch.equal(y[:, :3], module.o_proj.bias.expand(2, 3, -1))
    y[:, 3:].sum().backward()
    assert x.grad.isfinite().all() and not x.grad[:, :3].any() and state["memory"].isfinite().all()
