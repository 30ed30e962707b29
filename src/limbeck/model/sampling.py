"""What a role writes by itself, drawn row by row."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from limbeck.errors import Refused
from limbeck.model.base import Role


class Draws(LogitsProcessor):
    """Adds to each row noise of its own, so that the best entry is a draw from the softmax (the Gumbel-max trick).

    What a row draws depends on its seed and on how much it has written, not on who else is in the batch.
    """

    def __init__(self, seeds: Sequence[int], temperature: float):
        self.temperature, self.random = temperature, [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:  # type: ignore[override]
        uniform = torch.stack([torch.rand(scores.shape[1], generator=one, dtype=torch.float64, device="cpu") for one in self.random])
        noise = -(-uniform.clamp_min(torch.finfo(torch.float64).tiny).log()).log()
        return scores / self.temperature + noise.to(scores)


def write(
    role: Role, prompts: Sequence[Sequence[int]], new_tokens: int, temperature: float, seeds: Sequence[int], batch: int = 32
) -> list[list[int]]:
    """What a role writes after each prompt, with the end of text where it ends before `new_tokens`.

    Args:
        role: a causal language model with weights at hand.
        prompts: ids of its own tokenizer, at least one each.
        new_tokens: at most so many for each prompt.
        temperature: 0 takes the best entry each time.
        seeds: one a prompt.
        batch: prompts of one length that are run together: it changes how fast it goes, and no more than rounding. Nothing is padded, since
            some kernels give NaN where nothing is to be seen, and it spreads.

    Raises:
        Refused: `generate`, for a role that cannot write.
    """
    module, end = role.module, role.tokenizer.eos_token_id
    if not role.writes:
        expected, got = "a causal language model with its weights at hand", "a role that cannot write" + " after text alone" * bool(role.puts_in)
        raise Refused("generate", type(module).__name__, expected, got, "name another")
    how = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=end, eos_token_id=end)
    device = next(module.parameters()).device
    out: list[list[int]] = [[] for _ in prompts]
    lengths: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt), []).append(i)
    for some in (alike[at : at + batch] for alike in lengths.values() for at in range(0, len(alike), batch)):
        ids = torch.tensor([list(prompts[i]) for i in some], device=device)
        noise = LogitsProcessorList([Draws([seeds[i] for i in some], temperature)] if temperature else [])
        with torch.no_grad():
            made = module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=how, logits_processor=noise)  # type: ignore[operator]
        for i, row in zip(some, made[:, ids.shape[1] :].tolist(), strict=True):
            out[i] = row[: row.index(end) + 1] if end in row else row
    return out
