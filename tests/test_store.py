"""Layer 0, `limbeck.store`: what is written is whole or absent, even in a power cut, on a full disk, or under hostile names."""

import ast
import errno
import gc
import inspect
import json
import logging
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from limbeck import store
from limbeck.errors import Failed, Refused
from limbeck.store import Cache, Log, inside, new_file, new_folder, sweep, verify
from limbeck.store import cache as cache_module
from limbeck.store import files as files_module
from limbeck.store import folder as folder_module

SOURCE = Path(inspect.getfile(store)).parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("LIMBECK_")} | {"PYTHONPATH": str(SOURCE.parent.parent)}


def child(code: str, *arguments: object, **variables: str) -> "subprocess.Popen[str]":
    """A Python process that runs this code; its streams are pipes."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, and every empty folder."""
    ends = [path for path in root.rglob("*") if path.is_file() or not any(path.iterdir())]
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"/" for path in ends}


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# crashes


def scenario(root: str, text: str) -> None:
    """A small run: a checkpoint that replaces one, metrics since, two steps in the cache of which one is collected."""
    from pathlib import Path

    from limbeck.store import Cache, Log, new_folder, sweep, write_bytes, write_json

    run = Path(root)
    sweep(run)
    with new_folder(run / "saved") as folder:
        write_json(folder / "about.json", {"text": text})
        write_bytes(folder / "deep" / "weights", text.encode() * 100)
    log = Log(run / "metrics.jsonl")
    log.keep(lambda record: record["step"] < 2)
    log.append([{"step": 2, "text": text}, {"step": 3, "text": text}])
    log.sync()
    cache = Cache(run / "cache")
    cache.make(cache.key({"old": text}), {"is": "old"}, lambda folder: None)
    cache.gc(0)
    cache.make(cache.key({"new": text}), {"is": "new"}, lambda folder: write_bytes(folder / "result", text.encode()))


STAGE = """
import os, sys, traceback
import limbeck.store
os.fsync = lambda handle: None
for line in sys.stdin:
    root, os.environ["LIMBECK_CRASH_AT"] = line.rstrip().split("\\t")
    if not (process := os.fork()):
        try:
            scenario(root, "after")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
"""Plays the scenario in one forked process a line. A killed process need not wait for the disk; that files are flushed has its own tests."""


@pytest.fixture(scope="module")
def play() -> Iterator[Callable[[Path, str], int]]:
    """Runs the scenario in a process of its own up to a crash point; returns its exit code."""
    with child(inspect.getsource(scenario) + STAGE) as stage:
        assert stage.stdin and stage.stdout
        source, sink = stage.stdout, stage.stdin

        def run(root: Path, point: str) -> int:
            print(root, point, sep="\t", file=sink, flush=True)
            return int(source.readline())

        yield run


def test_the_source_passes_exactly_the_named_crash_points():
    nodes = [node for file in sorted(SOURCE.glob("*.py")) for node in ast.walk(ast.parse(file.read_text()))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "crash_point"]
    passed = [str(node.args[0].value) for node in calls if isinstance(node.args[0], ast.Constant)]
    assert len(passed) == len(calls)
    assert sorted(passed) == sorted(store.CRASH_POINTS)


@pytest.mark.parametrize("point", store.CRASH_POINTS)
def test_a_process_killed_anywhere_leaves_old_or_new_and_ends_as_if_uninterrupted_when_repeated(
    tmp_path: Path, point: str, play: Callable[[Path, str], int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    scenario(str(tmp_path / "before"), "before")
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    scenario(str(tmp_path / "whole"), "after")
    expected, deaths = tree(tmp_path / "whole"), 0
    while deaths < 100:
        run = tmp_path / str(deaths)
        shutil.copytree(tmp_path / "before", run)
        outcome = play(run, f"{point}:{deaths + 1}")
        if outcome == 0:
            break
        assert outcome == -signal.SIGKILL
        deaths += 1
        assert [record["step"] for record in Log(run / "metrics.jsonl").read()] in ([2, 3], [2], []), "two records, cut at most at the end"
        sweep(run)
        saved = run / "saved"
        verify(saved)
        text = store.read_json(saved / "about.json")["text"]
        assert text in ("before", "after") and (saved / "deep" / "weights").read_bytes() == text.encode() * 100
        for entry in Cache(run / "cache").entries():
            verify(entry.path)
        scenario(str(run), "after")
        assert tree(run) == expected
    assert 0 < deaths < 100, "the point is passed, and at last no longer"


def test_a_file_is_flushed_before_it_gets_its_name_and_the_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(os.readlink(f"/proc/self/fd/{handle}")), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("rename"), replace(old, new)))
    store.write_bytes(tmp_path / "new" / "a", b"x")
    assert order == [str(tmp_path), str(tmp_path / "new" / ".a.limbeck-partial"), "rename", str(tmp_path / "new")]


def test_a_folder_is_flushed_wholly_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    order, fsync, rename = [], os.fsync, os.rename
    with new_folder(tmp_path / "a") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "foreign").write_text("x")
        monkeypatch.setattr(os, "fsync", lambda handle: (order.append(Path(os.readlink(f"/proc/self/fd/{handle}"))), fsync(handle)))
        monkeypatch.setattr(os, "rename", lambda old, new: (order.append("rename"), rename(old, new)))
    assert {folder / "deep" / "foreign", folder / "deep", folder} <= set(order[: order.index("rename")])
    assert order[-2:] == ["rename", tmp_path]


# disks


def mount(folder: Path, options: str) -> bool:
    """A small file system in memory, where we may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    return bool(shutil.which("mount")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(params=["small disk", "limit on files"])
def narrow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which a megabyte cannot be written: a file system of its own where we may mount one, else by a limit of the process."""
    mounted = request.param == "small disk" and mount(tmp_path, "size=1m")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if mounted:
        gc.collect()
        subprocess.run(["umount", tmp_path], check=True)


def write_by_others(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "first").write_text("x")
        (folder / "second").write_bytes(bytes(3_000_000))


WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "bytes": ("3.0 MB", lambda path: store.write_bytes(path, bytes(3_000_000))),
    "tensors": ("3.1 MB", lambda path: store.save_tensors(path, {"a": torch.zeros(750_000)})),
    "folder": ("room", write_by_others),
    "log": ("3.1 MB", lambda path: Log(path).append([{"step": 1, "text": "x" * 3_000_000}])),
}
"""What is said to be needed (a header, or a record's braces, make it a little more), and who needs it."""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_with_bytes_and_leaves_nothing_half_written(narrow: Path, writer: str):
    store.write_text(narrow / "kept", "old")
    with pytest.raises(Failed) as caught:
        WRITERS[writer][1](narrow / "new")
    assert (caught.value.slug, caught.value.code, caught.value.where) == ("space", 4, str(narrow / "new"))
    assert caught.value.expected == f"{WRITERS[writer][0]} for new" and " free (" in caught.value.got
    left = tree(narrow)
    assert left.pop("new", b"") == b"", "a log that could not grow may stay, empty"
    assert left == {"kept": b"old"}
    with pytest.raises(Failed):
        store.write_bytes(narrow / "kept", bytes(3_000_000))
    assert (narrow / "kept").read_text() == "old"


def test_a_log_on_a_full_disk_keeps_its_earlier_lines(narrow: Path):
    log = Log(narrow / "log")
    log.append([{"step": 0}])
    with pytest.raises(Failed, match=r"error\[space\]"):
        log.append([{"step": 1}, {"text": "x" * 3_000_000}])
    log.append([{"step": 2}])
    assert log.read() == [{"step": 0}, {"step": 2}]


def test_space_that_is_known_to_be_lacking_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder_module, "free_bytes", lambda path: 3_190_000_000)
    monkeypatch.setattr(files_module, "free_bytes", lambda path: 3_190_000_000)
    with pytest.raises(Failed) as caught, new_folder(tmp_path / "step-2000", needed_bytes=12_500_000_000):
        pytest.fail("the block was entered")
    expected, do = "12.5 GB for step-2000", "free 9.4 GB and repeat the command"
    assert str(caught.value) == f"error[space]  {tmp_path}/step-2000\n  expected  {expected}\n  got       3.1 GB free\n  do        {do}"
    assert tree(tmp_path) == {}


def test_the_cache_can_be_emptied_on_a_full_disk(narrow: Path):
    cache = Cache(narrow / "cache")
    cache.make("a" * 64, {}, lambda folder: store.write_bytes(folder / "big", bytes(500_000)))
    with open(narrow / "rest", "wb", buffering=0) as rest, pytest.raises(OSError):
        while True:
            rest.write(bytes(4096))
    assert cache.gc(0) == ["a" * 64]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for write in (store.write_bytes, lambda path, data: Log(path).append([{}]), lambda path, data: write_by_others(path)):
        with pytest.raises(Failed) as caught:
            write(tmp_path / "file" / "below" / "a", b"x")
        assert caught.value.slug == "disk" and caught.value.got.startswith(("Not a directory", "File exists"))
    with pytest.raises(Failed, match="Is a directory"):
        store.write_bytes(tmp_path, b"x")
    with pytest.raises(Failed, match="No such file"):
        store.sha256_file(tmp_path / "missing")
    with pytest.raises(Failed, match="No such file"):
        store.load_tensors(tmp_path / "missing")
    assert tree(tmp_path) == {"file": b"x"}


def test_a_read_only_disk_is_told(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = mount(disk, "ro,size=1m")
    if not mounted:
        disk.chmod(0o555)
    try:
        for write in (lambda: store.write_text(disk / "a", "x"), lambda: write_by_others(disk / "a"), lambda: Log(disk / "a").append([{}])):
            with pytest.raises(Failed, match=r"error\[disk\](.|\n)*(Read-only file system|Permission denied)"):
                write()
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)
        disk.chmod(0o755)


# names


OUTSIDE = ["", ".", "..", "../a", "a/../../b", "a/..", "/etc/passwd", "//a", "a\0b", "a\nb", "a\x1b[31m", "..\\a", "\ud800", "link/a", "ring"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to("..")
    (tmp_path / "root" / "ring").symlink_to("ring")
    with pytest.raises(Refused) as caught:
        inside(tmp_path / "root", name)
    assert caught.value.slug == "path" and caught.value.got.isprintable() and caught.value.got.isascii()


def test_a_plain_name_stays_inside(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("a", "a/b.c", "..a", "…", "link/a"):
        assert inside(tmp_path, name) == tmp_path / name


def test_a_link_out_of_a_new_folder_is_refused(tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    for target in (tmp_path / "secret", tmp_path):
        with pytest.raises(Refused, match=r"error\[path\]"), new_folder(tmp_path / "a") as folder:
            (folder / "link").symlink_to(target)
    assert tree(tmp_path) == {"secret": b"x"}


# folders


def test_a_folder_appears_whole_with_its_manifest(tmp_path: Path):
    with new_folder(tmp_path / "a") as folder:
        store.write_text(inside(folder, "deep/er/b.txt"), "abc")
        assert not (tmp_path / "a").exists()
        sweep(tmp_path)
        assert folder.exists(), "a live writer's folder is not swept"
    # sha256 of "abc": FIPS 180-2, appendix B.1
    stated = {"deep/er/b.txt": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["files"] == stated
    verify(tmp_path / "a")
    assert sorted(tree(tmp_path)) == ["a/deep/er/b.txt", "a/manifest.json"]


def made(path: Path, **texts: str) -> Path:
    with new_folder(path) as folder:
        for name, text in texts.items():
            store.write_text(folder / name, text)
    return path


def test_a_flipped_byte_is_noticed(tmp_path: Path):
    folder = made(tmp_path / "a", one="abc", two="def")
    sound = store.sha256_file(folder / "two")
    flip(folder / "two")
    with pytest.raises(Failed) as caught:
        verify(folder)
    assert (caught.value.slug, caught.value.code, caught.value.where) == ("corrupt", 4, str(folder / "two"))
    assert caught.value.expected == f"sha256 {sound}" and caught.value.got == store.sha256_file(folder / "two")
    assert not store.is_sound(folder)


def test_a_flipped_byte_of_the_manifest_is_noticed_wherever_it_is(tmp_path: Path):
    file = made(tmp_path / "a", one="abc") / "manifest.json"
    sound, unnoticed = file.read_bytes(), []
    for place in range(len(sound)):
        flip(file, place)
        if store.is_sound(tmp_path / "a"):
            unnoticed.append((sound[place : place + 1], json.loads(file.read_bytes())))
        file.write_bytes(sound)
    stated = json.loads(sound)
    assert all(content["files"] == stated["files"] for _, content in unnoticed), "only the layout or the version differ"
    assert store.is_sound(tmp_path / "a")


def test_a_missing_file_or_manifest_is_noticed(tmp_path: Path):
    folder = made(tmp_path / "a", one="abc")
    (folder / "one").unlink()
    with pytest.raises(Failed, match="no file"):
        verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(Failed, match="manifest.json"):
        verify(folder)
    assert not store.is_sound(tmp_path / "none")


def test_a_forged_manifest_does_not_make_us_read_elsewhere(tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    folder = made(tmp_path / "a", one="abc")
    files = {"../secret": {"bytes": 1, "sha256": store.sha256_file(tmp_path / "secret")}}
    store.write_json(folder / "manifest.json", {"v": 1, "sha256": store.sha256_json(files), "files": files})
    with pytest.raises(Refused, match=r"error\[path\]"):
        verify(folder)
    for content in ([], None, {"files": 3, "sha256": store.sha256_json(3)}, {"files": {"a": 3}, "sha256": store.sha256_json({"a": 3})}):
        store.write_json(folder / "manifest.json", content)
        with pytest.raises(Failed, match=r"error\[corrupt\]"):
            verify(folder)


def test_a_folder_replaces_an_older_one_of_ours_wholly(tmp_path: Path):
    made(tmp_path / "a", one="abc", two="def")
    made(tmp_path / "a", two="new")
    assert sorted(tree(tmp_path)) == ["a/manifest.json", "a/two"]
    verify(tmp_path / "a")


def test_a_folder_or_file_of_somebody_else_is_never_replaced(tmp_path: Path):
    made(tmp_path / "ours", one="abc")
    (tmp_path / "ours" / "notes").write_text("mine")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("ours")
    before = tree(tmp_path)
    for name, stranger in (("ours", "notes"), ("theirs", "thesis"), ("file", "file"), ("link", "link")):
        with pytest.raises(Refused, match=stranger) as caught:
            made(tmp_path / name, one="new")
        assert caught.value.slug == "exists"
    assert tree(tmp_path) == before


def test_a_block_that_fails_leaves_the_old_folder_and_file(tmp_path: Path):
    made(tmp_path / "a", one="abc")
    store.write_text(tmp_path / "b", "old")
    before = tree(tmp_path)
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a") as folder:
        (folder / "one").write_text(str(1 // 0))
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "b") as temp:
        temp.write_text("half")
        temp.write_text(str(1 // 0))
    with pytest.raises(Refused, match="manifest.json"):
        made(tmp_path / "a", **{"manifest.json": "theirs"})
    assert tree(tmp_path) == before


def test_a_planted_link_is_not_written_through(tmp_path: Path):
    (tmp_path / "secret").write_text("x")
    for kind in ("partial", "lock"):
        (tmp_path / f".a.limbeck-{kind}").symlink_to("secret")
    for write in (lambda: store.write_text(tmp_path / "a", "mine"), lambda: made(tmp_path / "a", one="mine")):
        with pytest.raises(Failed, match=r"error\[disk\]"):
            write()
    assert (tmp_path / "secret").read_text() == "x" and not (tmp_path / "a").exists()


def test_what_a_dead_writer_left_does_not_get_into_the_next_file(tmp_path: Path):
    (tmp_path / ".a.limbeck-partial").write_text("half of the old")
    with new_file(tmp_path / "a") as temp, temp.open("ab") as file:
        file.write(b"new")
    assert tree(tmp_path) == {"a": b"new"}


def test_sweeping_spares_all_names_but_ours(tmp_path: Path):
    for name in (".a.lock", ".a.partial", "a.limbeck-partial", ".git"):
        (tmp_path / name).write_text("x")
    before = tree(tmp_path)
    (tmp_path / ".a.limbeck-partial").write_text("x")
    (tmp_path / ".b.limbeck-lock").write_text("x")
    (tmp_path / ".c.limbeck-partial").mkdir()
    sweep(tmp_path)
    assert tree(tmp_path) == before


def test_sweeping_makes_nothing_of_what_another_process_has_just_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [self / ".a.limbeck-partial", self / ".b.limbeck-lock"])
    monkeypatch.setattr(folder_module, "release", lambda handle, file: pytest.fail("it was made again"))
    sweep(tmp_path)


def test_hashes_are_those_of_the_standard_and_see_names_and_contents_only(tmp_path: Path):
    (tmp_path / "one").write_bytes(b"abc")
    assert store.sha256_file(tmp_path / "one") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    first = store.sha256_folder(tmp_path)
    os.utime(tmp_path / "one", (0, 0))
    assert store.sha256_folder(tmp_path) == first
    (tmp_path / "one").rename(tmp_path / "two")
    assert store.sha256_folder(tmp_path) != first
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="pipe"):
        store.sha256_folder(tmp_path)


def test_json_is_checked_on_both_ways(tmp_path: Path):
    store.write_json(tmp_path / "a", {"b": [1, "ü\ud800"], "a": 0.1})
    assert store.read_json(tmp_path / "a") == {"b": [1, "ü\ud800"], "a": 0.1}
    with pytest.raises(ValueError):
        store.write_json(tmp_path / "a", math.nan)
    for data in (b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(Failed, match=r"error\[corrupt\]"):
            store.read_json(tmp_path / "a")
    store.write_text(tmp_path / "a", "ü\ud800")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xbc\\ud800"


# tensors and states


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_every_dtype_and_shape_comes_back_bit_by_bit(tmp_path: Path):
    raw = torch.arange(48, dtype=torch.uint8)
    tensors = {name: raw.view(getattr(torch, name)).clone() for name in store.DTYPES if name != "bool"}
    tensors |= {"bool": torch.tensor([True, False]), "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3, dtype=torch.bfloat16)}
    tensors |= {"nan": torch.tensor([0x7FC00001, -1], dtype=torch.int32).view(torch.float32), "slice": torch.arange(12.0).reshape(3, 4)[:, 1:3]}
    tensors |= {"conj": torch.tensor([1 + 2j, 3j]).conj(), "learnt": torch.nn.Parameter(torch.ones(2)), "turned": torch.arange(6).reshape(2, 3).T}
    store.save_tensors(tmp_path / "a", tensors, {"by": "us", "at": "noon"})
    loaded = store.load_tensors(tmp_path / "a")
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {name: bits(tensor.resolve_conj()) for name, tensor in tensors.items()}
    assert store.load_metadata(tmp_path / "a") == {"by": "us", "at": "noon"}
    assert {name: bits(tensor) for name, tensor in load_file(tmp_path / "a").items()} == {name: bits(tensor) for name, tensor in loaded.items()}


def test_a_tensor_file_is_byte_for_byte_what_the_format_says(tmp_path: Path):
    store.save_tensors(tmp_path / "a", {"a": torch.tensor([1, 2], dtype=torch.int16), "b": torch.tensor(1.0)}, {"z": "1", "x": "2"})
    head = '{"__metadata__":{"format":"pt","limbeck.aliases":"{}","x":"2","z":"1"},"a":{"data_offsets":[4,8],"dtype":"I16","shape":[2]},'
    head += '"b":{"data_offsets":[0,4],"dtype":"F32","shape":[]}}'  # the wider first, so that each is aligned
    head += " " * (-len(head) % 8)
    assert (tmp_path / "a").read_bytes() == struct.pack("<Q", len(head)) + head.encode() + struct.pack("<fhh", 1.0, 1, 2)


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path: Path):
    base = torch.arange(1000.0)
    tensors = {"head": base, "embedding": base, "part": base[:500], "square": base.reshape(10, 100)}
    store.save_tensors(tmp_path / "a", tensors)
    loaded = store.load_tensors(tmp_path / "a")
    assert loaded["head"] is loaded["embedding"] and loaded["head"] is not loaded["square"]
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {name: bits(tensor) for name, tensor in tensors.items()}
    assert (tmp_path / "a").stat().st_size < 4 * 2500 + 1000
    loaded["head"].add_(1)
    assert store.load_tensors(tmp_path / "a")["head"][0] == 0, "writing to what was loaded does not reach the file"


def test_what_cannot_be_stored_is_refused_by_name(tmp_path: Path):
    for tensor in (torch.zeros(2, dtype=torch.complex128), torch.eye(2).to_sparse()):
        with pytest.raises(Refused, match="odd"):
            store.save_tensors(tmp_path / "a", {"odd": tensor})
    with pytest.raises(Refused, match=r"state.rows.1(.|\n)*builtins.set"):
        store.save_state(tmp_path, "state", {"rows": [1, {2}]})
    assert tree(tmp_path) == {}


def test_a_truncated_or_altered_tensor_file_ends_in_our_error(tmp_path: Path):
    store.save_tensors(tmp_path / "a", {"a": torch.arange(4), "b": torch.ones(2)}, {"note": "x"})
    sound, outcomes = (tmp_path / "a").read_bytes(), set()
    for size in range(0, len(sound), 3):
        (tmp_path / "a").write_bytes(sound[:size])
        with pytest.raises(Failed, match=r"error\[corrupt\]"):
            store.load_tensors(tmp_path / "a")
    for place in range(len(sound) - 40):
        (tmp_path / "a").write_bytes(sound)
        flip(tmp_path / "a", place)
        try:
            store.load_tensors(tmp_path / "a")
            outcomes.add("loaded")
        except Failed as error:
            outcomes.add(error.slug)
    assert outcomes <= {"loaded", "corrupt"} and "corrupt" in outcomes


def trained(steps: int, state: dict[str, Any] | None = None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small model after some more steps of AdamW with two groups, from a seed or from a state."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2, dtype=torch.float32))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": 1e-3, "betas": (0.8, 0.95)}]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.03, amsgrad=True)
    if state:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
    for step in range(steps):
        optimiser.zero_grad()
        model(torch.linspace(-1, 1, 12).reshape(4, 3) * (step + 1)).square().sum().backward()
        optimiser.step()
    return model, optimiser


def same(a: Any, b: Any) -> bool:
    """Equal in type, order and every bit; all NaN count as one."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and bits(a) == bits(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b) or math.isnan(a) and math.isnan(b)
    return type(a) is type(b) and a == b


def test_adamw_goes_on_from_a_stored_state_bit_by_bit(tmp_path: Path):
    model, optimiser = trained(3)
    state = {"model": dict(model.state_dict()), "optimiser": optimiser.state_dict(), "at": (0, 3)}
    with new_folder(tmp_path / "step-3") as folder:
        store.save_state(folder, "state", state)
    verify(tmp_path / "step-3")
    loaded = store.load_state(tmp_path / "step-3", "state")
    assert same(loaded, state)
    assert set(loaded["optimiser"]["state"]) == {0, 1, 2, 3} and loaded["optimiser"]["param_groups"][1]["betas"] == (0.8, 0.95)
    on, off = trained(2, state), trained(2, loaded)
    assert same(dict(on[0].state_dict()), dict(off[0].state_dict())) and same(on[1].state_dict(), off[1].state_dict())
    assert not same(dict(on[0].state_dict()), state["model"])


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
TENSORS = st.builds(
    lambda data, dtype: torch.tensor(data, dtype=torch.uint8).view(getattr(torch, dtype)),
    st.lists(st.lists(st.integers(0, 255), min_size=8, max_size=8), max_size=3).map(lambda rows: sum(rows, [])),
    st.sampled_from(["float64", "float32", "bfloat16", "int64", "uint8", "complex64"]),
)
STATES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (rows := st.lists(inner, max_size=3)) | rows.map(tuple) | st.dictionaries(SCALARS | st.tuples(SCALARS), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(STATES)
def test_any_nested_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, state: Any):
    folder = tmp_path_factory.getbasetemp() / "states"
    store.save_state(folder, "state", state)
    assert same(store.load_state(folder, "state"), state)


def test_numbers_that_json_lacks_or_rounds_come_back_as_they_were(tmp_path: Path):
    state = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2, 2**200, True, 1, 1.0, {1: "int", "1": "str", (1, None): "pair"}]
    store.save_state(tmp_path, "state", state)
    assert same(store.load_state(tmp_path, "state"), state)


def test_a_tensor_met_twice_in_a_state_is_one_tensor_again(tmp_path: Path):
    shared = torch.ones(3)
    store.save_state(tmp_path, "state", {"a": shared, "b": [shared]})
    loaded = store.load_state(tmp_path, "state")
    assert loaded["a"] is loaded["b"][0]


FORGED = ['{"tensor": 1}', '{"dict": [1]}', '{"dict": [[[], 1]]}', '{"set": [1]}', "{}", '{"a": 1, "b": 2}', '{"float": "x"}', "{"]
FORGED += ["[" * 5000 + "]" * 5000]


@pytest.mark.parametrize("text", FORGED)
def test_a_forged_state_ends_in_our_error(tmp_path: Path, text: str):
    store.save_state(tmp_path, "state", torch.ones(1))
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(Failed, match=r"error\[corrupt\]"):
        store.load_state(tmp_path, "state")


# logs


def test_a_torn_last_line_is_dropped_on_reading_and_before_appending(tmp_path: Path):
    log = Log(tmp_path / "runs" / "metrics.jsonl")
    assert log.read() == []
    log.append([{"step": 1}, {"step": 2, "kl": float("inf"), "text": "a\nb"}])
    log.sync()
    for torn in ('{"step": 3', '{"step": 3}', "\0\0\0"):
        with log.path.open("a") as file:
            file.write(torn)
        assert [record["step"] for record in log.read()] == [1, 2]
    log.append([{"step": 4}])
    assert [record["step"] for record in log.read()] == [1, 2, 4]
    log.append([])
    log.path.write_text('{"st')
    log.append([{"step": 5}])
    assert log.path.read_text() == '{"step":5}\n'


@pytest.mark.parametrize("line", ["", '{"step": 2', "3", "\0\0", "[" * 100_000])
def test_a_line_torn_elsewhere_is_an_error_that_names_it(tmp_path: Path, line: str):
    (tmp_path / "log").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(Failed) as caught:
        Log(tmp_path / "log").read()
    assert caught.value.slug == "corrupt" and caught.value.where == f"{tmp_path}/log:2"


def test_a_log_is_cut_back_to_the_records_that_are_wanted(tmp_path: Path):
    log = Log(tmp_path / "log")
    log.append([{"step": step, "x": 0.1} for step in range(4)])
    log.keep(lambda record: record["step"] <= 1)
    assert log.path.read_text() == '{"step":0,"x":0.1}\n{"step":1,"x":0.1}\n'


def test_a_log_that_cannot_be_cut_back_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = Log(tmp_path / "log")
    log.append([{"step": 1}, {"step": 2}])

    def fail(old: Path, new: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Failed, match="Input/output error"):
        log.keep(lambda record: record["step"] < 2)
    assert [record["step"] for record in log.read()] == [1, 2]
    assert list(tree(tmp_path)) == ["log"]


# locks

HOLD = """
import sys
from limbeck.store import lock
with lock(sys.argv[1], shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_by_the_first_ones_id_until_that_dies(tmp_path: Path):
    (tmp_path / ".run.limbeck-lock").write_text("process 1 on " + 99 * "a", encoding="utf-8")  # of one that died without a word
    process = child(HOLD, tmp_path / "run", "alone")
    assert process.stdout and process.stdout.readline() == "held\n"
    for shared in (False, True):
        with pytest.raises(Refused) as caught, store.lock(tmp_path / "run", shared=shared):
            pytest.fail("the lock was given twice")
        assert caught.value.slug == "locked" and caught.value.where == str(tmp_path / "run")
        assert caught.value.got == f"process {process.pid} on {os.uname().nodename}"
    sweep(tmp_path)
    assert (tmp_path / ".run.limbeck-lock").exists()
    process.kill()
    process.communicate()
    with store.lock(tmp_path / "run"):
        with pytest.raises(Refused, match=str(os.getpid())), store.lock(tmp_path / "run"):
            pytest.fail("the lock was given twice")
    assert tree(tmp_path) == {}


def test_who_has_waited_for_a_lock_holds_it_against_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    process = child(HOLD, tmp_path / "run", "alone")
    assert process.stdout and process.stdout.readline() == "held\n"
    monkeypatch.setattr(time, "sleep", lambda seconds: process.returncode == 0 or process.communicate(""))
    with store.lock(tmp_path / "run", wait_seconds=60), pytest.raises(Refused), store.lock(tmp_path / "run"):
        pytest.fail("the lock was given twice")


def test_a_lock_may_be_shared(tmp_path: Path):
    process = child(HOLD, tmp_path / "run", "shared")
    assert process.stdout and process.stdout.readline() == "held\n"
    with store.lock(tmp_path / "run", shared=True):
        pass
    with pytest.raises(Refused), store.lock(tmp_path / "run"):
        pytest.fail("the lock was given to one alone while another shares it")
    process.communicate("")
    with store.lock(tmp_path / "run"):
        pass
    assert tree(tmp_path) == {}


# the cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def filler(text: str) -> Callable[[Path], None]:
    return lambda folder: store.write_text(folder / "result", text)


def test_a_key_depends_on_the_parts_and_not_on_their_order(cache: Cache):
    known = "689a78f0dfb540e6"  # first digits of: printf '%s' '{"a":[1,2.5,null],"b":"\\u00fc"}' | sha256sum
    assert cache.key({"b": "ü", "a": (1, 2.5, None)}) == cache.key({"a": [1, 2.5, None], "b": "ü"})
    assert len({cache.key({"a": value}) for value in (1, 1.0, True, "1", None, [1])}) == 6
    assert cache.key({"b": "ü", "a": [1, 2.5, None]}).startswith(known)
    with pytest.raises(TypeError):
        cache.key({"a": object()})
    for key in ("", "../a", "A" * 64, "a" * 63, "a" * 64 + "\n"):
        with pytest.raises(Refused):
            cache.get(key)


def test_the_cache_lives_where_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("LIMBECK_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert Cache().root == Path("/h/.cache/limbeck")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert Cache().root == Path("/x/limbeck")
    monkeypatch.setenv("LIMBECK_HOME", "~/l")
    assert Cache().root == Path("/h/l")


def test_a_step_is_built_once_with_its_description(cache: Cache):
    key = cache.key({"step": 1})
    assert cache.get(key) is None
    path = cache.make(key, {"what": "teacher"}, filler("x"))
    assert cache.make(key, {}, lambda folder: pytest.fail("built twice")) == path
    assert cache.get(key) == path
    (entry,) = cache.entries()
    assert (entry.name, entry.path, entry.about, entry.size_bytes) == (key, path, {"what": "teacher"}, sum(map(len, tree(path).values())))


def test_a_build_that_fails_leaves_nothing(cache: Cache):
    with pytest.raises(ZeroDivisionError):
        cache.make("a" * 64, {}, lambda folder: filler(str(1 // 0))(folder))
    assert tree(cache.root) == {}


def test_an_altered_entry_is_set_aside_with_a_warning_and_made_again(cache: Cache, caplog: pytest.LogCaptureFixture):
    key = "a" * 64
    for number in (1, 2):
        flip(cache.make(key, {}, filler("good")) / "result")
        Cache.verified.clear()  # as in the next process
        with caplog.at_level(logging.WARNING, "limbeck.store.cache"):
            assert cache.get(key) is None
        assert f"{key}.corrupt-{number}" in caplog.text and "result" in caplog.text
        assert (cache.root / f"{key}.corrupt-{number}" / "result").read_text() == "gooe"
    assert (cache.make(key, {}, filler("good")) / "result").read_text() == "good"
    assert [entry.name for entry in cache.entries()] == [key, f"{key}.corrupt-1", f"{key}.corrupt-2"]
    assert cache.gc(cache.entries()[0].size_bytes) == [f"{key}.corrupt-1", f"{key}.corrupt-2"]
    assert cache.get(key)


def test_checksums_are_compared_once_a_process_and_again_for_a_new_folder(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    key, compared = "a" * 64, []
    path = cache.make(key, {}, filler("x"))
    Cache.verified.clear()  # as in the next process
    monkeypatch.setattr(cache_module, "verify", compared.append)
    for _ in range(3):
        cache.get(key)
    assert compared == [path]
    (path.parent / "copy").mkdir()
    (path / "result").rename(path.parent / "copy" / "result")
    (path / "about.json").rename(path.parent / "copy" / "about.json")
    (path / "manifest.json").unlink()
    path.rmdir()
    (path.parent / "copy").rename(path)
    cache.get(key)
    assert compared == [path, path]


def test_an_entry_that_another_process_has_renewed_meanwhile_is_not_set_aside(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    path = cache.make("a" * 64, {}, filler("bad"))
    Cache.verified.clear()  # as in the next process

    def renew(path: Path) -> None:
        made(path.with_name("new"), result="good")
        shutil.rmtree(path)
        path.with_name("new").rename(path)
        raise store.corrupt(path, "the old one", "half of it")

    monkeypatch.setattr(cache_module, "verify", renew)
    cache.get("a" * 64)
    assert (path / "result").read_text() == "good"


def test_collecting_what_another_process_has_just_collected_is_no_error(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    for letter in "ab":
        cache.make(letter * 64, {}, filler("x"))
    entries = cache.entries()
    shutil.rmtree(cache.root / ("a" * 64))
    monkeypatch.setattr(cache, "entries", lambda: entries)
    assert cache.gc(0) == ["b" * 64]


BUILD = """
import sys
from limbeck.store import Cache, write_text
def build(folder):
    print("building", flush=True)
    sys.stdin.read()
    write_text(folder / "result", "theirs")
Cache(sys.argv[1]).make("a" * 64, {}, build)
"""


def test_a_second_process_waits_for_the_first_and_gets_what_it_built(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    process, waits = child(BUILD, cache.root), []
    assert process.stdout and process.stdout.readline() == "building\n"
    assert cache.get("a" * 64) is None
    with pytest.raises(Refused, match=f"process {process.pid}"):
        cache.make("a" * 64, {}, filler("ours"), wait_seconds=0)

    def let_it_finish(seconds: float) -> None:
        if not waits:
            process.communicate("")
        waits.append(seconds)

    monkeypatch.setattr(time, "sleep", let_it_finish)
    assert (cache.make("a" * 64, {}, filler("ours"), wait_seconds=60) / "result").read_text() == "theirs"
    assert waits and process.returncode == 0
    assert all("limbeck-" not in name for name in tree(cache.root))


def test_what_was_used_longest_ago_goes_first_and_what_is_held_stays(cache: Cache):
    keys = [letter * 64 for letter in "abcd"]
    for number, key in enumerate(keys):
        os.utime(cache.make(key, {}, filler(key[:1])) / "about.json", (number, number))
    (cache.root / "responses").mkdir()
    (cache.root / "responses" / "other").write_text("x")
    size = cache.entries()[0].size_bytes
    assert cache.gc(4 * size) == []
    assert cache.get(keys[0]), "and is thereby the last used"
    with cache.hold(keys[1]) as held:
        assert held == cache.root / keys[1]
        os.utime(cache.root / keys[1] / "about.json", (1, 1))
        assert cache.gc(2 * size) == [keys[2], keys[3]]
    assert cache.gc(2 * size - 1) == [keys[1]]
    assert cache.gc(0) == [keys[0]]
    assert tree(cache.root) == {"responses/other": b"x"}


def test_the_store_is_imported_without_torch():
    process = child("import sys, limbeck.store; print('torch' in sys.modules, 'pydantic' in sys.modules)")
    assert process.communicate()[0] == "False False\n"
