"""Language models of transformers: ragged text in, signals out, packed or padded in between."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.errors import Refused
from limbeck.model.anatomy import Anatomy
from limbeck.model.base import Role, Tap, taps
from limbeck.model.mixing import by_position, mixing, picked
from limbeck.numerics import log_probs
from limbeck.signals import Head, Logits, Row, View, shaped
from limbeck.text.bytes_of import boundaries
from limbeck.text.spans import encode

LAYERED = frozenset({"hidden", "input", "mixer", "query", "key", "value"})
INSIDE = frozenset({"query", "key", "value"})
"""What happens inside of attention."""
AT_ONCE = 256
"""Targets whose logits exist at the same time, where only their log-probabilities are asked for."""
WASTE = 0.25
"""Padding is preferred to packing up to this share of padded positions: packing pays with attention over the whole pack."""


def text_view(rows: Sequence[Row], tokenizer: Any, shift: int) -> View:
    """Rows as one tokenizer reads them, end to end."""
    encoded = [encode(row, tokenizer) for row in rows]
    return View(
        {"ids": torch.tensor([i for ids, _ in encoded for i in ids], dtype=torch.long)},
        torch.tensor([len(ids) for ids, _ in encoded], dtype=torch.long),
        torch.tensor([a for _, asked in encoded for a in asked], dtype=torch.bool),
        shift=shift,
    )


def of_labels(logits: Logits, label: Tensor, boundary: Tensor | None) -> Tensor:
    """Log-probability of the label of each target, and of all boundary ids together; without such ids the first alone.

    Logits of so many targets exist at a time, and are made again in the backward pass.
    """

    def part(logits: Logits, label: Tensor) -> Tensor:
        log_q = log_probs(logits.dense())
        found = log_q.gather(-1, label[:, None])
        return torch.cat([found, log_q.index_select(-1, boundary).logsumexp(-1, keepdim=True)], -1) if boundary is not None else found

    if len(logits) <= AT_ONCE:
        return part(logits, label)
    cut = [slice(i, i + AT_ONCE) for i in range(0, len(logits), AT_ONCE)]
    return torch.cat([checkpoint(part, logits[some], label[some], use_reentrant=False) for some in cut])


class Text(Role):
    """Speaks for a causal or masked language model.

    Layers count from 1, as in papers: `hidden.0` is the embedding, `hidden.i` what the i-th block says, before any final
    norm; `input.i`, `mixer.i`, `query.i` belong to the i-th block, and so does `mixing.i`: the matrix by which its attention, or what
    stands in its place, mixes the positions of a row.
    """

    offers = frozenset({"text", "logits", "label", "asked", "target_logprob", "boundary_logprob", "mixing"}) | LAYERED
    packs = True
    """Whether rows can be run one behind the other, as one long row."""

    def __init__(self, module: nn.Module, tokenizer: Any, anatomy: Anatomy, layout: Literal["auto", "packed", "padded"] = "auto"):
        super().__init__(module)
        self.tokenizer, self.anatomy, self.layout = tokenizer, anatomy, layout
        self.num_layers = len(module.get_submodule(anatomy.path("blocks")))  # type: ignore[arg-type]
        self.context: int | None = anatomy.context(module.config)
        self.opened_layers, self.numbers = self.num_layers, tuple(range(self.num_layers))
        """Blocks of the model as it was opened, and for each block its number there, from 0."""
        self.shift, self.sees_targets = (1, False) if anatomy.causal else (0, True)
        self.hear_parts()

    def hear_parts(self) -> None:
        """Offers the inside of attention only where every block has attention as its family builds it, and text only where it can write."""
        place = self.anatomy.place("mixer")
        other = any(place in parts for parts in getattr(self.module.config, "layer_parts", None) or ())
        lacks = (INSIDE if other else frozenset()) | (frozenset() if self.anatomy.causal else {"text"})
        self.offers, self.lacks = (self.offers | self.lacks) - lacks, lacks

    def renumbered(self, keep: Sequence[int]) -> "Text":
        """Itself, after some blocks have gone: what it remembers of those that stay goes by their new numbers."""
        self.numbers = tuple(self.numbers[before] for before in keep)
        self.aside = {i: self.aside[before] for i, before in enumerate(keep) if before in self.aside}
        paths = {self.anatomy.path("block", before) + ".": self.anatomy.path("block", i) + "." for i, before in enumerate(keep)}
        told = [(name, how, next((path for path in paths if name.startswith(path)), None)) for name, how in self.origins.items()]
        self.origins = {paths[path] + name.removeprefix(path): how for name, how, path in told if path is not None}
        self.hear_parts()
        return self

    @property
    def vocab(self) -> int | None:
        """Entries of its logits: many families pad them beyond what the tokenizer has."""
        head = self.module.get_output_embeddings()  # type: ignore[operator]
        return None if head is None else len(head.weight)

    @property
    def last_layer(self) -> str:
        """Of the last block: what stands behind it is often shared with the embedding."""
        return self.anatomy.path("block", self.num_layers - 1) + "."

    def view(self, rows: Sequence[Row]) -> View:
        view = text_view(rows, self.tokenizer, self.shift)
        self.fits(view.ragged.tolist(), [row.key for row in rows])
        return view

    def fits(self, lengths: Sequence[int], names: Sequence[str]) -> None:
        """Refuses rows that are longer than what the model was made for."""
        for length, name in zip(lengths, names, strict=True):
            if self.context is not None and length > self.context:
                raise Refused(
                    "context",
                    f"row {name}",
                    f"at most {self.context:,} tokens, the context of {type(self.module).__name__}",
                    f"{length:,} tokens",
                    f"cut rows with a data step, such as {{kind: pack, length: {self.context}}}",
                )

    def tap(self, name: str) -> Tap:
        signal, layer = name.split(".")[0], self.layer(name)
        if signal == "hidden" and layer == 0:
            return Tap(self.anatomy.path("block", 0), "input")
        if signal == "hidden":
            return Tap(self.anatomy.path("block", layer - 1))
        if signal == "input":
            return Tap(self.anatomy.path("block", layer - 1), "input")
        return Tap(self.anatomy.path(signal, layer - 1), part=self.anatomy.part(signal))

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        return self.run(view, names, inject, *self.lay_out(view))

    def run(
        self,
        view: View,
        names: Sequence[str],
        inject: Mapping[str, Tensor],
        flat: Callable[[Tensor], Tensor],
        unflat: Callable[[Tensor], Tensor],
        inputs: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """What is said of laid out inputs; by the name `final` also the states that the head hears, at all positions."""
        reads = {name: self.tap(name) for name in names if name.split(".")[0] in LAYERED}
        writes = {name: (self.tap(name), unflat(x)) for name, x in inject.items()}
        mixers = {name: self.anatomy.path("mixer", self.layer(name) - 1) for name in names if name.split(".")[0] == "mixing"}
        drawn = view.inputs.get("head_draw")
        pick = None if drawn is None or not len(drawn) else picked(drawn[0])
        with taps(self.module, reads, writes) as heard, mixing(self.module, mixers, pick) as matrices:
            final = flat(self.body(**inputs).last_hidden_state)
        targets = view.targets
        out: dict[str, Any] = {name: flat(x) for name, x in heard.items()}
        out |= {name: by_position(matrix, view, flat) for name, matrix in matrices.items()}
        out |= {"final": final, "label": view.inputs.get("original", view.inputs["ids"])[targets]}
        out["asked"] = torch.zeros_like(view.inputs["ids"], dtype=torch.bool).index_fill(0, targets, True)
        before = self.before_head(final[targets - view.shift])  # the label shift, in this one place
        out["logits"] = Logits(before, self.head, torch.is_grad_enabled())
        if "target_logprob" in names or "boundary_logprob" in names:
            boundary = self.boundary(view.device) if "boundary_logprob" in names else None
            out |= zip(("target_logprob", "boundary_logprob"), of_labels(out["logits"], out["label"], boundary).unbind(-1), strict=False)
        return {name: out[name] for name in names}

    def boundary(self, device: torch.device) -> Tensor:
        """Ids of its head that begin where a word has ended."""
        ids, vocab = boundaries(self.tokenizer, type(self.module).__name__), self.vocab
        return torch.tensor([i for i in ids if vocab is None or i < vocab], device=device)

    def body(self, **inputs: Tensor) -> Any:
        """The model without its head."""
        extra = {"use_cache": False} if self.anatomy.causal else {}
        return self.module.get_submodule(self.anatomy.path("body"))(**inputs, **extra)

    def before_head(self, final: Tensor) -> Tensor:
        """Final hidden states as the head reads them."""
        return self.module.get_submodule(self.anatomy.path("before_head"))(final) if self.anatomy.has("before_head") else final

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """Final hidden states to logits, with the factor and the cap that some families put on them: a `Head`, where it is a plain matrix."""
        part, config = self.module.get_submodule(self.anatomy.path("head")), self.module.config
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        if type(part) is nn.Linear and not any(hooks for name, hooks in vars(part).items() if name.endswith("_hooks")):
            return Head(part.weight, part.bias, scale, cap)
        return lambda hidden: shaped(part(hidden), scale, cap)

    def probe(self, num: int) -> dict[str, Tensor]:
        """A text of so many ids, as its own class takes it."""
        ids = torch.arange(num, device="cpu") % self.module.config.vocab_size  # type: ignore[operator]
        return {"input_ids": ids[None]}

    def lay_out(self, view: View) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], dict[str, Tensor]]:
        """Functions between flat [pos, ...] and the model's layout, and the model's inputs."""
        ids, offsets, lengths = view.inputs["ids"], view.offsets, view.ragged
        if not len(ids):  # transformers cannot run nothing: it runs one position, and nobody listens
            one = ids.new_zeros(1, 1)
            return lambda x: x[0, :0], lambda x: x.new_zeros(1, 1, *x.shape[1:]), {"input_ids": one}
        longest, num = int(lengths.max()), view.num_rows
        self.fits([longest], [f"{int(lengths.argmax())} of a window"])  # a view may have been made for another role
        seen = view.inputs.get("seen")
        if self.layout != "packed" and len(ids) == num * longest and seen is None:  # equal lengths: nothing to mask
            shape = (num, longest)
            return lambda x: x.flatten(0, 1), lambda x: x.unflatten(0, shape), {"input_ids": ids.view(shape)}
        must = self.layout == "padded" or not (self.anatomy.causal and self.packs) or seen is not None
        padded = must or self.layout == "auto" and num * longest * (1 - WASTE) <= len(ids)
        if not padded:
            return lambda x: x[0], lambda x: x[None], {"input_ids": ids[None], "position_ids": offsets[None]}
        place = (view.rows("pos"), offsets)

        def unflat(x: Tensor) -> Tensor:
            return x.new_zeros(num, longest, *x.shape[1:]).index_put(place, x)

        return lambda x: x[place], unflat, {"input_ids": unflat(ids), "attention_mask": unflat(torch.ones_like(ids) if seen is None else seen.long())}
