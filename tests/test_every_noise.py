"""What every noise schedule must do: each schedule against each contract. A new one is tested here without being listed."""

import pytest

from limbeck.check.suite import Pair, keep, pairs


@pytest.mark.parametrize("pair", [pytest.param(pair, id=str(pair), marks=[pytest.mark.slow] * pair.slow) for pair in pairs("noise")])
def test_every_noise_schedule_keeps_its_contracts(pair: Pair) -> None:
    keep(pair)
