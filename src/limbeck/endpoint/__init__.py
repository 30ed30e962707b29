"""The client for OpenAI-compatible servers: what was answered is kept and never asked again; nothing is spent beyond a budget."""

from limbeck.endpoint.address import address
from limbeck.endpoint.client import Declined, Endpoint, Limits
from limbeck.endpoint.ledger import Budget, Ledger
from limbeck.endpoint.responses import Responses
from limbeck.endpoint.transport import Ask, Lost, OverHttp, Reply, Send

__all__ = ["Ask", "Budget", "Declined", "Endpoint", "Ledger", "Limits", "Lost", "OverHttp", "Reply", "Responses", "Send", "address"]
