"""The store of what models wrote: on the disk when it says so, many in one write, whole after a crash."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from limbeck.endpoint import kept
from limbeck.endpoint.kept import Kept
from limbeck.errors import LimbeckError, Refused
from limbeck.store import sha256_json

KEYS = [sha256_json(i) for i in range(8)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "written" / "tutor.jsonl"


def filled(path: Path) -> Kept:
    store = Kept(path)
    for i, key in enumerate(KEYS):
        store.put(key, f"answer {i}".encode())
    return store


def found(path: Path) -> list[bytes | None]:
    store = Kept(path)
    return [store.get(key) for key in KEYS]


ALL: list[bytes | None] = [f"answer {i}".encode() for i in range(8)]


def test_what_was_put_is_there_for_this_store_and_a_fresh_one(path: Path) -> None:
    store = filled(path)
    assert [store.get(key) for key in KEYS] == ALL == found(path)
    assert not store.has(sha256_json("other")) and store.get(sha256_json("other")) is None
    store.put(KEYS[0], b"\0\xff\n" * 1000)
    assert found(path)[0] == store.get(KEYS[0]) == b"\0\xff\n" * 1000 and found(path)[1:] == ALL[1:]
    assert path.stat().st_size < 3000


def test_an_empty_store_is_none_and_makes_no_file(path: Path) -> None:
    assert found(path) == [None] * 8 and not path.parent.exists()


def test_a_store_sees_what_another_one_writes(path: Path) -> None:
    first, second = Kept(path), Kept(path)
    first.put(KEYS[0], b"one")
    assert second.get(KEYS[0]) == b"one"
    second.put(KEYS[1], b"two")
    assert first.get(KEYS[1]) == b"two" and first.get(KEYS[0]) == b"one"


def test_an_answer_is_on_the_disk_before_put_returns_and_those_that_come_meanwhile_share_a_write(path: Path, monkeypatch) -> None:
    store, first, go, flushed = Kept(path), threading.Event(), threading.Event(), list[int]()

    def flush(what: Path) -> None:
        if what == path:
            flushed.append(path.read_bytes().count(b"\n"))
            first.set()
            assert go.wait(30)

    monkeypatch.setattr(kept, "flush", flush)
    returned: list[str] = []
    threads = [threading.Thread(target=lambda key=key: (store.put(key, b"x"), returned.append(key))) for key in KEYS]
    threads[0].start()
    assert first.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(store.queue) < 7:
        assert all(thread.is_alive() for thread in threads)
    assert returned == []
    go.set()
    for thread in threads:
        thread.join()
    assert flushed == [1, 8] and sorted(returned) == sorted(KEYS)


def test_a_disk_that_fails_is_told_to_each_that_waits_and_the_next_one_goes_on(path: Path, monkeypatch) -> None:
    store = filled(path)

    def broken(what: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(kept, "flush", broken)
        for key in KEYS[:2]:
            with pytest.raises((LimbeckError, OSError)):
                store.put(key, b"new")
    store.put(KEYS[2], b"newer")
    assert store.get(KEYS[2]) == b"newer" and found(path)[3:] == ALL[3:]


@pytest.mark.parametrize("cut", [1, 5, 100, 150])
def test_a_torn_line_is_missing_and_cut_off_by_the_next_one(path: Path, cut: int) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size - cut)
    assert found(path) == [*ALL[:7], None]
    store = Kept(path)
    assert store.get(KEYS[7]) is None
    store.put(KEYS[7], b"again")
    assert store.get(KEYS[7]) == b"again"
    assert found(path) == [*ALL[:7], b"again"] and path.read_bytes().count(b"\n") == 8


@pytest.mark.parametrize("at", [0, 5, 20, 80, 90, 160, 175])
def test_an_altered_line_is_missing_and_the_others_are_not(path: Path, at: int, caplog) -> None:
    filled(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"\n") + 1
    data[start + at] ^= 3
    path.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        assert found(path) == [ALL[0], None, *ALL[2:]]
    store = Kept(path)
    store.put(KEYS[1], b"again")
    assert found(path)[1] == b"again"


@pytest.mark.parametrize(
    "line", [b"\n", b"[]\n", b"\xff\xfe\n", b'{"request":7}\n', b"[" * 100_000 + b"\n", b'{"request":"' + b"a" * 64 + b'","sha256":[]}\n']
)
def test_lines_that_are_no_answers_are_passed_over(path: Path, line: bytes) -> None:
    filled(path)
    path.write_bytes(line + path.read_bytes() + line)
    assert found(path) == ALL and Kept(path).get("a" * 64) is None


def test_a_file_that_was_replaced_gives_no_answer_to_another_request(path: Path) -> None:
    store = filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    assert store.get(KEYS[0]) is None and found(path) == ALL


CHILD = """
import sys
from pathlib import Path
from limbeck.endpoint.kept import Kept
from limbeck.store import sha256_json
store = Kept(Path(sys.argv[1]))
for i in range(8):
    if not store.has(sha256_json(i)):
        store.put(sha256_json(i), f"answer {i}".encode())
        print(i, flush=True)
"""


@pytest.mark.parametrize("point", ["log.begin:5", "log.torn:9", "log.torn:10", "log.end:5"])
def test_after_a_power_cut_all_that_was_said_to_be_there_is_there(path: Path, point: str) -> None:
    words, env = [sys.executable, "-c", CHILD, str(path)], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.run(words, env={**env, "LIMBECK_CRASH_AT": point}, capture_output=True, text=True)
    assert first.returncode == -signal.SIGKILL and first.stdout.split() == list("0123")
    assert found(path)[:4] == ALL[:4] and found(path)[5:] == [None] * 3
    again = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    assert found(path) == ALL and again.stdout.split() in (list("4567"), list("567"))


HOLDER = """
import sys
from pathlib import Path
from limbeck.endpoint.kept import Kept
store = Kept(Path(sys.argv[1]))
with store.claim(sys.argv[2], 1):
    print("held", flush=True)
    sys.stdin.read()
    store.put(sys.argv[2], b"theirs")
"""


def test_a_request_is_asked_by_one_thread_of_one_process(path: Path) -> None:
    words, env = [sys.executable, "-c", HOLDER, str(path), KEYS[0]], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child: Any = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    store = Kept(path)
    with pytest.raises(Refused) as caught, store.claim(KEYS[0], 0):
        raise AssertionError("two processes ask the same")
    assert caught.value.slug == "locked"
    with store.claim(KEYS[1], 0):
        with pytest.raises(Refused), Kept(path).claim(KEYS[1], 0):
            raise AssertionError("two threads ask the same")
    child.stdin.close()
    with store.claim(KEYS[0], 60):
        assert store.get(KEYS[0]) == b"theirs"
    child.wait()
    with store.claim(KEYS[1], 0):
        pass
