"""Kinds of held-out text: by the tags of the rows, or by a rule that looks at their lines."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.signals import Row

CODE = re.compile(
    r"[;{}]\s*$|^\s*[\])}]+[,;:]?\s*$|->|=>|[=!]=|&&|\|\||[a-z]_[a-z]|\w\.\w+\(|\w\([^)]*\)\s*$"
    r"|^\s*(//|/\*|@\w|</?[a-zA-Z][^>]*>|#include\b|import\s+[\w.]+\s*$|from\s+[\w.]+\s+import\b|[\w.\[\]]+\s?=\s?\S)"
    r"|^\s+(return|raise|if|elif|for|while|with|assert|yield)\b"
    r"|^\s*(def|class|return|elif|else|try|except|for|if|while|public|private|static|const|let|var|func|fn|struct|package)\b.*[:;{()]\s*$"
)
"""A line of code: how it ends, operators, snake case, calls; how it begins; indented keywords; keywords with such an end."""
ENTRY = re.compile(r"^\s*([-*+•]\s|\d{1,3}[.)]\s|\|)|\t.*\t|\s\|\s.*\s\|\s")
"""A line of a list or a table."""
SPEECH = re.compile(r"^\s*([\"“„»‘«]|[—–]\s|[A-Z][a-zA-Z.' ]{0,20}:\s\S)")
"""A line that is said: a quotation mark, a dash, a name with a colon."""
CODE_LINES, ENTRY_LINES, SPEECH_LINES, DIGITS = 0.4, 0.5, 0.4, 0.2
"""Shares of lines that make a text code, a list, a dialogue; share of digits in what is no space that makes it numbers."""
LINE = 200
"""Characters of a line that are looked at."""
OTHER = "other"


def kinds(rows: Sequence[Row]) -> list[str]:
    """The kind of each row: its tag, where any row has one; else found from its text."""
    if any(row.tag for row in rows):
        return [row.tag or OTHER for row in rows]
    return [kind_of(row.content) for row in rows]


def kind_of(content: Mapping[str, Any]) -> str:
    """code, lists and tables, numbers, dialogue, prose; other for what is no text.

    Rules in this order, on lines that are not empty: at least 40 % look like code; at least half are entries of a list or a
    table; at least 20 % of the characters are digits; it is a chat, or at least 40 % of the lines are speech; else prose.
    """
    text = text_of(content)
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return OTHER
    if share(CODE, lines) >= CODE_LINES:
        return "code"
    if len(lines) > 1 and share(ENTRY, lines) >= ENTRY_LINES:
        return "lists and tables"
    solid = [c for c in text if not c.isspace()]
    if sum(c.isdigit() for c in solid) >= DIGITS * len(solid):
        return "numbers"
    if "messages" in content or share(SPEECH, lines) >= SPEECH_LINES:
        return "dialogue"
    return "prose"


def text_of(content: Mapping[str, Any]) -> str:
    """What is to be predicted of a row, as text: the assistant's turns of a chat, the answer to a prompt, else its text."""
    if "messages" in content:
        said = [message["content"] for message in content["messages"] if message.get("role") == "assistant"]
        return "\n".join(x for x in said if isinstance(x, str))
    found = content.get("answer", content.get("text", ""))
    return found if isinstance(found, str) else ""


def share(pattern: re.Pattern[str], lines: Sequence[str]) -> float:
    """Share of lines in whose beginning a pattern is found."""
    return sum(bool(pattern.search(line[:LINE])) for line in lines) / len(lines)
