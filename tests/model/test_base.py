"""Roles, taps and models, apart from any family: what is heard, what is put in, who sees whose view, who learns."""

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import Refused
from limbeck.model.base import Models, Role, Tap, matches, taps
from limbeck.model.plain import Plain
from limbeck.model.role import given
from limbeck.signals import Batch, Row, Signals, View


class Twice(nn.Module):
    """A part that takes its input by name and answers with a tuple, as blocks of transformers do."""

    def forward(self, hidden_states: torch.Tensor, scale: float = 2.0) -> tuple[torch.Tensor, str]:
        return hidden_states * scale, "cache"


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Twice(), Twice()])

    def forward(self, x: torch.Tensor, by_name: bool = False) -> torch.Tensor:
        for block in self.blocks:
            x = (block(hidden_states=x, scale=2.0) if by_name else block(x))[0]
        return x


@pytest.mark.parametrize("by_name", [False, True])
def test_taps_hear_inputs_outputs_and_pieces_and_put_in_before_they_hear(by_name: bool) -> None:
    chain, x = Chain(), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    reads = {"in": Tap("blocks.1", "input"), "out": Tap("blocks.0"), "second": Tap("blocks.0", part=(1, 2))}
    with taps(chain, reads, {}) as heard:
        assert chain(x, by_name).equal(4 * x)
    assert heard["in"].equal(2 * x) and heard["out"].equal(2 * x) and heard["second"].tolist() == [[6, 8]]
    with taps(chain, reads, {"put": (Tap("blocks.1", "input"), 10 * x)}) as heard:
        assert chain(x, by_name).equal(20 * x)
    assert heard["in"].equal(10 * x) and heard["out"].equal(2 * x)


def test_no_hook_is_left_behind_even_after_an_error() -> None:
    chain = Chain()
    with pytest.raises(RuntimeError, match="stop"), taps(chain, {"a": Tap("blocks.0")}, {"b": (Tap("blocks.1", "input"), torch.zeros(1))}):
        raise RuntimeError("stop")
    with pytest.raises(AttributeError), taps(chain, {"a": Tap("blocks.0"), "b": Tap("nothing.there")}, {}):
        pass
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in chain.modules())


def test_patterns_match_as_file_names_do_and_mind_case() -> None:
    assert matches("layers.1.mlp.weight", ("*.mlp.*",)) and matches("layers.1.x", ("layers.?.x",)) and not matches("Layers.1.x", ("layers.*",))
    assert not matches("layers.1.x", ()) and not matches("layers.10.x", ("layers.?.x",))


class Reader(Role):
    """A role that only reads: one id a row, from its own tokenizer."""

    offers = frozenset({"score"})

    def __init__(self, tokenizer: Any, mark: int, shift: int = 1):
        super().__init__(nn.Linear(1, 1))
        self.tokenizer, self.mark, self.shift = tokenizer, mark, shift

    def view(self, rows: Any) -> View:
        return View({"ids": torch.full((len(rows),), self.mark)}, torch.ones(len(rows), dtype=torch.long), shift=self.shift)

    def says(self, view: View, names: Any, inject: Any) -> dict[str, Any]:
        return {"score": self.module(view.inputs["ids"].float()[:, None])[:, 0] + sum(x.sum() for x in inject.values())}


ROWS = [Row("a", {}, tag="x", group="g"), Row("b", {}, group="h"), Row("c", {}, group="g"), Row("d", {})]


def test_a_batch_has_the_students_view_first_and_another_for_each_way_of_reading() -> None:
    one, other = object(), object()
    models = Models(
        {
            "critic": Reader(other, 3),
            "twin": Reader(other, 4),
            "teacher": Reader(one, 2),
            "student": Reader(one, 1),
            "masked": Reader(one, 5, shift=0),
        }
    )
    batch = models.batch(ROWS)
    assert {role: view.inputs["ids"][0].item() for role, view in batch.views.items()} == {"student": 1, "critic": 3, "masked": 5}
    assert batch.view("teacher") is batch.view("student") and batch.view("masked").shift == 0
    assert (batch.keys, batch.tags) == (("a", "b", "c", "d"), ("x", "", "", ""))
    assert (batch.group.tolist(), batch.weights.tolist()) == ([0, 1, 0, 2], [1, 1, 1, 1])


def test_what_was_said_already_is_not_asked_again_unless_something_is_put_in_or_missing() -> None:
    models = Models({"student": Reader(object(), 1)})
    batch = models.batch(ROWS)
    said = batch.signals("student", {"score": torch.full((4,), 9.0)})
    cached = Batch(batch.views, batch.tags, batch.group, batch.keys, batch.weights, {"student": said})
    assert models.says("student", cached, ("score",)) is said
    assert models.says("student", cached, ("score",), inject={"input.1": torch.ones(1)}) is not said
    assert isinstance(models.says("student", batch, ("score",)), Signals)


def test_frozen_roles_speak_without_gradients_and_others_as_gradients_are() -> None:
    models = Models({"student": Reader(object(), 1)})
    batch = models.batch(ROWS)
    assert not models.says("student", batch, ("score",))["score"].requires_grad
    with models.turn("student"):
        assert models.says("student", batch, ("score",))["score"].requires_grad
        with torch.no_grad():
            assert not models.says("student", batch, ("score",))["score"].requires_grad
    with models.turn(None):
        assert models["student"].state == "frozen" and not any(p.requires_grad for p in models.parameters())


def test_a_turn_ends_frozen_even_after_an_error() -> None:
    models = Models({"student": Reader(object(), 1)})
    with pytest.raises(RuntimeError, match="stop"), models.turn("student"):
        raise RuntimeError("stop")
    assert models["student"].state == "frozen" and not models["student"].training


def test_only_and_freeze_are_patterns_of_the_models_own_names() -> None:
    models = Models({"student": Plain(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))})
    names = [name for name, _ in models.trainable("student")]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"] and models.trainable(None) == []
    assert [name for name, _ in models.trainable("student", only=("*.weight",), freeze=("0.*",))] == ["1.weight"]
    assert models.trainable("student", freeze=("*",)) == []


def test_models_say_what_each_offers() -> None:
    models = Models({"student": Reader(object(), 1), "teacher": Plain(nn.Identity(), says="sample")})
    assert models.offers() == {"student": ("score",), "teacher": ("label", "sample")}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"1": nn.Linear(2, 3), "2": nn.Linear(3, 3)})
        self.trunk, self.out = nn.Linear(3, 2), nn.Linear(2, 4)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.out(self.trunk(self.block["2"](self.block["1"](features)))), "score": features.sum(-1)}


def test_any_module_says_what_it_returns_and_what_its_parts_say() -> None:
    net = Net()
    role = Plain(net, says="logits", parts={"hidden": "block.{}", "features": "trunk"}, num_layers=2)
    view = role.view([Row("a", {"features": [1.0, 2.0], "label": 1}), Row("b", {"features": [3.0, 4.0], "label": 0})])
    said = role.says(view, ("logits", "score", "label", "hidden.1", "hidden.-1", "features"), {})
    x = view.inputs["features"]
    assert torch.equal(said["hidden.1"], net.block["1"](x)) and torch.equal(said["hidden.-1"], net.block["2"](said["hidden.1"]))
    assert torch.equal(said["features"], net.trunk(said["hidden.-1"])) and said["label"].tolist() == [1, 0] and said["score"].tolist() == [3, 7]
    with pytest.raises(Refused, match="a layer from 0 to 2"):
        role.says(view, ("hidden.3",), {})


def test_a_module_that_a_user_holds_becomes_a_role_and_a_role_stays_one() -> None:
    role = given(nn.Linear(2, 2), says="logits", takes=("features",), tokenizer=None)
    assert isinstance(role, Plain) and not role.training and given(role) is role
