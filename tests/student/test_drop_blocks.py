import json
import math

import pytest
import torch
from pydantic import ValidationError

from limbeck.errors import Refused
from limbeck.student.drop_blocks import DropBlocks, only, shorter, spread

CAUSAL = ("llama", "qwen3", "gemma3_text", "gpt2")


def blocks(role):
    return role.module.get_submodule(role.anatomy.path("blocks"))


def removed_by(role, costs):
    """A score that looks up which of the original blocks are missing."""
    original = list(blocks(role))

    def score(now):
        here = {id(block) for block in blocks(now)}
        return costs[frozenset(i for i, block in enumerate(original) if id(block) not in here)]

    return score


def sets(costs):
    return {frozenset(key): value for key, value in costs.items()}


def no_score(role):
    raise AssertionError("nothing is to be measured")


def test_kept_blocks_are_spread_evenly_with_both_ends():
    # i (L-1) / (k-1), halves up: 11/5 = 2.2, 4.4, 6.6, 8.8 and 3/2 = 1.5 by hand
    assert spread(12, 6) == (0, 2, 4, 7, 9, 11)
    assert spread(4, 3) == (0, 2, 3)
    assert spread(24, 14) == (0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 18, 19, 21, 23)
    assert spread(7, 2) == (0, 6)
    assert spread(5, 1) == (0,)


@pytest.mark.parametrize("num", range(2, 34))
def test_every_spread_has_distinct_blocks_and_both_ends(num):
    for stay in range(2, num):
        kept = spread(num, stay)
        assert len(set(kept)) == stay and kept[0] == 0 and kept[-1] == num - 1 and list(kept) == sorted(kept)
        gaps = {b - a for a, b in zip(kept, kept[1:], strict=False)}
        assert max(gaps) - min(gaps) <= 1


def test_without_any_field_one_block_goes(tiny):
    role = DropBlocks()(tiny("llama"))
    assert role.num_layers == len(blocks(role)) == role.module.config.num_hidden_layers == 3
    assert DropBlocks().settle(tiny("llama"), no_score) == DropBlocks(keep=(0, 2, 3))


def test_influence_drops_what_costs_least_alone(tiny):
    role = tiny("llama")
    score = removed_by(role, sets({(0,): 3.0, (1,): 1.0, (2,): 2.0, (3,): 4.0}))
    assert DropBlocks(drop=2, choose="influence").settle(role, score) == DropBlocks(keep=(0, 3))


def test_greedy_measures_again_after_each_removal(tiny):
    role = tiny("llama")
    costs = sets({(0,): 3.0, (1,): 1.0, (2,): 2.0, (3,): 4.0, (0, 1): 5.0, (1, 2): 9.0, (1, 3): 6.0})  # 1 and 2 stand in for each other
    assert DropBlocks(drop=2, choose="greedy").settle(role, removed_by(role, costs)) == DropBlocks(keep=(2, 3))


def test_contiguous_drops_the_cheapest_run(tiny):
    role = tiny("llama")
    score = removed_by(role, sets({(0, 1): 2.0, (1, 2): 0.5, (2, 3): 1.0}))
    assert DropBlocks(drop=2, choose="contiguous").settle(role, score) == DropBlocks(keep=(0, 3))


@pytest.mark.parametrize("choose", ["influence", "greedy", "contiguous"])
def test_of_equal_scores_the_later_block_goes(tiny, choose):
    assert DropBlocks(drop=2, choose=choose).settle(tiny("llama"), lambda role: 1.0) == DropBlocks(keep=(0, 1))


@pytest.mark.parametrize("choose", ["influence", "greedy", "contiguous"])
def test_a_block_whose_loss_gives_nan_is_not_the_cheapest(tiny, choose):
    role = tiny("llama")
    costs = sets({(0,): 3.0, (1,): math.nan, (2,): 2.0, (3,): math.nan})
    assert DropBlocks(choose=choose).settle(role, removed_by(role, costs)) == DropBlocks(keep=(0, 1, 3))


@pytest.mark.parametrize("choose", ["influence", "greedy", "contiguous"])
def test_a_block_that_does_nothing_is_found_and_goes_without_a_trace(tiny, logits, against, choose):
    role = tiny("llama")
    with torch.no_grad():
        for part in ("output", "down"):
            role.anatomy.weight(role.module, part, 1).zero_()
    before = logits(role)
    settled = DropBlocks(choose=choose).settle(role, against(role))
    assert settled == DropBlocks(keep=(0, 2, 3))
    torch.testing.assert_close(logits(settled(role)), before)


def snapshot(role):
    """Identities of all there is, and the numbers that a removal changes for a while."""
    module, config = role.module, role.module.config
    parts = {name: (id(part), id(getattr(part, "config", None)), getattr(part, "layer_idx", None)) for name, part in module.named_modules()}
    return parts, {name: id(parameter) for name, parameter in module.named_parameters()}, id(config), config.to_dict(), role.num_layers


@pytest.mark.parametrize("family", [*CAUSAL, "bert"])
def test_measuring_leaves_the_very_same_model(tiny, logits, family):
    role, seen = tiny(family), []
    before, said = snapshot(role), logits(role)

    def score(now):
        seen.append((now.num_layers, len(blocks(now)), now.anatomy.num_layers(now.module.config)))
        return float(logits(now).sum())

    DropBlocks(drop=2, choose="greedy").settle(role, score)
    assert seen == [(3, 3, 3)] * 4 + [(2, 2, 2)] * 3
    assert snapshot(role) == before
    assert torch.equal(logits(role), said)


def test_measuring_that_fails_leaves_the_very_same_model(tiny):
    role = tiny("gemma3_text")
    before = snapshot(role)
    with pytest.raises(ZeroDivisionError), only(role, (0, 3)):
        assert role.num_layers == 2
        raise ZeroDivisionError
    assert snapshot(role) == before


@pytest.mark.parametrize("family", [*CAUSAL, "qwen2", "bert"])
def test_what_stays_is_the_model_built_small_with_the_blocks_that_stay(tiny, logits, family):
    keep, role = (1, 2, 3), tiny(family)
    pattern = role.anatomy.pattern("block") + "."
    state = dict(role.module.state_dict())
    for old in range(4):
        here = pattern.replace("{}", str(old))
        own = {name: state.pop(name) for name in list(state) if name.startswith(here)}
        if old in keep:
            state |= {name.replace(here, pattern.replace("{}", str(keep.index(old)))): x for name, x in own.items()}
    changes = {role.anatomy.family.sizes["layers"]: 3}
    if family == "gemma3_text":
        changes["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    small = tiny(family, seed=9, **changes)
    small.module.load_state_dict(state)
    assert torch.equal(logits(DropBlocks(keep=keep)(role)), logits(small))
    assert role.module.config.to_dict() == small.module.config.to_dict() | {"_name_or_path": role.module.config._name_or_path}


@pytest.mark.parametrize("family", CAUSAL)
def test_generating_with_a_cache_equals_generating_without(tiny, generates, family):
    role = DropBlocks(keep=(0, 3))(tiny(family))
    assert [role.module.get_submodule(role.anatomy.path("mixer", i)).layer_idx for i in range(2)] == [0, 1]
    generates(role)


def test_stock_classes_open_what_is_left_in_a_fresh_process(tiny, reloads):
    reloads({family: DropBlocks(drop=2)(tiny(family)) for family in CAUSAL})


def test_a_teacher_that_shares_the_config_keeps_its_blocks(tiny, logits):
    teacher, student = tiny("gemma3_text"), tiny("gemma3_text")
    before, config = logits(teacher), teacher.module.config
    for part in student.module.modules():
        if hasattr(part, "config"):
            part.config = config
    DropBlocks(drop=3)(student)
    assert torch.equal(logits(teacher), before) and config.num_hidden_layers == 4 and len(config.layer_types) == 4
    assert student.module.config.layer_types == ["sliding_attention"]


def test_lists_of_one_entry_a_block_are_cut_and_other_lists_are_not():
    from transformers import SmolLM3Config

    config = SmolLM3Config(num_hidden_layers=4, vocab_size=258, pad_token_id=0, bos_token_id=1, eos_token_id=[1, 2, 3, 4])
    assert config.no_rope_layers == [1, 1, 1, 0]
    out = shorter(config, "num_hidden_layers", (0, 3), 4)
    assert (out.no_rope_layers, len(out.layer_types), out.num_hidden_layers, out.eos_token_id) == ([1, 0], 2, 2, [1, 2, 3, 4])
    assert config.no_rope_layers == [1, 1, 1, 0] and config.num_hidden_layers == 4


def test_layers_of_the_role_are_counted_anew(tiny):
    role = DropBlocks(keep=(0, 2))(tiny("llama"))
    assert role.tap("hidden.-1").path == role.tap("hidden.2").path == "model.layers.1"


def test_the_settled_form_survives_json(tiny):
    settled = DropBlocks(drop=2).settle(tiny("llama"), no_score)
    again = DropBlocks.model_validate(json.loads(settled.model_dump_json()))
    assert again == settled == DropBlocks(keep=(0, 3))
    assert again.settle(tiny("llama"), no_score) == settled


@pytest.mark.parametrize("choose", ["uniform", "influence", "greedy", "contiguous"])
def test_the_planned_form_gives_the_shapes_without_weights(tiny, choose):
    role = tiny("gemma3_text").to("meta")
    assert DropBlocks(drop=3, choose=choose).shape()(role).num_layers == len(role.module.config.layer_types) == 1
    assert DropBlocks(keep=(0, 1)).shape() == DropBlocks(keep=(0, 1))


@pytest.mark.parametrize("drop", [4, 5])
def test_dropping_all_blocks_is_refused(tiny, drop):
    role = tiny("llama")
    for choose in ("uniform", "influence", "greedy", "contiguous"):
        with pytest.raises(Refused, match="fewer than all 4 blocks"):
            DropBlocks(drop=drop, choose=choose).settle(role, no_score)
    with pytest.raises(Refused, match="drop at most 3"):
        DropBlocks(drop=drop)(role)


@pytest.mark.parametrize("keep", [(0, 4), (0, 1, 2, 3)])
def test_a_block_that_is_not_there_and_keeping_all_are_refused(tiny, keep):
    for use in (lambda surgery, role: surgery(role), lambda surgery, role: surgery.settle(role, no_score)):
        with pytest.raises(Refused, match="some, not all, of the blocks 0 to 3") as error:
            use(DropBlocks(keep=keep), tiny("llama"))
        assert error.value.slug == "layer" and error.value.code == 2


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"keep": (0,), "drop": 1}, "either keep, the blocks that stay, or drop, how many go; not both"),
        ({"keep": (0,), "choose": "greedy"}, "keep without choose: greedy, since keep leaves nothing to choose"),
        ({"choose": "given"}, "keep, the blocks that stay, where choose is given"),
        ({"keep": ()}, "keep: at least one block"),
        ({"keep": (1, 1)}, "each once"),
        ({"keep": (2, 1)}, "ascending"),
        ({"keep": (-1, 2)}, "from 0"),
        ({"drop": 0}, "greater than or equal to 1"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        DropBlocks(**fields)


def test_a_measured_choice_is_settled_before_it_is_made(tiny):
    with pytest.raises(Refused, match="settle it first"):
        DropBlocks(drop=1, choose="influence")(tiny("llama"))


def test_attention_that_is_scaled_by_the_number_of_its_block_is_refused(tiny):
    with pytest.raises(Refused, match="scale_attn_by_inverse_layer_idx"):
        DropBlocks()(tiny("gpt2", scale_attn_by_inverse_layer_idx=True))


def test_a_model_without_known_parts_is_refused():
    from limbeck.model.base import Role

    with pytest.raises(Refused, match="got       Linear") as error:
        DropBlocks()(Role(torch.nn.Linear(2, 2)))
    assert error.value.code == 3
