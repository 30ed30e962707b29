"""Writing in blocks: against greedy decoding of the causal model, against no memory, and by hand."""

import pytest
import torch
from torch import Tensor

from limbeck.check.models import family_of, fresh
from limbeck.errors import Refused
from limbeck.model.block_decoding import certain, confident, fill
from limbeck.model.masked_blocks import MaskedBlocks as Role
from limbeck.model.sampling import write
from limbeck.numerics import log_probs
from limbeck.signals import View, dense
from limbeck.student.masked_blocks import MaskedBlocks

PROMPT = list(b"ice floats")


def filler(length: int, shift: int = 0, family: str = "llama") -> Role:
    role = fresh() if family == "llama" else family_of(family, dtype=torch.float32, layers=3)
    made = MaskedBlocks(length=length, shift=shift)(role)  # type: ignore[arg-type]
    assert isinstance(made, Role)
    return made.eval()


class Noting:
    """An acceptance that keeps what it was asked."""

    def __init__(self, accept):
        self.accept, self.asked = accept, []

    def __call__(self, log_q: Tensor) -> Tensor:
        self.asked.append(log_q)
        return self.accept(log_q)


class Comparing:
    """An acceptance that holds what it is asked against what the role says of a whole row, as in training."""

    def __init__(self, role: Role, prompt: list[int], total: int, accept):
        self.role, self.accept, self.asked = role, accept, 0
        self.ids = torch.tensor(prompt + [0] * (total - len(prompt)))
        self.masked = torch.arange(total) >= len(prompt)

    def __call__(self, log_q: Tensor) -> Tensor:
        length, left = self.role.blocks.length, self.masked.nonzero()[:, 0]
        now = left[left // length == left[0] // length]
        where = torch.zeros_like(self.masked).index_fill(0, now, True)
        inputs = {"ids": self.ids, "block_length": torch.tensor([length]), "masked": where}
        said = self.role.says(View(inputs, torch.tensor([len(self.ids)]), where, shift=self.role.shift), ("logits",), {})
        torch.testing.assert_close(log_q, log_probs(dense(said["logits"])), rtol=0, atol=1e-5)
        taken = self.accept(log_q)
        self.ids[now[taken]], self.masked[now[taken]] = log_q.argmax(-1)[taken], False
        self.asked += 1
        return taken


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("prompt", [PROMPT[:1], PROMPT[:3], PROMPT[:4], PROMPT], ids=["one", "within_a_block", "a_block", "longer"])
def test_each_pass_is_asked_what_the_role_says_of_such_a_row(prompt, shift, cached):
    role, total = filler(4, shift), len(prompt) // 4 * 4 + 12
    watching = Comparing(role, prompt, total, confident(1.0, least=2))
    made = fill(role, prompt, total - len(prompt), watching, cached)
    assert made.ids == watching.ids[len(prompt) :].tolist() and made.forwards == watching.asked >= 5


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("cached", [True, False])
def test_blocks_of_one_token_write_what_the_causal_model_writes_before_any_training(family, cached):
    causal = fresh() if family == "llama" else family_of(family, dtype=torch.float32, layers=3)
    (greedy,) = write(causal, [PROMPT], 12, 0.0, [0])
    made = fill(filler(1, shift=1, family=family), PROMPT, 12, confident(), cached)
    assert made.ids == greedy and made.forwards == len(greedy) and made.passes == list(range(len(greedy)))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("accept", [confident(0.05), confident(0.95), certain(5.4)])
def test_what_is_remembered_of_finished_blocks_changes_nothing(shift, accept):
    role = filler(4, shift)
    with_memory, without = Noting(accept), Noting(accept)
    one, other = fill(role, PROMPT, 14, with_memory), fill(role, PROMPT, 14, without, cached=False)
    assert one == other
    for a, b in zip(with_memory.asked, without.asked, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_one_at_a_time_takes_a_pass_a_token_and_all_at_once_a_pass_a_block():
    role = filler(4)
    slow, fast = fill(role, PROMPT[:8], 8, confident(1.0)), fill(role, PROMPT[:8], 8, confident(0.0))
    assert (slow.forwards, fast.forwards) == (8, 2)
    assert sorted(slow.passes) == list(range(8)) and fast.passes == [0] * 4 + [1] * 4


def test_the_end_of_a_prompt_stands_in_the_first_block_that_is_written():
    made = fill(filler(8), PROMPT, 3, confident(0.0))  # 10 tokens: 6 places are left in the second block of 8
    assert len(made.ids) == 3 and made.forwards == 1 and len(made.passes) == 6


def test_a_block_after_an_end_of_text_is_not_written():
    role = filler(4)
    with torch.no_grad():
        role.module.lm_head.weight *= 0  # all alike: the first id everywhere, so that no end comes
    assert len(fill(role, PROMPT, 12, confident(0.0)).ids) == 12
    role.tokenizer = type(role.tokenizer)()
    role.tokenizer.eos_token_id = 0
    made = fill(role, PROMPT, 12, confident(0.0))
    assert made.ids == [0] and made.forwards == 1


def test_the_mask_is_never_written_though_the_head_shares_its_row():
    role = filler(4)
    mask_id = role.blocks.mask_id
    with torch.no_grad():
        role.module.get_output_embeddings().weight[mask_id] += 100.0  # far more likely than all others, if it were offered
    made = fill(role, PROMPT, 8, confident(0.0))
    assert mask_id not in made.ids and len(made.ids) == 8


def test_acceptance_by_hand():
    log_q = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]]).log()
    assert confident(0.6)(log_q).tolist() == [True, False, True]
    assert confident(0.95)(log_q).tolist() == [True, False, False]
    assert confident(0.95, least=2)(log_q).tolist() == [True, False, True]
    # entropies in nats: 0.325, 0.693, 0.611
    assert certain(0.65)(log_q).tolist() == [True, False, True] and certain(0.0)(log_q).tolist() == [True, False, False]


@pytest.mark.parametrize("prompt, new, slug", [([], 4, "prompt"), (PROMPT, 60, "context")])  # a context of 64: 10 + 60 are 18 blocks of 4
def test_what_cannot_be_written_is_refused(prompt, new, slug):
    with pytest.raises(Refused) as error:
        fill(filler(4), prompt, new, confident())
    assert error.value.slug == slug
