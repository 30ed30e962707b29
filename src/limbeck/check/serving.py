"""A server in this process: answers requests as vLLM and older completions do, from a tiny model, without a network."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.endpoint import Ask, Reply
from limbeck.model.served import Reader, Served
from limbeck.model.text import Text


class Scripted:
    """Scores texts with a model itself, row by row: no role stands between."""

    def __init__(self, role: Text, model: str = "tutor", most: int = 1 << 20):
        """Args:
        most: entries that it gives at most; it refuses more, as vLLM does.
        """
        self.role, self.model, self.most = role, model, most
        self.names: dict[int, str] = {}

    def __call__(self, ask: Ask) -> Reply:
        status, answer = self.answer(ask.url.rpartition("/")[2], None if ask.body is None else json.loads(ask.body))
        return Reply(status, {}, json.dumps(answer).encode())

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and answer of a request."""
        if path == "models":
            return 200, {"object": "list", "data": [{"id": self.model, "object": "model", "created": 1, "owned_by": "limbeck", "root": self.model}]}
        ids = body["prompt"] if isinstance(body["prompt"], list) else self.role.tokenizer.encode(body["prompt"], add_special_tokens=False)
        k = body.get("prompt_logprobs") or body.get("logprobs") or 0
        if k > self.most:
            return 400, {"error": {"message": f"Requested logprobs of {k}, which is greater than max allowed: {self.most}"}}
        told = self.by_id(ids, k) if body.get("prompt_logprobs") else self.echoed(ids, k, bool(body.get("return_tokens_as_token_ids")))
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return 200, {"choices": [{"index": 0, "text": "", **told}], "usage": usage}

    def name(self, i: int) -> str:
        if i not in self.names:
            self.names[i] = self.role.tokenizer.decode([i])
        return self.names[i]

    def log_probs(self, ids: Sequence[int]) -> torch.Tensor:
        """Of the token after each position."""
        with torch.no_grad():
            return self.role.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    def by_id(self, ids: Sequence[int], k: int) -> dict[str, Any]:
        out: list[Any] = [None]
        for log_p, actual in zip(self.log_probs(ids), ids[1:], strict=False):
            rank = {i: place for place, i in enumerate(log_p.argsort(descending=True).tolist(), 1)}
            picked, values = dict.fromkeys([actual, *list(rank)[:k]]), log_p.tolist()  # as vLLM: first the token that stands there
            out.append({str(i): {"logprob": values[i], "rank": rank[i], "decoded_token": self.name(i)} for i in picked})
        return {"prompt_logprobs": out}

    def echoed(self, ids: Sequence[int], k: int, as_ids: bool) -> dict[str, Any]:
        name: Callable[[int], str] = (lambda i: f"token_id:{i}") if as_ids else self.name
        log_p, own, top = self.log_probs(ids), list[Any]([None]), list[Any]([None])
        for row, actual in zip(log_p, [*ids[1:], int(log_p[-1].argmax())], strict=True):
            best, values = row.topk(min(k, len(row))).indices.tolist(), row.tolist()
            own.append(values[actual])
            top.append({name(i): values[i] for i in reversed(best)})  # of tokens that share a name, the best one stays
        tokens = [name(i) for i in (*ids, int(log_p[-1].argmax()))]
        offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        return {"logprobs": {"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}}


def served_by(role: Text, url: str, model: str) -> Served:
    """A served role whose server is a model at hand; what it answers is kept in a folder that goes with the role."""
    folder = tempfile.TemporaryDirectory(prefix="limbeck-")
    found = Served(Reader(role.tokenizer, role.vocab, role.context), url, model, Scripted(role, model), Path(folder.name))
    found.kept_in = folder  # type: ignore[assignment]
    return found
