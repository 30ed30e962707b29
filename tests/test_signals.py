"""Views, batches and signals: whatever the unit, cutting by rows parts nothing and reorders nothing."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.signals import Batch, Head, Logits, Signals, TopK, View, dense, renumber, unit_of


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long)


def ragged(lengths: Sequence[int], asked: Sequence[bool] | None = None, shift: int = 1) -> View:
    return View({"ids": 10 + torch.arange(sum(lengths))}, ids(*lengths), None if asked is None else torch.tensor(asked, dtype=torch.bool), shift)


def batch_of(views: dict[str, View], group: Sequence[int], tags: Sequence[str] | None = None) -> Batch:
    num = len(group)
    return Batch(views, tuple(tags or [""] * num), ids(*group), tuple(f"row-{i}" for i in range(num)), 1.0 + torch.arange(num))


def spoken(batch: Batch, role: str = "student") -> Signals:
    """Signals whose values name their unit's place in the whole."""
    view = batch.view(role)
    num = {unit: len(view.rows(unit)) for unit in view.units}
    top = TopK(torch.arange(num["target"])[:, None], torch.arange(num["target"])[:, None] / 2, torch.arange(num["target"]) / 4)
    return batch.signals(
        role,
        {
            "hidden.2": torch.arange(num["pos"])[:, None],
            "logits": Logits(torch.arange(num["target"])[:, None], lambda x: x * 2, False),
            "label": torch.arange(num["target"]),
            "score": torch.arange(num["row"]),
            "top_logits": top,
        },
    )


def test_a_signal_has_the_unit_of_its_first_word() -> None:
    assert [unit_of(name) for name in ("hidden.3", "logits|top_logits", "score", "query.-1", "label")] == ["pos", "target", "row", "pos", "target"]
    with pytest.raises(KeyError):
        unit_of("hiden.3")


def test_the_first_position_of_each_row_is_predicted_by_nothing() -> None:
    view = ragged((3, 1, 2))
    assert view.offsets.tolist() == [0, 1, 2, 0, 0, 1] and view.rows("pos").tolist() == [0, 0, 0, 1, 2, 2]
    assert view.targets.tolist() == [1, 2, 5] and view.rows("target").tolist() == [0, 0, 2]


def test_only_what_is_asked_for_is_a_target_and_a_masked_model_may_be_asked_for_the_first() -> None:
    asked = (True, False, True, True, False, True)
    assert ragged((3, 1, 2), asked).targets.tolist() == [2, 5]
    assert ragged((3, 1, 2), asked, shift=0).targets.tolist() == [0, 2, 3, 5]


def test_rows_of_no_length_are_rows() -> None:
    view = ragged((0, 2, 0))
    assert view.num_rows == 3 and view.rows("row").tolist() == [0, 1, 2] and view.rows("target").tolist() == [1]
    assert view.at(ids(0, 2)).num_rows == 2 and view.at(ids(0, 2)).rows("pos").tolist() == []


def test_rows_without_positions_have_one_target_each() -> None:
    view = View({"features": torch.arange(6).view(3, 2), "label": ids(7, 8, 9)})
    assert view.units == ("row", "target") and view.rows("target").tolist() == [0, 1, 2]
    some = view.at(ids(0, 2))
    assert some.inputs["features"].tolist() == [[0, 1], [4, 5]] and some.inputs["label"].tolist() == [7, 9]
    with pytest.raises(AssertionError, match="no positions"):
        view.rows("pos")


def test_some_rows_of_a_ragged_view_keep_their_positions_and_what_is_asked() -> None:
    view = ragged((3, 1, 2), (False, True, True, True, False, True)).at(ids(0, 2))
    assert view.inputs["ids"].tolist() == [10, 11, 12, 14, 15] and view.ragged.tolist() == [3, 2]
    assert view.asked is not None and view.asked.tolist() == [False, True, True, False, True] and view.targets.tolist() == [1, 2, 4]


def test_chunks_are_renumbered_with_their_rows_and_what_is_in_none_stays_in_none() -> None:
    view = View({"ids": torch.arange(9)}, ids(3, 3, 3), chunk_of=ids(0, 0, -1, 1, 2, 2), chunk_row=ids(0, 1, 2))
    assert view.units == ("row", "target", "pos", "chunk") and view.rows("chunk").tolist() == [0, 1, 2]
    some = view.at(ids(1, 2))
    assert some.chunk_row is not None and some.chunk_of is not None
    assert some.chunk_row.tolist() == [0, 1] and some.chunk_of.tolist() == [-1, 0, 1, 1]
    last = view.at(ids(2))
    assert last.chunk_row is not None and last.chunk_of is not None and (last.chunk_row.tolist(), last.chunk_of.tolist()) == ([0], [0, 0])
    with pytest.raises(AssertionError, match="no alignment has made chunks"):
        ragged((2,)).rows("chunk")


@pytest.mark.parametrize("rows", [(1, 0), (0, 0), (2, 1, 0)])
def test_rows_out_of_order_or_twice_are_refused_everywhere(rows: tuple[int, ...]) -> None:
    batch = batch_of({"student": ragged((2, 2, 2))}, (0, 1, 2))
    for cut in (
        lambda: renumber(ids(*rows), 3),
        lambda: batch.at(ids(*rows)),
        lambda: batch.view("student").at(ids(*rows)),
        lambda: spoken(batch).at(ids(*rows)),
    ):
        with pytest.raises(AssertionError, match="ascending"):
            cut()


def test_old_rows_know_their_new_numbers() -> None:
    assert renumber(ids(1, 3), 5).tolist() == [-1, 0, -1, 1, -1] and renumber(ids(), 2).tolist() == [-1, -1]


def test_signals_of_some_rows_are_cut_unit_by_unit() -> None:
    said = spoken(batch_of({"student": ragged((3, 1, 2))}, (5, 5, 7), ("a", "b", "a"))).at(ids(0, 2))
    assert said["hidden.2"][:, 0].tolist() == [0, 1, 2, 4, 5] and dense(said["logits"])[:, 0].tolist() == [0, 2, 4]
    assert said["score"].tolist() == [0, 2]
    assert said["top_logits"].ids[:, 0].tolist() == [0, 1, 2] and said["top_logits"].tail.tolist() == [0, 0.25, 0.5] and len(said["top_logits"]) == 3
    assert {unit: rows.tolist() for unit, rows in said.rows.items()} == {"row": [0, 1], "target": [0, 0, 1], "pos": [0, 0, 0, 1, 1]}
    assert said.tags == ("a", "a") and said.group.tolist() == [0, 1] and said.weights.tolist() == [1, 3] and said.num("group") == 2


def test_a_tag_picks_its_rows_and_none_picks_all() -> None:
    said = spoken(batch_of({"student": ragged((3, 1, 2))}, (0, 1, 2), ("a", "b", "a")))
    assert said.on("a")["score"].tolist() == [0, 2] and said.on("b").num("target") == 0 and said.on("c").num("row") == 0 and said.on(None) is said


def test_the_first_alternative_that_was_said_is_heard() -> None:
    said = spoken(batch_of({"student": ragged((2,))}, (0,)))
    assert said["logits|top_logits"] is said["logits"] and said["target_logprob|label"] is said["label"]


def test_a_role_without_a_view_sees_the_students() -> None:
    batch = batch_of({"student": ragged((2, 2)), "teacher": ragged((5, 1))}, (0, 1))
    assert batch.view("critic") is batch.view("student") and batch.count("target", "teacher") == 4 and batch.count("target", "critic") == 2
    other = batch.with_inputs("critic", noise=torch.zeros(2, 1))
    assert set(other.view("critic").inputs) == {"ids", "noise"} and set(other.view("student").inputs) == {"ids"}


def test_counting_knows_tags_and_groups() -> None:
    batch = batch_of({"student": ragged((3, 1, 2, 4))}, (0, 0, 1, 2), ("a", "b", "a", "b"))
    assert [batch.count(unit, "student") for unit in ("row", "pos", "target", "group")] == [4, 10, 6, 3]
    assert [batch.count(unit, "student", "a") for unit in ("row", "pos", "target", "group")] == [2, 5, 3, 2]
    assert batch.count("target", "student", "c") == 0


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_rows_of_one_group_stay_together_and_there_are_always_as_many_parts(parts: int) -> None:
    batch = batch_of({"student": ragged((2, 2, 2, 2, 2))}, (4, 9, 4, 2, 9))
    cut = batch.cut(parts)
    assert len(cut) == parts and sorted(key for part in cut for key in part.keys) == [f"row-{i}" for i in range(5)]
    for rows in ((0, 2), (1, 4), (3,)):
        homes = {n for n, part in enumerate(cut) for i in rows if f"row-{i}" in part.keys}
        assert len(homes) == 1


def test_lazy_logits_remember_that_nobody_learns() -> None:
    weight = torch.ones(2, 3, requires_grad=True)
    kept, lost = (Logits(torch.ones(4, 2), lambda h: h @ weight, learns) for learns in (True, False))
    assert kept[1:3].dense().requires_grad and not lost.dense().requires_grad and not lost[:2].dense().requires_grad and len(kept[1:3]) == 2
    with torch.no_grad():
        assert not kept.dense().requires_grad


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.sampled_from("ab")), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS, st.integers(1, 9), st.booleans(), st.data())
def test_cut_and_laid_end_to_end_every_unit_is_the_whole(rows: list[tuple[int, int, str]], parts: int, causal: bool, data: st.DataObject) -> None:
    in_order = sorted(rows, key=lambda row: row[1])  # of groups: then laying end to end is a matter of parts only
    lengths, groups, tags = zip(*in_order, strict=True)
    asked = data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)))
    view = ragged(lengths, asked, shift=int(causal))
    of = [-1] * len(view.targets)
    chunk_row: list[int] = []
    for t, row in enumerate(view.rows("target").tolist()):
        choice = data.draw(st.integers(0, 2))
        if choice and chunk_row and chunk_row[-1] == row and choice == 1:
            of[t] = len(chunk_row) - 1
        elif choice:
            chunk_row.append(row)
            of[t] = len(chunk_row) - 1
    view = View(view.inputs, view.lengths, view.asked, view.shift, ids(*of), ids(*chunk_row))
    batch = batch_of({"student": view}, groups, tags)
    whole = spoken(batch)
    batch = Batch(batch.views, batch.tags, batch.group, batch.keys, batch.weights, {"teacher": whole})
    cut = batch.cut(parts)
    assert tuple(key for part in cut for key in part.keys) == batch.keys and tuple(tag for part in cut for tag in part.tags) == batch.tags
    assert torch.cat([part.weights for part in cut]).equal(batch.weights)
    assert torch.cat([part.view("student").inputs["ids"] for part in cut]).equal(view.inputs["ids"])
    for unit in ("row", "pos", "target", "chunk", "group"):
        for tag in (None, "a"):
            assert unit == "group" or sum(part.count(unit, "student", tag) for part in cut) == batch.count(unit, "student", tag)
    assert sum(part.count("group", "student") for part in cut) == batch.count("group", "student")
    said = [part.said["teacher"] for part in cut]
    for name in ("hidden.2", "label", "score"):
        assert torch.cat([s[name] for s in said]).equal(whole[name])
    assert torch.cat([dense(s["logits"]) for s in said]).equal(dense(whole["logits"]))
    assert torch.cat([s["top_logits"].tail for s in said]).equal(whole["top_logits"].tail)
    first_row, first_chunk, seen = 0, 0, []
    for part, s in zip(cut, said, strict=True):
        own = part.view("student")
        assert all(s.rows[unit].equal(own.rows(unit)) for unit in ("row", "pos", "target"))
        assert own.chunk_of is not None and own.chunk_row is not None
        seen += [-1 if c < 0 else c + first_chunk for c in own.chunk_of.tolist()]
        assert [r + first_row for r in own.chunk_row.tolist()] == chunk_row[first_chunk : first_chunk + len(own.chunk_row)]
        first_row, first_chunk = first_row + own.num_rows, first_chunk + len(own.chunk_row)
    assert seen == of


def test_a_head_works_in_its_own_precision_whatever_a_cache_keeps_its_states_in():
    head, states = Head(torch.eye(3, 2, dtype=torch.float64)), torch.tensor([[1.5, -2.0]], dtype=torch.float16)
    assert head(states).dtype == torch.float64 and head(states).tolist() == [[1.5, -2.0, 0.0]]


def test_numbers_of_a_waveform_are_cut_with_their_rows() -> None:
    view = View({"wave": torch.arange(9.0)}, torch.tensor([1, 2, 0]), shift=0, instants=torch.tensor([3, 5, 1]))
    assert view.units == ("row", "target", "pos", "instant") and view.rows("instant").tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2]
    part = view.at(torch.tensor([1, 2]))
    assert part.inputs["wave"].tolist() == [3, 4, 5, 6, 7, 8] and part.instants is not None and part.instants.tolist() == [5, 1]
    assert part.ragged.tolist() == [2, 0] and part.rows("target").tolist() == [0, 0]
