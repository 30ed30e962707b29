"""Models that score a document for a query: cross-encoders, which read both as one text, and bi-encoders, which read each by itself."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import Refused
from limbeck.model.anatomy import Anatomy
from limbeck.model.base import taps
from limbeck.model.text import LAYERED, Text
from limbeck.numerics import upcast
from limbeck.signals import Row, View
from limbeck.store import write_json
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.tokens import encoded, shortened, specials

GIVEN = {"relevance": ("relevance", torch.long), "rank": ("rank", torch.long), "given_score": ("score", torch.float32)}
"""Signal -> the field of a row's content that holds it, and its dtype: what the data says of a candidate, and no model."""


AROUND = 5
"""More marks than any tokenizer puts around a pair."""


class AbstractRanker(Text):
    """Reads rows of a query and a text, and scores them; of a text that is too long, the end is left out.

    Beside what its model says it repeats what the data says of every row of a window: relevance, rank, given_score.
    """

    offers = frozenset({"score", *GIVEN})

    def __init__(self, module: Any, tokenizer: Any, anatomy: Anatomy, longest: int | None = None):
        super().__init__(module, tokenizer, anatomy)
        if anatomy.causal:
            raise Refused("family", type(module).__name__, "an encoder, which sees a pair of texts from both sides", "a causal model", "use BERT")
        self.longest: int = min(x for x in (longest, self.context, 1 << 20) if x is not None)
        """Positions of the longest text, or pair of texts, that it reads."""
        self.context, self.shift = None, 0  # no row is too long: it is cut here

    @property
    def reads_as(self) -> tuple[Any, ...]:
        return (type(self).__name__, self.longest)

    def texts(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Query and text of each row."""
        for row in rows:
            if not all(isinstance(row.content.get(name), str) for name in ("query", "text")):
                raise Refused("row", f"row {row.key}", "a query and a text", ", ".join(row.content) or "nothing", "use a source of rankings")
        return [(row.content["query"], row.content["text"]) for row in rows]

    def pair(self, query: str, text: str) -> tuple[list[int], list[int]]:
        """Ids of both texts, and of which of them each is."""
        raise NotImplementedError

    def view(self, rows: Sequence[Row]) -> View:
        pairs = [self.pair(query, text) for query, text in self.texts(rows)]
        on: dict[str, Any] = {"dtype": torch.long, "device": "cpu"}  # moved with the window
        inputs = {name: torch.tensor([i for pair in pairs for i in pair[n]], **on) for n, name in enumerate(("ids", "segment"))}
        for name, (field, dtype) in GIVEN.items():
            if all(row.content.get(field) is not None for row in rows):
                inputs[name] = torch.tensor([row.content[field] for row in rows], dtype=dtype, device="cpu")
        return View(inputs, torch.tensor([len(ids) for ids, _ in pairs], **on), torch.zeros_like(inputs["ids"], dtype=torch.bool), shift=0)

    def given(self, view: View, names: Sequence[str]) -> dict[str, Tensor]:
        """Those of the signals that the data says."""
        for name in (name for name in names if name in GIVEN and name not in view.inputs):
            field = GIVEN[name][0]
            do = f"read a run that holds it, or use an objective that needs no {name}"
            raise Refused("row", f"{field} of rows", f"rows that all have a {field}", "some that have none", do)
        return {name: view.inputs[name] for name in names if name in GIVEN}


class CrossEncoder(AbstractRanker):
    """Speaks for a classifier of pairs with one label, whose logit is the score of the text for the query."""

    offers = AbstractRanker.offers | LAYERED

    def pair(self, query: str, text: str) -> tuple[list[int], list[int]]:
        query = shortened(query, self.tokenizer, (self.longest - AROUND) // 2)
        if not isinstance(self.tokenizer, ByteTokenizer):
            found = self.tokenizer(query, text, truncation="only_second", max_length=self.longest, return_token_type_ids=True)
            return list(found["input_ids"]), list(found["token_type_ids"])
        end = [self.tokenizer.eos_token_id]
        first = encoded(query, self.tokenizer, special=True) + end
        then = encoded(text, self.tokenizer)[: self.longest - len(first) - 1] + end
        return first + then, [0] * len(first) + [1] * len(then)

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        flat, unflat, inputs = self.lay_out(view)
        if self.anatomy.has("token_type"):
            inputs["token_type_ids"] = unflat(view.inputs["segment"])
        reads = {name: self.tap(name) for name in names if name.split(".")[0] in LAYERED}
        out: dict[str, Any] = self.given(view, names)
        if reads or "score" in names:
            with taps(self.module, reads, {name: (self.tap(name), unflat(x)) for name, x in inject.items()}) as heard:
                score = self.module(**inputs).logits[: view.num_rows, 0]
            out |= {"score": score, **{name: flat(x) for name, x in heard.items()}}
        return {name: out[name] for name in names}


class BiEncoder(AbstractRanker):
    """Speaks for an encoder of single texts: the score is the cosine of the mean final states of query and text, times a factor."""

    offers = AbstractRanker.offers | {"embedding", "query_embedding"}
    factor: ClassVar[float] = 20.0
    """Cosines lie between -1 and 1: times this they tell candidates apart in a softmax, as sentence-transformers has it."""

    def pair(self, query: str, text: str) -> tuple[list[int], list[int]]:
        (before, after), out = specials(self.tokenizer), ([], [])
        for n, words in enumerate((query, text)):
            ids = [*before, *encoded(words, self.tokenizer)[: self.longest - len(before) - len(after)], *after]
            out[0].extend(ids)
            out[1].extend([n] * len(ids))
        return out

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        out: dict[str, Any] = self.given(view, names)
        if not {"score", "embedding", "query_embedding"}.isdisjoint(names):
            parts = view.inputs["ids"].split(view.ragged.tolist())
            cuts = [int(part) for part in (view.ragged - self.of_text(view)).tolist()]
            texts = [tuple(x.tolist()) for part, cut in zip(parts, cuts, strict=True) for x in (part[:cut], part[cut:])]
            number = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # rows of one list share their query: it is read once
            vectors = self.embed(list(number), view.device)
            place = torch.tensor([number[text] for text in texts], dtype=torch.long, device=view.device).view(-1, 2)
            out["query_embedding"], out["embedding"] = vectors[place[:, 0]], vectors[place[:, 1]]
            out["score"] = self.factor * (out["query_embedding"] * out["embedding"]).sum(-1)
        return {name: out[name] for name in names}

    def accompany(self, folder: Path) -> None:
        """The few files that make it an encoder of sentences, for sentence-transformers too."""
        modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        told = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(modules)]
        pooling = {"word_embedding_dimension": self.anatomy.size(self.module.config, "width"), "pooling_mode_mean_tokens": True}
        write_json(folder / "modules.json", told)
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": self.longest, "do_lower_case": False})
        for place in ("1_Pooling", "2_Normalize"):
            (folder / place).mkdir(exist_ok=True)
        write_json(folder / "1_Pooling" / "config.json", pooling)

    @staticmethod
    def of_text(view: View) -> Tensor:
        """Positions of the text of each row, behind its query."""
        return torch.zeros_like(view.ragged).index_add(0, view.rows("pos"), view.inputs["segment"])

    def embed(self, texts: Sequence[tuple[int, ...]], device: torch.device) -> Float[Tensor, "text dim"]:
        """Mean final states of texts, of length 1."""
        ids, lengths = (torch.tensor(x, dtype=torch.long, device=device) for x in ([i for text in texts for i in text], [len(t) for t in texts]))
        view = View({"ids": ids}, lengths)
        flat, _, inputs = self.lay_out(view)
        states = upcast(flat(self.body(**inputs).last_hidden_state))
        sums = states.new_zeros(len(texts), states.shape[-1]).index_add(0, view.rows("pos"), states)
        return torch.nn.functional.normalize(sums / lengths[:, None], dim=-1)
