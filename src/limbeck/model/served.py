"""A model that somebody else runs: only its tokenizer is here, and it says nothing but what a server answers about rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import nn

from limbeck.endpoint import Endpoint, OverHttp, Send
from limbeck.endpoint.server import Server
from limbeck.errors import Refused
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Role
from limbeck.model.conversion import conversion_key
from limbeck.model.folder import check_folder
from limbeck.model.loading import TOKENIZER_FILES, build_config, build_meta, fit_length, open_tokenizer
from limbeck.model.opening import config_file, fetch, open_pretrained
from limbeck.model.reference import Reference, existing, provenance
from limbeck.model.text import Text, text_view
from limbeck.store import Cache, home


class Reader(NamedTuple):
    """What is known of a served model without asking: how it reads."""

    tokenizer: Any
    """None where it would have to be converted first, which a plan does not do."""
    size: int | None
    """Ids are below it; None with the tokenizer."""
    context: int | None = None


class Served(Role):
    """Reads rows with the tokenizer of a model at hand. What a server says about them is captured ahead, never asked while training."""

    offers, at_hand = frozenset({"text", "top_logits", "label"}), False

    def __init__(self, reader: Reader, url: str, model: str, send: Send | None, folder: Path | None = None):
        """Args:
        url: of the server.
        model: its name there.
        send: sends requests; None: nothing is asked.
        folder: of the answers that are kept; none: `responses` in the cache.
        """
        super().__init__(nn.Identity())
        self.tokenizer, self.vocab, self.context = reader.tokenizer, reader.size, reader.context
        self.url, self.model, self.send, self.folder = url, model, send, folder or home() / "responses"
        self.server: Server | None = None

    def view(self, rows):
        return text_view(rows, self.tokenizer, self.shift)

    def connect(self, k: int, dialect: str, **limits: Any) -> None:
        """Says how the server is to be asked; nothing is asked yet."""
        if self.tokenizer is not None:
            endpoint = Endpoint(self.url, self.send, self.folder, **limits)
            self.server = Server(endpoint, self.model, self.tokenizer, self.vocab or len(self.tokenizer), k, dialect, self.context)

    @property
    def self_description(self) -> Mapping[str, Any]:
        """What the server says about itself: all that tells one set of weights there from another."""
        return self.server.about() if self.server is not None else {}

    def told(self):
        if self.server is None:
            return ()
        counts, tokens = self.server.endpoint.counts, sum(self.server.endpoint.ledger.spent())
        numbers = ", ".join(f"{counts[name]:,} {name}" for name in ("asked", "replayed", "repeated"))
        return (f"requests: {numbers}; {tokens:,} tokens of this server so far",)

    def says(self, view: Any, names: Sequence[str], inject: Mapping[str, Any]) -> NoReturn:
        raise Refused(
            "need",
            f"endpoint:{self.url}#{self.model}",
            f"a teacher that is at hand, to say {', '.join(names)} now",
            "a served one, which is asked about rows ahead of training",
            "leave out what asks it, or teach with the model itself",
            code=3,
        )


def open_served(reference: Reference, reads: str, cache: Cache, plan: bool = False) -> Served:
    """A role for `endpoint:URL#model` that reads as another model does; a plan converts nothing, and asks nothing.

    Raises:
        Refused: `tokenizer`, where no causal model with a tokenizer is named.
    """
    if not reads:
        do = "teacher: {kind: served, url: ..., model: ..., tokenizer: path:FOLDER}"
        raise Refused("reference", reference.text, "a model whose weights are at hand", "one that a server runs", do)
    role = Served(reader(Reference.parse(reads), cache, plan), reference.name, str(reference.revision), None if plan else OverHttp())
    role.provenance = provenance(reference)
    return role


def reader(reference: Reference, cache: Cache, plan: bool) -> Reader:
    """Tokenizer and sizes of a model, of which no weights are read."""
    if reference.scheme == "config":
        config, _, tokenizer = config_file(reference)
    elif reference.scheme in ("gguf", "package") and (folder := cache.get(conversion_key(cache, reference))) is None:
        if plan:
            return Reader(None, None)
        opened = open_pretrained(reference, cache=cache)
        config, tokenizer = opened.config, opened.tokenizer
    else:
        if reference.scheme == "hf":
            folder = fetch(reference, [], ["config.json", *TOKENIZER_FILES, "special_tokens_map.json", "merges.txt", "*.jinja"])
        elif reference.scheme not in ("gguf", "package"):
            folder = existing(reference)
        checked = check_folder(folder, reference.text, weights=False)
        config = build_config(checked.config, reference.text)
        tokenizer = fit_length(open_tokenizer(checked, config, reference.text), config)
    module = build_meta(config, reference.text)
    found = anatomy(module)
    if tokenizer is None or not found.causal:
        got = "one without" if tokenizer is None else f"{type(module).__name__}, which is not causal"
        raise Refused("tokenizer", f"teacher.tokenizer  {reference}", "a causal language model with a tokenizer", got, "name the served model's own")
    like = Text(module, tokenizer, found)
    return Reader(tokenizer, like.vocab or len(tokenizer), like.context)
