"""Writes the three toy domains of the claim of branch_merge: sums, sorted digits and words turned round. `python benchmarks/domains.py`."""

import random
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src/limbeck/recipes/domains"
LINES = 600


def sums(draw: random.Random) -> str:
    a, b = draw.randint(10, 99), draw.randint(10, 99)
    return f"{a}+{b}={a + b}"


def order(draw: random.Random) -> str:
    digits = [str(draw.randint(0, 9)) for _ in range(5)]
    return f"{''.join(digits)}>{''.join(sorted(digits))}"


def turned(draw: random.Random) -> str:
    word = "".join(draw.choice(letters) for letters in ("bdgklmnprst", "aeiou") * 2)
    return f"{word}<{word[::-1]}"


def main() -> None:
    """Lines of four examples, each line a document, none twice."""
    FOLDER.mkdir(exist_ok=True)
    for rule in (sums, order, turned):
        draw = random.Random(rule.__name__)
        lines = dict.fromkeys(" ".join(rule(draw) for _ in range(4)) for _ in range(LINES))
        (FOLDER / f"{rule.__name__}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
