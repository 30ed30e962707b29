"""Plain text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.data._files import find, finish, reading
from limbeck.data.base import Place, Source, key_of
from limbeck.errors import Failed
from limbeck.signals import Row


class Text(Source):
    r"""Reads text files: each is a document, or several with a separator between them.

    Text is taken as it stands, in UTF-8; what holds nothing but white space is no document. Documents are cut to a
    length by `pack`. A single file without a separator is a single document, of which nothing can be held out: give a
    separator, or a file as `held_out`.

    Example:
        >>> Text(path="books/**/*.txt", separator="\n\n\n").licence is None
        True

    References:
        (folklore)
    """

    kind: Literal["text"] = "text"
    path: str
    """Files to read, as in `books/*.txt` (`**` for all folders below); a relative one starts at the recipe."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    r"""What stands between two documents of a file, as in `"\n\n\n"`; it belongs to neither."""

    @classmethod
    def example(cls) -> "Text":
        return cls(path="*.txt")

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        pattern = path or self.path
        files = find(pattern, place.base, self.kind)
        texts = [text for file in files for text in self.documents(file) if text.strip()]
        rows = [Row(key, {"text": text}, source=key) for text in texts for key in [key_of("text", text)]]
        return finish(self, rows, [], pattern, files, split=path is None)

    def documents(self, file: Path) -> list[str]:
        """The documents of one file."""
        with reading(file):
            data = file.read_bytes()
        try:
            text = data.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise Failed(
                "encoding",
                str(file),
                "UTF-8",
                f"the byte 0x{data[error.start]:02x} at {error.start:,}",
                "convert the file, as with iconv -f latin1 -t utf-8",
            ) from None
        return [text] if self.separator is None else text.split(self.separator)
