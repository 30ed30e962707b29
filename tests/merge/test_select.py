"""Exact order statistics from numbers that are read in parts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.merge._select import ranked

NUMBERS = st.lists(st.floats(min_value=0, allow_nan=False, width=64), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.integers(1, 7))
def test_every_place_is_what_sorting_puts_there(numbers: list[float], size: int) -> None:
    x = torch.tensor([abs(n) for n in numbers], dtype=torch.float64)
    assert ranked(lambda: (part.expand(len(numbers), -1) for part in x.split(size)), range(len(numbers))) == sorted(x.tolist())


def test_among_many_equal_and_nearly_equal_numbers() -> None:
    x = torch.tensor([0.1, 0.10000000000000002, 0.30000000000000004, 0.3, 0.0, 5e-324, 0.3, 1e308], dtype=torch.float64)
    assert ranked(lambda: [x.expand(8, -1)], [0, 1, 2, 3, 4, 5, 6, 7]) == [
        0.0,
        5e-324,
        0.1,
        0.10000000000000002,
        0.3,
        0.3,
        0.30000000000000004,
        1e308,
    ]


def test_each_row_has_its_own_place() -> None:
    assert ranked(
        lambda: [torch.tensor([[3.0, 1.0], [5.0, 6.0]], dtype=torch.float64), torch.tensor([[2.0], [4.0]], dtype=torch.float64)], [0, 2]
    ) == [1.0, 6.0]
