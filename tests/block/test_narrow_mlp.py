"""Fewer channels of an MLP: which ones stay, against loops, and what they say."""

import pytest
import torch
from pydantic import ValidationError
from transformers.activations import ACT2FN

from limbeck.block.base import Mlp, MlpShape, module_of
from limbeck.block.narrow_mlp import NarrowMlp, contributions, grown
from limbeck.check.models import family_of
from limbeck.errors import Refused
from limbeck.model.blocks import mlp_of

EXACT = {"rtol": 1e-10, "atol": 1e-10}
GATED, PLAIN = "llama", "gpt2"


def heard(num=7, seed=0):
    return torch.randn(num, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(block, taught):
    module = module_of(block.spec(taught.shape), 0).double()
    return module, block.begin(module, taught)


def part(role):
    return role.module.get_submodule(role.anatomy.path("mlp", 0))


@pytest.mark.parametrize("family", [GATED, PLAIN])
def test_with_all_channels_it_is_the_mlp_that_stood_there(family):
    role = family_of(family)
    taught = mlp_of(role.module, 0)
    for block in (NarrowMlp(inner=taught.shape.inner), NarrowMlp(kept=tuple(range(taught.shape.inner)))):
        module, copied = made(block, taught)
        with torch.no_grad():
            torch.testing.assert_close(module(heard()), part(role)(heard()), **EXACT)
        assert copied.keys() == dict(module.named_parameters()).keys()


@pytest.mark.parametrize("family", [GATED, PLAIN])
def test_what_stays_says_what_the_whole_says_with_the_other_channels_silent(family):
    role = family_of(family)
    taught, kept = mlp_of(role.module, 0), (1, 4, 5, 30)
    module, _ = made(NarrowMlp(kept=kept), taught)
    with torch.no_grad():
        small = module(heard())
        taught.weights["down"][:, [c for c in range(taught.shape.inner) if c not in kept]] = 0
        torch.testing.assert_close(small, part(role)(heard()), **EXACT)


@pytest.mark.parametrize("family", [GATED, PLAIN])
def test_contributions_are_those_of_a_loop_over_positions_and_channels(family):
    role = family_of(family)
    taught, x = mlp_of(role.module, 0), heard()
    act, zero = ACT2FN[taught.shape.activation], torch.zeros(taught.shape.inner, dtype=torch.float64)
    found = contributions(taught, x)
    for c in (0, 3, taught.shape.inner - 1):
        total = 0.0
        for row in x:
            said = {
                name: taught.weights[name][c] @ row + (zero if taught.biases[name] is None else taught.biases[name])[c]
                for name in taught.weights
                if name != "down"
            }
            total += abs(float(act(said["gate"]) * said["up"] if "gate" in said else act(said["up"])))
        assert float(found[c]) == pytest.approx(total / len(x) * float(taught.weights["down"][:, c].square().sum().sqrt()), rel=1e-10)


def test_channels_that_contribute_nothing_go_first_and_without_a_trace():
    role = family_of(GATED)
    taught, dead = mlp_of(role.module, 0), [0, 3, 7, 31]
    with torch.no_grad():
        taught.weights["down"][:, dead] = 0
    measured = NarrowMlp(inner=28).measured(contributions(taught, heard()))
    assert measured.kept == tuple(c for c in range(32) if c not in dead) and measured.inner is None
    for block in (measured, NarrowMlp(inner=28)):  # the second by weights alone
        with torch.no_grad():
            torch.testing.assert_close(made(block, taught)[0](heard()), part(role)(heard()), **EXACT)
    assert measured.measured(torch.zeros(32)) == measured


def test_what_is_heard_decides_and_not_the_weights_alone():
    # two channels; the second has the larger weights and never fires: relu of minus the input, which is positive
    weights = {"up": torch.tensor([[1.0], [-5.0]]), "down": torch.tensor([[1.0, 5.0]])}
    mlp = Mlp(MlpShape(1, 2, "relu", False, False, False), weights, {"up": None, "down": None})
    assert grown(mlp).tolist() == [1, 25] and contributions(mlp, torch.tensor([[2.0], [4.0]])).tolist() == [3, 0]
    assert NarrowMlp(inner=1).measured(contributions(mlp, torch.tensor([[2.0]]))).kept == (0,)


def test_of_equal_channels_the_earlier_stay():
    assert NarrowMlp(inner=2).measured(torch.tensor([1.0, 2.0, 1.0, 1.0])).kept == (0, 1)
    like = torch.ones(4, 4)
    mlp = Mlp(MlpShape(4, 4, "silu", True, False, False), {"gate": like, "up": like, "down": torch.eye(4)}, {})
    module, _ = made(NarrowMlp(inner=2), mlp)
    assert module.down_proj.weight.tolist() == torch.eye(4)[:, :2].tolist()


@pytest.mark.parametrize("inner, stays", [(0.5, 16), (0.1, 3), (0.001, 1), (5, 5), (32, 32), (None, 16)])
def test_a_share_is_rounded_and_one_channel_always_stays(inner, stays):
    assert NarrowMlp(inner=inner).stays(32) == stays


@pytest.mark.parametrize("fields, sentence", [({"inner": 33}, "inner: 32, or less"), ({"kept": (3, 32)}, "channels 0 to 31")])
def test_channels_that_are_not_there_are_refused(fields, sentence):
    with pytest.raises(Refused, match=sentence):
        NarrowMlp(**fields).spec(mlp_of(family_of(GATED).module, 0).shape)


@pytest.mark.parametrize(
    "fields", [{"inner": 4, "kept": (1,)}, {"kept": ()}, {"kept": (2, 1)}, {"kept": (1, 1)}, {"kept": (-1,)}, {"inner": 0}, {"inner": 1.0}]
)
def test_fields_that_contradict_each_other_are_refused(fields):
    with pytest.raises(ValidationError):
        NarrowMlp(**fields)
