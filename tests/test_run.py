"""Whole runs of a toy: repeated, changed, stopped, branched, merged, selected, captured, exported, measured again."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import limbeck.evaluate.speed
from limbeck.errors import LimbeckError, Refused
from limbeck.job import Job
from limbeck.start import Run, evaluate, resume, run
from limbeck.store import is_sound, load_state, load_tensors
from limbeck.teacher.cached import Cached
from toy import FEW, TINY, after, at_home, metrics, same, stages, state, toy, words  # noqa: F401


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, no optimiser step may be taken."""

    def forbid() -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise AssertionError("an optimiser step was taken")

        monkeypatch.setattr("limbeck.train.loop.Loop.take", broken)

    return forbid


# ---- the same command again ------------------------------------------------------------------------------------------


def test_a_finished_run_computes_nothing_when_it_is_repeated(tmp_path, never, monkeypatch):
    recipe = toy(tmp_path)
    first = run(recipe)
    never()
    monkeypatch.setattr("limbeck.start.Job", None)  # not even opened
    again = run(recipe)
    assert again == first and again.finished and again.path.name == "run-1"


def test_a_run_killed_before_its_summary_is_measured_again_without_training(tmp_path, never):
    recipe = toy(tmp_path, evaluate=["agreement"])
    first = run(recipe)
    (first.path / "summary.json").unlink()
    never()
    again = run(recipe)
    assert again.path == first.path and again.summary["student"] == first.summary["student"]


def test_a_changed_recipe_gets_a_new_folder_and_the_old_one_stays(tmp_path):
    recipe = toy(tmp_path, about="first words")
    first = run(recipe, "train.0.steps=1")
    before = {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()}
    other = run(recipe, "train.0.steps=2")
    assert (first.path.name, other.path.name) == ("run-1", "run-2")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert run({**recipe, "about": "other words"}, "train.0.steps=1").path == first.path, "what only describes a recipe makes no new run"


def test_a_name_that_another_recipe_has_is_refused_with_the_first_difference(tmp_path):
    recipe = toy(tmp_path)
    run(recipe, "train.0.steps=1", name="mine")
    with pytest.raises(Refused) as caught:
        run(recipe, "train.0.steps=2", name="mine")
    assert caught.value.code == 2 and "train.0.steps 2, was 1" in caught.value.got


def test_paths_start_at_the_recipe_wherever_a_run_is_taken_up(tmp_path, monkeypatch):
    (tmp_path / "lessons").mkdir()
    words(tmp_path / "lessons")
    recipe = toy(tmp_path / "lessons", data=[FEW, {"kind": "pack", "length": 40}])
    (tmp_path / "lessons" / "tutor.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    stopped = run(tmp_path / "lessons" / "tutor.yaml", stop=after(2))
    assert not stopped.finished and stopped.path.name == "tutor-1"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lessons" / "tutor.yaml").unlink()  # the run's folder knows enough
    assert resume(stopped.path).finished


# ---- stopped and taken up --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[str, Any], Run]:
    """A toy with a baseline, never stopped."""
    root = tmp_path_factory.mktemp("whole")
    recipe = toy(root, baseline=["text_only"], evaluate=["agreement", "perplexity"])
    os.environ["LIMBECK_HOME"] = str(root / "home")
    return recipe, run(recipe, runs=root / "runs")


@pytest.mark.parametrize("step", [3, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1))])
def test_a_run_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(step, whole, tmp_path):
    recipe, undisturbed = whole
    stopped = run(recipe, stop=after(step), runs=tmp_path / "runs")  # 4 steps of the student, 4 of the baseline
    assert not stopped.finished and stopped.verdict == ""
    assert not (stopped.path / "summary.json").exists()
    done = resume(stopped.path)
    assert done.finished and done.path == stopped.path
    assert same(state(done.path), state(undisturbed.path))
    assert same(state(done.path, arm="text_only"), state(undisturbed.path, arm="text_only"))
    assert metrics(done.path) == metrics(undisturbed.path)
    for arm in ("teacher", "start", "student", "baseline"):
        assert done.summary[arm] == undisturbed.summary[arm]


def test_what_is_logged_about_a_step_is_safe_before_its_checkpoint_is(whole, tmp_path, monkeypatch):
    recipe, undisturbed = whole
    observe = Job.observe

    def dying(self: Job, arm: str, node: str, loop: Any, records: list[dict[str, Any]]) -> None:
        if loop.step == 2:
            raise KeyboardInterrupt  # the power goes before the step is looked at
        observe(self, arm, node, loop, records)

    monkeypatch.setattr(Job, "observe", dying)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, runs=tmp_path / "runs")
    monkeypatch.setattr(Job, "observe", observe)
    done = run(recipe, runs=tmp_path / "runs")
    assert metrics(done.path) == metrics(undisturbed.path) and any(r["name"] == "held_out_kl" for r in metrics(done.path))


def test_the_rows_that_are_looked_at_while_training_say_before_it_what_they_say_of_a_student_that_learns_nothing(tmp_path):
    done = run(toy(tmp_path, {"optimiser": {"lr": 1e-30}}, evaluate=["agreement"]), runs=str(tmp_path / "runs"))
    looks = [r["value"] for r in metrics(done.path) if r["name"] == "held_out_kl"]
    assert len(looks) == 4 and looks == pytest.approx([done.summary["watched"]["kl"]] * 4, rel=1e-6)
    assert done.summary["watched"]["rows"] == 4 and done.summary["start"]["kl"] != pytest.approx(looks[0], rel=1e-4)


def test_a_stop_at_every_step_comes_to_the_same_end(whole, tmp_path):
    recipe, undisturbed = whole
    ends = [run(recipe, stop=after(1), runs=tmp_path / "runs").finished for _ in range(9)]
    assert ends == [False] * 8 + [True], "one step each time: 4 of the student and 4 of the baseline"
    done = run(recipe, runs=tmp_path / "runs")
    assert same(state(done.path), state(undisturbed.path)) and metrics(done.path) == metrics(undisturbed.path)
    assert not (done.path / "checkpoints" / "student").exists()


def test_the_toy_learns_so_that_equal_means_something(whole):
    _, undisturbed = whole
    assert not same(state(undisturbed.path), state(undisturbed.path, "student"))
    assert not same(state(undisturbed.path), state(undisturbed.path, arm="text_only"))
    kl = [r["sum"] / r["count"] for r in metrics(undisturbed.path) if r["name"] == "forward_kl"]
    assert len(kl) == 4 and undisturbed.summary["student"]["kl"] < undisturbed.summary["start"]["kl"]


# ---- the graph -------------------------------------------------------------------------------------------------------


def test_the_average_of_two_branches_is_their_mean_in_float64(tmp_path):
    recipe = toy(
        tmp_path,
        train=stages({"name": "a", "start": "student"}, {"name": "b", "start": "student", "objective": ["reverse_kl"]}),
        merge=[{"kind": "average", "name": "soup", "of": ["a", "b"]}],
    )
    folder = run(recipe).path
    a, b, soup = (state(folder, name) for name in ("a", "b", "soup"))
    assert not same(a, b)
    for name, tensor in soup.items():
        assert torch.equal(tensor, ((a[name].double() + b[name].double()) / 2).to(tensor.dtype)), name
    alone = run(
        toy(tmp_path, train=stages({"name": "x", "objective": ["reverse_kl"]}, {"name": "b", "start": "student", "objective": ["reverse_kl"]}))
    )
    assert same(state(alone.path, "b"), b), "a branch from the start does not depend on what another branch did"


def test_a_stage_that_starts_at_another_one_goes_on_from_there(tmp_path):
    names = run(toy(tmp_path, train=stages({"name": "a"}, {"name": "b"}, {"name": "c", "start": "a", "objective": ["reverse_kl"]}))).path
    assert not same(state(names, "b"), state(names, "c"))
    direct = run(
        toy(tmp_path, train=stages({"name": "a"}, {"name": "z", "start": "student"}, {"name": "c", "start": "a", "objective": ["reverse_kl"]}))
    ).path
    assert same(state(names, "c"), state(direct, "c"))


SURGERY = {"surgery": [{"kind": "drop_blocks", "drop": 1, "choose": "uniform"}]}


def blocks(tensors: Mapping[str, Any]) -> int:
    """How many blocks a llama's tensors belong to."""
    return len({name.split(".layers.")[1].split(".")[0] for name in tensors if ".layers." in name})


def test_surgery_within_a_stage_changes_the_build_of_what_comes_after_it_only(tmp_path):
    recipe = toy(
        tmp_path,
        student={"start": "teacher", "surgery": [{"kind": "drop_blocks", "keep": [0, 1, 3]}]},
        train=stages({"name": "a"}, {"name": "b", **SURGERY}, {"name": "c"}, {"name": "d", "start": "student"}, {"name": "e", "start": "c"}),
    )
    folder = run(recipe).path
    assert [blocks(state(folder, name)) for name in ("student", "a", "b", "c", "d", "e")] == [3, 3, 2, 2, 3, 2]


@pytest.mark.parametrize("step", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5))])
def test_a_run_stopped_before_within_or_after_a_surgery_ends_the_same(step, tmp_path):
    recipe = toy(
        tmp_path,
        student={"start": "teacher"},
        export=["safetensors"],
        evaluate=["agreement"],
        train=stages({"name": "a"}, {"name": "b", **SURGERY}, {"name": "c", "surgery": [{"kind": "drop_blocks", "drop": 1, "choose": "influence"}]}),
    )
    undisturbed = run(recipe, runs=tmp_path / "one")
    stopped = run(recipe, stop=after(step), runs=tmp_path / "two")
    assert not stopped.finished
    done = resume(stopped.path)
    for name in ("a", "b", "c"):
        assert same(state(done.path, name), state(undisturbed.path, name))
    assert metrics(done.path) == metrics(undisturbed.path) and done.summary["student"] == undisturbed.summary["student"]
    assert done.load().config.num_hidden_layers == blocks(state(done.path, "c")) == 2


def test_a_repeated_stage_is_the_stage_written_so_many_times(tmp_path):
    thrice = run(toy(tmp_path, train=stages({"name": "x", "repeat": 3})))
    written = run(toy(tmp_path, train=stages({"name": "x.0"}, {"name": "x.1"}, {"name": "x"})))
    assert [same(state(thrice.path, name), state(written.path, name)) for name in ("x.0", "x.1", "x")] == [True] * 3
    assert metrics(thrice.path) == metrics(written.path)
    assert thrice.summary["steps"] == written.summary["steps"] == 6


def test_a_stage_after_a_merge_goes_on_with_every_merged_role_also_after_a_stop(tmp_path):
    peer = {
        "turn": [
            {"trains": "peer", "objective": [{"kind": "forward_kl", "seats": {"student": "peer"}}], "batch": 2, "optimiser": {"lr": 1e-3}},
            {"objective": [{"kind": "forward_kl", "seats": {"teacher": "peer"}}], "batch": 2, "optimiser": {"lr": 1e-3}},
        ]
    }
    short = {"steps": 2, "checkpoint": {"every": 1}}
    train = [{**short, "name": "a", **peer}, {**short, "name": "b", "start": "student", **peer}, {**short, "name": "c", "start": "m", **peer}]
    recipe = toy(tmp_path, role={"peer": {"start": "student"}}, train=train, merge=[{"kind": "average", "of": ["a", "b"], "name": "m"}], result="c")
    undisturbed = run(recipe, runs=tmp_path / "one")
    roles = {name: load_state(undisturbed.path / "results" / "student" / name, "state")["roles"] for name in ("a", "b", "m", "c")}
    for role in ("student", "peer"):
        for name, tensor in roles["m"][role].items():
            torch.testing.assert_close(tensor.double(), (roles["a"][role][name].double() + roles["b"][role][name].double()) / 2, rtol=1e-6, atol=1e-7)
    stopped = run(recipe, stop=after(4), runs=tmp_path / "two")
    assert not stopped.finished
    done = resume(stopped.path)
    again = load_state(done.path / "results" / "student" / "c", "state")["roles"]
    assert same(again, roles["c"]) and metrics(done.path) == metrics(undisturbed.path)


def test_no_two_turns_or_stages_look_at_the_same_windows(tmp_path, monkeypatch):
    from limbeck.data.base import Rows

    drawn, draw = [], Rows.draw

    def watched(self, first, num, streams):
        rows = draw(self, first, num, streams)
        drawn.append(tuple(row.key for row in rows))
        return rows

    monkeypatch.setattr(Rows, "draw", watched)
    run(toy(tmp_path, train=stages({"name": "a"}, {"name": "b"})))
    windows = drawn[-4:]                                      # the two steps of each stage
    assert len(set(windows)) == 4


def test_other_data_or_another_model_behind_the_same_recipe_is_refused(tmp_path):
    recipe = toy(tmp_path)
    stopped = run(recipe, name="mine", stop=after(2))
    assert not stopped.finished
    words(tmp_path, seed=9)
    with pytest.raises(Refused) as caught:
        run(recipe, name="mine")
    assert caught.value.slug == "inputs" and "rows" in caught.value.got
    words(tmp_path)
    assert run(recipe, name="mine").finished


def test_a_stage_with_data_of_its_own_trains_on_no_held_out_document(tmp_path, monkeypatch):
    from limbeck.data.base import Rows

    whole = {**FEW, "path": str(tmp_path / "words.txt"), "split": 0.0}
    recipe = toy(tmp_path, {"data": [whole, {"kind": "pack", "length": 40}]}, data=[{**whole, "split": 0.5}, {"kind": "pack", "length": 40}])
    words(tmp_path)
    held, without = [], Rows.without

    def watched(self, rows):
        found = without(self, rows)
        held.append(({row.source for row in rows}, {row.source for row in found.train}, found.notes))
        return found

    monkeypatch.setattr(Rows, "without", watched)
    run(recipe)
    ((out, train, notes),) = held
    assert out and train and not out & train and "left out" in notes[-1]


def test_another_role_that_learns_is_what_its_branch_left_also_after_a_stop(tmp_path):
    peer = {
        "turn": [
            {"trains": "peer", "objective": [{"kind": "forward_kl", "seats": {"student": "peer"}}], "batch": 2, "optimiser": {"lr": 1e-3}},
            {"objective": [{"kind": "forward_kl", "seats": {"teacher": "peer"}}], "batch": 2, "optimiser": {"lr": 1e-3}},
        ]
    }
    both = [
        {"steps": 2, "checkpoint": {"every": 1}, "name": "a", **peer},
        {"steps": 2, "checkpoint": {"every": 1}, "name": "b", "start": "student", **peer},
    ]
    recipe = toy(tmp_path, role={"peer": {"start": "student"}}, train=both)
    undisturbed = run(recipe, runs=tmp_path / "one").path
    stopped = run(recipe, stop=after(2), runs=tmp_path / "two")
    shutil.rmtree(stopped.path / "checkpoints")  # as after a power cut before the first of them
    done = resume(stopped.path).path
    assert same(state(done, "b"), state(undisturbed, "b")) and metrics(done) == metrics(undisturbed)


# ---- selection -------------------------------------------------------------------------------------------------------


def test_selection_keeps_the_best_state_and_stops_when_patience_is_at_its_end(tmp_path):
    wild = {"steps": 12, "select": {"metric": "kl", "every": 1, "patience": 2}, "optimiser": {"lr": 3e-3}}
    wild["optimiser"] = {"lr": {"kind": "linear", "start": 1e-3, "end": 1.0, "steps": 3}}  # good steps first, then ever worse ones
    recipe = toy(tmp_path, wild, evaluate=["agreement"])
    undisturbed = run(recipe, runs=tmp_path / "one")
    seen = [r["sum"] for r in metrics(undisturbed.path) if r["name"] == "held_out.kl"]
    best = min(range(len(seen)), key=seen.__getitem__)
    assert len(seen) == best + 3 < 12, "two measurements without improvement end the stage"
    assert undisturbed.summary["student"]["kl"] == pytest.approx(seen[best], rel=1e-6)
    shorter = run(toy(tmp_path, {**wild, "steps": 12, "select": None} | {"steps": best + 1}, evaluate=["agreement"]), runs=tmp_path / "short")
    assert same(state(shorter.path), state(undisturbed.path)), "the best state is the one after its step"
    for step in (best + 2,):  # the best lies in the checkpoint
        stopped = run(recipe, stop=after(step), runs=tmp_path / f"stop{step}")
        assert not stopped.finished
        done = resume(stopped.path)
        assert same(state(done.path), state(undisturbed.path)) and metrics(done.path) == metrics(undisturbed.path)


def test_a_metric_that_nobody_measures_is_named_with_those_that_are(tmp_path):
    with pytest.raises(LimbeckError) as caught:
        run(toy(tmp_path, {"select": {"metric": "bleu", "every": 1}}))
    assert "kl" in caught.value.expected and "bleu" in caught.value.got and caught.value.code == 2


# ---- teachers and data of a stage ------------------------------------------------------------------------------------


def test_a_stage_may_bring_its_own_teacher_and_data(tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(TINY.read_text()), "seed": 7}))
    own = {"teacher": f"config:{other}", "data": [{**FEW, "path": str(words(tmp_path, "more.txt", seed=5))}, {"kind": "pack", "length": 32}]}
    turn = {"turn": [{"batch": 2, "objective": ["forward_kl"], "optimiser": {"lr": 1e-3}}]}
    middle = {"name": "b", "steps": 2, "checkpoint": {"every": 1}, **turn}  # with its turn written out: beside it, data is that of the stage
    a, c = stages({"name": "a"}, {"name": "c"})
    recipe = toy(tmp_path, train=[a, {**middle, **own}, c])
    folder = run(recipe).path
    plain = run(toy(tmp_path, train=stages({"name": "a"}, {"name": "b"}, {"name": "c"}))).path
    only_data = run(toy(tmp_path, train=[a, {**middle, "data": own["data"]}, c])).path
    assert same(state(folder, "a"), state(plain, "a"))
    assert not same(state(folder, "b"), state(plain, "b")) and not same(state(folder, "b"), state(only_data, "b"))
    counts = [r["count"] for r in metrics(folder) if (r["stage"], r["name"]) == ("b", "forward_kl")]
    assert counts != [r["count"] for r in metrics(plain) if (r["stage"], r["name"]) == ("b", "forward_kl")]
    stopped = run(recipe, stop=after(3), runs=tmp_path / "two")
    done = resume(stopped.path).path
    assert all(same(state(done, n), state(folder, n)) for n in "abc") and metrics(done) == metrics(folder)


def test_a_stage_writes_its_teacher_as_the_recipe_does(tmp_path):
    recipe = toy(tmp_path, {"teacher": f"config:{TINY}", "steps": 1})
    assert same(state(run(recipe).path), state(run(toy(tmp_path, {"steps": 1})).path))


def test_the_baseline_is_a_run_with_cross_entropy_by_hand(whole, tmp_path):
    recipe, undisturbed = whole
    by_hand = {
        **recipe,
        "teacher": None,
        "baseline": [],
        "student": {**recipe["student"], "start": recipe["teacher"]},
        "train": [{**recipe["train"][0], "objective": ["cross_entropy"]}],
    }
    folder = run({k: v for k, v in by_hand.items() if v is not None}).path
    assert same(state(folder), state(undisturbed.path, arm="text_only"))
    ours = [(r["step"], r["name"], r["sum"], r["count"]) for r in metrics(undisturbed.path) if r["arm"] == "text_only" and "sum" in r]
    assert ours == [(r["step"], r["name"], r["sum"], r["count"]) for r in metrics(folder)]


@pytest.mark.parametrize("objective", ["forward_kl", pytest.param("reverse_kl", marks=pytest.mark.slow)])
def test_a_cached_teacher_says_what_the_live_one_says_and_is_asked_once_for_two_runs(objective, tmp_path, monkeypatch):
    live = run(toy(tmp_path, {"objective": [objective]}, evaluate=["agreement"]))
    asked: list[int] = []
    original = Cached.capture
    monkeypatch.setattr(Cached, "capture", lambda self, rows, role: asked.append(len(rows)) or original(self, rows, role))
    recipe = toy(tmp_path, {"objective": [objective]}, evaluate=["agreement"], teacher={"kind": "cached", "model": f"config:{TINY}"})
    cached = run(recipe, name="first")
    assert 0 < sum(asked) <= 8 + 24
    rows = sum(asked)
    for mine, theirs in zip(metrics(cached.path), metrics(live.path), strict=True):
        number = "sum" if "sum" in mine else "value"
        assert mine == {**theirs, number: pytest.approx(theirs[number], rel=1e-5)}, mine
    assert cached.summary["student"]["kl"] == pytest.approx(live.summary["student"]["kl"], rel=1e-5)
    assert "writes" not in cached.summary, "a student that starts from a teacher whose answers are kept writes text all the same"
    again = run(recipe, name="second")
    assert sum(asked) == rows, "the second run asks the teacher nothing"
    assert same(state(again.path), state(cached.path)) and metrics(again.path) == metrics(cached.path)
    run(recipe, "train.0.steps=6", name="third")
    assert rows < sum(asked) < 2 * rows + 24, "more steps ask about more rows"


# ---- what comes of it ------------------------------------------------------------------------------------------------

ARMS = ("teacher", "start", "student", "baseline")


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Run:
    """A toy with everything on, but no child process that measures memory."""
    root = tmp_path_factory.mktemp("measured")
    speed = {"kind": "speed", "repeats": 2, "new_tokens": 4, "prompt_tokens": 8, "contexts": [16]}
    os.environ["LIMBECK_HOME"] = str(root / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limbeck.evaluate.speed, "measured", lambda *_: None)
        return run(
            toy(root, about="A toy.", baseline=["text_only"], evaluate=["agreement", "perplexity", "calibration", speed], export=["safetensors"]),
            runs=root / "runs",
        )


def test_the_summary_has_what_scripts_read(measured):
    summary = json.loads((measured.path / "summary.json").read_text())
    assert summary == measured.summary and summary["schema"] == "limbeck.summary/1"
    for arm in ARMS:
        assert {"kl", "top1", "perplexity"} <= summary[arm].keys(), arm
    for arm in ("teacher", "student"):  # what differs from the student in weights alone is as fast and as big
        assert {"parameters", "decode_tokens_per_second"} <= summary[arm].keys(), arm
    assert summary["run"] == measured.path.name and summary["steps"] == 4 and summary["wall_seconds"] > 0 and summary["seed"] == 0
    assert summary["verdict"] == measured.verdict and measured.verdict.endswith(".")
    assert summary["held_out"]["documents"] > 1 and summary["held_out"]["targets"] == summary["held_out_targets"] > 0
    assert [entry["role"] for entry in summary["provenance"]] == ["teacher", "data"]
    assert {entry["what"] for entry in summary["not_measured"]} == {"spread over seeds; this is one seed", "any task"}
    assert summary["student"]["parameters"] == sum(x.numel() for name, x in state(measured.path).items() if name != "lm_head.weight")


def test_the_folder_of_a_run_has_what_the_manual_says(measured):
    there = {path.name for path in measured.path.iterdir()}
    assert {"recipe.yaml", "plan.txt", "summary.json", "report.html", "metrics.jsonl", "environment.json", "student"} <= there

    def plain(text: str) -> str:  # a page has its own quotes, signs and spaces
        return re.sub(r"\s|`", "", text).replace("’", "'").replace("×", "x")

    assert plain(measured.verdict) in plain(html.unescape(re.sub("<[^>]*>", "", (measured.path / "report.html").read_text())))
    assert (measured.path / "student" / "README.md").is_file()


def test_the_teacher_against_itself_is_perfect(measured):
    assert (measured.summary["teacher"]["kl"], measured.summary["teacher"]["top1"]) == (0.0, 1.0)
    table = load_tensors(measured.path / "tables" / "teacher" / "table.safetensors")
    assert float(table["kl"].abs().max()) < 1e-6 and torch.equal(table["best"], table["teacher_best"])


def test_a_student_that_is_its_teacher_is_perfect_at_the_start(tmp_path):
    summary = run(toy(tmp_path, {"steps": 1}, student={"start": "teacher"}, evaluate=["agreement"])).summary
    assert summary["start"]["top1"] == 1.0 and summary["start"]["kl"] == pytest.approx(0, abs=1e-6)


def test_the_exported_student_is_the_trained_one_in_stock_transformers(measured):
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(measured.path / "student", dtype=torch.float32)
    theirs, ours = loaded.state_dict(), state(measured.path)
    assert type(loaded).__module__.startswith("transformers.") and loaded.config.num_hidden_layers == 2
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert same(measured.load().state_dict(), theirs)
    assert not list((measured.path / "student").glob("*.py")) and not list((measured.path / "student").glob("*.bin"))


@pytest.mark.slow
def test_the_exported_student_says_the_same_in_a_process_that_has_no_limbeck(measured):
    code = (
        "import sys, json, torch, transformers\nm = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()\n"
        "assert 'limbeck' not in sys.modules\nprint(json.dumps(m(torch.arange(32)[None]).logits[0, -1].tolist()))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(measured.path / "student")], capture_output=True, text=True, env=environment, check=True, timeout=300
    )
    with torch.no_grad():
        ours = measured.load().eval()(torch.arange(32)[None]).logits[0, -1]
    assert torch.equal(torch.tensor(json.loads(done.stdout.splitlines()[-1])), ours)


def test_a_run_is_measured_again_with_another_kind_and_forgets_nothing(tmp_path, never):
    first = run(toy(tmp_path, evaluate=["agreement"], export=["safetensors"]))
    assert "kl" in first.summary["student"] and "calibration_error" not in first.summary["student"]
    never()
    again = evaluate(first.path, ("perplexity", "calibration"))
    for arm in ("teacher", "start", "student"):
        assert {"calibration_error", "perplexity"} <= again.summary[arm].keys()
        assert again.summary[arm].items() >= first.summary[arm].items(), "what was measured before stays"
    assert again.summary["checks"] == first.summary["checks"], "each check stands there once"
    assert run(toy(tmp_path, evaluate=["agreement"], export=["safetensors"])).summary == again.summary


def test_a_run_that_is_not_finished_is_not_measured_again(tmp_path):
    stopped = run(toy(tmp_path, evaluate=["agreement"]), stop=after(1))
    with pytest.raises(Refused) as caught:
        evaluate(stopped.path)
    assert "limbeck resume" in caught.value.do


def test_every_result_of_a_run_is_sound_and_nothing_is_left_over(measured):
    for arm in ("student", "text_only"):
        assert all(is_sound(folder) for folder in (measured.path / "results" / arm).iterdir())
    assert not [path for path in measured.path.rglob("*") if ".limbeck-" in path.name]
