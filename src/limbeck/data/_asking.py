"""Steps that ask a served model about rows."""

import logging
from collections import Counter
from collections.abc import Mapping

from limbeck.data.base import Place, Step
from limbeck.endpoint.chat import Chat, Written, ask_all
from limbeck.endpoint.writer import Writer

logger = logging.getLogger(__name__)


class AbstractAsking(Writer, Step):
    """Asks each question once, in all runs; a plan asks nothing, and says what would be asked."""

    def said(self, chats: Mapping[str, Chat], place: Place) -> dict[str, Written]:
        """Row -> what was written about it: asked now, or kept; a plan knows only what is kept."""
        plan, endpoint, kind = bool(place.extra.get("plan")), self.client(place.extra), dict(self)["kind"]
        some = {key: chat for key, chat in chats.items() if not plan or endpoint.responses.has(chat.key())}
        found = ask_all(endpoint, list(some.values()), list(some), f"data {kind}  endpoint:{self.url}#{self.model}")
        counts = ", ".join(f"{endpoint.counts[name]:,} {name}" for name in ("asked", "replayed", "repeated"))
        logger.info("%s: requests: %s; %d tokens of this server so far", kind, counts, sum(endpoint.ledger.spent()))
        return dict(zip(some, found, strict=True))

    def to_come(self, chats: Mapping[str, Chat], said: Mapping[str, Written]) -> list[str]:
        """A note on what a plan would ask, if there is anything."""
        left = [chats[key].tokens() for key in chats.keys() - said.keys()]
        if not left:
            return []
        tokens = [sum(some) for some in zip(*left, strict=True)]
        price = f", {self.budget.dollars(*tokens):,.2f} dollars" if self.usd_per_million_in or self.usd_per_million_out else "; no price is given"
        return [f"{dict(self)['kind']}: at most {len(left):,} requests and {sum(tokens):,} tokens to {self.url}{price}; a plan asks nothing"]


def most(reasons: Counter[str]) -> str:
    """The most frequent reasons: a server may give as many as it likes."""
    return ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common(5))
