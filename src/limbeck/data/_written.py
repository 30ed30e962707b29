"""What a model is asked about a row, and how its answer is read."""

import re
from collections.abc import Mapping
from typing import Any

from limbeck.endpoint.chat import Written

NAME = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")
"""`{name}` is a field of the row, `{{name}}` is the text {name}."""


class Unparsed(Exception):
    """Why an answer is none: it is counted, and nothing of it is learnt."""


def fields(prompt: str) -> set[str]:
    """Names of the row's fields in a template."""
    return {found[2] for found in NAME.finditer(prompt) if found[2]}


def texts(content: Mapping[str, Any]) -> dict[str, str]:
    """What of a row can be put into a template."""
    return {name: value for name, value in content.items() if isinstance(value, str)}


def filled(prompt: str, values: Mapping[str, str]) -> str:
    """A template with the fields of a row, put in once: braces in them mean nothing."""
    return NAME.sub(lambda found: f"{{{found[1]}}}" if found[1] else values[found[2]], prompt)


def readable(answer: Written, *finishes: str) -> str:
    """The text of an answer that ended in one of some ways.

    Raises:
        Unparsed: with the reason.
    """
    if answer.finish not in finishes:
        raise Unparsed({"length": "cut off", "": "without an end"}.get(answer.finish, f"ended by {ascii(answer.finish[:20])}"))
    if "\0" in answer.text or any("\ud800" <= c <= "\udfff" for c in answer.text):
        raise Unparsed("with characters that are no text")
    return answer.text


def parsed(answer: Written, markers: tuple[str, ...]) -> tuple[str, str]:
    """Rationale and label: before and after the first marker, without blanks, a colon in front of the label or a full stop behind it.

    Raises:
        Unparsed: with the reason.
    """
    pieces = re.split("|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)), readable(answer, "stop"))
    if len(pieces) != 2:
        raise Unparsed("without a marker" if len(pieces) == 1 else "with a second marker")
    rationale, label = pieces[0].strip(), pieces[1].strip().removeprefix(":").removesuffix(".").strip()
    if not rationale or not label:
        raise Unparsed("without a rationale" if label else "without a label")
    return rationale, label
