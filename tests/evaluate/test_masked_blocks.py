"""Figures of models that fill in blocks, against the causal model, a sum by hand, and text that they know."""

import math

import pytest
import torch

from limbeck.check.models import TOKENIZER, family_of
from limbeck.evaluate.block_denoising import BlockDenoising
from limbeck.evaluate.tokens_per_forward import Task, TokensPerForward
from limbeck.model.block_mask import hidden_tokens
from limbeck.numerics import Streams, log_probs
from limbeck.signals import Row, dense
from limbeck.student.masked_blocks import MaskedBlocks

TEXTS = ("ice floats on water", "because it is", "less dense than the rest of it")
ROWS = [Row(text, {"text": text}, source=text) for text in TEXTS]


def filler(length: int = 4, shift: int = 0):
    return MaskedBlocks(length=length, shift=shift)(family_of("llama", dtype=torch.float32)).eval()  # type: ignore[arg-type]


def test_the_bound_is_the_weighted_sum_over_what_was_hidden(examine):
    role = filler()
    found = BlockDenoising(block=8, draws=2)(examine(ROWS, {"student": role}))["student"]
    total = right = hidden = 0.0
    for draw in range(2):
        for row in ROWS:  # one row at a time, by the definition
            view = role.view([row])
            view.inputs["block_length"].fill_(8)
            masked, share = hidden_tokens(view, [row.key], (1e-3, 1.0), "block", Streams(0), ("held_out", draw))
            view.inputs["masked"] = masked
            with torch.no_grad():
                log_q = log_probs(dense(role.says(view, ("logits",), {})["logits"]))
            place = masked[1:].nonzero()[:, 0]  # targets are all but the first
            label = view.inputs["ids"][1:][place]
            total += float((-log_q[place, label] / share[1:][place]).sum())
            right, hidden = right + int((log_q[place].argmax(-1) == label).sum()), hidden + len(place)
    might = 2 * sum(len(text) for text in TEXTS)  # bytes: all tokens but the begin
    assert found["denoising"] == pytest.approx(total / might, rel=1e-5)
    assert found["denoising_accuracy"] == pytest.approx(right / hidden)


def test_a_model_that_knows_nothing_has_the_bound_of_a_uniform_guess_on_average(examine):
    role = filler()
    with torch.no_grad():
        role.module.lm_head.weight.zero_()
    found = BlockDenoising(draws=50)(examine(ROWS, {"student": role}))["student"]
    assert found["denoising"] == pytest.approx(math.log(len(TOKENIZER)), rel=0.15)  # unweighted it would be half of it


def test_two_subjects_see_the_same_hidden_tokens_and_causal_ones_are_left_out(examine):
    roles = {"teacher": family_of("llama", dtype=torch.float32), "start": filler(), "student": filler()}
    found = BlockDenoising()(examine(ROWS, roles))
    assert set(found) == {"start", "student", "gaps"} and found["start"]["denoising"] == found["student"]["denoising"]
    assert found["gaps"]["start"]["Bound on held-out text"] == 0.0


def test_tokens_a_pass_rise_as_less_is_asked_for_and_a_causal_model_writes_one(examine):
    roles = {"teacher": family_of("llama", dtype=torch.float32), "student": filler(8)}
    made = TokensPerForward(prompt_tokens=8, new_tokens=8, thresholds=(1.0, 1e-6))
    found = made(examine(ROWS, roles))
    strict, loose = found["parallel_decoding"]
    # with the begin 20, 14 and 31 tokens: 8, 6 and 8 are asked for, each in one block of 8, which 8 passes fill one by one and 1 at once
    assert strict["student"]["tokens_per_forward"] == 22 / 24 and loose["student"]["tokens_per_forward"] == 22 / 3
    assert strict["teacher"]["tokens_per_forward"] == 1.0 == loose["teacher"]["tokens_per_forward"]
    assert found["student"]["tokens_per_forward"] == 22 / 24 == found["student"]["metrics"]["Tokens a pass"]["value"]


@pytest.mark.parametrize("shift", [0, 1])
def test_a_prompt_may_be_shorter_than_a_block(examine, shift):
    made = TokensPerForward(prompt_tokens=3, new_tokens=8, thresholds=(1.0, 1e-6))
    strict, loose = made(examine(ROWS, {"student": filler(8, shift)}))["parallel_decoding"]
    # 8 tokens are asked for; 5 stand in the first block of 8 and 3 in the second, which is filled to its end: 13 passes, or 2
    assert strict["student"]["tokens_per_forward"] == 8 / 13 and loose["student"]["tokens_per_forward"] == 8 / 2


def test_what_nobody_asked_for_does_not_count_as_written(examine):
    role = filler(8)
    with torch.no_grad():
        role.module.lm_head.weight.zero_()  # all alike: id 0 everywhere
    role.tokenizer = type(role.tokenizer)()
    role.tokenizer.eos_token_id = 0
    made = TokensPerForward(prompt_tokens=8, new_tokens=8, thresholds=(1e-6,))
    found = made(examine(ROWS[:1], {"student": role}))
    assert found["student"]["tokens_per_forward"] == 1.0  # an end of text, and 7 tokens behind it, in one pass


def test_rows_that_do_not_fit_in_whole_blocks_are_left_out(examine):
    role = filler(40)  # a context of 64 holds one block of 40
    made = TokensPerForward(prompt_tokens=8, new_tokens=64, thresholds=(1e-6,))
    rows = [*ROWS, Row("long", {"text": "x" * 45}, source="long")]
    assert role.context == 64 and len(made.tasks(role, examine(rows, {"student": role}))) == 3
    assert made(examine(rows, {"student": role}))["student"]["tokens_per_forward"] > 1.0
    causal = family_of("llama", dtype=torch.float32)
    assert len(made.tasks(causal, examine(rows, {"teacher": causal}))) == 4


def test_agreement_is_with_what_stands_there_and_what_is_missing_is_wrong():
    tasks = [Task([1], [5, 6, 7, 8]), Task([1], [5, 6])]
    point = TokensPerForward.point(tasks, [[5, 0, 7], [5, 6]], 2.5)
    assert point == (2.5, 4 / 6, 1 / 2)


def test_a_prompt_is_answered_and_a_text_goes_on_after_its_beginning(examine):
    role, made = filler(), TokensPerForward(prompt_tokens=4, new_tokens=3)
    exam = examine([Row("a", {"prompt": "who", "answer": "me"}), Row("b", {"text": "abcdefgh"}), Row("c", {"text": "ab"})], {"student": role})
    tasks = {tuple(task.prompt): task.answer for task in made.tasks(role, exam)}
    begin, end = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    assert tasks == {(begin, *b"who"): [*b"me", end], (begin, *b"abc"): [*b"def"]}


def test_without_a_model_that_fills_in_blocks_there_is_nothing_to_tell(examine):
    assert TokensPerForward(prompt_tokens=4)(examine(ROWS, {"student": family_of("llama", dtype=torch.float32)})) == {}
