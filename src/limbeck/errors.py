"""The two errors that users meet: the request cannot be served as it stands, or the world got in the way."""

from typing import ClassVar


class LimbeckError(Exception):
    """Four lines: where it is, what was expected, what came, what to do."""

    codes: ClassVar[tuple[int, ...]] = ()

    def __init__(self, slug: str, where: str, expected: str, got: str, do: str, code: int | None = None):
        """Args:
        slug: one word to search for: key, tokenizer, memory, nan, ...
        where: file and line, recipe path, or reference.
        expected: what would have been right.
        got: what came instead, with its value or shape.
        do: the next thing to type or change.
        code: exit code of the command line (see `docs/start.md`).
        """
        super().__init__(slug, where, expected, got, do)
        self.slug, self.where, self.expected, self.got, self.do = slug, where, expected, got, do
        self.code = self.codes[0] if code is None else code
        if self.code not in self.codes:
            raise AssertionError(f"{type(self).__name__} exits with one of {self.codes}, not {self.code}")

    def __str__(self) -> str:
        return f"error[{self.slug}]  {self.where}\n  expected  {self.expected}\n  got       {self.got}\n  do        {self.do}"

    def as_json(self) -> dict[str, dict[str, str]]:
        """The same five fields for a script."""
        names = ("slug", "where", "expected", "got", "do")
        return {"error": {name: getattr(self, name) for name in names}}

    def __reduce__(self):
        return (type(self), (self.slug, self.where, self.expected, self.got, self.do, self.code))


class Refused(LimbeckError):
    """The request is wrong (exit code 2), or impossible on this machine or with this teacher (3)."""

    codes = (2, 3)


class Failed(LimbeckError):
    """The world failed: disk, package, corrupt file (4); or it ran, and the answer is no: check, claim, NaN (5)."""

    codes = (4, 5)


class Stopped(Exception):
    """Somebody asked for a stop, and was heard: everything finished is kept, what was going on is not."""
