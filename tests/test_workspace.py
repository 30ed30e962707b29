"""What a run's folder says about the run."""

import subprocess
import sys
import time

import pytest

from limbeck.store import write_json
from limbeck.workspace import spent, timed


def busy(seconds: float) -> None:
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        pass


def test_the_clock_of_processors_counts_work_of_children_too_and_steps_of_several_sessions_add_up(tmp_path):
    with timed(tmp_path, "train"):
        busy(0.05)
    alone = spent(tmp_path)["cpu_seconds"]
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "train"):  # what a step took counts where it is stopped, too
        code = "import time\nwhile time.process_time() < 0.3: pass"
        subprocess.run([sys.executable, "-c", code], check=True)
        raise KeyboardInterrupt
    assert alone is not None and alone >= 0.05 - 0.02  # the system counts in hundredths
    both = spent(tmp_path)
    assert both["cpu_seconds"] >= alone + 0.3 - 0.02 and both["wall_seconds"] > 0


def test_each_clock_has_a_sum_of_its_own(tmp_path):
    write_json(tmp_path / "clock.json", {"read": 1.0, "train": 100.0})
    write_json(tmp_path / "processor.json", {"read": 0.5, "train": 7.0})
    assert spent(tmp_path) == {"wall_seconds": 101.0, "cpu_seconds": 7.5}


def test_a_run_that_an_earlier_session_timed_by_one_clock_alone_has_no_sum_of_the_other(tmp_path):
    write_json(tmp_path / "clock.json", {"read": 1.0, "train": 100.0})
    write_json(tmp_path / "processor.json", {"train": 7.0})
    assert spent(tmp_path) == {"wall_seconds": 101.0, "cpu_seconds": None}
