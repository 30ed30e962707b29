"""What teachers have said, on disk: rows by key, parts whole or absent, and a folder that says what it is."""

import ast
import inspect
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck import store
from limbeck.errors import Failed, Refused
from limbeck.store import ANSWERS, Answers, Cache, merge
from limbeck.store import answers as answers_module

IDENTITY = {"weights": [{"sha256": "a"}], "tokenizer": "t", "temperature": 1}


def said(*numbers: int) -> dict[str, dict[str, torch.Tensor]]:
    """Row `n` has n targets and n + 1 positions, all with the number n."""
    return {f"row-{n}": {"hidden": torch.full((n, 3), float(n)), "hidden.6": torch.full((n + 1, 2), float(n))} for n in numbers}


def add(answers: Answers, *numbers: int) -> None:
    rows = said(*numbers)
    tensors = {name: torch.cat([row[name] for row in rows.values()]) for name in ("hidden", "hidden.6")}
    answers.append(tensors, {key: {name: len(x) for name, x in row.items()} for key, row in rows.items()}, {"all": torch.tensor([7])})


def holds(answers: Answers, *numbers: int) -> None:
    assert sorted(answers) == sorted(f"row-{n}" for n in numbers)
    for key, row in said(*numbers).items():
        found = answers[key]
        assert found.keys() == {"hidden", "hidden.6", "all"} and found["all"].tolist() == [7]
        assert all(torch.equal(found[name], x) for name, x in row.items()), key


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Cache.verified.clear()  # as in another process
    return tmp_path / "said"


def test_rows_come_back_by_their_key_from_all_parts(place):
    answers = Answers(place, IDENTITY)
    assert not place.exists() and answers.missing(["row-1"]) == ["row-1"] and not answers, "nothing is written before the first answer"
    add(answers, 3, 0, 1)
    add(answers, 5, 2)
    holds(answers, 0, 1, 2, 3, 5)
    holds(Answers(place, IDENTITY), 0, 1, 2, 3, 5)
    assert answers.missing(["row-9", "row-2", "row-9", "row-0"]) == ["row-9"]
    assert answers.num("hidden") == 11 and answers.size_bytes == sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
    with pytest.raises(KeyError):
        answers["row-9"]


def test_only_what_is_asked_for_is_read(place, monkeypatch):
    add(Answers(place, IDENTITY), 1, 2, 3)
    read = []
    monkeypatch.setattr(store.tensors, "load_tensors", lambda *_: pytest.fail("all of a file was read"))
    opened = answers_module.opened
    monkeypatch.setattr(answers_module, "opened", lambda path: read.append(path) or opened(path))
    answers = Answers(place, IDENTITY, unpack=lambda x: {n: y for n, y in x.items() if n == "hidden"})
    assert not read
    assert answers["row-2"]["hidden"].shape == (2, 3) and len(read) == 1
    assert answers["row-3"]["hidden"].shape == (3, 3) and len(read) == 1, "a part is opened once"


def test_at_most_so_many_parts_are_open(place, monkeypatch):
    monkeypatch.setattr(answers_module, "OPEN_FILES", 2)
    answers = Answers(place, IDENTITY)
    for n in range(5):
        add(answers, n)
    holds(answers, *range(5))
    assert len(answers.files) == 2


def test_what_others_add_is_found_when_something_is_missing(place):
    mine, theirs = Answers(place, IDENTITY), Answers(place, IDENTITY)
    add(theirs, 4)
    assert "row-4" not in mine and mine.missing(["row-4"]) == [] and torch.equal(mine["row-4"]["hidden"], said(4)["row-4"]["hidden"])


# a folder that says what it is


@pytest.mark.parametrize("name, other", [("weights", [{"sha256": "b"}]), ("tokenizer", "u"), ("temperature", 2), ("dtype", "bfloat16")])
def test_a_folder_of_something_else_is_refused_with_the_first_difference(place, name, other):
    add(Answers(place, IDENTITY), 1)
    with pytest.raises(Refused) as caught:
        Answers(place, {**IDENTITY, name: other})
    error = caught.value
    assert (error.slug, error.where) == ("cache", str(place)) and error.expected == f"{name} {other}"
    assert error.got == f"{name} {IDENTITY.get(name)}" and "another folder" in error.do


@pytest.mark.parametrize("text", ['{"schema": "limbeck.answers/2", "identity": {}, "facts": {}}', "[]", '{"schema": "limbeck.answers/1"}'])
def test_a_folder_of_another_version_is_refused(place, text):
    place.mkdir()
    (place / "about.json").write_text(text)
    with pytest.raises(Refused, match="limbeck.answers/1"):
        Answers(place, IDENTITY)


def test_a_folder_that_is_no_cache_is_not_read(place):
    with pytest.raises(Refused, match=r"limbeck capture wrote"):
        Answers(place)
    place.mkdir()
    (place / "about.json").write_text("{")
    with pytest.raises(Failed, match="corrupt"):
        Answers(place)


def test_the_folder_tells_about_itself_and_facts_are_not_compared(place):
    add(Answers(place, IDENTITY, {"models": ["path:a"]}), 1)
    assert Answers(place, IDENTITY, {"models": ["path:b"]}).about["facts"] == {"models": ["path:a"]}
    assert Answers(place).about == json.loads((place / "about.json").read_text())


# altered, killed, shared


def test_a_flipped_byte_sets_its_part_aside_and_its_rows_are_missing(place, caplog):
    answers = Answers(place, IDENTITY)
    add(answers, 1, 2)
    add(answers, 3)
    bad = place / "parts" / answers.where["row-1"]
    flip(bad / "answers.safetensors")
    Cache.verified.clear()
    again = Answers(place, IDENTITY)
    with caplog.at_level(logging.WARNING):
        assert again.missing(["row-3", "row-2", "row-1"]) == ["row-2", "row-1"]
    assert "set aside" in caplog.text and bad.with_name(f"{bad.name}.corrupt-1").is_dir() and not bad.exists()
    holds(again, 3)
    add(again, 1, 2)
    holds(again, 1, 2, 3)


def test_a_row_of_an_altered_part_is_found_in_another_one(place):
    answers = Answers(place, IDENTITY)
    add(answers, 1, 2)
    add(answers, 2, 3)
    flip(place / "parts" / answers.where["row-1"] / "answers.safetensors")
    Cache.verified.clear()
    again = Answers(place, IDENTITY)
    assert again.missing(["row-1", "row-2", "row-3"]) == ["row-1"]
    holds(again, 2, 3)


@pytest.mark.parametrize(
    "index",
    [
        {"rows": ["row-1"], "lengths": [[2]], "tensors": {"hidden": 0}, "whole": []},
        {"rows": ["row-1"], "lengths": [[1]], "tensors": {"other": 0}, "whole": []},
        {"rows": ["row-1", "row-1"], "lengths": [[1, 0]], "tensors": {"hidden": 0}, "whole": []},
        {"rows": ["row-1"], "lengths": [[-1]], "tensors": {"hidden": 0}, "whole": []},
        {"rows": ["row-1"], "lengths": [[1]], "tensors": {"hidden": 3}, "whole": []},
        {"rows": "row-1"},
        [],
    ],
)
def test_an_index_that_does_not_fit_its_tensors_is_an_error_even_with_a_manifest_that_does(place, index):
    Answers(place, IDENTITY).begin()
    with store.new_folder(place / "parts" / ("0" * 32)) as folder:
        store.write_json(folder / "index.json", index)
        store.save_tensors(folder / "answers.safetensors", {"hidden": torch.zeros(1, 3)})
    with pytest.raises(Failed, match="corrupt"):
        Answers(place, IDENTITY)["row-1"]


def crashing(root: str) -> None:
    """A capture of three parts; what is there is not written again."""
    answers = Answers(root, IDENTITY)
    for some in ((1, 2), (3,), (4, 5)):
        with answers.turn():
            if answers.missing(f"row-{n}" for n in some):
                add(answers, *some)


def points() -> list[str]:
    """Named crash points that a capture passes."""
    return [point for point in store.CRASH_POINTS if not point.startswith(("log.", "cache.")) and point != "folder.aside"]


STAGE = """
import os, sys, traceback, importlib.util
spec = importlib.util.spec_from_file_location("tests_answers", sys.argv[1])
sys.modules["tests_answers"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
os.fsync = lambda handle: None
for line in sys.stdin:
    root, os.environ["LIMBECK_CRASH_AT"] = line.rstrip("\\n").split("\\t")
    if not (process := os.fork()):
        try:
            module.crashing(root)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def play():
    """Runs `crashing` in a process of its own up to a crash point; returns its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(Path(inspect.getfile(store)).parents[2])}
    environment.pop("LIMBECK_CRASH_AT", None)
    command = [sys.executable, "-c", STAGE, __file__]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdin and stage.stdout
        source, sink = stage.stdout, stage.stdin

        def run(root: Path, point: str) -> int:
            print(root, point, sep="\t", file=sink, flush=True)
            return int(source.readline())

        yield run


@pytest.mark.parametrize("point", points())
def test_killed_anywhere_it_loses_at_most_the_part_in_the_making_and_writes_nothing_twice(point, tmp_path, play):
    parts, deaths = 0, 0
    while deaths < 100:
        root = tmp_path / str(deaths)
        outcome = play(root, f"{point}:{deaths + 1}")
        if outcome == 0:
            break
        assert outcome == -signal.SIGKILL
        there = {path.name: path.stat().st_ino for path in (root / "parts").glob("[0-9a-f]*")}
        for name in there:
            store.verify(root / "parts" / name)
        assert parts <= len(there) <= 3, "what was finished before an earlier point is finished before a later one"
        parts, deaths = len(there), deaths + 1
        assert play(root, "") == 0
        answers = Answers(root, IDENTITY)
        holds(answers, 1, 2, 3, 4, 5)
        assert {name: (root / "parts" / name).stat().st_ino for name in there} == there, "finished parts are not written again"
        assert len(answers.parts) == 3 and not answers.missing(answers)
    assert 0 < deaths < 100, "the point is passed, and at last no longer"


ADDER = """
import sys, importlib.util
spec = importlib.util.spec_from_file_location("tests_answers", sys.argv[1])
sys.modules["tests_answers"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print("ready", flush=True)
sys.stdin.readline()
answers = module.Answers(sys.argv[2], module.IDENTITY)
for n in range(1, 13):
    with answers.turn():
        if answers.missing([f"row-{n}"]):
            module.add(answers, n)
            print(n, flush=True)
"""


def test_two_processes_at_once_write_each_row_once(place):
    environment = {**os.environ, "PYTHONPATH": str(Path(inspect.getfile(store)).parents[2])}
    command = [sys.executable, "-c", ADDER, __file__, str(place)]
    both = [subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        assert one.stdout and one.stdout.readline() == "ready\n"
    wrote = [one.communicate("go\n")[0].split() for one in both]
    assert all(one.returncode == 0 for one in both)
    assert sorted(int(n) for some in wrote for n in some) == list(range(1, 13))
    holds(Answers(place, IDENTITY), *range(1, 13))
    assert len(Answers(place, IDENTITY).parts) == 12


# merge and gc


def test_merge_adds_what_is_missing_once(place, tmp_path):
    into, one, two = Answers(place, IDENTITY), Answers(tmp_path / "one", IDENTITY), Answers(tmp_path / "two", IDENTITY)
    add(into, 1)
    add(one, 1, 2)
    add(one, 3)
    add(two, 3, 4)
    assert merge(into, [one, two]) == 3
    holds(into, 1, 2, 3, 4)
    assert sum(len(part.rows) for part in into.parts.values()) == 4, "no row is there twice"
    assert merge(into, [one, two]) == 0
    assert into.num("hidden.6") == 2 + 3 + 4 + 5


def test_what_depends_on_something_else_is_not_merged(place, tmp_path):
    into, other = Answers(place, IDENTITY), Answers(tmp_path / "other", {**IDENTITY, "tokenizer": "u"})
    add(into, 1)
    add(other, 2)
    with pytest.raises(Refused, match="tokenizer"):
        merge(into, [other])
    holds(into, 1)


def test_altered_parts_are_not_merged(place, tmp_path):
    into, other = Answers(place, IDENTITY), Answers(tmp_path / "other", IDENTITY)
    add(into, 1)
    add(other, 2)
    add(other, 3)
    flip(other.parts[other.where["row-2"]].path / "answers.safetensors")
    Cache.verified.clear()
    assert merge(into, [other]) == 1
    holds(into, 1, 3)


def test_gc_removes_answers_that_were_used_longest_ago_and_spares_those_in_use(tmp_path):
    cache = Cache(tmp_path)
    keys = [cache.key({"n": n}) for n in range(3)]
    for n, key in enumerate(keys):
        add(Answers(tmp_path / ANSWERS / key, IDENTITY), n)
        os.utime(tmp_path / ANSWERS / key / "about.json", (n + 10, n + 10))
    entry = next(e for e in cache.entries() if e.name == f"{ANSWERS}/{keys[0]}")
    assert entry.about["identity"] == IDENTITY and entry.size_bytes == Answers(entry.path).size_bytes
    held = Answers(tmp_path / ANSWERS / keys[0], IDENTITY)
    held.missing([])
    os.utime(held.folder / "about.json", (10, 10))
    left = tmp_path / ANSWERS / ".dead.limbeck-lock"
    left.touch()
    assert cache.gc(0) == [f"{ANSWERS}/{key}" for key in keys[1:]] and not left.exists(), "nor does it leave what a dead process left"
    holds(held, 0)
    del held
    assert cache.gc(0) == [f"{ANSWERS}/{keys[0]}"] and not cache.entries()


def test_the_module_has_no_crash_points_of_its_own():
    """All its writes are those of `new_folder` and `write_json`."""
    calls = [n for n in ast.walk(ast.parse(inspect.getsource(answers_module))) if isinstance(n, ast.Call)]
    assert not [n for n in calls if getattr(n.func, "id", getattr(n.func, "attr", "")) in ("open", "crash_point", "write_bytes", "rename")]
