"""What every exporter must do: each exporter against each contract. A new one is tested here without being listed."""

import pytest

from limbeck.check.suite import Pair, keep, pairs


@pytest.mark.parametrize("pair", [pytest.param(pair, id=str(pair), marks=[pytest.mark.slow] * pair.slow) for pair in pairs("export")])
def test_every_exporter_keeps_its_contracts(pair: Pair) -> None:
    keep(pair)
