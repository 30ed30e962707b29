"""How a check is asked for and shown: `limbeck check`, in Python and on the command line."""

from typing import Any, Literal

import pytest

import limbeck.check
from limbeck.check import NotClaimed, Outcome, Report, base_of, check, check_path, contracts, kinds, locate, render, snake
from limbeck.check.contract import close
from limbeck.check.reads import recorded, variants
from limbeck.check.suite import Pair, keep, outcome, pairs
from limbeck.component import LOADED, ROOMS, Component
from limbeck.errors import Refused
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.skew_kl import SkewKL


def test_a_report_is_shown_as_in_the_manual() -> None:
    rows = (
        Outcome("yaml", "passed", "", 0.1),
        Outcome("parts_add_up", "passed", "", 0.1),
        Outcome("zero_at_match", "failed", "claimed; but loss 0.0031 where student = teacher (expected below 1e-6)", 0.1),
        Outcome("temperature", "not claimed", "it has no temperature", 0.1),
    )
    report = Report("ranked_kl", "objective", rows, 21, "mylab.losses:RankedKL", 7)
    assert render(report).splitlines() == [
        "ranked_kl · objective · 21 contracts",
        "  yaml ✓  parts add up ✓",
        "  ✗ zero_at_match   claimed; but loss 0.0031 where student = teacher (expected below 1e-6)",
        "                    again: limbeck check mylab.losses:RankedKL --only zero_at_match --seed 7",
        "2 passed · 1 failed · 1 not claimed · 4 of 21 ran",
    ]
    assert "  - temperature     it has no temperature" in render(report, reasons=True).splitlines()
    assert not report.passed and report.code == 5


def test_lines_of_passed_contracts_are_no_wider_than_a_terminal() -> None:
    report = Report("x", "objective", tuple(Outcome(f"contract_{i}", "passed", "", 0.0) for i in range(40)), 40)
    assert max(map(len, render(report).splitlines())) <= 100 and render(report).count("✓") == 40


def test_a_message_of_a_stranger_cannot_move_the_cursor() -> None:
    report = Report("x", "objective", (Outcome("yaml", "failed", "\x1b[2J gone\nsecond line", 0.0),), 1)
    assert "\x1b" not in render(report) and "second line" in render(report)


def test_json_has_the_words_of_the_table() -> None:
    found = check(ForwardKL, only=["yaml", "special_cases"]).as_json()
    assert (found["name"], found["room"], found["passed"], found["failed"], found["not_claimed"]) == ("forward_kl", "objective", 1, 0, 1)
    assert found["rows"][0].keys() == {"contract", "status", "message", "seconds"}


def test_a_class_an_instance_and_every_spelling_of_a_path_are_checked_alike() -> None:
    assert [row.status for row in check(SkewKL, only="yaml").rows] == [row.status for row in check(SkewKL(alpha=0.3), only="yaml").rows] == ["passed"]
    assert locate("limbeck.objective:SkewKL") is locate("objective.skew_kl") is locate("limbeck.objective.skew_kl:SkewKL") is SkewKL
    (report,) = check_path("objective.skew_kl", only="yaml", seed=3)
    assert (report.name, report.seed, report.again) == ("skew_kl", 3, "objective.skew_kl")
    (report,) = check_path("role.llama", only="log_probability")
    assert (report.name, report.room, report.passed) == ("llama", "role", True)


def test_the_package_itself_can_be_called() -> None:
    assert limbeck.check(ForwardKL, only="yaml").passed  # type: ignore[operator]
    assert limbeck.__getattr__("check") is check


def test_all_of_limbeck_can_be_asked_one_thing() -> None:
    reports = check_path("all", only="ends_hold")
    assert [report.name for report in reports] == kinds("schedule") and all(report.passed for report in reports)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nowhere",
        "objective.skewkl",
        "limbeck.objective:Nothing",
        "no.such.module:Thing",
        "json:dumps",
        "a b:C",
        "role.oddformer",
        "limbeck.component:Component",
        "os.path:join",
        "../x:Y",
    ],
)
def test_what_is_no_component_is_refused_in_four_lines(path: str) -> None:
    with pytest.raises(Refused) as caught:
        locate(path)
    assert caught.value.slug == "check" and caught.value.code == 2


def test_a_misspelt_kind_is_told_the_right_one() -> None:
    with pytest.raises(Refused, match="do        limbeck check objective.skew_kl"):
        locate("objective.skewkl")


def test_an_unknown_contract_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refused, match="write zero_at_match"):
        check(ForwardKL, only="zero_at_mach")


def test_whatever_a_component_raises_is_an_outcome() -> None:
    class Broken(Component):
        room = "objective"
        kind: Literal["bite:broken"] = "bite:broken"

        @property
        def needs(self) -> Any:
            raise OSError("no disk")

    try:
        (row,) = check(Broken, only="vocabulary").rows
        assert (row.status, row.message) == ("failed", "OSError: no disk")
    finally:
        del LOADED["objective", "bite:broken"]


def test_reads_are_recorded_and_copies_are_none() -> None:
    one = SkewKL()
    with recorded(SkewKL) as seen:
        assert SkewKL(alpha=0.2) != one and one.model_dump() and dict(one) and repr(one) and one.model_copy()
        assert seen == set()
        assert one.alpha == 0.1
    assert seen == {"alpha"} and "__getattribute__" not in vars(SkewKL)


def test_variants_differ_in_one_choice() -> None:
    from limbeck.objective.skew_reverse_kl import SkewReverseKL

    assert variants(SkewReverseKL()) == [
        SkewReverseKL(),
        SkewReverseKL(per="row"),
        SkewReverseKL(per="chunk"),
        SkewReverseKL(per="patch"),
        SkewReverseKL(adaptive=True),
        SkewReverseKL(stop=False),
    ]


def test_numbers_apart_are_told_with_both() -> None:
    close(1.0 + 1e-9, 1.0, (1e-6, 0.0), "x")
    with pytest.raises(AssertionError, match="the sum: 2, expected 1"):
        close(2.0, 1.0, (1e-6, 0.0), "the sum")
    with pytest.raises(AssertionError, match="nan"):
        close(float("nan"), 1.0, (1e-6, 0.0), "the sum")
    with pytest.raises(AssertionError, match="shape"):
        close([1.0, 2.0], 1.0, (1e-6, 0.0), "the sum")


def test_every_room_has_contracts_and_a_base() -> None:
    for room in ROOMS:
        assert base_of(room).room == room and {"yaml", "documented", "named", "canonical_form", "fields_read"} < contracts(room).keys()
        assert all(run.__doc__ for run in contracts(room).values())
    with pytest.raises(Refused):
        contracts("kitchen")


def test_a_pair_that_is_not_claimed_is_kept_and_says_why() -> None:
    pair = Pair("objective", "forward_kl", "special_cases")
    assert pair in pairs("objective") and outcome(pair).status == "not claimed" and outcome(pair).message
    keep(pair)
    with pytest.raises(NotClaimed):
        contracts("objective")["special_cases"](ForwardKL)


@pytest.mark.parametrize("name, kind", [("ForwardKL", "forward_kl"), ("JSD", "jsd"), ("HiddenMSE", "hidden_mse")])
def test_classes_and_kinds_have_one_name(name: str, kind: str) -> None:
    assert snake(name) == kind
