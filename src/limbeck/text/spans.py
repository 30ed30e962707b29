"""From a row to the ids of one tokenizer, and which of them are to be predicted."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.text.nucleotides import check_letters, letters_of
from limbeck.text.tokens import encoded, fingerprint, specials, state, tokens

READ = ("text", "prompt", "answer", "messages", "tools", "turns", "open")
"""What is read of a row's content, besides `ids` and `asked`."""
REMEMBERED_TOKENS = 1 << 20
"""Positions that are remembered for each tokenizer, about 40 bytes each."""

Encoded = tuple[list[int], list[bool]]


class Span(NamedTuple):
    """What the assistant says in one turn, as characters of the whole chat."""

    turn: int
    start: int
    end: int


class Memory:
    """What was encoded lately, so that a row drawn again is not rendered again."""

    def __init__(self) -> None:
        self.rows: dict[Any, tuple[Mapping[str, Any], Encoded]] = {}
        self.num_tokens = 0

    def recall(self, place: Any, content: Mapping[str, Any]) -> Encoded | None:
        known = self.rows.get(place)
        return known[1] if known is not None and known[0] == content else None  # equal content, not only an equal key

    def keep(self, place: Any, content: Mapping[str, Any], encoded: Encoded) -> None:
        self.forget(place)
        self.rows[place] = content, encoded
        self.num_tokens += 1 + len(encoded[0])
        while self.num_tokens > REMEMBERED_TOKENS:
            self.forget(next(iter(self.rows)))

    def forget(self, place: Any) -> None:
        if place in self.rows:
            self.num_tokens -= 1 + len(self.rows.pop(place)[1][0])


MEMORIES: WeakKeyDictionary[Any, Memory] = WeakKeyDictionary()


def encode(row: Row, tokenizer: Any) -> Encoded:
    """Ids of a row, and which positions are asked for: all of a `text`, the `answer` to a `prompt`, the assistant's turns of `messages`.

    `ids: {fingerprint: [...]}` (and `asked`, alike) is taken as it is by the tokenizer of that fingerprint; others read the text beside it.
    `turns` names the messages that are asked for, where that is not every turn of the assistant without tool calls. With `open: true`
    the last thing said is not finished: no end of text or of turn follows. What is asked for is known from where text stands, never
    from ids: in many tokenizers the end of a turn is also the padding.

    Raises:
        Refused: `template`, where a chat cannot be rendered, or not so that turns can be told apart; `row`, where there is no text.
    """
    if row.content.get("ids") and (mark := fingerprint(tokenizer)) in row.content["ids"]:
        ids = list(row.content["ids"][mark])
        asked = row.content.get("asked", {}).get(mark)
        return ids, [True] * len(ids) if asked is None else list(asked)
    content = {name: row.content[name] for name in READ if name in row.content}
    place, memory = (row.key, state(tokenizer)), MEMORIES.setdefault(tokenizer, Memory())
    found = memory.recall(place, content)
    if found is None:
        found = fresh(content, tokenizer, f"row {row.key}")
        memory.keep(place, content, found)
    return list(found[0]), list(found[1])


def fresh(content: Mapping[str, Any], tokenizer: Any, where: str) -> Encoded:
    if "messages" in content:
        return cut_out(*chat(content, tokenizer, where), tokenizer)
    if "prompt" in content:
        before, after = specials(tokenizer)
        prompt, answer = [*before, *encoded(content["prompt"], tokenizer)], []
        if "answer" in content:
            eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            answer = encoded(content["answer"], tokenizer) + ([] if content.get("open") else list(after) or eos)
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)
    if "text" in content:
        if (known := letters_of(tokenizer)) is not None:
            check_letters(content["text"], known, where)
        ids = encoded(content["text"], tokenizer, special=True)
        return ids, [True] * len(ids)
    raise Refused("row", where, "text, prompt and answer, or messages", ", ".join(content) or "none of them", "add a data step that writes text")


def chat(content: Mapping[str, Any], tokenizer: Any, where: str) -> tuple[str, list[Span]]:
    """A chat as text, and the spans that are asked for: found from the chat up to each turn, since few templates mark them."""
    messages = list(content["messages"])
    if not getattr(tokenizer, "chat_template", None):
        raise Refused("template", where, "a tokenizer with a chat template", "none", "use a chat model, or rows of prompt and answer")

    def render(num: int, answer: bool) -> str:
        try:
            return tokenizer.apply_chat_template(messages[:num], tools=content.get("tools"), tokenize=False, add_generation_prompt=answer)
        except Exception as error:  # a template is a program from elsewhere: it may raise anything
            raise Refused(
                "template",
                f"{where}  messages.{max(num - 1, 0)}",
                "messages that the chat template can write",
                " ".join(str(error).split())[:120],
                "change or leave out this chat",
            ) from None

    whole, spans, added = render(len(messages), False), [], tuple(filter(None, tokenizer.get_added_vocab()))
    for turn in asked_turns(content):
        before, after = render(turn, True), render(turn + 1, False)
        if not whole.startswith(after):
            raise Refused(
                "template",
                f"{where}  messages.{turn}",
                "a chat template that leaves earlier turns as they were",
                f"turn {turn} is written differently once others follow",
                "set ask: last in the chat source: then only the last answer of each chat is learnt",
            )
        if not after.startswith(before):
            raise Refused(
                "template",
                f"{where}  messages.{turn}",
                "a chat template that writes the same text before an answer, given or not yet",
                f"what stands before turn {turn} changes with the answer",
                "use another chat template, or rows of prompt and answer",
            )
        said = after.rstrip()  # the line break after an end of turn is nobody's word
        spans.append(Span(turn, len(before), len(said) if len(said) > len(before) and said.endswith(added) else len(after)))
    if content.get("open") and spans:
        end = place_of(messages[spans[-1].turn]["content"], whole, spans[-1])[1]
        whole, spans[-1] = whole[:end], spans[-1]._replace(end=end)
    return whole, spans


def asked_turns(content: Mapping[str, Any]) -> Sequence[int]:
    """The messages that are asked for; one that opens a chat answers nothing, and tool calls are left alone unless named."""
    every = [i for i, m in enumerate(content["messages"]) if i and m["role"] == "assistant"]
    turns = content.get("turns")
    return [i for i in every if (not content["messages"][i].get("tool_calls") if turns is None else i in turns)]


def place_of(said: Any, whole: str, span: Span) -> tuple[int, int]:
    """Where the words of a message stand within its span; an empty place at its start where the template has rewritten them."""
    for words in (said, said.strip()) if isinstance(said, str) else ():
        if (at := whole.find(words, span.start, span.end)) >= 0:
            return at, at + len(words)
    return span.start, span.start


def cut_out(text: str, spans: Sequence[Span], tokenizer: Any) -> Encoded:
    """Ids of a chat; asked are those that begin within a span."""
    if getattr(tokenizer, "is_fast", False):
        found = tokens(text, tokenizer)
        within = {i for span in spans for i in range(span.start, span.end)}
        return list(found.ids), [start in within for start in found.starts]
    ids: list[int] = []
    asked: list[bool] = []
    edges = [0, *(edge for span in spans for edge in (span.start, span.end)), len(text)]
    for i, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
        more = encoded(text[start:end], tokenizer)
        ids, asked = ids + more, asked + [i % 2 == 1] * len(more)
    return ids, asked
