"""Blocks that are fitted to the teacher's states in closed form before a stage learns."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import two_tokenizers
from limbeck.block.no_mlp import NoMlp
from limbeck.check.models import described, family_of, fresh, rows, sighted_of, spoken, transcriber_of
from limbeck.component import changed
from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.base import Models, clone
from limbeck.model.text import Text
from limbeck.numerics import kl, log_probs
from limbeck.planning import plan_of
from limbeck.recipe import graph, load, text_only
from limbeck.signals import dense
from limbeck.start import run
from limbeck.store import load_state
from limbeck.student.base import Surgery
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.keep_width import KeepWidth
from limbeck.student.linearize import Linearize
from limbeck.student.lora import Lora
from limbeck.student.masked_blocks import MaskedBlocks
from limbeck.student.quantize import Quantize
from limbeck.student.replace_parts import Parts, ReplaceParts
from limbeck.train.reconstruct import Reconstruct
from toy import after, at_home, metrics, same, toy  # noqa: F401

STILL = {"optimiser": {"groups": [{"match": ["*"], "rate": 0.0}]}}
SEEN, UNSEEN = rows(0).train, rows(1).train


def both(surgery: Surgery, family: str = "llama", layers: int = 5) -> Models:
    """A small model of that family in float64, and what a surgery makes of it."""
    teacher = family_of(family, 0, torch.float64, layers=layers)
    return Models({"student": surgery(clone(teacher)), "teacher": teacher})


def says(role: Any, names: tuple[str, ...], seen: Any = SEEN) -> dict[str, Any]:
    with torch.no_grad():
        return role.says(role.view(seen), names, {})


def divergence(models: Models, seen: Any) -> float:
    log_p, log_q = (log_probs(dense(says(models[name], ("logits",), seen)["logits"])) for name in ("teacher", "student"))
    return float(kl(log_p, log_q).mean())


def heard_by(role: Any, path: str) -> Tensor:
    """What a part hears about all rows, position by position."""
    found: list[Tensor] = []
    view = role.view(SEEN)
    flat, _, inputs = role.lay_out(view)
    hook = role.module.get_submodule(path).register_forward_pre_hook(lambda _, args: found.append(flat(args[0])))
    with torch.no_grad():
        role.body(**inputs)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_the_block_before_a_gap_is_the_ridge_regression_of_what_went(family: str) -> None:
    models = both(DropBlocks(keep=(0, 1, 4)), family)
    student, teacher = models["student"], models["teacher"]
    assert isinstance(student, Text)
    before = copy.deepcopy(student.module.state_dict())
    inner, path = heard_by(student, student.anatomy.path("down", 1)), student.anatomy.path("down", 1) + ".weight"
    left = says(teacher, ("hidden.4",))["hidden.4"] - says(student, ("hidden.2",))["hidden.2"]
    (first, _), (second, then), _ = Reconstruct(ridge=0.5)(models, SEEN, "train.0")
    # the same as ordinary least squares on rows added for the ridge
    squares = inner.square().sum(0)
    weight = (0.5 * (squares + 1e-3 * squares.mean())).sqrt().diag()
    expected = torch.linalg.lstsq(torch.cat([inner, weight]), torch.cat([left, left.new_zeros(len(weight), left.shape[1])])).solution
    found = student.module.state_dict()[path] - before[path]
    assert torch.allclose(found if family == "gpt2" else found.mT, expected, atol=1e-9)
    state = says(teacher, ("hidden.4",))["hidden.4"]
    shares = [float(x.square().sum() / state.square().sum()) for x in (left, state - says(student, ("hidden.2",))["hidden.2"])]
    assert first == 0 and [second, then] == pytest.approx(shares) and then < second
    downs = [student.anatomy.path("down", i) + ".weight" for i in (1, 2)]
    moved = [name for name, x in student.module.state_dict().items() if not torch.equal(x, before[name])]
    assert moved == downs, "blocks before the gap, and all that is no last matrix, stay to the bit"


def test_a_spoiled_matrix_is_found_again_where_the_rows_say_enough() -> None:
    teacher = family_of("llama", 0, torch.float64, layers=2)
    student = clone(teacher)
    assert isinstance(student, Text)
    with torch.no_grad():
        for i in range(2):
            student.anatomy.weight(student.module, "down", i).add_(0.1)
    models = Models({"student": student, "teacher": teacher})
    assert divergence(models, UNSEEN) > 1e-6
    found = Reconstruct(ridge=1e-12)(models, SEEN, "train.0")
    assert all(after < 1e-12 < before for before, after in found)
    assert divergence(models, UNSEEN) < 1e-9


def test_each_block_mends_what_those_before_it_left_and_rows_that_were_not_seen_gain() -> None:
    for seed, keep in enumerate([(0, 3), (0, 1), (1, 3), (0, 2, 3)]):
        teacher = fresh(seed)
        models = Models({"student": DropBlocks(keep=keep)(clone(teacher)), "teacher": teacher})
        before = divergence(models, UNSEEN)
        found = Reconstruct()(models, SEEN, "train.0")
        assert all(after <= left for left, after in found)
        assert divergence(models, UNSEEN) < before


def test_heads_and_channels_that_were_cut_are_made_up_for_block_by_block() -> None:
    models = both(KeepWidth(mlp=16))
    before = divergence(models, UNSEEN)
    found = Reconstruct()(models, SEEN, "train.0")
    assert len(found) == 5 and all(after < left for left, after in found)
    assert divergence(models, UNSEEN) < before


def seeing() -> tuple[Any, Any]:
    return sighted_of(0, layers=4), described(0).train


def hearing() -> tuple[Any, Any]:
    return transcriber_of(0, layers=4), spoken(0).train


def encoding() -> tuple[Any, Any]:
    return family_of("modernbert", 0, torch.float64, layers=4), SEEN


def converted() -> tuple[Any, Any]:
    return Linearize()(family_of("llama", 0, torch.float64, layers=4)), SEEN


@pytest.mark.parametrize("made", [seeing, hearing, encoding, converted])
def test_images_sounds_and_other_mixers_are_heard_as_the_model_hears_them(made: Any) -> None:
    teacher, seen = made()
    models = Models({"student": DropBlocks(keep=(0, 3))(clone(teacher)), "teacher": teacher})
    found = Reconstruct()(models, seen, "train.0")
    for i, layer in enumerate((3, 4)):  # what it says is left is what is left when both say it themselves
        state = says(teacher, (f"hidden.{layer}",), seen)[f"hidden.{layer}"]
        left = state - says(models["student"], (f"hidden.{i + 1}",), seen)[f"hidden.{i + 1}"]
        assert found[i][1] == pytest.approx(float(left.square().sum() / state.square().sum()), rel=1e-6)
        assert found[i][1] < found[i][0]


def test_products_are_taken_in_float32_whatever_the_model_is_kept_in() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        models = both(DropBlocks(keep=(0, 4)))
        for name in ("student", "teacher"):
            models[name].to(dtype)
        found.append(Reconstruct()(models, SEEN, "train.0"))
        assert all(p.dtype == dtype for p in models["student"].parameters())
    assert all(after < before for some in found for before, after in some)
    assert torch.allclose(*map(torch.tensor, found), rtol=0.1)


def test_how_rows_are_laid_out_changes_nothing() -> None:
    told = []
    for layout in ("packed", "padded"):
        models = both(DropBlocks(keep=(0, 4)))
        for role in (models["student"], models["teacher"]):
            assert isinstance(role, Text)
            role.layout = layout
        told.append(Reconstruct()(models, SEEN, "train.0"))
    assert torch.allclose(torch.tensor(told[0]), torch.tensor(told[1]), atol=1e-10)


def test_layers_may_be_named_and_blocks_dropped_in_two_cuts_keep_their_numbers() -> None:
    twice = DropBlocks(keep=(0, 2))(DropBlocks(keep=(0, 1, 4))(family_of("llama", 0, torch.float64, layers=5)))
    assert isinstance(twice, Text) and twice.numbers == (0, 4)
    one, two = both(DropBlocks(keep=(0, 4))), both(DropBlocks(keep=(0, 4)))
    assert Reconstruct()(one, SEEN, "train.0") == Reconstruct(layers=(4, 5))(two, SEEN, "train.0")
    assert Reconstruct(layers=(1, 5))(both(DropBlocks(keep=(0, 4))), SEEN, "train.0")[0] == (0, 0), "the first block says that already"


def other(width: int = 16, layers: int = 3) -> Models:
    """A student that was not cut out of its teacher."""
    made = {"student": family_of("llama", 1, torch.float64, layers=layers), "teacher": family_of("llama", 0, torch.float64, layers=5, width=width)}
    return Models(made)


@pytest.mark.parametrize(
    ("how", "models", "expected", "got"),
    [
        (Reconstruct(), lambda: other(), "for each block a layer of the teacher", "3 blocks of a model with 3, the teacher has 5"),
        (Reconstruct(layers=(1, 2)), lambda: other(), "3 of the layers 1 to 5, one for each block", r"\[1, 2\]"),
        (Reconstruct(layers=(1, 2, 6)), lambda: other(), "3 of the layers 1 to 5, one for each block", r"\[1, 2, 6\]"),
        (Reconstruct(), lambda: other(width=32), "with the student's 16 channels", "32 channels"),
        (Reconstruct(), lambda: both(DropBlocks(keep=(0, 4)), "bert"), "whose MLP adds what its last matrix says", "bert"),
        (Reconstruct(), lambda: both(DropBlocks(keep=(0, 4)), "gemma3_text"), "whose MLP adds what its last matrix says", "gemma3_text"),
        (Reconstruct(), lambda: both(Quantize(weights="int8")), "exact matrices without adapters", "others"),
        (Reconstruct(), lambda: both(Lora()), "exact matrices without adapters", "others"),
        (Reconstruct(), lambda: two_tokenizers.models(), "one tokenizer", "others of the student"),
        (Reconstruct(), lambda: both(MaskedBlocks()), "writes from left to right", "fills in masked blocks"),
        (Reconstruct(), lambda: both(ReplaceParts(blocks=(Parts(), Parts(mlp=NoMlp()), *[Parts()] * 3))), "end of each MLP", "none in block 1"),
        (Reconstruct(), lambda: Models({"student": fresh()}), "one text model at hand as teacher", "none"),
    ],
)
def test_what_cannot_be_fitted_is_refused(how: Reconstruct, models: Any, expected: str, got: str) -> None:
    with pytest.raises(Refused, match=f"(?s){expected}.*{got}") as told:
        how(models(), SEEN, "train.0")
    assert "train.0.reconstruct" in str(told.value)


def test_a_run_fits_before_it_learns_and_text_alone_does_not(tmp_path: Path) -> None:
    more = {"baseline": ["text_only"], "evaluate": ["agreement"]}
    done = run(toy(tmp_path, {"reconstruct": {}, **STILL}, **more), name="fitted", runs=tmp_path)
    plain = run(toy(tmp_path, STILL, **more), name="plain", runs=tmp_path)
    states = {name: load_state(tmp_path / "fitted/results/student" / name, "state")["roles"]["student"] for name in ("student", "main")}
    moved = {name for name, x in states["main"].items() if not torch.equal(x, states["student"][name])}
    assert moved == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    start, student, baseline = (done.summary[name]["kl"] for name in ("start", "student", "baseline"))
    assert student < start == baseline == plain.summary["student"]["kl"]
    recipe = load(toy(tmp_path, {"reconstruct": {}}))
    assert recipe.train[0].reconstruct and text_only(changed(recipe, baseline=("text_only",))).train[0].reconstruct is None


def test_a_stage_that_is_repeated_is_fitted_in_the_first_repeat_alone(tmp_path: Path) -> None:
    nodes = graph(load(toy(tmp_path, {"reconstruct": {}, "repeat": 3})))
    assert [node.what.reconstruct is None for node in nodes] == [False, True, True]


def test_a_run_that_was_stopped_is_fitted_once(tmp_path: Path) -> None:
    recipe = toy(tmp_path, {"reconstruct": {"rows": 5}})
    run(recipe, name="whole", runs=tmp_path)
    for at in (0, 2):
        run(recipe, name=f"parts-{at}", runs=tmp_path, stop=after(at))
        run(recipe, name=f"parts-{at}", runs=tmp_path)
        whole, parts = (load_state(tmp_path / name / "results/student/main", "state")["roles"]["student"] for name in ("whole", f"parts-{at}"))
        assert same(whole, parts) and metrics(tmp_path / "whole") == metrics(tmp_path / f"parts-{at}")


def test_a_stop_is_heard_between_blocks_and_leaves_nothing_half_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, fit, fitted = toy(tmp_path, {"reconstruct": {}}), Reconstruct.fit, []

    def noted(self: Reconstruct, *args: Any) -> Any:
        fitted.append(1)
        return fit(self, *args)

    monkeypatch.setattr(Reconstruct, "fit", noted)
    run(recipe, name="parts", runs=tmp_path, stop=lambda: bool(fitted))
    assert len(fitted) == 1 and not (tmp_path / "parts/summary.json").exists()
    run(recipe, name="parts", runs=tmp_path)
    run(recipe, name="whole", runs=tmp_path)
    whole, parts = (load_state(tmp_path / name / "results/student/main", "state")["roles"]["student"] for name in ("whole", "parts"))
    assert same(whole, parts) and len(fitted) == 5


def test_blocks_that_hear_nothing_are_left_alone() -> None:
    models = both(DropBlocks(keep=(0, 4)))
    student = models["student"]
    assert isinstance(student, Text)
    with torch.no_grad():
        student.anatomy.weight(student.module, "up", 0).zero_()
    found = Reconstruct()(models, SEEN, "train.0")
    assert found[0][0] == found[0][1] > 0 and torch.isfinite(torch.tensor(found)).all()


def test_a_plan_counts_it_and_refuses_what_cannot_be_fitted(tmp_path: Path) -> None:
    plan = plan_of(load(toy(tmp_path, {"reconstruct": {"rows": 8}})), "toy", str(tmp_path), probe=False)
    assert "reconstruct" in str(plan) and "8 rows" in str(plan)
    with pytest.raises(Refused, match="2 of the layers 1 to 4"):
        plan_of(load(toy(tmp_path, {"reconstruct": {"layers": [1, 2, 3]}})), "toy", str(tmp_path), probe=False)
    narrow = {"start": "teacher", "surgery": [{"kind": "keep_width", "width": 32}]}
    with pytest.raises(Refused, match="the student's 32 channels"):
        plan_of(load(toy(tmp_path, {"reconstruct": {}}, student=narrow)), "toy", str(tmp_path), probe=False)


def test_a_student_without_adapters_stays_one() -> None:
    models = both(DropBlocks(keep=(0, 4)))
    training = [part.training for part in models["student"].modules()]
    Reconstruct()(models, SEEN, "train.0")
    assert not adapted(models["student"].module) and training == [part.training for part in models["student"].modules()]
    assert not any(p.grad is not None for p in models["student"].parameters())
