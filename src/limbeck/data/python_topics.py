"""The topics of Python's own help."""

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.data._files import once
from limbeck.data._overlap import RUN, WORD, runs
from limbeck.data.base import Place, Source, key_of
from limbeck.errors import Failed, Refused
from limbeck.signals import Row


class PythonTopics(Source):
    r"""Reads the topics of Python's own help: technical English that every Python has, about 100,000 tokens.

    For trials and the quickstart, where nothing may be downloaded. Long topics repeat short ones word for word; each
    paragraph is kept once, in the shortest topic that has it, so that held-out topics are not trained on by the way. The
    text differs a little from one Python to the next: the provenance names the version and the hash.

    Example:
        >>> PythonTopics().licence
        'PSF-2.0'

    References:
        Python Software Foundation, The Python Language Reference, `pydoc_data.topics`.
    """

    kind: Literal["python_topics"] = "python_topics"
    split: Annotated[float, Field(ge=0, lt=1)] = 0.13
    """Share of topics that is held out for evaluation, chosen by hash of their titles; by default an eighth of the text."""
    licence: str | None = "PSF-2.0"
    """Licence of the text, for the model card."""

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            raise Refused("key", "data python_topics  held_out", "topics, of which split holds out a share", f"held_out: {path}", "remove held_out")
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise Failed("package", "data python_topics", "a Python with pydoc_data", "one without", "install the whole standard library") from None
        unlike = apart(topics)
        rows, repeated = once([Row(key_of("text", text), {"text": text}, source=title) for title, text in unlike.items()], self.kind)
        left = 1 - sum(map(len, unlike.values())) / sum(map(len, topics.values()))
        version, whole = platform.python_version(), json.dumps(topics, sort_keys=True)
        facts = {
            "name": f"pydoc_data.topics of Python {version}",
            "revision": version,
            "sha256": hashlib.sha256(whole.encode()).hexdigest(),
            "rows": len(rows),
            "licence": self.licence,
        }
        return rows, facts, [f"python_topics: {left:.0%} of the text repeats a shorter topic, and is kept once", *repeated]


def apart(topics: Mapping[str, str]) -> dict[str, str]:
    """Title -> text, without the paragraphs that have 13 words in a row in common with a shorter topic."""
    seen: set[int] = set()
    out: dict[str, str] = {}
    for title in sorted(topics, key=lambda title: (len(topics[title]), title)):
        paragraphs = topics[title].split("\n\n")
        owner = [i for i, paragraph in enumerate(paragraphs) for _ in WORD.findall(paragraph.casefold())]
        drop = {i for at, run in enumerate(runs(topics[title]).tolist()) if run in seen for i in owner[at : at + RUN]}
        text = "\n\n".join(paragraph for i, paragraph in enumerate(paragraphs) if i not in drop)
        if text.strip():
            out[title] = text
            seen.update(runs(text).tolist())
    return dict(sorted(out.items()))
