"""What an arm trained with is gone when the next one begins."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from limbeck.start import run
from limbeck.train.loop import Loop
from toy import at_home, toy

__all__ = ["at_home"]


def test_a_loop_with_its_optimiser_is_given_back_before_the_next_arm_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, made, alive = Loop.__init__, [], []

    def noted(self: Loop, *args: Any, **kwargs: Any) -> None:
        alive.append(sum(loop() is not None for loop in made))
        made.append(weakref.ref(self))
        begin(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "__init__", noted)
    gc.disable()  # as it is where tensors are large and few
    try:
        run(toy(tmp_path, baseline=["text_only"]), name="r", runs=tmp_path)
    finally:
        gc.enable()
    assert alive == [0, 0]
