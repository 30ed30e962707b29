"""What options cost: against models put together, sums by hand, and a clock that counts."""

import itertools
from contextlib import contextmanager

import pytest
import torch
import transformers

from limbeck.block.grouped_attention import GroupedAttention
from limbeck.block.narrow_mlp import NarrowMlp
from limbeck.block.no_mixer import NoMixer
from limbeck.block.no_mlp import NoMlp
from limbeck.block.self_value import SelfValue
from limbeck.check.models import TOKENIZER, family_of, rows
from limbeck.errors import Refused
from limbeck.model.anatomy import anatomy
from limbeck.model.text import Text
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


class Meter:
    """A clock that goes by the weights that modules were run with, once for each position, and by a number for each block."""

    def __init__(self, block=0.0):
        self.now, self.block = 0.0, block

    def __call__(self):
        return self.now

    @contextmanager
    def running(self):
        def heard(module, args, out):
            x = args[0] if args and isinstance(args[0], torch.Tensor) else None
            self.now += self.block if type(module).__name__.endswith("DecoderLayer") else 0.0
            if isinstance(module, torch.nn.Linear) and x is not None:
                self.now += module.weight.numel() * x.shape[:-1].numel()

        hook = torch.nn.modules.module.register_module_forward_hook(heard)
        try:
            yield self
        finally:
            hook.remove()


def took(module, workload, meter):
    """What a model takes for a workload by a meter: one reading, and single positions after half of the answer."""
    ids = torch.zeros(workload.batch, workload.prompt + workload.answer // 2, dtype=torch.long)
    with torch.no_grad():
        cache = module(ids, use_cache=True, logits_to_keep=1).past_key_values
        began = meter.now
        module(ids[:, : workload.prompt], use_cache=True, logits_to_keep=1)
        read = meter.now - began
        module(ids[:, :1], past_key_values=cache, use_cache=True)
        return read + (meter.now - began - read) * workload.answer


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_choice_costs_what_the_model_takes_that_is_put_together(family):
    """Parts are timed in the model: what goes on around them is in what they cost."""
    shelf, asked = Shelf(family_of(family, heads=4, kv_heads=2), MIXERS, MLPS), Workload(batch=2, prompt=4, answer=3)
    with Meter(block=1e4).running() as meter:
        made = library(shelf, [asked], clock=meter)
        for choice in ((0, 0), (4, 8), (11, 2), (9, 10), (11, 11)):
            assert made.cost(choice, "seconds", asked) == pytest.approx(took(shelf.assembled(choice).module, asked, meter), rel=1e-12), choice
    # of one position: attention, 16 wide, 4 heads of 8 that read 2, and an MLP of 32; five positions of each of two rows are read or written a token
    variant = made.layers[0][0]
    each = 2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 32
    assert variant.cost("prefill_seconds", asked) == 2 * 4 * each and variant.cost("decode_seconds", asked) == 2 * 3 * each
    assert made.layers[0][11].cost("seconds", asked) == 0  # neither attention nor MLP
    head = 16 * len(TOKENIZER)
    assert made.spent("seconds", asked) == pytest.approx(4 * 2 * 1e4 + (2 + 2 * 3) * head)  # blocks in a reading and three tokens


def test_a_part_that_differs_by_what_stood_there_is_timed_beside_each():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Gemma3TextConfig(vocab_size=64, **sizes, sliding_window=3, layer_types=["sliding_attention", "full_attention"])
    module = transformers.Gemma3ForCausalLM(config).eval()
    role = Text(module, TOKENIZER, anatomy(module))
    shelf = Shelf(role, (GroupedAttention(kv_heads=1),), ())
    with Meter().running() as meter:
        made = library(shelf, [Workload(batch=1, prompt=4, answer=0)], clock=meter)
    each = [made.layers[i][1].cost("seconds", Workload(batch=1, prompt=4, answer=0)) for i in (0, 1)]
    assert each == [4 * (2 * 16 * 32 + 2 * 16 * 8 + 3 * 16 * 32)] * 2  # with the MLP


def test_the_shortest_run_counts():
    """By a clock whose runs take 15 down to 2 seconds and then 9 in the turns of all arms, each takes two: nothing costs anything but the rest."""
    shelf, asked = Shelf(family_of("llama", heads=4, kv_heads=2), (NoMixer(),), ()), Workload(batch=1, prompt=4, answer=2)
    arms = 4  # the whole, without attention as an option and to know what it takes, without an MLP
    lengths = iter([seconds for turn in (*range(15, 1, -1), 9) for seconds in [turn] * 2 * arms])
    now, reads = 0.0, itertools.count()

    def clock():
        nonlocal now
        now += next(lengths) if next(reads) % 2 else 0.0
        return now

    made = library(shelf, [asked], clock=clock)
    assert made.cost((0, 0), "prefill_seconds", asked) == 2 and made.cost((0, 0), "decode_seconds", asked) == 4 and made.spent("seconds", asked) == 6
    assert next(reads) == 2 * 2 * REPEATS * arms


def test_where_nothing_is_written_only_reading_is_timed():
    shelf, asked = Shelf(family_of("llama", heads=4, kv_heads=2), (), MLPS), Workload(batch=1, prompt=4, answer=0)
    with Meter().running() as meter:
        made = library(shelf, [asked], clock=meter)
    assert made.layers[0][0].cost("decode_seconds", asked) == 0 == made.spent("decode_seconds", asked) and made.spent("prefill_seconds", asked) > 0


def test_a_workload_that_was_not_timed_is_refused():
    made = library(Shelf(family_of("llama", heads=4, kv_heads=2), (), MLPS), [Workload(batch=1, prompt=4, answer=0)])
    with pytest.raises(Refused, match="a workload that was timed: .*prompt=4"):
        made.cost((0, 0), "seconds", Workload(batch=2, prompt=4, answer=0))


def test_timing_changes_no_weight():
    shelf = Shelf(family_of("llama", heads=4, kv_heads=2), MIXERS, MLPS, rows(0).train)
    before = {slot: [p.clone() for p in part.module.parameters()] for slot, part in shelf.parts.items()}
    library(shelf, [Workload(batch=2, prompt=3, answer=2)])
    assert all(torch.equal(a, b) for slot, part in shelf.parts.items() for a, b in zip(part.module.parameters(), before[slot], strict=True))
