"""Steps from one number to the next."""

import pytest
from pydantic import ValidationError

from limbeck.forward.denoised_blocks import DenoisedBlocks
from limbeck.schedule.piecewise_constant import PiecewiseConstant


@pytest.mark.parametrize("step, value", [(0, 1.0), (9, 1.0), (10, 4.0), (19, 4.0), (20, 2.0), (10**9, 2.0)])
def test_numbers_by_hand(step, value):
    assert PiecewiseConstant(values=(1, 4, 2), boundaries=(10, 20)).value(step) == value


@pytest.mark.parametrize("boundaries", [(), (1, 2), (2, 1), (1, 1)])
def test_there_is_one_boundary_between_two_numbers_in_ascending_order(boundaries):
    with pytest.raises(ValidationError, match="boundaries"):
        PiecewiseConstant(values=(1, 2) if len(boundaries) != 2 else (1, 2, 3) if boundaries != (1, 2) else (1, 2), boundaries=boundaries)


def test_a_block_size_moves_in_whole_numbers_alone():
    forward = DenoisedBlocks(block=PiecewiseConstant(values=(1, 4, 16), boundaries=(10, 20)))
    assert [forward.at(step).block for step in (0, 10, 25)] == [1, 4, 16]
    assert all(type(forward.at(step).block) is int for step in (0, 10))
    for wrong in ((0, 4), (2.5, 4)):
        with pytest.raises(ValidationError, match="block"):
            DenoisedBlocks(block=PiecewiseConstant(values=wrong, boundaries=(10,)))
