"""What several evaluators tell of one subject, and what samples begin with."""

from pathlib import Path
from typing import Any, cast

import torch

from limbeck.check.models import family_of
from limbeck.data.base import Rows
from limbeck.examine import Examiner, beginning, together
from limbeck.signals import Row
from limbeck.store import load_tensors, new_folder, save_tensors


def test_what_two_evaluators_tell_of_a_subject_stands_together_at_every_depth() -> None:
    one = {"student": {"a": 1, "metrics": {"A": {"value": 1}}}, "gaps": {"start": {"a": 0}}, "slices": [1]}
    two = {"student": {"b": 2, "metrics": {"B": {"value": 2}}}, "gaps": {"start": {"b": 3}}, "slices": [2]}
    assert together(one, two) == {
        "student": {"a": 1, "b": 2, "metrics": {"A": {"value": 1}, "B": {"value": 2}}},
        "gaps": {"start": {"a": 0, "b": 3}},
        "slices": [2],  # a list is one thing: the last says it
    }
    assert one["student"] == {"a": 1, "metrics": {"A": {"value": 1}}}


def test_a_sample_begins_with_the_prompt_of_a_row_and_never_with_its_answer() -> None:
    """With the answer and its end in front, there is nothing left to write."""
    role = family_of("llama", 0)
    asked, text = Row("a", {"prompt": "2+2=", "answer": "4"}), Row("t", {"text": "some words"})
    assert role.tokenizer.decode(beginning(role, asked, 48).tolist(), skip_special_tokens=True) == "2+2="
    assert len(beginning(role, asked, 2)) == 1 + 4  # the begin, and the whole prompt
    assert beginning(role, text, 5).tolist() == role.view([text]).inputs["ids"][:5].tolist()


def test_a_table_that_another_version_has_written_otherwise_is_made_anew(tmp_path: Path) -> None:
    rows = Rows(held_out=(Row("a", {"text": "some words"}, source="d"),))

    def examiner() -> Examiner:
        return Examiner(cast(Any, None), rows, None, {}, tmp_path, {"start": lambda: family_of("llama", 0, torch.float32)})

    first = examiner().table("start")
    with new_folder(tmp_path / "tables/start") as new:
        save_tensors(new / "table.safetensors", {"of_old": torch.zeros(3), "row": first.row})
    assert examiner().table("start").label_logprob.equal(first.label_logprob)  # type: ignore[union-attr]
    assert "of_old" not in load_tensors(tmp_path / "tables/start/table.safetensors")
