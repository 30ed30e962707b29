"""What everything that may stand in a block must do: each against each contract. A new one is tested here without being listed."""

import pytest

from limbeck.check.suite import Pair, keep, pairs


@pytest.mark.parametrize("pair", [pytest.param(pair, id=str(pair), marks=[pytest.mark.slow] * pair.slow) for pair in pairs("block")])
def test_every_block_keeps_its_contracts(pair: Pair) -> None:
    keep(pair)
