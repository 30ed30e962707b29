"""From left to right to block by block."""

import copy
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.base import Role
from limbeck.model.blocks import causal
from limbeck.student._channels import use_config
from limbeck.student.base import Surgery

WHERE = "student.surgery  masked_blocks"


class MaskedBlocks(Surgery):
    r"""Makes a model that writes from left to right one that fills in the masked tokens of a block, all at once or in a few steps.

    $$ p(x) = \prod_k p(x^k \mid x^{<k}), \qquad
       p(x^k_{\mathrm{masked}} \mid x^k_{\mathrm{seen}}, x^{<k}) = \prod_i p(x_i \mid x^k_{\mathrm{seen}}, x^{<k}) $$

    No weight is changed but for one: the mask, a new row at the end of the embedding, begins as the mean of all rows; a head that shares the
    row never offers it. What changes is who sees whom: inside a block all see all, of other blocks only clean ones before. It must then learn
    to read this way (`forward: denoised_blocks`), and is far from the model that it was until it does; with `shift` 1 and blocks of one token
    alone it is that model still. The saved folder is of the stock class, with one more row, and `limbeck_blocks` in its config; stock
    `generate` would decode it from left to right. Only where every block of the model has full attention.

    Example:
        >>> MaskedBlocks(length=16).policy
        'stock'

    References:
        Bie et al., LLaDA2.0: Scaling Up Diffusion Language Models to 100B, 2025, arXiv:2512.15745.
        Arriola et al., Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models, 2025, arXiv:2503.09573.
    """

    kind: Literal["masked_blocks"] = "masked_blocks"
    length: int = Field(default=32, gt=0)
    """Positions of a block when it writes, and where a stage says nothing else."""
    mask: str | None = None
    """An entry of the tokenizer that stands for what is hidden, such as a reserved one that no text holds; none: a new id at the end."""
    shift: Literal[0, 1] = 0
    """0: the state of a masked token predicts it; 1: the state before it, as in the causal model."""

    def __call__(self, role: Role) -> Role:
        from limbeck.model import masked_blocks  # with it comes transformers, which a recipe that only names it does not need
        from limbeck.model.block_mask import refuse_attention

        role = causal(role, WHERE)
        module: Any = role.module
        if adapted(module):
            raise Refused("adapters", WHERE, "a model without adapters", "adapters, which would not read the mask", "write lora after masked_blocks")
        refuse_attention(module, WHERE)
        config = copy.deepcopy(module.config)
        mask_id = self.known(role.tokenizer) if self.mask is not None else added_row(module, role.anatomy)
        config.vocab_size = len(module.get_input_embeddings().weight)
        blocks = {"length": self.length, "mask_id": mask_id, "added": self.mask is None, "shift": self.shift}
        setattr(config, masked_blocks.CONFIG, blocks)
        use_config(module, config)
        made = masked_blocks.MaskedBlocks(module, role.tokenizer, role.anatomy)
        made.provenance, made.learns, made.state = role.provenance, role.learns, role.state
        made.layout, made.training = role.layout, role.training
        return made

    def known(self, tokenizer: Any) -> int:
        """The id of the entry that is the mask.

        Raises:
            Refused: `mask`, where the tokenizer has none of that name, or it ends a text.
        """
        found = tokenizer.get_vocab().get(self.mask)
        if found is None or found == tokenizer.eos_token_id:
            got, do = "the end of a text" if found is not None else "none of this name", "leave out mask: one is added"
            raise Refused("mask", f"{WHERE}.mask", "an entry of the tokenizer that no text holds", f"{self.mask}: {got}", do)
        return int(found)


def added_row(module: Any, anatomy: Any) -> int:
    """Adds an id at the end of the vocabulary, and returns it.

    Raises:
        Refused: `part`, for a head that is more than a matrix.
    """
    table, head = (module.get_submodule(anatomy.path(part)) for part in ("embedding", "head"))
    if type(head) is not nn.Linear or head.bias is not None:
        got = "one with a bias" if isinstance(head, nn.Linear) else type(head).__name__
        raise Refused("part", WHERE, "a head that is one matrix", got, "name an entry of the tokenizer: mask: NAME")
    before, tied = len(table.weight), head.weight is table.weight
    for part in (table,) if tied else (table, head):
        rows = part.weight.detach()
        new = torch.zeros_like(rows[:1]) if part is head else rows.float().mean(0, keepdim=True).to(rows)
        part.weight = nn.Parameter(torch.cat([rows, new]), requires_grad=part.weight.requires_grad)
    if tied:
        head.weight = table.weight
    table.num_embeddings = head.out_features = before + 1
    for part in module.modules():
        if getattr(part, "vocab_size", None) == before:
            part.vocab_size = before + 1
    return before
