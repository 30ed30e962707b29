"""What several evaluators tell of one subject."""

from limbeck.examine import together


def test_what_two_evaluators_tell_of_a_subject_stands_together_at_every_depth() -> None:
    one = {"student": {"a": 1, "metrics": {"A": {"value": 1}}}, "gaps": {"start": {"a": 0}}, "slices": [1]}
    two = {"student": {"b": 2, "metrics": {"B": {"value": 2}}}, "gaps": {"start": {"b": 3}}, "slices": [2]}
    assert together(one, two) == {
        "student": {"a": 1, "b": 2, "metrics": {"A": {"value": 1}, "B": {"value": 2}}},
        "gaps": {"start": {"a": 0, "b": 3}},
        "slices": [2],  # a list is one thing: the last says it
    }
    assert one["student"] == {"a": 1, "metrics": {"A": {"value": 1}}}
