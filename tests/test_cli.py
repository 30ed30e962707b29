"""Every verb of the command line, once, as people and as scripts call it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import limbeck.evaluate.speed
from limbeck.cli.showing import rows_of
from limbeck.component import ROOMS, members
from limbeck.recipe import SHIPPED, load
from toy import TINY, Call, at_home, command_line, metrics, same, state, words  # noqa: F401

RECIPE = """about: A tutor with two of its four blocks removed.
data:
  - {kind: text, path: words.txt, separator: "\\n\\n", split: 0.2}
  - {kind: pack, length: 40}
teacher: config:tiny.json
student: {start: teacher, surgery: [{kind: drop_blocks, keep: [0, 3]}]}
train:
  - {objective: [forward_kl], steps: 3, batch: 2, optimiser: {lr: 1e-3}}
evaluate: [agreement, perplexity]
export: safetensors
"""


@pytest.fixture
def tutor(tmp_path: Path) -> Path:
    """A recipe as a user writes it, in a folder of its own."""
    folder = tmp_path / "lessons"
    words(folder)
    (folder / "tiny.json").write_text(TINY.read_text())  # a relative path: it starts at the recipe, wherever one stands
    (folder / "tutor.yaml").write_text(RECIPE)
    return folder / "tutor.yaml"


@pytest.fixture
def finished(cli: Call, tutor: Path, tmp_path: Path) -> Path:
    """The folder of its run."""
    assert cli("run", tutor, "--quiet")[0] == 0
    return tmp_path / "runs" / "tutor-1"


def test_a_run_shows_its_steps_on_stderr_and_its_table_on_stdout(cli, tutor, tmp_path):
    code, out, err = cli("run", tutor)
    assert code == 0
    for step in ("data", "student", "before", "train", "export", "evaluate"):
        assert any(line.split()[1:2] == [step] for line in err.splitlines()), step
    assert "teacher" in out and "Top-1 agreement" in out and "the student keeps" in out.lower() and "limbeck chat tutor-1" in out
    assert "expected" not in err
    again, table, err = cli("run", tutor)
    assert again == 0 and table == out and "nothing was computed again" in err


def test_a_quiet_run_says_nothing_beside_its_result_and_as_json_it_is_one_document(cli, tutor):
    code, out, err = cli("run", tutor, "train.0.steps=2", "--quiet", "--json")
    summary = json.loads(out)
    assert code == 0 and summary["schema"] == "limbeck.summary/1" and summary["steps"] == 2 and summary["verdict"]
    assert [
        line for line in re.split("[\r\n]", err) if line and not re.search(r"\d it/s|/s\]|\?it", line)
    ] == []  # bars of transformers, which a test cannot switch off so late


def test_a_plan_tells_time_memory_and_steps_and_loads_no_weights(cli, tutor, monkeypatch, tmp_path):
    monkeypatch.setattr("limbeck.roles.open_pretrained", lambda *_, **__: 1 / 0)
    code, out, _ = cli("plan", tutor, "--no-probe")
    assert code == 0 and all(word in out for word in ("plan of tutor", "teacher", "student", "data", "needs", "total", "fits", "expect"))
    code, out, err = cli("plan", tutor, "train.0.steps=7", "--no-probe", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["schema"] == "limbeck.plan/1" and plan["roles"]["teacher"]["layers"] == 4 and plan["roles"]["student"]["layers"] == 2
    assert plan["seconds"] > 0 and {"data", "train", "evaluate", "export"} <= {line["step"] for line in plan["steps"]}
    assert any(line["what"].startswith("7 steps") for line in plan["steps"]) and not (tmp_path / "runs").exists()


def test_a_run_can_be_planned_by_its_name_wherever_one_stands(cli, finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("plan", "tutor-1", "--no-probe", "--json")
    assert code == 0, err
    assert json.loads(out)["roles"]["student"]["layers"] == 2


def test_the_toy_of_a_shipped_recipe_is_planned(cli):
    code, out, err = cli("plan", "quickstart", "--toy", "--no-probe", "--json")
    assert code == 0, err
    assert json.loads(out)["roles"]["teacher"]["layers"] == 4


def test_a_finished_run_is_resumed_in_no_time_by_its_name_its_recipe_or_its_folder(cli, finished):
    for name in ("tutor-1", "tutor", finished):
        code, out, _ = cli("resume", name, "--quiet", "--json")
        assert code == 0 and json.loads(out)["run"] == "tutor-1"


def test_a_run_is_evaluated_further(cli, finished):
    code, out, err = cli("evaluate", "tutor-1", "calibration", "--json")
    summary = json.loads(out)
    assert code == 0 and {"calibration_error", "kl", "perplexity"} <= summary["student"].keys(), err
    page = (finished / "report.html").read_text()
    assert cli("evaluate", "tutor-1", "--no-samples")[0] == 0
    assert len((finished / "report.html").read_text()) < len(page)
    assert cli("evaluate", "tutor-1", "no_such_kind")[0] == 2


def test_two_runs_are_compared_over_the_same_held_out_text(cli, finished, tutor):
    assert cli("run", tutor, "train.0.steps=1", "--quiet")[0] == 0
    code, out, _ = cli("compare", "tutor-1", "tutor-2")
    assert code == 0 and "comparable: 2 runs" in out and "best" in out and "train.0.steps 1, was 3" in out
    code, out, _ = cli("compare", "tutor-1", "tutor-2", "--json")
    found = json.loads(out)
    assert (
        code == 0
        and found["schema"] == "limbeck.compare/1"
        and {entry["run"] for entry in found["runs"]} == {"tutor-1", "tutor-2"}
        and found["left_out"] == []
    )
    kl = {entry["run"]: entry["kl"] for entry in found["runs"]}
    assert found["best"] == min(kl, key=kl.__getitem__)
    assert cli("run", tutor, "data.0.split=0.4", "--quiet")[0] == 0
    code, out, _ = cli("compare", "tutor-1", "tutor-2", "tutor-3", "--json")
    assert code == 0 and json.loads(out)["left_out"] == ["tutor-3"]
    assert cli("compare", "tutor-1", "tutor-3")[0] == 2
    assert cli("compare", "tutor-1")[0] == 2


def test_teacher_and_student_answer_what_stands_in_stdin(cli, finished, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/system be short\nwhy does ice float?\n\n/new\nand again?\n/quit\nnever asked\n"))
    code, out, err = cli("chat", "tutor-1", "--new-tokens", "4")
    assert code == 0, err
    assert out.count("  teacher · ") == out.count("  student · ") == 2 and "agreement" in out
    assert "why does ice float?" in out and "and again?" in out and "never asked" not in out


def test_a_talk_longer_than_the_context_ends_in_four_lines_or_an_answer_but_in_no_traceback(cli, finished, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("long " * 400 + "\n"))
    code, out, err = cli("chat", "tutor-1", "--new-tokens", "2")
    assert code in (0, 2, 3) and "Traceback" not in err


@pytest.mark.parametrize("room", [*ROOMS, "recipe", "paper", "family", "run"])
def test_every_room_is_listed_with_a_sentence_for_each_member(room, cli):
    code, out, err = cli("list", room)
    assert code == 0, err
    rows = json.loads(cli("list", room, "--json")[1])
    if room in ROOMS:
        assert [row["kind"] for row in rows] == list(members(room)) and all(row["does"].endswith(".") for row in rows)
        assert all(row["kind"] in out for row in rows)
    if room == "recipe":
        assert {row["recipe"] for row in rows} == {path.stem for path in SHIPPED.glob("*.yaml")} and all(row["does"] for row in rows)
    if room == "run":
        assert rows == [] and out.strip() == "no run yet"


def test_recipes_are_found_by_the_rows_that_one_has(cli):
    every = {row["recipe"] for row in json.loads(cli("list", "recipe", "--json")[1])}
    asked = {have: json.loads(cli("list", "recipe", "--have", have, "--json")[1]) for have in ("text", "images", "audio", "dna", "rankings")}
    found = {have: {row["recipe"] for row in rows} for have, rows in asked.items()}
    assert {"quickstart", "taid"} <= found["text"] and {"image_teacher", "ofa"} <= found["images"] and "rank_distillm" in found["rankings"]
    assert "robust_distiller" in found["audio"] and "had" in found["dna"]
    assert not found["text"] & (found["images"] | found["rankings"] | found["dna"]) and set().union(*found.values()) <= every
    for wrong, told in (("rnkings", "--have rankings"), ("nothing", "limbeck list recipe")):
        code, _, err = cli("list", "recipe", "--have", wrong)
        assert code == 2 and "audio, dna, images" in err and told in err
    code, _, err = cli("list", "paper", "--have", "images")
    assert code == 2 and "limbeck list recipe --have images" in err


def test_runs_are_listed_with_their_verdict(cli, finished):
    rows = json.loads(cli("list", "run", "--json")[1])
    assert [row["run"] for row in rows] == ["tutor-1"] and rows[0]["verdict"].endswith(".")


def test_a_recipe_a_kind_and_a_run_are_shown(cli, finished, tutor):
    code, out, _ = cli("show", "quickstart")
    assert code == 0 and "forward_kl" in out and "limbeck run quickstart" in out
    code, out, _ = cli("show", "objective.forward_kl")
    assert code == 0 and "temperature" in out and "Claims" in out
    code, out, _ = cli("show", "drop_blocks", "--json")
    assert (
        code == 0
        and json.loads(out)["kind"] == "drop_blocks"
        and {field["field"] for field in json.loads(out)["fields"]} >= {"keep", "drop", "choose"}
    )
    code, out, _ = cli("show", "tutor-1")
    assert code == 0 and "forward_kl" in out and "Top-1 agreement" in out
    code, out, _ = cli("show", tutor, "--json")
    assert code == 0 and "A tutor with two" in json.loads(out)["text"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_kind_can_be_shown(room, cli):
    for kind in members(room):
        code, out, err = cli("show", f"{room}.{kind}")
        assert code == 0 and out.startswith(f"{room}.{kind}\n"), err


def test_a_kind_is_checked_and_a_no_has_its_own_code(cli, monkeypatch):
    code, out, err = cli("check", "objective.forward_kl", "--only", "yaml")
    assert code == 0 and "yaml ✓" in out, err
    code, out, _ = cli("check", "objective.forward_kl", "--only", "yaml", "--json")
    (report,) = json.loads(out)
    assert code == 0 and report["name"] == "forward_kl" and report["failed"] == 0
    monkeypatch.setattr("limbeck.objective.forward_kl.ForwardKL.values", lambda self, **said: said["student"]["logits"].dense().sum(-1) * 0 + 1)
    code, out, _ = cli("check", "objective.forward_kl", "--only", "zero_at_match")
    assert code == 5 and "✗ zero_at_match" in out
    assert cli("check", "objective.forward_kl", "--only", "no_such_contract")[0] == 2


def test_the_doctor_looks_at_this_machine(cli):
    code, out, _ = cli("doctor", "--json")
    rows = json.loads(out)
    assert {"python", "torch", "transformers", "memory", "disk", "cache"} <= {row["what"] for row in rows}
    assert code == (0 if all(row["mark"] != "✗" for row in rows) else 4)
    assert all(row["do"] for row in rows if row["mark"] == "✗")


def test_help_of_every_verb_has_a_sentence(cli):
    code, out, _ = cli("--help")
    assert code == 0
    for verb in ("run", "resume", "plan", "evaluate", "compare", "chat", "list", "show", "check", "doctor"):
        assert verb in out
        assert cli(verb, "--help")[0] == 0
    code, out, err = cli()
    assert code in (0, 2) and "doctor" in out + err


def test_a_stop_between_steps_says_how_to_go_on_and_the_same_command_does(cli, tutor, tmp_path, monkeypatch):
    from limbeck.train.loop import Loop

    take, taken = Loop.take, []

    def slow(self: Loop, *args: Any) -> Any:
        taken.append(self.step)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C within the second step
        return take(self, *args)

    monkeypatch.setattr(Loop, "take", slow)
    code, out, err = cli("run", tutor)
    assert code == 130 and out == "" and "limbeck resume tutor-1" in err and "stopping after this step" in err
    assert [path.name for path in (tmp_path / "runs/tutor-1/checkpoints/student/stage-0").iterdir()] == ["step-00000002"]
    code, out, _ = cli("run", tutor, "--quiet")
    assert code == 0 and taken == [0, 1, 2] and "limbeck chat tutor-1" in out
    monkeypatch.setattr(Loop, "take", take)
    assert cli("run", tutor, "--run", "whole", "--quiet")[0] == 0
    runs = tmp_path / "runs"
    assert same(state(runs / "tutor-1", "stage-0"), state(runs / "whole", "stage-0")) and metrics(runs / "tutor-1") == metrics(runs / "whole")


def test_sigterm_stops_as_safely_with_its_own_code(cli, tutor, monkeypatch):
    from limbeck.train.loop import Loop

    take = Loop.take
    monkeypatch.setattr(Loop, "take", lambda self, *args: (os.kill(os.getpid(), signal.SIGTERM), take(self, *args))[1])
    assert cli("run", tutor, "--quiet")[0] == 143


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_signal_stops_a_process_which_goes_on_where_it_was(number, code, tutor, tmp_path):
    command = [sys.executable, "-m", "limbeck", "run", str(tutor), "train.0.steps=400", "evaluate=null"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "runs" / "tutor-1" / "metrics.jsonl"
    end = time.monotonic() + 300
    while not (log.is_file() and log.read_text().count("\n") > 40):
        assert child.poll() is None and time.monotonic() < end, child.communicate()
        time.sleep(0.05)
    child.send_signal(number)
    out, err = child.communicate(timeout=300)
    assert child.returncode == code and "Go on: limbeck resume tutor-1" in err and "Traceback" not in err
    done = subprocess.run([*command[:3], "resume", "tutor-1", "--quiet"], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    steps = [r["step"] for r in metrics(log.parent) if r["name"] == "forward_kl"]
    assert steps == list(range(400))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_the_toy_of_every_shipped_recipe_runs_to_its_end(name, cli, monkeypatch):
    monkeypatch.setattr(limbeck.evaluate.speed, "measured", lambda *_: None)
    code, out, err = cli("run", name, "--toy")
    assert code == 0, err
    talks = rows_of(load(name)) <= {"text"} and load(name).teacher is not None  # chat puts a student beside its teacher
    assert f"{name}-toy-1/report.html" in out and ("limbeck chat" in out) == talks
