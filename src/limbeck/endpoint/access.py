"""How a server is reached, and the most that it may be asked, as fields of a component."""

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from limbeck.component import Component
from limbeck.endpoint.address import address
from limbeck.endpoint.client import Limits
from limbeck.endpoint.ledger import Budget
from limbeck.errors import Refused

COSMETIC: Any = {"cosmetic": True}


class Access(Component):
    """Fields of a component that asks a server."""

    url: str
    """Address of the server, like https://host/v1; http only on this machine. No key in it."""
    model: str = Field(min_length=1, max_length=200)
    """Name of the model there."""
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
    """Price of a million tokens that it writes."""

    @field_validator("url")
    @classmethod
    def an_address(cls, value: str) -> str:
        return address(value, f"{cls.room}.url")  # our own error: pydantic's would repeat what may be a secret

    @field_validator("key_env")
    @classmethod
    def a_name(cls, value: str) -> str:
        if value and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,99}", value, re.ASCII):
            got = "something that is no name, and is not shown, should it be the key"
            raise Refused("key", f"{cls.room}.key_env", "the name of an environment variable", got, "export NAME=..., and write key_env: NAME")
        return value

    @model_validator(mode="after")
    def a_price_for_a_budget(self) -> "Access":
        if self.budget_usd is not None and not (self.usd_per_million_in or self.usd_per_million_out):
            raise ValueError("budget_usd: needs a price: usd_per_million_in, and usd_per_million_out")
        return self

    @property
    def budget(self) -> Budget:
        return Budget(self.budget_tokens, self.budget_usd, self.usd_per_million_in, self.usd_per_million_out)

    @property
    def limits(self) -> Limits:
        return Limits(self.concurrency, self.timeout_seconds, self.attempts)
