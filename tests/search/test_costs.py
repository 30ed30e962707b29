"""What options cost: against models put together, sums by hand, and a clock that counts."""

import itertools

import pytest
import torch

from limbeck.block.grouped_attention import GroupedAttention
from limbeck.block.narrow_mlp import NarrowMlp
from limbeck.block.no_mixer import NoMixer
from limbeck.block.no_mlp import NoMlp
from limbeck.block.self_value import SelfValue
from limbeck.check.models import TOKENIZER, family_of, rows
from limbeck.errors import Refused
from limbeck.search import costs
from limbeck.search.blockwise import Shelf
from limbeck.search.costs import REPEATS, library
from limbeck.search.library import Workload

MIXERS, MLPS = (GroupedAttention(kv_heads=1), SelfValue(), NoMixer()), (NarrowMlp(kept=(1, 4, 9)), NoMlp())
NONE = Workload(prompt=0, answer=0)
NOBODY = Workload.model_construct(batch=0, prompt=0, answer=0)
"""Nothing is remembered: memory is that of weights alone."""


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_parameters_of_a_choice_are_those_of_the_model_that_is_put_together(family):
    shelf = Shelf(family_of(family, heads=4, kv_heads=2), MIXERS, MLPS)
    made = library(shelf)
    for choice in ((0, 0), (4, 8), (11, 2), (9, 10), (11, 11)):
        module = shelf.assembled(choice).module
        assert made.cost(choice, "parameters", NONE) == sum(p.numel() for p in module.parameters()), choice
        assert made.cost(choice, "memory_bytes", NOBODY) == sum(8 * p.numel() for p in module.parameters()), choice  # double precision


def test_what_is_remembered_is_counted_for_each_row_and_position():
    made = library(Shelf(family_of("llama", heads=4, kv_heads=2), MIXERS, MLPS))
    empty, busy = NOBODY, Workload(batch=3, prompt=5, answer=2)

    def kept(option):
        return made.cost((option, 0), "memory_bytes", busy) - made.cost((option, 0), "memory_bytes", empty)

    # 3 rows of 7 positions in each of two blocks; keys and values of 2 heads of 8 channels, 8 bytes; one head, and a byte that says it is there
    attention, grouped = 3 * 7 * 2 * 2 * 8 * 8, 3 * 7 * (2 * 8 * 8 + 1)
    assert [kept(option) for option in (0, 3, 6, 9)] == [2 * attention, attention + grouped, attention, attention]


def test_operations_are_two_for_each_weight_of_a_matrix_and_four_for_each_pair_of_positions_and_channel():
    made = library(Shelf(family_of("llama", heads=4, kv_heads=2), MIXERS, MLPS))
    asked = Workload(batch=3, prompt=5, answer=2)
    # of one block: 16 wide, 4 heads of 8 that read 2; inner width 32, or 3
    attention = 2 * (2 * 16 * 32 + 2 * 16 * 16) + 4 * 4 * 8 * 7
    mlp, narrow = 2 * 3 * 16 * 32, 2 * 3 * 16 * 3
    each = [variant.cost("flops", asked) for variant in made.layers[0]]
    assert each[:3] == [21 * (attention + mlp), 21 * (attention + narrow), 21 * attention]
    assert each[6] == 21 * (2 * 16 * 16 + mlp) and each[11] == 0


def test_parts_that_are_chosen_apart_cost_what_they_cost_in_pairs():
    whole = family_of("llama", heads=4, kv_heads=2)
    pairs, apart = Shelf(whole, MIXERS, MLPS), Shelf(whole, MIXERS, MLPS, apart=True)
    assert pairs.sizes == (12, 12) and apart.sizes == (4, 3, 4, 3)
    one, two, asked = library(pairs), library(apart), Workload(batch=3, prompt=5, answer=2)
    for mixer, mlp in ((0, 0), (1, 2), (3, 1)):
        choices = (3 * mixer + mlp, 0), (mixer, mlp, 0, 0)
        assert sorted(pairs.slots(choices[0])) == sorted(apart.slots(choices[1]))
        assert all(one.cost(choices[0], name, asked) == two.cost(choices[1], name, asked) for name in ("parameters", "memory_bytes", "flops"))
    assert [variant.name for variant in two.layers[3]] == ["mlp", "narrow_mlp(kept=3 of them)", "no_mlp"]


def test_options_are_named_by_their_parts():
    made = library(Shelf(family_of("llama", heads=4, kv_heads=2), [GroupedAttention(kv_heads=2), NoMixer()], MLPS[:1]))
    names = ["attention + mlp", "attention + narrow_mlp(kept=3 of them)", "grouped_attention(kv_heads=2) + mlp"]
    assert [variant.name for variant in made.layers[1]][:3] == names and made.layers[1][5].name == "no_mixer + narrow_mlp(kept=3 of them)"


def test_every_part_is_timed_once_at_each_workload_and_times_of_parts_add_up():
    shelf, ticks = Shelf(family_of("llama", heads=4, kv_heads=2), MIXERS, MLPS), itertools.count()
    workloads = [Workload(batch=1, prompt=4, answer=3), Workload(batch=2, prompt=4, answer=3)]
    made = library(shelf, workloads, clock=lambda: float(next(ticks)))  # each run takes one second by this clock
    # 4 mixers, 3 MLPs and the whole model; reading and writing; a clock read twice a run
    assert next(ticks) == 8 * 2 * 2 * 2 * REPEATS
    variant = made.layers[0][0]
    assert [variant.cost(name, workloads[1]) for name in ("prefill_seconds", "decode_seconds", "seconds")] == [2, 6, 8]
    # two blocks; the whole model takes a second as each part does, so that nothing is left for the rest, and it is never less than nothing
    assert made.cost((0, 0), "seconds", workloads[0]) == 16


def test_what_the_whole_model_takes_beyond_its_parts_is_spent_whatever_is_chosen(monkeypatch):
    shelf, asked = Shelf(family_of("llama", heads=4, kv_heads=2), (NoMixer(),), ()), Workload(batch=1, prompt=4, answer=2)
    monkeypatch.setattr(costs, "duration", lambda *_: (1.0, 2.0))  # attention, MLP and nothing take this much
    monkeypatch.setattr(costs, "least", lambda work, like, clock: (work(), 7.0)[1])  # the whole model: 7 to read, 7 a token
    made = library(shelf, [asked])
    assert made.cost((0, 0), "prefill_seconds", asked) == 7 and made.cost((0, 0), "decode_seconds", asked) == 14
    assert made.spent("seconds", asked) == (7 - 4 * 1) + (14 - 4 * 2)  # of two blocks with two parts each
    assert made.spent("flops", asked) == 3 * 2 * 16 * len(TOKENIZER)  # the head, at the end of the prompt and for each token


def test_where_nothing_is_written_only_reading_is_timed():
    shelf, ticks = Shelf(family_of("llama", heads=4, kv_heads=2), (), MLPS), itertools.count()
    made = library(shelf, [Workload(batch=1, prompt=4, answer=0)], clock=lambda: float(next(ticks)))
    assert made.layers[0][0].cost("decode_seconds", Workload(batch=1, prompt=4, answer=0)) == 0 and next(ticks) == 5 * 2 * REPEATS


def test_a_workload_that_was_not_timed_is_refused():
    made = library(Shelf(family_of("llama", heads=4, kv_heads=2), (), MLPS), [Workload(batch=1, prompt=4, answer=0)])
    with pytest.raises(Refused, match="a workload that was timed: .*prompt=4"):
        made.cost((0, 0), "seconds", Workload(batch=2, prompt=4, answer=0))


def test_timing_changes_no_weight():
    shelf = Shelf(family_of("llama", heads=4, kv_heads=2), MIXERS, MLPS, rows(0).train)
    before = {slot: [p.clone() for p in part.module.parameters()] for slot, part in shelf.parts.items()}
    library(shelf, [Workload(batch=2, prompt=3, answer=2)])
    assert all(torch.equal(a, b) for slot, part in shelf.parts.items() for a, b in zip(part.module.parameters(), before[slot], strict=True))
