"""Contracts of a room and their counts run in one worker, which remembers what came of each pair: none is run twice."""

import pytest

from limbeck.check.suite import Pair


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        room = params["pair"].room if isinstance(params.get("pair"), Pair) else params.get("room") if "test_counts" in item.nodeid else None
        if room is not None:
            item.add_marker(pytest.mark.xdist_group(f"contracts-{room}"))
