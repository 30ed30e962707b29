import json
import math

import pytest
import torch
from pydantic import ValidationError

from limbeck.errors import Refused
from limbeck.student import _channels as cutting
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.keep_width import KeepWidth, grouping, pick

WIDE = ("llama", "qwen2", "qwen3", "gemma3_text")
"""Families whose config has the size of a head."""
EIGHT = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}


def no_score(role):
    raise AssertionError("nothing is to be measured")


def weight(role, part, layer=None):
    return role.anatomy.weight(role.module, part, layer)


def zero(role, part, layer, rows=slice(None), columns=slice(None)):
    """Sets some of a part's weight to zero; rows are outputs, columns inputs."""
    view = weight(role, part, layer)
    grid = torch.zeros_like(view, dtype=torch.bool)
    grid[rows] = True
    keep = torch.zeros_like(grid)
    keep[:, columns] = True
    view[grid & keep] = 0.0


def rows_of(heads, head_dim=16):
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def rest(kept, num):
    return [i for i in range(num) if i not in kept]


def attention(role, ids):
    """What the attention of each block says, for the very input it gets in this model's first block."""
    heard = []
    mixer = role.module.get_submodule(role.anatomy.path("mixer", 0))
    handle = mixer.register_forward_hook(lambda module, args, out: heard.append(out[0]))
    with torch.no_grad():
        role.module(ids)
    handle.remove()
    return heard[0]


# ---- heads ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize("fields, gone", [({"heads": 2}, [0, 3]), ({"kv_heads": 1}, [0, 1]), ({"heads": 1, "kv_heads": 1}, [0, 1, 3])])
def test_heads_whose_output_is_zero_go_without_a_trace(tiny, logits, family, fields, gone):
    role = tiny(family)
    for layer in range(4):
        zero(role, "output", layer, columns=rows_of(gone))
        zero(role, "query", layer, rows=rows_of(gone))
    before = logits(role)
    settled = KeepWidth(**fields).settle(role, no_score)
    assert settled.kept_heads == (tuple(rest(gone, 4)),) * 4
    torch.testing.assert_close(logits(settled(role)), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("fields, kv_heads", [({"heads": 2}, 2), ({"heads": 4}, 2), ({"kv_heads": 1}, 1), ({"heads": 2, "kv_heads": 1}, 1)])
def test_what_is_left_says_what_the_teacher_says_with_the_other_heads_masked(tiny, ids, logits, family, fields, kv_heads):
    role, teacher = tiny(family, **EIGHT), tiny(family, **EIGHT)
    settled = KeepWidth(**fields).settle(role, no_score)
    for layer, kept in enumerate(settled.kept_heads):
        zero(teacher, "output", layer, columns=rows_of(rest(kept, 8)))
    settled(role)
    assert role.module.config.num_key_value_heads == kv_heads and weight(role, "key", 0).shape == (kv_heads * 16, 64)
    torch.testing.assert_close(attention(role, ids), attention(teacher, ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(role), logits(teacher), atol=1e-4, rtol=1e-4)


def test_heads_that_differ_from_block_to_block_are_masked_alike(tiny, logits):
    role, teacher = tiny("qwen3", **EIGHT), tiny("qwen3", **EIGHT)
    kept = ((0, 1, 4, 7), (2, 3, 5, 6), (0, 3, 6, 7), (1, 2, 4, 5))
    for layer, heads in enumerate(kept):
        zero(teacher, "output", layer, columns=rows_of(rest(heads, 8)))
    torch.testing.assert_close(logits(KeepWidth(kept_heads=kept)(role)), logits(teacher), atol=1e-4, rtol=1e-4)


def test_query_heads_stay_in_whole_groups():
    assert grouping(12, 4, 8, None) == (4, 2)  # two of three in each group
    assert grouping(12, 4, 6, None) == (2, 3)  # six is no multiple of four: whole groups
    assert grouping(12, 4, None, 3) == (3, 3)
    assert grouping(12, 4, 6, 3) == (3, 2)
    assert grouping(4, 4, 3, None) == (3, 1)  # a KV head for each
    for heads, kv_heads in ((5, None), (12, None), (7, None), (None, 4), (None, 5), (12, 4), (8, 5), (10, 4)):
        with pytest.raises(Refused, match="whole groups"):
            grouping(12, 4, heads, kv_heads)


def test_the_heaviest_groups_stay_and_in_each_the_heaviest_heads():
    weights = torch.tensor([1.0, 9.0, 2.0, 4.0, 4.0, 3.0, 8.0, 0.0, 3.0])
    assert pick(weights, 3, 3, 1) == (1, 3, 6)  # of the equal heads 3 and 4 the earlier
    assert pick(weights, 3, 2, 3) == (0, 1, 2, 3, 4, 5)  # groups weigh 12, 11, 11: of the equal two the earlier
    assert pick(weights, 3, 1, 2) == (1, 2)


def test_norms_of_queries_and_keys_and_the_scale_of_attention_stay(tiny):
    role, before = tiny("gemma3_text"), tiny("gemma3_text")
    KeepWidth(heads=2, width=32)(role)
    attn, old = (one.module.get_submodule(one.anatomy.path("mixer", 0)) for one in (role, before))
    assert torch.equal(attn.q_norm.weight, old.q_norm.weight) and torch.equal(attn.k_norm.weight, old.k_norm.weight)
    assert attn.scaling == old.scaling == 0.25 and role.module.config.query_pre_attn_scalar == 16 and role.module.config.head_dim == 16


# ---- the MLP -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*WIDE, "gpt2", "bert"])
def test_inner_channels_whose_output_is_zero_go_without_a_trace(tiny, logits, family):
    role = tiny(family)
    inner = role.anatomy.size(role.module.config, "mlp_width")
    gone = [[(7 * i + layer) % inner for i in range(inner // 4)] for layer in range(4)]
    for layer in range(4):
        zero(role, "down", layer, columns=gone[layer])
        for part in ("gate", "up"):
            if role.anatomy.has(part):
                zero(role, part, layer, rows=gone[layer])
    before = logits(role)
    settled = KeepWidth().settle(role, no_score)  # three quarters, where nothing is named
    assert settled.kept_mlp == tuple(tuple(rest(some, inner)) for some in gone)
    torch.testing.assert_close(logits(settled(role)), before, atol=1e-5, rtol=1e-5)
    assert role.anatomy.size(role.module.config, "mlp_width") == inner * 3 // 4
    assert {weight(role, "down", layer).shape[1] for layer in range(4)} == {inner * 3 // 4}


def test_inner_channels_weigh_their_largest_share_of_squared_norm(tiny):
    role = tiny("llama")
    norm = weight(role, "mlp_norm", 0)
    norm.fill_(1.0)
    norm[0] = 2.0
    for part in ("gate", "up", "down"):
        weight(role, part, 0).zero_()
    for part, row, column, size in (
        ("gate", 0, 0, 3.0),
        ("gate", 1, 1, 8.0),
        ("up", 0, 5, 1.0),
        ("up", 2, 6, 3.0),
        ("down", 7, 1, 2.0),
        ("down", 8, 2, 1.0),
    ):
        weight(role, part, 0)[row, column] = size
    # gate (3 2)^2 : 8^2 = 36 : 64, the gain of input 0 is 2; up 1 : 9 for channels 0 and 2; down 4 : 1 for channels 1 and 2
    torch.testing.assert_close(cutting.weigh_mlp(role, role.anatomy, 0)[:4], torch.tensor([0.36, 0.8, 0.9, 0.0]))


def test_heads_weigh_their_mean_share_of_squared_norm(tiny):
    role = tiny("llama")
    weight(role, "mixer_norm", 0).fill_(1.0)
    for part in ("query", "key", "value", "output"):
        weight(role, part, 0).zero_()
    for part, row, column, size in (
        ("query", 0, 0, 1.0),
        ("query", 20, 0, 1.0),
        ("key", 3, 0, 5.0),
        ("value", 0, 9, 1.0),
        ("value", 16, 9, 2.0),
        ("output", 2, 63, 3.0),
        ("output", 2, 47, 1.0),
    ):
        weight(role, part, 0)[row, column] = size
    # query 1/2 1/2 0 0; key 1 0 by KV head, half for each query head; value 1/5 4/5 likewise; output 0 0 1/10 9/10 by columns
    expected = torch.tensor([0.5 + 0.5 + 0.1 + 0.0, 0.5 + 0.5 + 0.1 + 0.0, 0.4 + 0.1, 0.4 + 0.9]) / 4
    torch.testing.assert_close(cutting.weigh_heads(role, role.anatomy, 0, 16), expected)


@pytest.mark.parametrize("family", [*WIDE, "gpt2"])
def test_a_factor_weighs_the_same_in_a_norm_and_in_what_reads_behind_it(tiny, family):
    role, other = tiny(family), tiny(family)
    added = 1.0 if family == "gemma3_text" else 0.0
    factor = torch.linspace(0.5, 2.0, 64)
    for norm, parts in (("mixer_norm", ("query", "key", "value")), ("mlp_norm", ("gate", "up"))):
        weight(other, norm, 1).add_(added).mul_(factor).sub_(added)
        for part in parts:
            if other.anatomy.has(part):
                weight(other, part, 1).div_(factor)
    torch.testing.assert_close(cutting.weigh_mlp(role, role.anatomy, 1), cutting.weigh_mlp(other, other.anatomy, 1))
    torch.testing.assert_close(cutting.weigh_heads(role, role.anatomy, 1, 16), cutting.weigh_heads(other, other.anatomy, 1, 16))
    if family in WIDE:
        torch.testing.assert_close(*(cutting.weigh_width(one, one.anatomy, cutting.READS) for one in (role, other)))


def test_a_share_of_the_inner_channels_is_rounded(tiny):
    assert len(KeepWidth(mlp=0.3).settle(tiny("llama"), no_score).kept_mlp[0]) == 29  # 28.8 of 96


# ---- the residual stream -------------------------------------------------------------------------------------------------------


def without_channels(role, gone):
    """Makes residual channels zero wherever they are written or read."""
    for part in ("embedding", "head"):
        zero(role, part, None, columns=gone)
    for layer in range(4):
        for part in ("query", "key", "value", "gate", "up"):
            zero(role, part, layer, columns=gone)
        for part in ("output", "down"):
            zero(role, part, layer, rows=gone)
            bias = role.anatomy.bias(role.module, part, layer)
            if bias is not None:
                bias[gone] = 0.0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", WIDE)
def test_channels_that_are_zero_everywhere_go_without_a_trace(tiny, logits, family, tied):
    # RMS norm over d' of d channels, the others zero: mean x^2 over d' is d/d' of that over d, so gains times sqrt(d/d'); here sqrt(64/40)
    role = tiny(family, tie_word_embeddings=tied, **({"attention_bias": True, "mlp_bias": True} if family == "llama" else {}))
    gone = [(11 * i + 3) % 64 for i in range(24)]
    with torch.no_grad():
        weight(role, "embedding").mul_(4.0 if tied else 8.0)  # far from the norms' epsilon
    without_channels(role, gone)
    before, norm = logits(role), role.module.get_submodule(role.anatomy.path("mixer_norm", 0)).weight.detach().clone()
    settled = KeepWidth(width=40).settle(role, no_score)
    assert settled.kept_width == tuple(rest(gone, 64)) and settled.kept_heads is settled.kept_mlp is None
    settled(role)
    torch.testing.assert_close(logits(role), before, atol=1e-5 * float(before.abs().max()), rtol=1e-5)
    assert (role.module.lm_head.weight is role.module.model.embed_tokens.weight) is tied
    added = 1.0 if family == "gemma3_text" else 0.0
    small = role.module.get_submodule(role.anatomy.path("mixer_norm", 0)).weight
    torch.testing.assert_close(small + added, (norm[rest(gone, 64)] + added) * math.sqrt(64 / 40))


@pytest.mark.parametrize("family", WIDE)
def test_where_all_channels_weigh_alike_gains_of_norms_stay(tiny, family):
    role = tiny(family)
    with torch.no_grad():
        for layer in range(4):
            for part in ("output", "down"):
                weight(role, part, layer).fill_(0.3)
            for part in ("mixer_post_norm", "mlp_post_norm"):
                if role.anatomy.has(part):
                    weight(role, part, layer).fill_(0.5)
        weight(role, "embedding").fill_(0.1)
    norm = role.module.get_submodule(role.anatomy.path("mlp_norm", 2)).weight.detach().clone()
    kept = KeepWidth(width=32).settle(role, no_score).kept_width
    KeepWidth(kept_width=kept)(role)
    torch.testing.assert_close(role.module.get_submodule(role.anatomy.path("mlp_norm", 2)).weight, norm[list(kept)])


@pytest.mark.parametrize("family", WIDE)
def test_the_same_channels_stay_in_everything_that_reads_or_writes_the_stream(tiny, family):
    role, before = tiny(family, tie_word_embeddings=False), tiny(family, tie_word_embeddings=False)
    kept = tuple(range(1, 64, 2))
    KeepWidth(kept_width=kept)(role)
    scale = math.sqrt(64 / 32) if family == "gemma3_text" else 1.0  # its embeddings are multiplied by sqrt(width) when they are read
    assert torch.equal(weight(role, "head"), weight(before, "head")[:, kept])
    torch.testing.assert_close(weight(role, "embedding"), weight(before, "embedding")[:, kept] * scale)
    for layer in range(4):
        for part in ("query", "key", "value", "gate", "up"):
            assert torch.equal(weight(role, part, layer), weight(before, part, layer)[:, kept]), part
        for part in ("output", "down"):
            assert torch.equal(weight(role, part, layer), weight(before, part, layer)[list(kept)]), part
    token = torch.tensor([[5]])
    embedding, old = (one.module.get_submodule(one.anatomy.path("embedding")) for one in (role, before))
    torch.testing.assert_close(embedding(token), old(token)[..., kept])


def test_a_share_of_the_width_is_a_multiple_of_the_heads(tiny):
    assert len(KeepWidth(width=0.7).settle(tiny("llama"), no_score).kept_width) == 44  # 44.8 of 64, over 4 heads
    settled = KeepWidth(width=0.7, heads=2).settle(tiny("llama"), no_score)
    assert len(settled.kept_width) == 44 and len(settled.kept_heads[0]) == 2  # and over 2


def test_gains_of_norms_count_in_what_a_channel_weighs(tiny):
    role = tiny("llama")
    with torch.no_grad():
        for part in ("mixer_norm", "mlp_norm"):
            for layer in range(4):
                weight(role, part, layer)[10] = 0.0
        weight(role, "final_norm")[10] = 0.0
    assert cutting.weigh_width(role, role.anatomy, cutting.READS)[:, 10].sum() == 0.0


# ---- all of it -----------------------------------------------------------------------------------------------------------------

ALL = {"heads": 2, "mlp": 0.5, "width": 32}


@pytest.mark.parametrize("family", WIDE)
def test_the_model_knows_its_sizes_as_if_it_had_been_built_small(tiny, logits, family):
    role = KeepWidth(**ALL)(tiny(family))
    small = tiny(family, seed=9, hidden_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=16, intermediate_size=48)
    assert {n: p.shape for n, p in role.module.named_parameters()} == {n: p.shape for n, p in small.module.named_parameters()}
    for name, part in small.module.named_modules():
        own = role.module.get_submodule(name)
        assert repr(own) == repr(part) and getattr(own, "config", role.module.config) is role.module.config
        for key, value in vars(part).items():
            assert type(value) not in (int, float, str) or getattr(own, key) == value, (name, key)
    small.module.load_state_dict(role.module.state_dict())
    assert torch.equal(logits(role), logits(small))
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    assert [getattr(role.module.config, name) for name in sizes] == [32, 2, 2, 16, 48]


@pytest.mark.parametrize("family", WIDE)
def test_generating_with_a_cache_equals_generating_without(tiny, generates, family):
    generates(KeepWidth(heads=2, kv_heads=1, width=32)(tiny(family)))


def test_stock_classes_open_what_is_left_in_a_fresh_process(tiny, reloads):
    roles = {family: KeepWidth(kv_heads=1, mlp=0.5, width=48)(tiny(family)) for family in WIDE}
    tied = KeepWidth(**ALL)(DropBlocks()(tiny("llama", tie_word_embeddings=True)))
    reloads(roles | {"tied": tied, "gpt2": KeepWidth(mlp=100)(tiny("gpt2")), "bert": KeepWidth(mlp=0.5)(tiny("bert"))})


def test_the_settled_form_survives_json_and_makes_the_same_model(tiny, logits):
    settled = KeepWidth(**ALL).settle(tiny("qwen3"), no_score)
    again = KeepWidth.model_validate(json.loads(settled.model_dump_json()))
    assert again == settled == again.settle(tiny("qwen3"), no_score)
    assert (again.heads, again.mlp, again.width) == (None, None, None)
    assert torch.equal(logits(again(tiny("qwen3"))), logits(KeepWidth(**ALL)(tiny("qwen3"))))


def test_a_teacher_that_shares_the_config_keeps_its_sizes(tiny, logits):
    teacher, student = tiny("llama"), tiny("llama")
    for part in student.module.modules():
        if hasattr(part, "config"):
            part.config = teacher.module.config
    before = logits(teacher)
    KeepWidth(**ALL)(student)
    assert teacher.module.config.hidden_size == 64 and torch.equal(logits(teacher), before)


def test_a_moved_model_whose_tie_is_broken_is_cut_as_well(tiny):
    role = KeepWidth(**ALL)(tiny("gemma3_text").to("meta"))  # moving to meta parts what is tied
    assert weight(role, "embedding").shape == weight(role, "head").shape == (258, 32)


def test_precision_and_frozen_parameters_stay_and_what_is_left_can_learn(tiny, ids):
    role = tiny("llama")
    role.module.bfloat16().get_submodule("model.embed_tokens").requires_grad_(False)
    KeepWidth(**ALL)(role)
    assert {p.dtype for p in role.module.parameters()} == {torch.bfloat16}
    role.module(ids, labels=ids).loss.backward()
    assert {n for n, p in role.module.named_parameters() if p.grad is None} == {"model.embed_tokens.weight"}


@pytest.mark.parametrize("choose", ["magnitude", "influence"])
@pytest.mark.parametrize("family", WIDE)
def test_the_planned_form_gives_the_shapes_without_weights(tiny, family, choose):
    with torch.device("meta"):
        shapes_alone = tiny(family)
    planned, real = KeepWidth(choose=choose, **ALL).shape()(shapes_alone), KeepWidth(**ALL)(tiny(family))
    assert {name: p.shape for name, p in planned.module.named_parameters()} == {name: p.shape for name, p in real.module.named_parameters()}
    assert planned.module.config.to_dict() == real.module.config.to_dict()


# ---- measured choices ----------------------------------------------------------------------------------------------------------


def test_heads_that_are_not_needed_are_found_though_their_weights_are_large(tiny, against, logits):
    role = tiny("qwen3")
    with torch.no_grad():
        for layer in range(4):  # KV head 0 has no values, and all else that its two query heads have is large
            zero(role, "value", layer, rows=rows_of([0]))
            weight(role, "key", layer)[rows_of([0])] *= 30.0
            weight(role, "query", layer)[rows_of([0, 1])] *= 30.0
            weight(role, "output", layer)[:, rows_of([0, 1])] *= 30.0
    before = logits(role)
    assert KeepWidth(kv_heads=1).settle(role, no_score).kept_heads == ((0, 1),) * 4
    settled = KeepWidth(kv_heads=1, choose="influence").settle(role, against(role))
    assert settled.kept_heads == ((2, 3),) * 4 and settled.choose == "magnitude"
    assert torch.equal(logits(role), before)
    torch.testing.assert_close(logits(settled(role)), before, atol=1e-5, rtol=1e-5)


def test_inner_channels_that_are_not_needed_are_found_though_their_weights_are_large(tiny, against, logits):
    role, gone = tiny("llama"), list(range(5, 29))  # 24 of 96: 4 of the 16 groups
    with torch.no_grad():
        for layer in range(4):
            zero(role, "up", layer, rows=gone)
            weight(role, "gate", layer)[gone] = 5.0
    before = logits(role)
    assert set(gone) <= set(KeepWidth(mlp=72).settle(role, no_score).kept_mlp[0])
    settled = KeepWidth(mlp=72, choose="influence").settle(role, against(role))
    assert settled.kept_mlp == (tuple(rest(gone, 96)),) * 4
    torch.testing.assert_close(logits(settled(role)), before, atol=1e-5, rtol=1e-5)


def test_measuring_silences_one_head_at_a_time_and_leaves_no_trace(tiny, ids, logits):
    role, teacher, seen = tiny("qwen3"), tiny("qwen3"), []
    KeepWidth(heads=2, choose="influence").settle(role, lambda now: seen.append(logits(now)) or math.nan)
    assert len(seen) == 16
    zero(teacher, "output", 1, columns=rows_of([2]))
    torch.testing.assert_close(seen[6], logits(teacher))  # block 1, head 2
    assert torch.equal(logits(role), logits(tiny("qwen3")))


def test_a_head_whose_loss_gives_nan_is_needed_most(tiny):
    scores = iter([math.nan, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0, math.nan, *[1.0] * 8])
    settled = KeepWidth(heads=2, choose="influence").settle(tiny("qwen3"), lambda now: next(scores))
    assert settled.kept_heads == ((0, 3), (0, 3), (0, 2), (0, 2))  # of equals the earlier


def test_a_measured_choice_is_settled_before_it_is_made(tiny):
    with pytest.raises(Refused, match="settle it first"):
        KeepWidth(heads=2, choose="influence")(tiny("llama"))


# ---- what is refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("fields", [{"heads": 2}, {"width": 32}, {"kept_width": tuple(range(32))}, {"kept_heads": ((0, 1),) * 4}])
def test_families_whose_heads_are_as_wide_as_the_width_allows_lose_inner_channels_only(tiny, family, fields):
    role = tiny(family)
    with pytest.raises(Refused, match=f"mlp alone: in {family} the size of a head is width / heads") as error:
        KeepWidth(**fields)(role)
    assert error.value.code == 3 and "drop_blocks" in error.value.do


def test_a_width_that_the_config_would_not_take_back_is_refused_before_anything_is_measured_or_changed(tiny, logits):
    role = tiny("llama", num_attention_heads=8, head_dim=8)
    before = logits(role)
    with pytest.raises(Refused, match="sizes that LlamaConfig accepts") as error:
        KeepWidth(width=36, choose="influence", mlp=3).settle(role, no_score)
    assert "not a multiple of the number of attention heads (8)" in error.value.got and "multiple of 8" in error.value.do
    with pytest.raises(Refused, match="multiple of the number of attention"):
        KeepWidth(kept_width=tuple(range(36)))(role)
    assert torch.equal(logits(role), before) and role.module.config.hidden_size == 64


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"heads": 3}, "heads: 2"),
        ({"heads": 4}, "heads: 2"),
        ({"kv_heads": 2}, "heads: 2"),
        ({"kv_heads": 3}, "fewer KV heads"),
        ({"mlp": 96}, "fewer than the 96 there are"),
        ({"mlp": 200}, "fewer than the 96"),
        ({"width": 64}, "fewer than the 64"),
        ({"width": 0.99}, "fewer than the 64"),
        ({"kept_mlp": ((0, 1),) * 3}, "4 equally long lists"),
        ({"kept_mlp": ((0, 1), (0,), (0, 1), (0, 1))}, "equally long"),
        ({"kept_mlp": ((0, 96),) * 4}, "0 to 95"),
        ({"kept_mlp": ((1, 0),) * 4}, "ascending"),
        ({"kept_width": (-1, 2)}, "0 to 63"),
        ({"kept_width": ()}, "0 to 63"),
        ({"kept_heads": ((0, 1, 2),) * 4}, "equally many query heads for each KV head"),
        ({"kept_heads": ((0, 1), (0, 2), (0, 1), (0, 1))}, "equally many query heads for each KV head"),
    ],
)
def test_sizes_and_lists_that_do_not_fit_the_model_are_refused(tiny, fields, sentence):
    with pytest.raises(Refused, match=sentence) as error:
        KeepWidth(**fields)(tiny("llama"))
    assert error.value.slug == "width" and error.value.code == 2


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"mlp": 8, "kept_mlp": ((0,),)}, "either sizes or lists of what is kept, not both: without mlp"),
        ({"width": 0.5, "choose": "influence"}, "choose: influence where heads, kv_heads or mlp are sizes"),
        ({"kept_width": (0,), "choose": "influence"}, "choose: influence where heads, kv_heads or mlp are sizes"),
        ({"heads": True}, "valid integer"),
        ({"width": 1.0}, "less than 1"),
        ({"mlp": 48.0}, "less than 1"),
        ({"mlp": 0}, "greater than"),
        ({"mlp": -3}, "greater than"),
        ({"heads": 0}, "greater than or equal to 1"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_in_one_sentence(fields, sentence):
    with pytest.raises(ValidationError, match=sentence):
        KeepWidth(**fields)


def test_a_parameter_that_belongs_to_no_known_part_is_refused_by_name(tiny, logits):
    role = tiny("llama")
    role.module.model.layers[1].extra = torch.nn.Linear(64, 64)
    with pytest.raises(Refused, match=r"model\.layers\.1\.extra\.weight"):
        KeepWidth(width=32)(role)
    assert role.module.config.hidden_size == 64 and weight(role, "head").shape == (258, 64)
