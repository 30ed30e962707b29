"""One matrix in the place of an MLP: exactly it, where it was linear."""

import torch

from limbeck.block.base import Mlp, MlpShape, module_of
from limbeck.block.linear_mlp import LinearMlp

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def made(mlp):
    module = module_of(LinearMlp().spec(mlp.shape), 0).double()
    LinearMlp().begin(module, mlp)
    return module


def test_an_mlp_that_bends_nothing_is_that_matrix_with_its_biases():
    up, down, b, c, x = drawn(9, 4), drawn(4, 9), drawn(9), drawn(4), drawn(7, 4)
    for biases in ({"up": b, "down": c}, {"up": b, "down": None}, {"up": None, "down": c}, {"up": None, "down": None}):
        shape = MlpShape(4, 9, "linear", False, biases["up"] is not None, biases["down"] is not None)
        inner = x @ up.T + (0 if biases["up"] is None else b)
        expected = inner @ down.T + (0 if biases["down"] is None else c)
        with torch.no_grad():
            torch.testing.assert_close(made(Mlp(shape, {"up": up, "down": down}, biases))(x), expected, **EXACT)


def test_a_gate_is_left_out():
    weights = {"gate": drawn(9, 4) * 100, "up": drawn(9, 4), "down": drawn(4, 9)}
    module = made(Mlp(MlpShape(4, 9, "silu", True, False, False), weights, {}))
    torch.testing.assert_close(module.proj.weight.detach(), torch.einsum("oi,id->od", weights["down"], weights["up"]), **EXACT)
    assert module.proj.bias is None
