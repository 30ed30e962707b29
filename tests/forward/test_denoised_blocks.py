"""Windows of hidden tokens: what is asked, that its weighted sum is the bound, and teachers of both kinds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from limbeck.check.models import family_of, fillers, pair, rows
from limbeck.errors import Refused
from limbeck.forward.denoised_blocks import DenoisedBlocks
from limbeck.model.base import Models
from limbeck.model.block_mask import maskable
from limbeck.numerics import Streams
from limbeck.objective.elbo_preference import ElboPreference
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.objective.masked_elbo import MaskedElbo
from limbeck.signals import Batch, Head, Logits, Row, View, dense
from limbeck.student.masked_blocks import MaskedBlocks
from limbeck.train.loop import Loop, World
from limbeck.train.optimiser import Optimiser
from limbeck.train.stage import Stage, Turn

NEEDS = {"student": ("logits", "label", "target_weight", "maskable"), "teacher": ("logits",)}
EVERY = rows().train


def drawn(forward: DenoisedBlocks, models: Models, some=EVERY, seed: int = 0, place=(0, 0, 0)) -> Batch:
    return forward.draw(models.batch(some), Streams(seed), place)


def texts(num: int, length: int) -> list[Row]:
    return [Row(f"row-{i}", {"text": "x" * (length - 1)}, group=f"row-{i}") for i in range(num)]


def test_only_hidden_tokens_are_targets_and_only_answers_are_hidden():
    models, forward = fillers(), DenoisedBlocks(block=4, whole=False, rate=(0.5, 0.5))
    plain, batch = models.batch(EVERY), drawn(forward, models)
    view = batch.view("student")
    assert torch.equal(view.targets, view.inputs["masked"].nonzero()[:, 0])
    assert (view.inputs["masked"] & ~maskable(plain.view("student"))).sum() == 0
    assert 0.3 < len(view.targets) / int(maskable(plain.view("student")).sum()) < 0.7
    assert batch.keys == plain.keys and list(batch.views) == ["student"]  # a teacher that reads alike sees the same hidden tokens


def test_a_complementary_pair_hides_every_token_exactly_once():
    models, forward = fillers(), DenoisedBlocks(block=4, whole=False, rate=(0.3, 0.8), complement=True)
    batch, seen = drawn(forward, models), []

    class Watching:
        def says(self, role, batch, names, inject={}):
            seen.append(batch.view("student").inputs["masked"] & maskable(batch.view("student")))
            return models.says(role, batch, names)

    forward(Watching(), batch, {"student": ("logits",)})  # type: ignore[arg-type]
    every = maskable(models.batch(EVERY).view("student"))
    assert torch.equal(seen[0].int() + seen[1].int(), every.int())
    assert torch.equal(batch.view("student").targets, every.nonzero()[:, 0])


def test_of_a_complementary_pair_each_token_is_said_by_the_pass_in_which_it_was_hidden():
    models, forward = fillers(), DenoisedBlocks(block=4, whole=False, rate=(0.3, 0.8), complement=True)
    batch = drawn(forward, models)
    said = forward(models, batch, NEEDS)
    masked = batch.view("student").inputs["masked"]
    for role in ("student", "teacher"):
        for how in (masked, maskable(batch.view("student")) & ~masked):  # in neither is a prompt hidden
            view = batch.view("student")
            alone = replace(view, asked=view.asked & how, inputs={**view.inputs, "masked": how})  # type: ignore[operator]
            with torch.no_grad():
                expected = dense(models[role].says(alone, ("logits",), {})["logits"])
            torch.testing.assert_close(dense(said[role]["logits"])[how[view.targets]], expected)
    assert torch.equal(said["student"]["label"], batch.view("student").inputs["ids"][batch.view("student").targets])


@pytest.mark.parametrize("fields", [{"per": "block"}, {"per": "row"}, {"complement": True, "rate": (0.1, 0.9)}])
def test_the_weighted_sum_is_the_likelihood_on_average_for_a_model_that_remembers_nothing(fields):
    # p(x_i) = exp(-i / 2), whatever is hidden: minus the sum of logs over the 11 tokens that may be hidden, of 12, is 33
    num, length = 4000, 12
    one = torch.full((num,), length)
    view = View({"ids": torch.zeros(num * length, dtype=torch.long), "block_length": torch.full((num,), 4)}, one, shift=0)
    batch = Batch({"student": view}, ("",) * num, torch.arange(num), tuple(map(str, range(num))), torch.ones(num))
    batch = DenoisedBlocks(**{"rate": (0.05, 1.0), **fields}).draw(batch, Streams(0), (0,))
    view = batch.view("student")
    place = view.offsets[view.targets].double()
    log_p = torch.stack([-place / 2, torch.log1p(-torch.exp(-place / 2))], -1)  # of the label, and of all else
    values = {
        "logits": log_p,
        "label": torch.zeros(len(place), dtype=torch.long),
        "target_weight": view.inputs["mask_weight"][view.targets],
        "maskable": view.inputs["maskable"],
    }
    found = MaskedElbo().values(batch.signals("student", values)) * (length - 1)
    error = float(found.std()) / num**0.5
    assert abs(float(found.mean()) - 33.0) < 4 * error and error < 1.0


def test_blocks_of_one_token_that_are_all_hidden_have_the_loss_of_the_causal_model():
    causal = pair()["student"]
    role = MaskedBlocks(length=7, shift=1)(family_of("llama"))
    models = Models({"student": role})
    batch = drawn(DenoisedBlocks(block=1, rate=(1.0, 1.0)), models)
    with torch.no_grad():
        ours = dense(role.says(batch.view("student"), ("logits",), {})["logits"])
        theirs = dense(causal.says(causal.view(EVERY), ("logits",), {})["logits"])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert batch.view("student").inputs["mask_weight"].unique().tolist() == [1.0]


def kl_of(models: Models, forward: DenoisedBlocks) -> tuple[float, float]:
    """Divergence and size of its gradient, of one window that is run as a turn runs it."""
    turn = Turn(forward=forward, objective=(ForwardKL(),), batch=5)
    loop = Loop(Stage(steps=1, turn=(turn,)), World(models, rows()))
    found: list[Any] = []
    loop.run(lambda _, records: found.extend(records))
    told = {record["name"]: record["sum"] / record["count"] for record in found}
    return told["forward_kl"], told["gradient_norm"]


def test_a_divergence_holds_the_student_against_a_teacher_that_fills_in_the_same_blocks():
    student, teacher = (MaskedBlocks(length=4)(family_of("llama", seed)) for seed in (0, 1))
    forward = DenoisedBlocks(block=4, whole=False)
    assert kl_of(Models({"student": student, "teacher": teacher}), forward)[0] > 0.01
    one, two = (MaskedBlocks(length=4)(family_of("llama")) for _ in range(2))
    value, slope = kl_of(Models({"student": one, "teacher": two}), forward)
    assert abs(value) < 1e-9 and slope < 1e-9


def test_a_divergence_holds_the_student_against_the_causal_model_at_the_same_tokens():
    models = Models({"student": MaskedBlocks(length=4)(family_of("llama")), "teacher": family_of("llama", 1)})
    batch = drawn(DenoisedBlocks(block=4, whole=False), models)
    ours, theirs = batch.view("student"), batch.view("teacher")
    assert torch.equal(ours.targets, theirs.targets) and (ours.shift, theirs.shift) == (0, 1) and "masked" not in theirs.inputs
    assert kl_of(models, DenoisedBlocks(block=4, whole=False))[0] > 0.01
    assert kl_of(models, DenoisedBlocks(block=4, whole=False, rate=(0.3, 0.7), complement=True))[0] > 0.01


@pytest.mark.parametrize("shift", [0, 1])
def test_states_and_gradients_do_not_depend_on_which_rows_are_run_together(shift):
    some = [replace(texts(1, length)[0], key=f"row-{i}") for i, length in enumerate((4, 8, 4, 8))]
    found = []
    for micro in (1, 2, 4):
        student, teacher = (MaskedBlocks(length=4, shift=shift)(family_of("llama", seed)) for seed in (0, 1))  # type: ignore[arg-type]
        models, objective, forward = Models({"student": student, "teacher": teacher}), HiddenMSE(layers=(1, 2)), DenoisedBlocks()
        for role in (student, teacher):
            role.module.config._attn_implementation = "sdpa"  # eager attention rounds to float32
        with models.turn("student"):
            for i in range(0, 4, micro):
                said = forward(models, drawn(forward, models, some[i : i + micro]), dict(objective.needs))
                objective(said).total.backward()
        found.append(torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-12)


def test_noise_is_drawn_for_each_row_with_the_window_and_ends_with_its_schedule():
    models = fillers()
    forward = DenoisedBlocks(block=4, whole=False, noise={"kind": "linear", "start": 0.5, "end": 0.0, "steps": 4})
    first: Any = forward.at(0)
    noise = drawn(first, models).view("student").inputs["embedding_noise"]
    assert noise[:, 0].unique().tolist() == [0.5] and noise[:, 1].unique().numel() == len(EVERY)
    assert torch.equal(noise, drawn(first, models).view("student").inputs["embedding_noise"])
    later = drawn(first, models, place=(0, 1, 0)).view("student").inputs["embedding_noise"]
    assert (noise[:, 1] != later[:, 1]).all()  # another step, other noise
    last: Any = forward.at(4)
    assert "embedding_noise" not in drawn(last, models).view("student").inputs


def test_a_model_of_blocks_learns_what_is_hidden():
    role = MaskedBlocks(length=4)(family_of("llama", dtype=torch.float32))
    data = replace(rows(), parts=(replace(rows().parts[0], rows=tuple(texts(4, 12))),))  # always the same letter
    turn = Turn(forward=DenoisedBlocks(), objective=(MaskedElbo(),), batch=4, optimiser=Optimiser(lr=3e-2))
    told: list[float] = []
    loop = Loop(Stage(steps=12, turn=(turn,)), World(Models({"student": role}), data))
    loop.run(lambda _, records: told.extend(r["sum"] / r["count"] for r in records if r["name"] == "masked_elbo"))
    assert told[0] > 3.0 and sum(told[-3:]) / 3 < 1.0  # log 258 is 5.55


def test_preference_against_a_causal_reference_is_refused_before_the_run():
    models = Models({"student": MaskedBlocks(length=4)(family_of("llama")), "reference": family_of("llama")})
    turn = Turn(forward=DenoisedBlocks(whole=False), objective=(ElboPreference(),), batch=5)
    with pytest.raises(Refused, match="target_weight of reference"):
        Loop(Stage(steps=1, turn=(turn,)), World(models, rows()))


def test_preference_moves_the_chosen_rows_ahead_of_a_reference_that_sees_the_same_hidden_tokens():
    policy, reference = (MaskedBlocks(length=4)(family_of("llama", dtype=torch.float32)) for _ in range(2))
    turn = Turn(forward=DenoisedBlocks(whole=False), objective=(ElboPreference(),), batch=5, optimiser=Optimiser(lr=1e-2))
    told: list[float] = []
    loop = Loop(Stage(steps=12, turn=(turn,)), World(Models({"student": policy, "reference": reference}), rows()))
    loop.run(lambda _, records: told.extend(r["sum"] / r["count"] for r in records if r["name"] == "elbo_preference"))
    assert told[0] == pytest.approx(0.6931, abs=1e-4)  # log 2: policy and reference are the same model, on the same hidden tokens
    assert sum(told[-3:]) / 3 < 0.5


def test_a_block_size_that_does_not_divide_is_refused():
    models = fillers()
    with pytest.raises(Refused, match="rows of a multiple of 8 tokens") as error:
        drawn(DenoisedBlocks(block=8), models, texts(2, 12))
    assert error.value.slug == "block" and "12" in error.value.got
    assert len(drawn(DenoisedBlocks(block=6), models, texts(2, 12)).view("student").targets)
    assert len(drawn(DenoisedBlocks(block=8, whole=False), models, texts(2, 12)).view("student").targets)


def test_what_hides_nothing_or_was_asked_before_is_refused():
    with pytest.raises(Refused, match="target_weight of student"):
        Loop(Stage(steps=1, turn=(Turn(forward=DenoisedBlocks(), objective=(MaskedElbo(),)),)), World(pair(), rows()))
    with pytest.raises(Refused, match="objectives that hear targets"):
        forward = DenoisedBlocks(complement=True, rate=(0.1, 0.9))
        turn = Turn(forward=forward, objective=(HiddenMSE(layers=(1,)),))
        Loop(Stage(steps=1, turn=(turn,)), World(fillers(), rows()))
    models = fillers()
    batch = models.batch(EVERY)
    kept = replace(batch, said={"teacher": batch.signals("teacher", {"logits": Logits(torch.zeros(1, 1), Head(torch.zeros(1, 1)), False)})})
    with pytest.raises(Refused, match="roles that are asked now"):
        DenoisedBlocks(whole=False).draw(kept, Streams(0), ())


def test_with_blocks_of_one_token_a_causal_model_is_asked_nothing_new_with_shift_1_alone():
    causal = family_of("llama")
    with torch.no_grad():
        theirs = dense(causal.says(causal.view(EVERY), ("logits",), {})["logits"])
        for shift in (0, 1):
            role = MaskedBlocks(length=1, shift=shift)(family_of("llama"))  # type: ignore[arg-type]
            batch = drawn(DenoisedBlocks(rate=(1.0, 1.0)), Models({"student": role}))
            ours = dense(role.says(batch.view("student"), ("logits",), {})["logits"])
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6) == (shift == 1)


def test_on_a_narrow_band_of_rates_the_weighted_sum_is_no_bound():
    # two bits that are always equal cost log 2; a model that knows it pays log 2 for each where both are hidden, and nothing where one is:
    # on average t^2 * 2 log 2 / t = 2 t log 2, which over rates from 0 to 1 is log 2, and from 0.1 to 0.3 only 0.4 log 2 = 0.277
    num = 8_000
    one = torch.full((num,), 3)
    view = View({"ids": torch.zeros(num * 3, dtype=torch.long), "block_length": one}, one, shift=0)
    batch = Batch({"student": view}, ("",) * num, torch.arange(num), tuple(map(str, range(num))), torch.ones(num))
    for rate, expected in (((1e-3, 1.0), 1.0), ((0.1, 0.3), 0.4)):
        found = DenoisedBlocks(rate=rate).draw(batch, Streams(0), (0,)).view("student")
        both = found.inputs["masked"].view(num, 3)[:, 1:].all(1)
        cost = torch.where(both, 2 * found.inputs["mask_weight"].view(num, 3)[:, 1], 0.0).double()  # in log 2
        assert abs(float(cost.mean()) - expected) < 4 * float(cost.std()) / num**0.5


@pytest.mark.parametrize("fields", [{"rate": (0.5, 0.2)}, {"rate": (1e-4, 1.0)}, {"complement": True}, {"rate": (0.0, 1.0)}, {"block": 0}])
def test_rates_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValidationError):
        DenoisedBlocks(**fields)


@pytest.mark.parametrize("rate, hidden", [(0.001, 0), (0.999, 1)])
def test_where_one_pass_hides_nothing_all_is_predicted_in_the_other(rate: float, hidden: int) -> None:
    models, names = fillers(), {"student": ("logits", "label", "target_weight", "maskable")}
    forward = DenoisedBlocks(block=4, whole=False, rate=(rate, rate), complement=True)
    batch = drawn(forward, models)
    view = batch.view("student")
    every = maskable(view)
    assert int((view.inputs["masked"] & every).sum()) == hidden * int(every.sum())  # of 160 tokens none, and all: the other pass is empty
    said = forward(models, batch, names)["student"]  # type: ignore[arg-type]
    whole = models.says("student", batch.with_inputs("student", masked=every), ("logits", "label"))
    assert torch.equal(said["label"], whole["label"]) and torch.equal(dense(said["logits"]), dense(whole["logits"]))
    # half of 1 over the share that was hidden in the pass that predicts: 0.999 in both
    assert torch.allclose(said["target_weight"], torch.full_like(said["target_weight"], 0.5 / 0.999), atol=1e-6)
    assert bool(torch.isfinite(MaskedElbo().values(said)).all())


def test_neither_pass_of_a_complementary_pair_hides_a_prompt_or_the_first_token_of_a_row() -> None:
    models, forward = fillers(), DenoisedBlocks(block=4, whole=False, rate=(0.3, 0.8), complement=True)
    batch, seen = drawn(forward, models), []
    never = ~maskable(models.batch(EVERY).view("student"))
    assert int(never.sum()) == 92  # of 252 positions; the others are answers

    class Watching:
        def says(self, role, batch, names, inject={}):
            seen.append(batch.view("student").inputs["masked"])
            return models.says(role, batch, names)

    forward(Watching(), batch, {"student": ("logits",)})  # type: ignore[arg-type]
    assert len(seen) == 2 and not any(bool((masked & never).any()) for masked in seen)
