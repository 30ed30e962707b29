"""A served model: the handshake that finds out what it can do, and what it says about texts."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch

from limbeck.endpoint.best import Best, best
from limbeck.endpoint.client import Declined, Endpoint
from limbeck.endpoint.entries import Scores, Unsaid
from limbeck.endpoint.forms import FORMS, Form, request, scores
from limbeck.endpoint.late import unsaid
from limbeck.endpoint.vocabulary import Vocabulary, bare
from limbeck.errors import Failed, Refused
from limbeck.store import lock, read_json, sha256_json, write_json
from limbeck.text.tokens import PROBES, encoded

PROBE_TOKENS = 128
TOKENS_FOR_K = 8
"""Tokens of the texts that find the largest k."""
ALIKE = 0.9
"""Share of the tokens' texts that must be our tokenizer's: servers show a few in their own way."""
T = TypeVar("T")
FACT_BYTES = 1000
"""A longer one is none about a model."""
PASSING = frozenset({"created", "permission", "object"})
"""What a server says about a model that is another at each start."""


class Wanted(NamedTuple):
    """A text of at least two ids, and the places after which it is wanted what was predicted."""

    ids: Sequence[int]
    places: Sequence[int]


class Server:
    """One model of a server. It is met before it is asked anything that is not kept."""

    def __init__(self, endpoint: Endpoint, model: str, tokenizer: Any, size: int, k: int, dialect: str = "auto", context: int | None = None):
        """Args:
        size: ids are below it.
        k: entries that are needed.
        dialect: prompt_logprobs, echo, or auto.
        context: longest text in tokens, where it is known.
        """
        self.endpoint, self.model, self.k, self.context = endpoint, model, k, context
        self.where = f"endpoint:{endpoint.url}#{model}"
        self.forms = [form for form in FORMS if dialect in ("auto", form.dialect)]
        self.vocabulary, self.met = Vocabulary(tokenizer, size), False
        self.form: Form | None = None
        self.path = endpoint.folder / f"{sha256_json(model)[:16]}.json"
        if self.path.is_file():
            with suppress(Failed, KeyError, TypeError):
                known = read_json(self.path)
                self.form = next((form for form in self.forms if vars(form) == known["form"]), None)
                self.endpoint.says = dict(known["says"])

    def about(self) -> Mapping[str, Any]:
        """What the server says about the model: as it said the last time, or asked now; nothing where nothing may be asked."""
        if self.form is None and self.endpoint.sender is not None:
            self.meet()
        return self.endpoint.says

    def meet(self) -> None:
        """The handshake: what the server is, whether it scores the ids that we send, in which form, and enough entries.

        Raises:
            Refused: `model`, `echo`, `logprobs`; `k` where it gives fewer entries (code 3).
            Failed: `server`, if it says something else about itself than when the answers of this run were begun.
        """
        before, says = self.endpoint.says, self.introduced()
        known = self.form is not None
        self.endpoint.says = says
        form, most = self.found()
        if most < self.k:
            do = f"k: {most}, or start the server so that it gives more (vLLM: --max-logprobs {self.k})"
            raise Refused("k", self.where, f"the {self.k} best log-probabilities of each token", f"at most {most}", do, code=3)
        with lock(self.path, wait_seconds=60):
            write_json(self.path, {"says": says, "form": vars(form), "model": self.model, "url": self.endpoint.url})
        self.form, self.met = form, True
        if known and says != before:
            do = "start the server as it was, or another run: its rows are then asked anew"
            raise Failed("server", self.where, f"the server that answered before: {shown(before)}", f"another: {shown(says)}", do)

    def introduced(self) -> dict[str, Any]:
        """What the server says about the model: as much of it as stays when it is started again."""

        def read(answer: Any) -> list[dict[str, Any]]:
            try:
                return [dict(entry) for entry in answer["data"] if isinstance(entry["id"], str)]
            except (KeyError, TypeError, ValueError):
                return []

        try:
            models = self.endpoint.ask("models", None, read, keep=False)
        except Declined:
            return {}
        names = [entry["id"] for entry in models]
        if names and self.model not in names:
            listed = ", ".join(ascii(name)[1:-1][:60] for name in names[:5])
            raise Refused("model", self.where, f"a model of the server: {listed}", ascii(self.model)[1:-1], f"model: {ascii(names[0])[1:-1][:60]}")
        entry = next((entry for entry in models if entry["id"] == self.model), {})
        return {name: value for name, value in entry.items() if name not in PASSING and len(json.dumps(value)) < FACT_BYTES}

    def found(self) -> tuple[Form, int]:
        """The first form in which the server scores exactly the ids that we send, each in its place, and the entries that it gives then."""
        ids = encoded("".join(PROBES), self.vocabulary.tokenizer)[: min(PROBE_TOKENS, (self.context or PROBE_TOKENS) - 1)]
        reasons: list[Exception] = []
        for form in self.forms:
            try:
                self.same_names(self.probe(form, self.readable(form, ids), 1))
                most = self.most(form)
                self.in_place(form, min(most, TOKENS_FOR_K))
                return form, most
            except (Unsaid, Declined, Failed) as reason:
                if isinstance(reason, Failed) and reason.slug not in ("echo", "answer"):
                    raise
                reasons.append(reason)
        if told := next((r for r in reasons if isinstance(r, Failed)), None):
            raise Refused(told.slug, told.where, told.expected, told.got, told.do)
        got = next((r.got for r in reasons if isinstance(r, Declined)), None) if all(isinstance(r, Declined) for r in reasons) else None
        do = "vLLM as it is; python -m llama_cpp.server --logits_all true; or any server with completions that echo and give logprobs"
        raise Refused("logprobs", self.where, "log-probabilities of a text that the server is given", got or "answers without any", do, code=3)

    def readable(self, form: Form, ids: list[int]) -> list[int]:
        """As many of the ids as can be sent: a text may be cut within a character."""
        while form.prompt == "text" and len(ids) > 2 and self.vocabulary.whole(ids) is None:
            ids = ids[:-1]
        return ids

    def same_names(self, said: Scores) -> None:
        """Refuses a server whose ids stand for other text than ours."""
        names = {i: (bare(theirs).strip(), bare(self.vocabulary.text(i)).strip()) for i, theirs in said.names if i < len(self.vocabulary.tokenizer)}
        pairs = {i: pair for i, pair in names.items() if all(pair)}
        wrong = [i for i, (theirs, ours) in pairs.items() if theirs != ours]
        if len(wrong) > (1 - ALIKE) * len(pairs):
            theirs, ours = pairs[wrong[0]]
            got = f"another one: id {wrong[0]} is {ascii(theirs[:40])} there and {ascii(ours[:40])} here; {len(wrong)} of {len(pairs)} differ"
            raise Failed("echo", self.where, "the tokenizer that teacher.tokenizer names", got, "correct teacher.tokenizer")

    def in_place(self, form: Form, k: int) -> None:
        """Refuses entries that stand a token too late or too early: those of a token depend on the one before it, and not on itself.

        A late echo is compared with what the server says when it is to go on from there, since that is asked for too.
        """
        ids = list(dict.fromkeys(encoded(PROBES[0] + PROBES[2], self.vocabulary.tokenizer)))[:TOKENS_FOR_K]

        def entries(changed: int) -> dict[int, float] | None:
            for other in ids[:-2]:
                some = [other if i == changed % len(ids) else x for i, x in enumerate(ids)] if changed else ids
                if form.prompt == "ids" or self.vocabulary.whole(some) is not None:
                    return self.probe(form, some, k).entries[-1]
            return None

        def gap(a: dict[int, float], b: dict[int, float]) -> float:
            return max((abs(a[i] - b[i]) for i in a.keys() & b.keys()), default=math.inf)

        plain, before = entries(0), entries(-2)
        itself = self.probe(form, ids[:-1], k, last=True).entries[-1] if form.late else entries(-1)
        if not gap(plain, before) > 2 * gap(plain, itself) if plain and itself and before else form.prompt == "text":
            got = "entries of other tokens: they change with the token itself, or not with the one before it"
            raise Failed("echo", self.where, "at each token, what was predicted for it", got, "use another server: this one shifts what it echoes")

    def most(self, form: Form) -> int:
        """The largest number of entries, up to `k`, that the server gives."""
        ids = self.readable(form, encoded(PROBES[0] + PROBES[2], self.vocabulary.tokenizer)[:TOKENS_FOR_K])

        def given(k: int) -> int:
            try:
                said = [(i, one) for i, one in zip(ids[1:], self.probe(form, ids, k).entries, strict=True) if one]
            except (Declined, Unsaid):
                return 0
            fewest = min(len(one) for _, one in said)
            beyond = all(len(one) > fewest or min(one, key=lambda i: one[i]) == i for i, one in said)
            return min(max(fewest - beyond, 1), k)  # the token that stands there is given too, where it is none of the best

        low, high = given(self.k), self.k
        if low == self.k:
            return low
        low = max(low, 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if given(middle) >= middle else (low, middle)
        return low

    def probe(self, form: Form, ids: Sequence[int], k: int, last: bool = False) -> Scores:
        """What the server says about a text of the handshake, which is asked each time."""
        return self.say(form, ids, k, self.where, lambda said: said, last, keep=False)

    def say(self, form: Form, ids: Sequence[int], k: int, where: str, then: Callable[[Scores], T], last: bool = False, keep: bool = True) -> T:
        """What `then` makes of what the server says about a text; only what it accepts is kept."""
        body = request(form, self.model, ids, k, self.vocabulary, where, last)
        tokens = (len(ids), 1)
        return self.endpoint.ask("completions", body, lambda answer: then(scores(form, answer, ids, self.vocabulary, where, last)), tokens, keep)

    def score(self, texts: Mapping[str, Wanted]) -> dict[str, Best]:
        """Name -> what the server says at the places of each text; several are asked at the same time.

        Raises:
            Failed: `echo`, `answer`, `nan`, `endpoint`, with the name of the text; answers that came are kept.
        """
        if not self.met and not (self.form and all(self.kept(self.form, *item) for item in texts.items())):
            if self.endpoint.sender is not None:
                self.meet()
        form = self.form
        if form is None:
            raise Failed("offline", self.where, "answers that are kept", "none, and nothing may be asked", "repeat the command with the server")

        def one(item: tuple[str, Wanted]) -> tuple[str, Best]:
            name, text = item
            where, found = f"{self.where}  row {name}", list[Best]()
            at: dict[int, int] = {}
            try:
                for ids, last in self.parts(form, text):

                    def read(said: Scores) -> tuple[list[int], Best]:
                        places = [i for i, one in enumerate(said.entries) if one]
                        return places, best([said.entries[i] for i in places], self.k, self.vocabulary.size, where)

                    places, entries = self.say(form, ids, self.k, where, read, last)
                    at.update({i: len(at) + n for n, i in enumerate(places)})
                    found.append(entries)
            except Unsaid:
                raise Failed("logprobs", where, "log-probabilities of the row", "an answer without", "look at the server's log") from None
            return name, Best(*(torch.cat(some)[[at[i] for i in text.places]] for some in zip(*found, strict=True)))

        with ThreadPoolExecutor(self.endpoint.limits.concurrency) as pool:
            waiting = [pool.submit(one, item) for item in texts.items()]
            try:
                return dict(each.result() for each in waiting)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # what is in flight is still kept
                raise

    def parts(self, form: Form, text: Wanted) -> list[tuple[Sequence[int], bool]]:
        """What has to be asked about a text, each with whether it is about the token after it."""
        alone = [i for i in unsaid(text.ids, self.vocabulary.bos) if i in text.places] if form.late else []
        return [(text.ids, False)] * (len(alone) < len(text.places)) + [(text.ids[: i + 1], True) for i in alone]

    def kept(self, form: Form, name: str, text: Wanted) -> bool:
        """Whether the answers about a text are there."""
        where = f"{self.where}  row {name}"
        bodies = (request(form, self.model, ids, self.k, self.vocabulary, where, last) for ids, last in self.parts(form, text))
        return all(self.endpoint.has("completions", body) for body in bodies)


def shown(says: Mapping[str, Any]) -> str:
    """What a server says about itself, as one short line of data."""
    return ascii(", ".join(f"{name} {value}" for name, value in sorted(says.items())))[1:-1][:120] or "nothing"
