"""The one loader of recipes: YAML by its 1.2 core rules, without anchors, aliases, tags or duplicate keys."""

import math
import re
from typing import Any

import yaml

from limbeck.errors import Refused

MAX_BYTES, MAX_DEPTH, MAX_DIGITS = 1_000_000, 50, 300
NULL, TRUE, FALSE = {"", "~", "null", "Null", "NULL"}, {"true", "True", "TRUE"}, {"false", "False", "FALSE"}
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SURROGATE = re.compile("[\ud800-\udfff]")
SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def load(text: str, source: str = "recipe") -> tuple[Any, dict[tuple, int]]:
    """Plain data, and the line (from 1) of every path in it.

    Raises:
        Refused: with file and line, for anything beyond plain YAML 1.2.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise Refused("yaml", source, "at most 1 MB", f"{len(text):,} characters", "split the data off the recipe: a recipe names files")
    lines: dict[tuple, int] = {}
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise Refused("yaml", f"{source}:{line}", f"at most {MAX_DEPTH} levels", "more", "flatten the document")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise Refused(
                    "yaml", f"{source}:{line}", "each value written out", f"the anchor or alias {event.anchor}", "write the value again in its place"
                )
            if getattr(event, "tag", None) is not None:
                raise Refused("yaml", f"{source}:{line}", "plain values", f"the tag {event.tag}", "remove the tag")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: escapes and versions that yaml takes for numbers
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise Refused("yaml", where, "YAML", problem, "correct this line") from None
    return (None if root is None else plain(root, (), source, lines)), lines


def value(text: str) -> Any:
    """The value of `key=value` on the command line, by the same rules."""
    return load(text, "command line")[0]


def plain(node: yaml.Node, path: tuple, source: str, lines: dict[tuple, int]) -> Any:
    """A composed node as data; duplicate keys are refused."""
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        refuse(node, source)
        return scalar(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [plain(item, (*path, i), source, lines) for i, item in enumerate(node.value)]
    out: dict[str, Any] = {}
    for key, item in node.value:
        where = f"{source}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise Refused("yaml", where, "a word as key", "a list or mapping", "write a word")
        refuse(key, source)
        if key.value in out:
            raise Refused("yaml", where, "each key once", f"{key.value} again", f"remove one {key.value}")
        if key.value == "<<":
            raise Refused("yaml", where, "each value written out", "a merge key", "write the values again in their place")
        out[key.value] = plain(item, (*path, key.value), source, lines)
        lines[(*path, key.value)] = key.start_mark.line + 1
    return out


def refuse(node: yaml.ScalarNode, source: str) -> None:
    """Refuses what could not be written again: half a character, and whole numbers that Python does not print."""
    where = f"{source}:{node.start_mark.line + 1}"
    if not node.value.isascii() and SURROGATE.search(node.value):
        raise Refused("yaml", where, "characters", "half of one (an escape from \\ud800 to \\udfff)", "write the character itself")
    if node.style is None and len(node.value) > MAX_DIGITS and INTEGER.fullmatch(node.value):
        raise Refused("yaml", where, f"a number of at most {MAX_DIGITS} digits", f"{len(node.value):,} digits", "quote it if it is a word")


def scalar(text: str) -> Any:
    """YAML 1.2's core schema: `1e-4` is a number, `yes`, `no`, `on`, `off` are words."""
    if text in NULL:
        return None
    if text in TRUE or text in FALSE:
        return text in TRUE
    if INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    if special := SPECIAL.fullmatch(text):
        return math.nan if special[3] else math.copysign(math.inf, -1.0 if special[1] == "-" else 1.0)
    return text
