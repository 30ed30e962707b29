"""`limbeck capture` and `limbeck cache`: recorded once, whatever kills it; used where the teacher is not at hand; refused in one sentence."""

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from limbeck import store
from limbeck.errors import Refused
from limbeck.start import run
from limbeck.store import Answers, Cache, read_json, write_json
from limbeck.teacher._packing import unpack
from limbeck.teacher.cached import Cached
from toy import TINY, at_home, command_line, metrics, same, state, toy  # noqa: F401

# killed at every crash point


def scenario(root: str, log: str) -> None:
    """A capture of ten rows in three parts; each question is written down before it is answered."""
    from limbeck.check.models import pair, rows
    from limbeck.store import Answers
    from limbeck.teacher import _capture
    from limbeck.teacher._packing import unpack
    from limbeck.teacher.cached import Cached

    _capture.FIRST_ROWS, _capture.PART_ROWS = 2, 4
    ask = Cached.capture

    def noted(self, some, role):
        with open(log, "a") as file:
            file.writelines(f"{row.key}\n" for row in some)
        return ask(self, some, role)

    Cached.capture = noted
    _capture.capture(Cached(model="config:x", keep="top_k", k=3, bits=8), pair()["teacher"], rows().train, Answers(root, {"n": 1}, unpack=unpack))


STAGE = """
import os, sys, traceback
import torch
torch.set_num_threads(1)
from limbeck.check.models import pair, rows
pair(), rows()
os.fsync = lambda handle: None
for line in sys.stdin:
    root, log, os.environ["LIMBECK_CRASH_AT"] = line.rstrip("\\n").split("\\t")
    if not (process := os.fork()):
        try:
            scenario(root, log)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def play():
    """Runs the scenario in a process of its own up to a crash point; returns its exit code and the rows it asked about."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")}
    environment |= {"PYTHONPATH": str(Path(inspect.getfile(store)).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", inspect.getsource(scenario) + STAGE]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdin and stage.stdout
        source, sink = stage.stdout, stage.stdin

        def go(root: Path, point: str) -> tuple[int, list[str]]:
            log = root.with_suffix(".log")
            log.write_text("")
            print(root, log, point, sep="\t", file=sink, flush=True)
            return int(source.readline()), log.read_text().split()

        yield go


POINTS = [point for point in store.CRASH_POINTS if not point.startswith(("log.", "cache.")) and point != "folder.aside"]


@pytest.mark.parametrize("point", POINTS)
def test_a_capture_killed_anywhere_asks_again_only_about_the_part_that_was_in_the_making(point, tmp_path, play):
    code, every = play(tmp_path / "whole", "")
    assert code == 0 and len(every) == len(set(every)) == 10
    whole, deaths = Answers(tmp_path / "whole", {"n": 1}, unpack=unpack), 0
    while deaths < 100:
        root = tmp_path / str(deaths)
        code, first = play(root, f"{point}:{deaths + 1}")
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        finished = Answers(root, {"n": 1}, unpack=unpack) if (root / "about.json").is_file() else {}
        kept = set(finished)
        inodes = {path: path.stat().st_ino for path in (root / "parts").glob("[0-9a-f]*/answers.safetensors")}
        assert set(first) - kept == set(first[len(kept) :]) and len(first) - len(kept) <= 4, "lost is at most the part in the making"
        code, second = play(root, "")
        asked = Counter(first + second)
        assert code == 0 and set(asked) == set(every) and set(second) == set(every) - kept, "what is there is not asked again"
        assert max(asked.values()) <= 2 and {key for key, n in asked.items() if n == 2} == set(first) - kept
        assert {path: path.stat().st_ino for path in inodes} == inodes, "nor written again"
        found = Answers(root, {"n": 1}, unpack=unpack)
        assert found.missing(every) == [] and all(torch.equal(found[key][name], x) for key in every for name, x in whole[key].items())
    assert 0 < deaths < 100, "the point is passed, and at last no longer"


# the command line


def written(folder: Path, **keys) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(toy(folder, **keys)))
    return path


def recorded(cli, path: Path, into: Path, *changes: str) -> dict:
    code, out, error = cli("capture", path, *changes, "--into", into, "--json")
    assert code == 0, error
    return json.loads(out)


def test_a_capture_records_all_rows_once_and_says_what_it_holds(cli, tmp_path):
    path = written(tmp_path)
    found = recorded(cli, path, tmp_path / "said")
    answers = Answers(tmp_path / "said", unpack=unpack)
    targets = sum(len(said["hidden"]) for said in answers.values())
    assert found["rows"] == found["asked_rows"] == len(answers) > 20 and found["targets"] == targets
    assert found["bytes_a_target"] == pytest.approx(256, rel=0.05) and found["bytes"] == answers.size_bytes
    assert found["use"] == f"teacher=cache:{tmp_path / 'said'}" and found["models"] == [f"config:{TINY}"]
    assert found["kl"] == pytest.approx(0, abs=1e-9) and found["top1"] == 1
    assert recorded(cli, path, tmp_path / "said")["asked_rows"] == 0
    code, out, _ = cli("capture", path, "--into", tmp_path / "said")
    assert code == 0 and f"{found['rows']} rows, {targets:,} targets" in out and "bytes a target" in out and found["use"] in out


TRIED = [({"keep": "top_k", "k": 200, "bits": 8}, 1e-3, 0.97), ({"bits": 16}, 1e-5, 0.99), ({"bits": 8}, 1e-3, 0.95)]


@pytest.mark.parametrize("fields, kl, top1", TRIED)
def test_what_is_read_back_is_compared_with_the_live_teacher(cli, tmp_path, fields, kl, top1):
    teacher = json.dumps({"kind": "cached", "model": f"config:{TINY}", **fields})
    found = recorded(cli, written(tmp_path), tmp_path / "said", f"teacher={teacher}")
    assert 0 < found["kl"] < kl and found["top1"] >= top1 and (found["mass"] < 1) == ("k" in fields)


@pytest.mark.parametrize("fields", [{}, {"keep": "top_k", "k": 20, "bits": 8}, {"taps": ["hidden.2"]}], ids=["hidden", "top_k", "taps"])
def test_a_run_without_the_teacher_is_that_with_a_cached_one(cli, tmp_path, fields, monkeypatch):
    objectives = ["forward_kl", {"kind": "hidden_mse", "layers": [2]}] if "taps" in fields else ["forward_kl"]
    recipe = toy(tmp_path, {"objective": objectives}, evaluate=["agreement"])
    recipe["student"] = {"start": f"config:{TINY}", "surgery": recipe["student"]["surgery"]}
    recipe["teacher"] = {"kind": "cached", "model": f"config:{TINY}", **fields}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    use = recorded(cli, tmp_path / "small.yaml", tmp_path / "said")["use"].partition("=")[2]
    cached = run(recipe, name="cached")
    monkeypatch.setattr(Cached, "capture", lambda *_: pytest.fail("the teacher was asked"))
    found = run({**recipe, "teacher": use}, name="recorded")
    assert same(state(found.path), state(cached.path)) and metrics(found.path) == metrics(cached.path)
    assert found.summary["student"]["kl"] == cached.summary["student"]["kl"] and found.summary["teacher"] is None
    assert [p["reference"] for p in found.summary["provenance"] if p["role"] == "teacher"] == [f"config:{TINY}"], "the card names the model"


def test_what_the_planner_chooses_to_keep_is_what_a_run_keeps_and_a_capture_records(cli, tmp_path):
    teacher = {"kind": "cached", "model": f"config:{TINY}", "keep": "auto", "k": 20, "bits": 8}
    path = written(tmp_path, teacher=teacher)
    chosen = run(path, name="chosen")
    assert same(state(chosen.path), state(run(path, "teacher.keep=top_k", name="named").path))
    assert "keep: auto is top_k" in (chosen.path / "plan.txt").read_text()
    assert recorded(cli, path, tmp_path / "said")["keeps"]["keep"] == "top_k"


def test_draws_train_a_student_and_the_held_out_rows_are_asked_live(tmp_path):
    teacher = {"kind": "cached", "model": f"config:{TINY}", "keep": "sampled", "k": 32}
    found = run(toy(tmp_path, teacher=teacher, evaluate=["agreement"]))
    live = run(toy(tmp_path, evaluate=["agreement"]), name="live")
    assert found.summary["start"]["kl"] == live.summary["start"]["kl"] and found.summary["student"]["kl"] != live.summary["student"]["kl"]


def test_the_recorded_model_is_where_the_student_starts_if_it_is_at_hand(cli, tmp_path, monkeypatch):
    path = written(tmp_path)
    use = recorded(cli, path, tmp_path / "said")["use"]
    assert same(state(run(path, use, name="recorded").path), state(run(path, name="live").path))
    about = read_json(tmp_path / "said" / "about.json")
    for name, value, expected, got in (
        ("facts", {**about["facts"], "models": ["path:nowhere"]}, "the recorded teacher's weights, path:nowhere", "no nowhere"),
        ("identity", {**about["identity"], "weights": [{"sha256": "0"}]}, "{'sha256': '0'}", "sha256"),
    ):
        write_json(tmp_path / "said" / "about.json", {**about, name: value})
        with pytest.raises(Refused) as caught:
            run(path, use, name=f"other-{name}")
        assert caught.value.slug == "start" and expected in caught.value.expected and got in caught.value.got


def test_a_row_that_is_not_recorded_is_refused_before_training_with_the_command_that_asks(cli, tmp_path):
    use = recorded(cli, written(tmp_path), tmp_path / "said")["use"]
    words = written(tmp_path).with_name("words.txt")
    words.write_text(words.read_text() + "\n\nanother document of its own, which nobody has asked about at all")
    code, out, _ = cli("plan", tmp_path / "small.yaml", use, "train.0.steps=40", "--no-probe", "--json")
    error = json.loads(out)["error"]
    assert code == 2 and error["slug"] == "cache" and error["where"] == str(tmp_path / "said")
    assert error["got"].startswith("nothing about ") and f"limbeck capture RECIPE --into {tmp_path / 'said'}" in error["do"]
    assert cli("run", tmp_path / "small.yaml", use, "train.0.steps=40", "--json")[0] == 2
    assert not list(tmp_path.rglob("checkpoints")), "no step was made"


@pytest.mark.parametrize("what", ["tokenizer", "weights", "teacher", "schema"])
def test_a_cache_of_something_else_is_refused_in_one_sentence(cli, tmp_path, what):
    path = written(tmp_path)
    recorded(cli, path, tmp_path / "said")
    about = read_json(tmp_path / "said" / "about.json")
    other = {"tokenizer": "0" * 64, "weights": [{"sha256": "0" * 64}], "teacher": {**about["identity"]["teacher"], "keep": "top_k"}}
    changed = {"schema": "limbeck.answers/0"} if what == "schema" else {"identity": {**about["identity"], what: other[what]}}
    write_json(tmp_path / "said" / "about.json", {**about, **changed})
    code, out, _ = cli("capture", path, "--into", tmp_path / "said", "--json")
    error = json.loads(out)["error"]
    assert code == 2 and error["slug"] == "cache" and str(tmp_path / "said") in error["where"] and "another folder" in error["do"]
    assert error["got"].startswith("limbeck.answers/0" if what == "schema" else f"{what} ")
    if what in ("tokenizer", "schema"):
        assert cli("plan", path, f"teacher=cache:{tmp_path / 'said'}", "--no-probe")[0] == 2


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda said: shutil.rmtree(said / "teacher"), "tokenizer and head"),
        (lambda said: (said / "teacher" / "head.safetensors").write_bytes(b"x"), "tokenizer and head"),
        (lambda said: (said / "about.json").unlink(), "limbeck capture wrote"),
        (lambda said: (said / "about.json").write_text('{"schema": "limbeck.answers/1", "identity": {}, "facts": {"models": 3}}'), "facts"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(cli, tmp_path, spoil, words):
    path = written(tmp_path)
    recorded(cli, path, tmp_path / "said")
    Cache.verified.clear()
    spoil(tmp_path / "said")
    code, _, error = cli("plan", path, f"teacher=cache:{tmp_path / 'said'}", "--no-probe")
    assert code in (2, 4) and words in error and "Traceback" not in error


@pytest.mark.parametrize("change", ["teacher=null", "teacher=cache:nowhere", "teacher={kind: cached, model: 'cache:x', keep: top_k}"])
def test_what_cannot_be_asked_is_refused(cli, tmp_path, change):
    path = written(tmp_path, student={"start": f"config:{TINY}"}, train=toy(tmp_path, {"objective": ["cross_entropy"]})["train"])
    code, _, error = cli("capture", path, change)
    assert code == 2 and error.startswith("error[")


def test_only_a_teacher_can_be_a_cache(cli, tmp_path):
    use = recorded(cli, written(tmp_path), tmp_path / "said")["use"].partition("=")[2]
    code, _, error = cli("run", tmp_path / "small.yaml", f"student.start={use}")
    assert code == 2 and "error[start]  student.start" in error and "a model with weights" in error


# cache inspect, verify, merge, gc


def test_the_cache_is_listed_inspected_verified_and_collected(cli, tmp_path):
    recorded_in = recorded(cli, written(tmp_path), tmp_path / "said")
    assert cli("capture", tmp_path / "small.yaml")[0] == 0
    entries = json.loads(cli("cache", "inspect", "--json")[1])["entries"]
    (entry,) = [e for e in entries if e["name"].startswith("answers/")]
    assert "answers of config:" in cli("cache", "inspect")[1]
    name = entry["name"].removeprefix("answers/")[:12]
    found = json.loads(cli("cache", "inspect", name, "--json")[1])
    assert found["rows"] == recorded_in["rows"] and found["keeps"]["keep"] == "hidden"
    assert f"{found['rows']} rows: as they were written" in cli("cache", "verify", name)[1]
    code, out, _ = cli("cache", "gc", "--keep", "1GB")
    assert code == 0 and "removed" not in out
    assert json.loads(cli("cache", "gc", "--keep", "0", "--json")[1])["removed"] == [entry["name"]]
    assert cli("cache", "inspect", name)[0] == 2 and cli("cache", "gc", "--keep", "many")[0] == 2


def test_what_servers_have_answered_is_not_collected(cli, tmp_path):
    paid = tmp_path / "home" / "responses" / "ab" / "one"
    paid.parent.mkdir(parents=True)
    paid.write_bytes(b"x" * 2000)
    code, out, _ = cli("cache", "gc", "--keep", "0")
    assert code == 0 and paid.is_file() and "answers of servers stay" in out and str(paid.parents[1]) in out


def test_verify_names_an_altered_part_and_repair_sets_it_aside(cli, tmp_path):
    path, said = written(tmp_path), tmp_path / "said"
    rows = recorded(cli, path, said)["rows"]
    part = next((said / "parts").iterdir())
    data = bytearray((part / "answers.safetensors").read_bytes())
    data[-1] ^= 1
    (part / "answers.safetensors").write_bytes(data)
    code, out, _ = cli("cache", "verify", said, "--json")
    assert code == 5 and list(json.loads(out)["altered"]) == [part.name] and "sha256" in out
    Cache.verified.clear()
    assert cli("cache", "verify", said, "--repair")[0] == 5 and not part.exists()
    assert cli("cache", "verify", said)[0] == 0 and "altered, not used" in cli("cache", "inspect", said)[1]
    again = recorded(cli, path, said)
    assert again["rows"] == rows and 0 < again["asked_rows"] < rows


def test_merged_caches_hold_all_rows_and_stand_in_for_the_teacher(cli, tmp_path):
    path = written(tmp_path)
    whole = recorded(cli, path, tmp_path / "one")
    more = recorded(cli, path, tmp_path / "two", "data.1.length=30")
    code, out, _ = cli("cache", "merge", tmp_path / "both", tmp_path / "one", tmp_path / "two", tmp_path / "one", "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"] == found["added_rows"] and max(whole["rows"], more["rows"]) < found["rows"] <= whole["rows"] + more["rows"]
    for changes in ((), ("data.1.length=30",)):
        assert cli("plan", path, f"teacher=cache:{tmp_path / 'both'}", *changes, "--no-probe")[0] == 0
    other = recorded(cli, path, tmp_path / "other", f"teacher={{kind: cached, model: 'config:{TINY}', bits: 16}}")
    code, _, error = cli("cache", "merge", tmp_path / "both", tmp_path / "other")
    assert other["rows"] and code == 2 and "teacher" in error
