"""The ways in which servers score a text that they are given: what is sent, and what comes back.

- `prompt_logprobs` (vLLM): ids in; for each position a mapping id -> log-probability, the best k and the token that stands there.
- `echo` (the older completions of OpenAI; vLLM): the prompt is echoed, with names of tokens. llama.cpp's Python server: see `late`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from limbeck.endpoint.entries import Scores, Unsaid, beside, by_name, differs, lists, number, other_tokens
from limbeck.endpoint.late import by_continuation, by_late_echo
from limbeck.endpoint.vocabulary import Vocabulary, bare
from limbeck.errors import Failed

Dialect = Literal["prompt_logprobs", "echo"]
SPARE = 16
"""More entries than needed, where a server names tokens by text: some texts name several ids."""
TOKEN_ID = re.compile(r"token_id:([0-9]{1,9})")


@dataclass(frozen=True)
class Form:
    """One way to ask."""

    dialect: Dialect
    prompt: Literal["ids", "text"] = "ids"
    named: bool = False
    """Tokens come back by their text, not by id."""
    late: bool = False
    """Beside a token stands what was predicted after it."""


TEXT = Form("echo", "text", named=True)
FORMS = (Form("prompt_logprobs"), Form("echo"), Form("echo", named=True), TEXT, replace(TEXT, late=True))
"""The best first: ids are never read twice, texts may be."""


def request(form: Form, model: str, ids: Sequence[int], k: int, vocabulary: Vocabulary, where: str, last: bool = False) -> dict[str, Any]:
    """The body of a request for the k best entries at every token of a text.

    Args:
        last: only for those of the token after it.

    Raises:
        Failed: `echo`, for ids that cannot be sent as text.
    """
    prompt: Any = list(ids)
    if form.prompt == "text":
        prompt = vocabulary.whole(ids)
        if prompt is None:
            rows = "begin with a whole character" if last else "are not cut within words"
            do = f"use a server that takes ids (vLLM), or rows that {rows}"
            raise Failed("echo", where, "a text that is read as the same ids again, since this server takes no ids", "one that is not", do)
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0}
    if form.dialect == "prompt_logprobs":
        return {**body, "prompt_logprobs": k}
    if last:  # a token that is shown has to be written: only beside such a one is anything said
        return {**body, "logprobs": k + SPARE + vocabulary.shared, "logit_bias": {str(i): -100.0 for i in vocabulary.special}}
    if form.late:
        return {**body, "echo": True, "logprobs": k + SPARE + vocabulary.shared}
    return {**body, "echo": True, "logprobs": k + SPARE} if form.named else {**body, "echo": True, "logprobs": k, "return_tokens_as_token_ids": True}


def scores(form: Form, answer: Any, ids: Sequence[int], vocabulary: Vocabulary, where: str, last: bool = False) -> Scores:
    """What an answer says about the tokens of a text, checked; if `last`, about the one after it.

    Raises:
        Unsaid: there are no log-probabilities of the prompt in it.
        Failed: `echo`, if other tokens were scored than those sent; `answer` or `nan`, for numbers that are no log-probabilities.
    """
    try:
        choice = answer["choices"][0]
        if form.dialect == "prompt_logprobs":
            found = by_id(choice["prompt_logprobs"], ids, where)
        elif form.late:
            found = (by_continuation if last else by_late_echo)(choice["logprobs"], ids, vocabulary, where)
        else:
            found = by_echo(choice["logprobs"], form, ids, vocabulary, where)
        read = (answer.get("usage") or {}).get("prompt_tokens", len(ids))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise Unsaid from None
    if read != len(ids):  # a token in front need not be echoed
        raise other_tokens(where, len(ids), f"it has read {ascii(str(read)[:20])[1:-1]} tokens")
    return found


def by_id(given: list[Any], ids: Sequence[int], where: str) -> Scores:
    """Entries of `prompt_logprobs`: the token that stands there is always one of them, or else other tokens were scored."""
    if len(given) != len(ids):
        raise other_tokens(where, len(ids), f"{len(given):,}" + (": it puts a token in front" if len(given) == len(ids) + 1 else ""))
    entries, names = [], []
    for i, found in enumerate(given[1:], 1):
        one = {int(key): number(entry["logprob"], where) for key, entry in found.items() if key.isascii() and key.isdigit()}
        if len(one) != len(found):
            raise Failed("answer", where, "one entry an id", f"ids like {ascii(list(found)[:2])} at token {i}", "look at the server's version")
        if ids[i] not in one:
            raise other_tokens(where, len(ids), f"other tokens: at token {i} it does not score id {ids[i]}, which stands there")
        names += [(int(key), str(entry["decoded_token"])) for key, entry in found.items() if entry.get("decoded_token") is not None]
        entries.append(one)
    return Scores(entries, names)


def by_echo(given: Mapping[str, Any], form: Form, ids: Sequence[int], vocabulary: Vocabulary, where: str) -> Scores:
    """Entries of echoed completions: names of the tokens first, which must be ours."""
    tokens, own, top = lists(given, where)
    said = [TOKEN_ID.fullmatch(str(token)) for token in tokens]
    if not form.named and not all(said):
        raise Unsaid
    ours = [f"token_id:{i}" for i in ids] if not form.named else [bare(vocabulary.text(i)) for i in ids]
    theirs = [str(token) if not form.named else bare(str(token)) for token in tokens]
    if form.named:  # the first one loses its space in many tokenizers
        theirs[:1], ours[:1] = ([x.lstrip(" ") for x in some[:1]] for some in (theirs, ours))
    if theirs[: len(ids)] != ours or not len(ids) <= len(theirs) <= len(ids) + 1:
        differs(ours, theirs, tokens, where)
    entries = []
    for i in range(1, len(ids)):
        numbered = {int(name.removeprefix("token_id:")): number(value, where) for name, value in top[i].items()} if not form.named else {}
        one = by_name(top[i], vocabulary, where) if form.named else numbered
        alone = not form.named or vocabulary.id(str(tokens[i])) == ids[i]  # else its text stands for other ids too
        entries.append(beside(one, own[i], ids[i], alone, i, where))
    return Scores(entries, [])
