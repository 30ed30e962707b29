"""Perplexity and bits per byte."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.evaluate.base import Table
from limbeck.evaluate.perplexity import Perplexity
from limbeck.signals import Row


def table(log_probs: list[float], row: list[int], num_bytes: list[int] | None) -> Table:
    num = len(row)
    return Table(
        row=torch.tensor(row),
        best=torch.zeros(num, dtype=torch.long),
        best_prob=torch.ones(num),
        label=torch.zeros(num, dtype=torch.long),
        label_logprob=torch.tensor(log_probs),
        num_bytes=None if num_bytes is None else torch.tensor(num_bytes),
    )


def test_figures_are_those_worked_out_by_hand(examine):
    rows = [Row("0", {}, source="a"), Row("1", {}, source="b")]
    one = table([-math.log(2), -math.log(8), -math.log(2)], [0, 0, 1], [1, 3, 2])
    found = Perplexity()(examine(rows, tables={"student": one}))["student"]
    # bits 1 + 3 and 1; bytes 4 and 2. Perplexity: 2^(5/3). Bits per byte: 5/6.
    # errors: mean nll R = 5/3 ln 2 over counts 2 and 1: residuals 2/3 ln 2 each way; bits: residuals 4 - 4*5/6 = 2/3 and 1 - 2*5/6 = -2/3
    assert found["perplexity"] == pytest.approx(2 ** (5 / 3))
    assert found["perplexity_error"] == pytest.approx(2 ** (5 / 3) * math.sqrt(2 * 2 * (2 / 3 * math.log(2)) ** 2) / 3)
    assert found["bits_per_byte"] == pytest.approx(5 / 6)
    assert found["bits_per_byte_error"] == pytest.approx(math.sqrt(2 * 2 * (2 / 3) ** 2) / 6)


def test_a_model_that_knows_nothing_needs_eight_bits_and_a_bit(examine, speaker):
    role = speaker(0)
    nn.init.zeros_(role.module.lm_head.weight)  # the same probability for all 258 ids
    found = Perplexity()(examine([Row("0", {"text": "Straße"}), Row("1", {"text": "so"})], {"student": role}))["student"]
    assert found["perplexity"] == pytest.approx(258, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(math.log2(258), rel=1e-5)


def test_the_end_of_a_text_costs_bits_and_is_no_text(examine, speaker):
    role = speaker(0)
    nn.init.zeros_(role.module.lm_head.weight)
    rows = [Row("0", {"prompt": "a question", "answer": "abc"})]  # three bytes and an end mark are predicted, the prompt is not
    assert Perplexity()(examine(rows, {"student": role}))["student"]["bits_per_byte"] == pytest.approx(4 / 3 * math.log2(258), rel=1e-5)


def test_of_one_document_there_is_no_error(examine):
    found = Perplexity()(examine([Row("0", {})], tables={"student": table([-1.0, -2.0], [0, 0], [1, 1])}))["student"]
    assert found["perplexity_error"] is None and found["bits_per_byte_error"] is None


def test_without_bytes_there_is_perplexity_alone(examine):
    rows = [Row("0", {}, source="a"), Row("1", {}, source="b")]
    found = Perplexity()(examine(rows, tables={"student": table([-1.0, -2.0], [0, 1], None)}))["student"]
    assert set(found) == {"perplexity", "perplexity_error"}
    assert set(Perplexity()(examine(rows, tables={"student": table([-1.0, -2.0], [0, 1], [0, 0])}))["student"]) == set(found)


def test_without_labels_there_is_nothing(examine):
    one = replace(table([-1.0], [0], None), label=None, label_logprob=None)
    assert Perplexity()(examine([Row("0", {})], tables={"student": one})) == {}


def test_a_hopeless_model_is_infinitely_perplexed(examine):
    found = Perplexity()(examine([Row("0", {})], tables={"student": table([-1e30], [0], [1])}))["student"]
    assert found["perplexity"] == math.inf
