"""Chats about images in files."""

import codecs
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from limbeck.component import short
from limbeck.data import image_folder
from limbeck.data._files import reading
from limbeck.data._images import digest
from limbeck.data._records import Bad, Records, json_lines, missing, parsed, words
from limbeck.data.base import key_of
from limbeck.data.chat import message
from limbeck.errors import Refused
from limbeck.signals import Row

MARK = "<image>"


class ImageChat(Records):
    """Reads chats about images: records that name an image file and hold messages, as LLaVA's instruction data has them.

    A file holds JSON lines, or one JSON list (`*.json`, the form in which LLaVA's data is published), which is in memory as a whole. A record
    has `image`, a file, and `messages` (or `conversations`), whose text says `<image>` once, where the picture stands; the answers of the
    assistant are learnt. The shorter side of a picture is scaled to `size`, and the middle is cut out. A file that cannot be read, or a record
    whose marks and image disagree, is named; so many as `max_bad` allows are left out, with a count. So are records of text alone, of which
    LLaVA's mixture of instructions has some 40,000.

    Example:
        >>> ImageChat(path="lessons/*.jsonl", size=336).channels
        3

    References:
        Liu et al., Visual Instruction Tuning, 2023, arXiv:2304.08485.
    """

    kind: Literal["image_chat"] = "image_chat"
    makes: ClassVar[str] = "images"
    image: str = "image"
    """Name of the field that holds the file of the image."""
    images: str = "."
    """Folder that names of images start from, itself seen from the file that names them."""
    size: Annotated[int, Field(gt=0, le=4096)] = 224
    """Height and width of what is kept of each picture; roles scale further to what they were made for."""
    channels: Literal[1, 3] = 3
    """3: colours; 1: grey."""

    @classmethod
    def example(cls) -> "ImageChat":
        return cls(path="talks/seen.jsonl", images="..", size=8, channels=1, split=0.2)

    def records(self, path: Path) -> Iterator[tuple[str, Any]]:
        for where, record in listed(path) if path.suffix == ".json" else json_lines(path):
            yield where, {**record, "": str(path.parent / self.images)} if isinstance(record, Mapping) else record

    def pick(self, names: Collection[str]) -> dict[str, str]:
        messages = next((field for field in ("messages", "conversations") if field in names), None)
        if messages is None or self.image not in names:
            raise Bad(missing(self.image if messages else "messages", [name for name in names if name]))
        return {"messages": messages, "image": self.image}

    def content(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        if self.image not in record and MARK not in json.dumps([record.get(name) for name in ("messages", "conversations")]):
            raise Bad(f"a record of text alone: no field {short(self.image)}, and no {MARK} in what is said; each row needs an image")
        fields = self.pick(record)
        listed, root, name = record[fields["messages"]], Path(record[""]), words(record[fields["image"]], self.image)
        if not isinstance(listed, list) or not listed:
            raise Bad(f"{fields['messages']} is no list of messages")
        messages = tuple(message(item, i) for i, item in enumerate(listed))
        said = [json.dumps(m.get("content")).count(MARK) for m in messages]
        asked = sum(num for num, m in zip(said, messages, strict=True) if m["role"] != "assistant")
        listed_parts = (part for m in messages if isinstance(m["content"], list) for part in m["content"])
        parts = sum(part.get("type") == "image" for part in listed_parts if isinstance(part, Mapping))
        if asked + parts != 1 or sum(said) != asked:
            raise Bad(f"{sum(said) + parts} of {MARK} for 1 image: it must stand once, in a question")
        if not any(m["role"] == "assistant" for m in messages[1:]):
            raise Bad("no answer of an assistant")
        try:
            pixels = image_folder.picture(root / name, root, self.size, image_folder.MODES[self.channels])
        except image_folder.Bad as reason:
            raise Bad(f"{self.image} {short(name)}: {reason}") from None
        return {"messages": messages, "pixels": pixels}, digest(pixels)

    def row(self, record: Any) -> Row:
        found = super().row(record)
        texts = json.dumps(found.content["messages"], sort_keys=True, default=str)
        return Row(key_of(found.source, texts, found.tag), found.content, found.tag, source=found.source)


def listed(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of every entry of a file that is one JSON list; of any other, of its lines.

    Raises:
        Refused: `data`, for a list that cannot be read to its end.
    """
    with reading(path):
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not text.lstrip().startswith(b"["):
        yield from json_lines(path)
        return
    found = parsed(text)
    if isinstance(found, Bad):
        do = "fetch or write the file again, or write JSON lines"
        raise Refused("data", f"data image_chat  {path}", "one JSON list of records", str(found), do)
    for i, record in enumerate(found):
        yield f"{path} record {i}", record
