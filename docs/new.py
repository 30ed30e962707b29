"""make new room=objective name=tail_kl: a component and its test, from templates that run as written."""

import sys
from pathlib import Path

from limbeck.component import KIND, members

ROOT = Path(__file__).parent.parent
DIVERGENCE = '''"""{words}."""

from typing import Literal

from limbeck.numerics import kl
from limbeck.objective.base import AbstractDivergence


class {name}(AbstractDivergence):
    r"""What it does, in one sentence without the paper's name.

    $$ \\mathrm{{KL}}(p \\,\\|\\, q) $$

    When to choose it, and when not.

    Example:
        >>> {name}().kind
        '{kind}'

    References:
        Authors, short title, year, arXiv id.
    """

    kind: Literal["{kind}"] = "{kind}"

    def divergence(self, log_p, log_q):
        return kl(log_p, log_q)
'''
TEST = '''"""What is special about {kind}: numbers worked by hand."""

import torch

from limbeck.objective.{kind} import {name}


def test_the_value_of_two_coins_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    expected = float("nan")                                 # work it out, and write how
    torch.testing.assert_close({name}().divergence(p.log(), q.log()), torch.tensor([expected]))
'''


def main() -> int:
    room, kind = (sys.argv[1:] + ["", ""])[:2]
    if room != "objective" or not KIND.fullmatch(kind) or kind in members(room):
        print("usage: make new room=objective name=a_new_kind (other rooms: copy the nearest member)")
        return 2
    name = "".join(word.capitalize() if len(word) > 2 else word.upper() for word in kind.split("_"))
    for path, template in ((ROOT / f"src/limbeck/{room}/{kind}.py", DIVERGENCE), (ROOT / f"tests/{room}/test_{kind}.py", TEST)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.format(kind=kind, name=name, words=kind.replace("_", " ").capitalize()))
        print(f"wrote {path.relative_to(ROOT)}")
    print(f"next: the formula, the number in its test, then limbeck check {room}.{kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
