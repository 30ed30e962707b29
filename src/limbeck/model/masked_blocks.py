"""Language models that fill in masked tokens, block by block."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import Refused
from limbeck.model.anatomy import Anatomy
from limbeck.model.block_mask import Seats, allowed, as_attention_mask, maskable, refuse_attention
from limbeck.model.text import WASTE, Text
from limbeck.numerics import RULED_OUT
from limbeck.signals import Head, Row, View

CONFIG = "limbeck_blocks"
"""Field of a config that says that a model of a causal class fills in blocks: `length`, `mask_id`, `added`, `shift`."""


@dataclass(frozen=True)
class Blocks:
    """What a config says of them."""

    length: int
    """Positions of a block."""
    mask_id: int
    """The id that stands where a token is hidden."""
    added: bool
    """Whether that id was added at the end of the vocabulary: then no text holds it, and it is no entry of the logits."""
    shift: Literal[0, 1] = 0

    @classmethod
    def of(cls, config: Any) -> "Blocks":
        """Read from a config, which may come from anywhere.

        Raises:
            Refused: `value`, for numbers that cannot be meant.
        """
        plain = getattr(config, CONFIG)
        kinds = {"length": int, "mask_id": int, "added": bool, "shift": int}
        good = isinstance(plain, Mapping) and set(plain) == set(kinds) and all(type(plain[name]) is kind for name, kind in kinds.items())
        if not good or plain["length"] < 1 or not 0 <= plain["mask_id"] < config.vocab_size or plain["shift"] not in (0, 1):
            expected = "length from 1, mask_id within the vocabulary, added: true or false, shift: 0 or 1"
            raise Refused("value", f"config.json  {CONFIG}", expected, str(plain)[:120], "fetch or save the model again")
        return cls(**plain)


class MaskedBlocks(Text):
    """Speaks for a language model that predicts the masked tokens of a block from the rest of it and from clean blocks before it.

    A row is laid out twice, with its masked tokens hidden and without; all blocks are predicted in one pass, each from the clean ones
    before it. Where a row is one block, the clean copy is left out. What is masked stands in the view (`masked`, `mask_weight`,
    `block_length`); in a view that does not say, all that is asked for is: what is said is then what the model would write at one pass a
    block. With `shift` 1 the state before a token predicts it, that before a block being of the clean copy: with blocks of one token the
    model is the causal one that it was. The first token of a row is given, as it is to causal models, so that both have the same targets.
    """

    offers = (Text.offers - {"text", "mixing"}) | {"target_weight", "maskable"}
    reads_as = ("masked_blocks",)
    loads = (
        "Loads with `transformers` as a causal language model, and is none: it fills in masked tokens, block by block, as `limbeck_blocks` in "
        "its `config.json` says. `limbeck.model.block_decoding.fill` writes with it; `generate` of its class would not."
    )

    def __init__(self, module: Any, tokenizer: Any, anatomy: Anatomy, layout: Literal["auto", "packed", "padded"] = "auto"):
        super().__init__(module, tokenizer, anatomy, layout)
        refuse_attention(module, type(module).__name__)
        self.blocks = Blocks.of(module.config)
        self.shift = self.blocks.shift

    @property
    def writes(self) -> bool:
        """No: `generate` of its class would go from left to right. See `limbeck.model.block_decoding`."""
        return False

    @property
    def vocab(self) -> int | None:
        """Entries of its logits: without the mask, where that was added."""
        num = super().vocab
        return num if num is None else num - self.blocks.added

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Final hidden states to logits, of which the mask is none, or is ruled out."""
        head, (added, mask_id) = super().head, (self.blocks.added, self.blocks.mask_id)
        if added and isinstance(head, Head):
            return head.cut(mask_id)
        if added:
            return lambda hidden: head(hidden)[..., :mask_id]
        ruled_out = torch.tensor([mask_id], device=next(self.module.parameters()).device)
        return lambda hidden: head(hidden).index_fill(-1, ruled_out, RULED_OUT)

    def whole(self, num: int) -> int:
        """Positions of the fewest blocks that hold so many tokens."""
        return -(-num // self.blocks.length) * self.blocks.length

    def view(self, rows: Sequence[Row]) -> View:
        view = super().view(rows)
        if not self.blocks.added and bool((at := view.inputs["ids"] == self.blocks.mask_id).any()):
            row = rows[int(view.rows("pos")[at][0])]
            raise Refused("mask", f"row {row.key}", "a text without the mask", f"id {self.blocks.mask_id} in it", "leave out the row, or add a mask")
        return replace(view, inputs={**view.inputs, "block_length": torch.full_like(view.ragged, self.blocks.length)}, asked=maskable(view))

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        given = self.given(view)
        return {**super().says(view, [name for name in names if name not in given], inject), **{n: x for n, x in given.items() if n in names}}

    def given(self, view: View) -> dict[str, Tensor]:
        """What is known of a view without running the model: as if all were masked, where it does not say."""
        one = view.inputs.get("mask_weight", torch.ones(len(view.inputs["ids"]), device=view.device))
        rows = view.rows("target")
        return {"target_weight": one[view.targets], "maskable": view.inputs.get("maskable", torch.bincount(rows, minlength=view.num_rows))}

    def lay_out(self, view: View) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], dict[str, Tensor]]:
        ids, offsets, lengths, row = view.inputs["ids"], view.offsets, view.ragged, view.rows("pos")
        if not len(ids):
            return super().lay_out(view)
        longest, num = int(lengths.max()), view.num_rows
        self.fits([longest], [f"{int(lengths.argmax())} of a window"])
        packed = self.layout == "packed" or self.layout == "auto" and num * longest * (1 - WASTE) > len(ids)
        place, shape = ((row * 0, torch.arange(len(ids), device=ids.device)), (1, len(ids))) if packed else ((row, offsets), (num, longest))
        length = view.inputs.get("block_length", torch.full_like(lengths, self.blocks.length))[row]
        two = bool((lengths > view.inputs.get("block_length", lengths.new_tensor(self.blocks.length))).any())
        masked = view.inputs.get("masked", maskable(view))

        def grid(x: Tensor, nothing: int = 0) -> Tensor:
            return x.new_full((*shape, *x.shape[1:]), nothing).index_put(place, x)

        def twice(noisy: Tensor, clean: Tensor) -> Tensor:
            return torch.cat([noisy, clean], 1) if two else noisy

        def unflat(x: Tensor) -> Tensor:
            return twice(grid(x), grid(x))

        last = ((offsets + 1) % length == 0) & (offsets + 1 < lengths[row])  # of a block, with a token behind that it predicts
        column = place[1] + shape[1] * last if two and self.shift else place[1]
        document, block = grid(row, -1), grid(offsets // length)
        seats = Seats(twice(document, document), twice(block, block), twice(document > -2, document < -2))
        inputs = {"position_ids": unflat(offsets), "attention_mask": as_attention_mask(allowed(seats, seats), self.module)}
        inputs["input_ids"] = twice(grid(ids.masked_fill(masked, self.blocks.mask_id)), grid(ids))
        if self.training and "embedding_noise" in view.inputs:
            table: Any = self.module.get_submodule(self.anatomy.path("embedding"))
            noise = embedding_noise(view, table.weight) * masked[:, None]
            inputs["inputs_embeds"] = table(inputs.pop("input_ids")) + twice(grid(noise), torch.zeros_like(grid(noise)))
        return lambda x: x[place[0], column], unflat, inputs


def embedding_noise(view: View, table: Tensor) -> Float[Tensor, "pos dim"]:
    """Gaussian noise for each position, in standard deviations of the embedding: a function of the row's own number, drawn on the CPU."""
    made = []
    for (size, seed), length in zip(view.inputs["embedding_noise"].tolist(), view.ragged.tolist(), strict=True):
        stream = torch.Generator("cpu").manual_seed(int(seed))
        made.append(size * torch.randn(length, table.shape[1], generator=stream, device="cpu"))
    return torch.cat(made).to(table) * table.detach().std()
