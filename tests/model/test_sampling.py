"""What a role writes: greedy against a loop, draws against the softmax, and nothing that depends on the batch."""

import pytest
import torch
from torch import nn

from limbeck.check.models import family_of
from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.sampling import Draws, write

PROMPTS = [[10, 20, 30], [40], [50, 60, 70, 80, 90], [5, 6], [7, 8, 9]]
SEEDS = [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def role() -> Role:
    return family_of("llama", 0, context=64)


def alone(role: Role, prompt: list[int], new_tokens: int) -> list[int]:
    """The best entry again and again, without a cache or padding."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + new_tokens and not (len(ids) > len(prompt) and ids[-1] == role.tokenizer.eos_token_id):
            ids.append(int(role.module(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_at_temperature_zero_it_is_the_best_entry_each_time(role: Role) -> None:
    assert write(role, PROMPTS, 9, 0.0, SEEDS) == [alone(role, prompt, 9) for prompt in PROMPTS]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_batch_changes_nothing(role: Role, temperature: float) -> None:
    found = [write(role, PROMPTS, 9, temperature, SEEDS, batch) for batch in (1, 2, 5)]
    assert found[0] == found[1] == found[2]
    assert write(role, PROMPTS[::-1], 9, temperature, SEEDS[::-1], 2) == found[0][::-1]


def test_a_seed_is_a_rollout(role: Role) -> None:
    same, other = write(role, [PROMPTS[0]] * 2, 12, 1.5, [3, 3]), write(role, [PROMPTS[0]] * 2, 12, 1.5, [3, 4])
    assert same[0] == same[1] == other[0] != other[1]


def test_draws_have_the_probabilities_of_the_softened_softmax() -> None:
    logits, num = torch.tensor([1.0, 0.0, -1.0]), 6000
    picked = Draws(range(num), 2.0)(torch.zeros(num, 1, dtype=torch.long), logits.expand(num, 3)).argmax(-1)
    shares, expected = torch.bincount(picked, minlength=3) / num, (logits / 2).softmax(-1)
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / num).sqrt()).all()


def test_it_ends_with_the_end_of_text_and_keeps_it(role: Role) -> None:
    end = alone(role, PROMPTS[0], 3)[1]
    before, role.tokenizer.eos_token_id = role.tokenizer.eos_token_id, end
    try:
        assert write(role, PROMPTS[:2], 9, 0.0, SEEDS[:2])[0] == alone(role, PROMPTS[0], 9) and alone(role, PROMPTS[0], 9)[-1] == end
    finally:
        role.tokenizer.eos_token_id = before


def test_a_role_that_cannot_write_is_refused(role: Role) -> None:
    mute = Role(nn.Linear(2, 2))
    mute.tokenizer = role.tokenizer
    with pytest.raises(Refused, match="a causal language model with its weights at hand"):
        write(mute, [[1]], 2, 0.0, [0])
