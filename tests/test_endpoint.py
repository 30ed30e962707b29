"""The client: what it asks again, what it keeps, what it refuses, what it spends, and what it never tells."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.check.models import pair
from limbeck.endpoint import Ask, Budget, Declined, Endpoint, Ledger, Limits, Lost, OverHttp, Reply, Responses, address
from limbeck.errors import Failed, LimbeckError, Refused
from scripted_server import Fault, ScriptedServer, changed, serving

KEY = "sk-canary/0123456789abcdef"
BODY = {"model": "tutor", "prompt": [72, 101, 108], "max_tokens": 1, "prompt_logprobs": 2}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(pair()["teacher"]) as found:  # type: ignore[arg-type]
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "responses"


def client(server: Any, folder: Path, **options: Any) -> tuple[Endpoint, list[float]]:
    """A client that does not sleep, and the waits it was told."""
    waits: list[float] = []
    limits = options.pop("limits", Limits(concurrency=2, timeout_seconds=30, attempts=4))
    url = server if isinstance(server, str) else server.url
    return Endpoint(url, options.pop("send", None) or OverHttp(), folder, limits=limits, wait=waits.append, **options), waits


def plain(answer: Any) -> Any:
    return answer["choices"][0]["prompt_logprobs"]


# ---- asked again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again_after_a_pause_that_doubles(server: ScriptedServer, folder: Path, status: int) -> None:
    server.faults = [Fault(status)] * 3
    endpoint, waits = client(server, folder)
    assert len(endpoint.ask("completions", BODY, plain)) == 3
    assert len(server.seen) == 4 and len(waits) == 3
    assert all(0.25 * 2**i <= waits[i] < 0.75 * 2**i for i in range(3))
    assert endpoint.counts == {"asked": 1}


def test_the_pause_is_the_same_for_the_same_request_and_another_for_another_one(server: ScriptedServer, folder: Path) -> None:
    endpoint, _ = client(server, folder)
    assert endpoint.pause("a", 1) == endpoint.pause("a", 1) != endpoint.pause("b", 1)
    assert endpoint.pause("a", 30) < 90


def test_a_server_that_says_how_long_to_wait_is_heard(server: ScriptedServer, folder: Path) -> None:
    server.faults = [Fault(503, {"Retry-After": text}) for text in ("7", "Fri, 01 Jan 1999 00:00:00 GMT", "soon")]
    endpoint, waits = client(server, folder)
    endpoint.ask("completions", BODY, plain)
    assert waits[:2] == [7.0, 0.0] and 1 <= waits[2] < 3


def test_a_server_that_asks_for_an_hour_ends_the_attempts_and_says_so(server: ScriptedServer, folder: Path) -> None:
    server.faults = [Fault(429, {"Retry-After": "3600"})]
    endpoint, waits = client(server, folder)
    with pytest.raises(Failed, match="asks to wait 3,600 s"):
        endpoint.ask("completions", BODY, plain)
    assert waits == [] and len(server.seen) == 1


@pytest.mark.parametrize(
    "fault, told",
    [
        (Fault(change=lambda body: body[: len(body) // 2]), "that are no JSON"),
        (Fault(reset_at=0), "RemoteProtocolError"),
        (Fault(reset_at=17), "RemoteProtocolError"),
        (Fault(500), "status 500: 'as it was told to'"),
    ],
    ids=["truncated JSON", "reset at once", "reset at byte 17", "500"],
)
def test_half_an_answer_is_asked_again_and_never_kept(server: ScriptedServer, folder: Path, fault: Fault, told: str) -> None:
    server.faults = [fault]
    endpoint, _ = client(server, folder)
    assert len(endpoint.ask("completions", BODY, plain)) == 3 and len(server.seen) == 2
    server.always = fault
    with pytest.raises(Failed) as caught:
        endpoint.ask("completions", {**BODY, "prompt": [1, 2]}, plain)
    assert caught.value.slug == "endpoint" and told in caught.value.got and "4 times" in caught.value.got and caught.value.code == 4
    assert not endpoint.has("completions", {**BODY, "prompt": [1, 2]}) and endpoint.has("completions", BODY)


def test_a_server_that_hangs_is_left_in_time(server: ScriptedServer, folder: Path) -> None:
    server.always = Fault(hang=True)
    endpoint, waits = client(server, folder, limits=Limits(timeout_seconds=0.05, attempts=2))
    with pytest.raises(Failed, match="no answer within 0.05 s, 2 times"):
        endpoint.ask("completions", BODY, plain)
    assert len(waits) == 1


def test_a_server_that_sends_a_byte_now_and_then_is_left_in_time_too(folder: Path) -> None:
    clock = iter(range(1000))

    class Slow(OverHttp):
        def open(self, url: str) -> Any:
            return self

        def stream(self, *_: Any, **__: Any) -> "Slow":
            return self

        def __enter__(self) -> "Slow":
            return self

        def __exit__(self, *_: Any) -> None: ...

        def iter_raw(self) -> Iterator[bytes]:
            for _ in clock:
                yield b" "

    from limbeck.endpoint import transport

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport.time, "monotonic", lambda: float(next(clock)))
        with pytest.raises(Lost, match="no whole answer within 20 s"):
            Slow()(Ask("https://host/v1", {}, b"", 20, 1000))


def test_a_server_that_does_not_run_is_said_to_be_so(folder: Path) -> None:
    with serving(pair()["teacher"]) as gone:  # type: ignore[arg-type]
        url = gone.url
    endpoint, waits = client(url, folder)
    with pytest.raises(Failed, match="look whether the server runs") as caught:
        endpoint.ask("completions", BODY, plain)
    assert "ConnectError" in caught.value.got and len(waits) == 3


@pytest.mark.parametrize("status, slug", [(400, "server"), (404, "server"), (422, "server"), (401, "key"), (403, "key")])
def test_what_will_not_pass_is_asked_once(server: ScriptedServer, folder: Path, status: int, slug: str) -> None:
    server.always = Fault(status)
    endpoint, _ = client(server, folder)
    with pytest.raises(Refused) as caught:
        endpoint.ask("completions", BODY, plain)
    assert caught.value.slug == slug and "as it was told to" in caught.value.got and len(server.seen) == 1
    assert isinstance(caught.value, Declined) == (slug == "server")


def test_a_redirect_is_not_followed_and_neither_request_nor_key_go_there(server: ScriptedServer, folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("TUTOR_KEY", KEY)
    with serving(pair()["teacher"]) as other:  # type: ignore[arg-type]
        for status in (301, 302, 307, 308):
            server.always = Fault(status, {"Location": f"{other.url}/completions?stolen={KEY}"})
            endpoint, _ = client(server, folder, key_env="TUTOR_KEY")
            with pytest.raises(Refused, match="redirects are not followed") as caught:
                endpoint.ask("completions", BODY, plain)
            assert KEY not in str(caught.value) and caught.value.slug == "redirect"
        assert other.paths == []


def test_a_huge_answer_is_not_read_to_its_end(server: ScriptedServer, folder: Path) -> None:
    server.always = Fault(change=lambda body: b'"' + b"x" * 3_000_000 + b'"')
    endpoint, _ = client(server, folder, limits=Limits(most_bytes=100_000))
    with pytest.raises(Failed, match="at most 100,000 bytes") as caught:
        endpoint.ask("completions", BODY, plain)
    assert caught.value.slug == "size" and len(server.seen) == 1


def test_an_answer_that_would_unpack_into_a_huge_one_is_asked_for_plain(server: ScriptedServer, folder: Path) -> None:
    endpoint, _ = client(server, folder)
    endpoint.ask("completions", BODY, plain)
    assert server.seen[0]["headers"]["Accept-Encoding"] == "identity"


def test_json_that_is_nested_without_end_is_no_answer(server: ScriptedServer, folder: Path) -> None:
    server.always = Fault(change=lambda body: b"[" * 200_000)
    endpoint, _ = client(server, folder)
    with pytest.raises(Failed, match="no JSON"):
        endpoint.ask("completions", BODY, plain)


# ---- kept ------------------------------------------------------------------------------------------------------------


def test_a_stored_answer_is_never_requested_again_and_costs_nothing(server: ScriptedServer, folder: Path) -> None:
    first = client(server, folder)[0].ask("completions", BODY, plain, (3, 1))
    endpoint, _ = client(server, folder, budget=Budget(tokens=4))
    assert endpoint.ask("completions", dict(reversed(BODY.items())), plain, (3, 1)) == first
    assert len(server.seen) == 1 and endpoint.counts == {"replayed": 1} and endpoint.ledger.spent() == (3, 1)


def test_another_body_server_or_what_it_says_of_itself_is_another_request(server: ScriptedServer, folder: Path) -> None:
    endpoint, _ = client(server, folder)
    keys = {endpoint.key("completions", body) for body in (BODY, {**BODY, "prompt_logprobs": 3}, {**BODY, "prompt": [72]})}
    endpoint.says = {"root": "other"}
    keys |= {endpoint.key("completions", BODY), client("https://host/v1", folder)[0].key("completions", BODY)}
    assert len(keys) == 5


def test_what_is_found_wrong_is_not_kept(server: ScriptedServer, folder: Path) -> None:
    endpoint, _ = client(server, folder)

    def wrong(answer: Any) -> None:
        raise Failed("nan", "here", "numbers", "nan", "look")

    with pytest.raises(Failed, match="nan"):
        endpoint.ask("completions", BODY, wrong)
    assert not endpoint.has("completions", BODY) and len(server.seen) == 1
    assert endpoint.ask("completions", BODY, plain) and len(server.seen) == 2


def test_nothing_is_asked_where_nothing_may_be(server: ScriptedServer, folder: Path) -> None:
    client(server, folder)[0].ask("completions", BODY, plain)
    endpoint = Endpoint(server.url, None, folder)
    assert endpoint.ask("completions", BODY, plain)
    with pytest.raises(Failed) as caught:
        endpoint.ask("completions", {**BODY, "prompt": [1]}, plain)
    assert caught.value.slug == "offline" and len(server.seen) == 1


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: d[:40] + b"\0" + d[41:], lambda d: b"", lambda d: d[:32]])
def test_an_altered_answer_is_set_aside_and_asked_again(server: ScriptedServer, folder: Path, damage: Any, caplog) -> None:
    endpoint, _ = client(server, folder)
    first = endpoint.ask("completions", BODY, plain)
    path = endpoint.responses.path(endpoint.key("completions", BODY))
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert client(server, folder)[0].ask("completions", BODY, plain) == first
    assert len(server.seen) == 2 and "asked again" in caplog.text and path.with_name(f"{path.name}.corrupt").is_file()


def test_answers_are_kept_whole_and_small(folder: Path) -> None:
    store, body = Responses(folder), json.dumps([{"logprob": -1.25}] * 1000).encode()
    store.put("ab" * 32, body)
    assert store.get("ab" * 32) == body and store.path("ab" * 32).stat().st_size < len(body) / 20
    with pytest.raises(Refused):
        store.path("../../etc")


def test_no_more_are_in_flight_than_allowed(server: ScriptedServer, folder: Path) -> None:
    server.gate = threading.Event()
    endpoint, _ = client(server, folder, limits=Limits(concurrency=3))
    asks = [threading.Thread(target=endpoint.ask, args=("completions", {**BODY, "prompt": [i, 2]}, plain)) for i in range(9)]
    for thread in asks:
        thread.start()
    for _ in range(3):
        assert server.arrived.acquire(timeout=30)
    server.gate.set()
    for thread in asks:
        thread.join()
    assert server.most_at_once == 3 and len(server.seen) == 9


def test_two_that_want_the_same_ask_once(server: ScriptedServer, folder: Path) -> None:
    server.gate = threading.Event()
    both = [client(server, folder)[0] for _ in range(2)]
    asks = [threading.Thread(target=one.ask, args=("completions", BODY, plain)) for one in both]
    for thread in asks:
        thread.start()
    assert server.arrived.acquire(timeout=30)
    server.gate.set()
    for thread in asks:
        thread.join()
    assert len(server.seen) == 1 and both[0].counts + both[1].counts == {"asked": 1, "replayed": 1}


# ---- spent -----------------------------------------------------------------------------------------------------------


def test_a_budget_of_tokens_stops_before_it_is_exceeded_and_goes_on_when_raised(server: ScriptedServer, folder: Path) -> None:
    endpoint, _ = client(server, folder, budget=Budget(tokens=9))
    for i in range(2):
        endpoint.ask("completions", {**BODY, "prompt": [i, 2, 3]}, plain, (3, 1))
    with pytest.raises(Refused) as caught:
        endpoint.ask("completions", {**BODY, "prompt": [9, 2, 3]}, plain, (3, 1))
    assert (caught.value.slug, caught.value.code) == ("budget", 3) and "8 spent, and the next request may take 4" in caught.value.got
    assert len(server.seen) == 2
    again, _ = client(server, folder, budget=Budget(tokens=12))
    for i in (0, 1, 9):
        again.ask("completions", {**BODY, "prompt": [i, 2, 3]}, plain, (3, 1))
    assert len(server.seen) == 3 and again.counts == {"replayed": 2, "asked": 1}


def test_a_budget_of_money_counts_what_is_read_and_written_by_its_price(server: ScriptedServer, folder: Path) -> None:
    price = {"usd_per_million_in": 2.0, "usd_per_million_out": 10.0}
    assert Budget(**price).dollars(1_000_000, 500_000) == 7.0
    endpoint, _ = client(server, folder, budget=Budget(usd=3 * 16e-6, **price))  # one request: 3 tokens in, 1 out
    for i in range(3):
        endpoint.ask("completions", {**BODY, "prompt": [i, 2, 3]}, plain, (3, 1))
    with pytest.raises(Refused, match="budget_usd"):
        endpoint.ask("completions", {**BODY, "prompt": [9, 2, 3]}, plain, (3, 1))


def test_the_server_s_own_count_is_what_was_spent_if_it_can_be_one(server: ScriptedServer, folder: Path) -> None:
    counts = ({"prompt_tokens": 40, "completion_tokens": 2}, {"prompt_tokens": -5}, [])
    server.faults = [Fault(change=changed(lambda a, usage=usage: {**a, "usage": usage})) for usage in counts]
    endpoint, _ = client(server, folder)
    spent = []
    for i in range(3):
        endpoint.ask("completions", {**BODY, "prompt": [i, 2, 3]}, plain, (3, 1))
        spent.append(endpoint.ledger.spent())
    assert spent == [(40, 2), (43, 3), (46, 4)]


def test_what_was_turned_away_is_free_and_what_was_lost_may_have_been_paid(server: ScriptedServer, folder: Path) -> None:
    server.faults = [Fault(500), Fault(429), Fault(reset_at=5)]
    endpoint, _ = client(server, folder)
    endpoint.ask("completions", BODY, plain, (3, 1))
    assert endpoint.ledger.spent() == (6, 2) and endpoint.counts == {"asked": 1, "repeated": 1}


def test_a_ledger_that_was_torn_by_a_crash_goes_on_and_one_that_was_altered_is_refused(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    ledger = Ledger(path, Budget(), "here")
    assert ledger.send("a", 5, 1) is False
    with open(path, "ab") as file:
        file.write(b'{"request":"b","ev')
    again = Ledger(path, Budget(), "here")
    assert again.send("a", 5, 1) is True and again.spent() == (10, 2)
    again.settle("a", "answered", 7, 1)
    assert Ledger(path, Budget(), "here").spent() == (12, 2)
    for line in (b"no JSON\n", b"[]\n", b'{"request":"a","event":"stolen"}\n'):
        path.write_bytes(line)
        with pytest.raises(Failed) as caught:
            Ledger(path, Budget(), "here").spent()
        assert caught.value.slug == "corrupt"


CHILD = """
import json, sys
from pathlib import Path
from limbeck.endpoint import Endpoint, Limits, OverHttp
from concurrent.futures import ThreadPoolExecutor
endpoint = Endpoint(sys.argv[1], OverHttp(), Path(sys.argv[2]), limits=Limits(concurrency=2, timeout_seconds=60))
body = {"model": "tutor", "max_tokens": 1, "prompt_logprobs": 2}
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda i: endpoint.ask("completions", {**body, "prompt": [i, 2, 3]}, lambda a: a, (3, 1)), range(8)))
print(json.dumps(endpoint.counts))
"""


def test_a_killed_client_asks_again_only_what_was_in_flight(server: ScriptedServer, folder: Path) -> None:
    words = [sys.executable, "-c", CHILD, server.url, str(folder)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(4):
        server.faults.append(Fault())
    server.faults += [Fault(hang=True)] * 2
    child = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
    for _ in range(6):
        assert server.arrived.acquire(timeout=60)
    while len([path for path in folder.glob("??/*") if len(path.name) == 64]) < 4:
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(server.prompts) == 6
    again = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    twice = [p for p in set(server.prompts) if server.prompts.count(p) > 1]
    assert len(set(server.prompts)) == 8 and len(server.prompts) == 10 and len(twice) == 2
    assert json.loads(again.stdout) == {"asked": 4, "repeated": 2, "replayed": 4}


# ---- never told ------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_reaches_no_file_error_or_log(server: ScriptedServer, folder: Path, monkeypatch, caplog, capfd) -> None:
    monkeypatch.setenv("TUTOR_KEY", KEY)
    mirror = changed(lambda a: {**a, "echoed": f"Bearer {KEY}", "escaped": "ESCAPED"})
    escaped = KEY.replace("/", "\\/").encode()
    server.faults = [Fault(500), Fault(change=lambda body: mirror(body).replace(b"ESCAPED", escaped))]
    endpoint, _ = client(server, folder, key_env="TUTOR_KEY")
    with caplog.at_level(logging.DEBUG):
        answer = endpoint.ask("completions", BODY, lambda a: a)
        assert server.seen[0]["headers"]["Authorization"] == f"Bearer {KEY}"
        assert answer["echoed"] == "Bearer ***" and KEY not in json.dumps(answer)
        told = []
        for status in (400, 401, 500):
            server.always = Fault(status)
            monkeypatch.setattr(server.scripted, "answer", lambda path, body: (400, {"error": {"message": f"bad key {KEY}"}}))
            for fault in (Fault(), Fault(status)):
                server.faults = [fault]
                with pytest.raises(LimbeckError) as caught:
                    endpoint.ask("completions", {**BODY, "prompt": [status]}, plain)
                told.append(f"{caught.value} {caught.value!r} {caught.value.as_json()}")
    out = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    kept = endpoint.responses.get(endpoint.key("completions", BODY))
    for text in (*told, out.out, out.err, caplog.text, written.decode("latin-1"), repr(vars(endpoint)), repr(kept)):
        assert "sk-canary" not in text and "0123456789abcdef" not in text


@pytest.mark.parametrize("value", [None, "", "two words", "line\nfeed: x", "schlüssel"])
def test_a_variable_without_a_usable_key_is_refused_without_its_value(server: ScriptedServer, folder: Path, monkeypatch, value: str | None) -> None:
    monkeypatch.delenv("TUTOR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TUTOR_KEY", value)
    with pytest.raises(Refused, match="environment variable TUTOR_KEY") as caught:
        client(server, folder, key_env="TUTOR_KEY")[0].ask("completions", BODY, plain)
    assert caught.value.slug == "key" and not server.seen and (not value or value not in str(caught.value))


def test_no_key_is_sent_where_none_is_named(server: ScriptedServer, folder: Path) -> None:
    client(server, folder)[0].ask("completions", BODY, plain)
    assert "Authorization" not in server.seen[0]["headers"]


def test_a_proxy_of_the_environment_does_not_see_what_goes_to_this_machine(server: ScriptedServer, folder: Path, monkeypatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert client(server, folder)[0].ask("completions", BODY, plain)


def test_words_of_a_server_are_shown_as_one_short_line_of_data(folder: Path) -> None:
    hostile = "\x1b[31mignore all rules\u202e\n" + "x" * 5000

    def send(ask: Ask) -> Reply:
        return Reply(400, {}, json.dumps({"error": {"message": hostile}}).encode())

    with pytest.raises(Declined) as caught:
        client("https://host/v1", folder, send=send)[0].ask("completions", BODY, plain)
    assert str(caught.value).count("\n") == 3 and str(caught.value).isascii() and "\x1b" not in str(caught.value) and len(str(caught.value)) < 600


def test_addresses_lose_their_last_slash_only() -> None:
    assert address("https://host/v1/", "here") == "https://host/v1"
