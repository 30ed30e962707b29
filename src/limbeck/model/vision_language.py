"""Vision-language models of transformers: text with an image in it, read position by position."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck.errors import Refused
from limbeck.model.anatomy import Anatomy
from limbeck.model.base import Tap, listening, taps
from limbeck.model.headers import quoted
from limbeck.model.pixels import PROCESSOR, Preprocessing, refuse_pixels
from limbeck.model.text import Text
from limbeck.model.vision_family import VisionFamily
from limbeck.signals import Logits, Row, View
from limbeck.store import write_json
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.spans import READ, encode
from limbeck.text.tokens import encoded

MARK = "<image>"
"""Stands in the text of a row, once, where its image is read; whatever the tokenizer calls it."""
SEEN = ("patch_features", "patch_embedding")
"""What the connector hears and says."""
PROCESSORS = "processor_config.json"
"""Where a folder of transformers says how text and images are put together."""


class VisionLanguage(Text):
    """Speaks for a model that reads an image as visual tokens among those of the text, and writes.

    A row holds `pixels` and a text with one `<image>` in its prompt. That mark becomes as many positions as this model has visual tokens,
    found by trying its tower on one image: a config may say otherwise. So every role has its own view, and knows of every position
    whether it is of the image, of the prompt, or of what is to be answered. All that a language model says it says too, targets being those
    of the answer; on the unit `patch` it says `patch_features` (what the connector hears), `patch_embedding` (what it says),
    `patch_hidden.i` (after a block) and `patch_logits` (of the head, at these positions). `patch_features` and `patch_embedding` can be
    put in the place of its own.
    """

    offers = (Text.offers - {"text"}) | {*SEEN, "patch_hidden", "patch_logits"}

    def __init__(
        self, module: Any, tokenizer: Any, anatomy: Anatomy, family: VisionFamily, layout: Literal["auto", "packed", "padded"] = "auto"
    ):
        super().__init__(module, tokenizer, anatomy, layout)
        self.family = family
        self.preprocessing: Preprocessing = getattr(module, "preprocessing", None) or Preprocessing()
        self.image_id = int(module.config.image_token_id)

    def refuse_change(self, where, surgeries):
        if where != "compile" and not (surgeries and all(surgery.kind == "drop_blocks" for surgery in surgeries)):
            do = "write drop_blocks alone under student.surgery, or start from another model"
            got = ", ".join(surgery.kind for surgery in surgeries) or where.split(".")[-1]
            raise Refused("part", where, "drop_blocks, which takes blocks of the language part, or no surgery", got, do)

    @property
    def reads_as(self) -> tuple[Any, ...]:
        return (type(self).__name__, self.num_patches, self.image_id, *self.around)

    @property
    def puts_in(self) -> Mapping[str, int]:
        return {"patch": self.num_patches, "pos": self.num_patches + len(self.around)}

    @property
    def around(self) -> tuple[int, ...]:
        """Ids that its tokenizer has for the begin and the end of an image, as InternVL's do; none: visual tokens stand alone."""
        ids: list[Any] = [getattr(self.tokenizer, f"{name}_image_token_id", None) for name in ("start", "end")]
        return () if None in ids else tuple(ids)

    @property
    def mark(self) -> str:
        """How its tokenizer writes an image.

        Raises:
            Refused: `tokenizer`, for one that would cut it into pieces of text.
        """
        if isinstance(self.tokenizer, ByteTokenizer):  # context plays no part in it: the bytes of the mark are found again
            return MARK
        added = {i: token for token, i in self.tokenizer.get_added_vocab().items()}
        if self.image_id not in added:
            do = "add it to the tokenizer, and name its id as image_token_index in config.json"
            raise Refused("tokenizer", type(self.tokenizer).__name__, f"an added token of id {self.image_id:,}, for an image", "none", do)
        return added[self.image_id]

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of the images that its tower hears."""
        config: Any = self.module.config
        side = self.preprocessing.size or config.vision_config.image_size
        return (self.preprocessing.channels, *((side, side) if isinstance(side, int) else side))

    @cached_property
    def num_patches(self) -> int:
        """Visual tokens of one image.

        Raises:
            Refused: `size`, where the tower cannot read images of the size that its config names.
        """
        empty = torch.zeros(1, *self.shape, dtype=torch.uint8, device=next(self.module.parameters()).device)
        try:
            with listening(self.module), torch.no_grad():
                return len(self.see(empty, {})["patch_embedding"])
        except (RuntimeError, ValueError) as error:
            where, got = f"{self.family.vision} of {type(self.module).__name__}", quoted(" ".join(str(error).split()), 160)
            raise Refused("size", where, "images that it can read", got, "correct its config") from None

    def see(self, pixels: Shaped[Tensor, "row channel height width"], inject: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "patch dim"]]:
        """What the connector hears and says of some images."""
        reads = {"patch_features": Tap(self.family.connector, "input"), "patch_embedding": Tap(self.family.connector)}
        writes = {name: (reads[name], x.unflatten(0, (len(pixels), -1))) for name, x in inject.items() if name == "patch_features"}
        dtype = next(self.module.get_submodule(self.family.vision).parameters()).dtype
        with taps(self.module, reads, writes) as heard:
            self.module.get_image_features(pixel_values=self.preprocessing(pixels, dtype))  # type: ignore[operator]
        return {**{name: x.flatten(0, 1) for name, x in heard.items()}, **{name: x for name, x in inject.items() if name in SEEN}}

    def refuse(self, rows: Sequence[Row]) -> None:
        refuse_pixels(rows, self.preprocessing.channels)
        self.fits([len(self.read(row)[0]) for row in rows], [row.key for row in rows])

    def read(self, row: Row) -> tuple[list[int], list[bool], list[bool]]:
        """Ids of a row, which positions are asked for, and which are of its image.

        Raises:
            Refused: `image`, where its text and its one image disagree.
        """
        mark = self.mark
        content = {name: spelled(value, mark) if name in READ else value for name, value in row.content.items() if name not in ("pixels", "label")}
        ids, asked = encode(Row(row.key, content), self.tokenizer)
        pattern = encoded(mark, self.tokenizer)
        at = [i for i in range(len(ids) - len(pattern) + 1) if ids[i : i + len(pattern)] == pattern]
        if len(at) != 1 or any(asked[at[0] : at[0] + len(pattern)]):
            got = f"{len(at)} of {MARK}" if len(at) != 1 else f"{MARK} in what is to be answered"
            do = f"write {MARK} once, in the prompt or the first question, where the image is to be read"
            raise Refused("image", f"row {row.key}", f"one {MARK} in the prompt, for its one image", got, do)
        end, num = at[0] + len(pattern), self.num_patches

        def put(x: list[Any], value: Any, beside: Sequence[Any]) -> list[Any]:
            return [*x[: at[0]], *beside[:1], *[value] * num, *beside[1:], *x[end:]]

        beside = self.around
        no = [False] * len(beside)
        return put(ids, self.image_id, beside), put(asked, False, no), put([False] * len(ids), True, no)

    def view(self, rows: Sequence[Row]) -> View:
        refuse_pixels(rows, self.preprocessing.channels)
        found = [self.read(row) for row in rows]
        self.fits([len(ids) for ids, _, _ in found], [row.key for row in rows])
        on: dict[str, Any] = {"device": "cpu"}  # moved with the window
        ids, asked, patches = ([x for part in parts for x in part] for parts in zip(*found, strict=True)) if found else ([], [], [])
        return View(
            {"ids": torch.tensor(ids, dtype=torch.long, **on), "pixels": torch.stack([row.content["pixels"] for row in rows])},
            torch.tensor([len(part[0]) for part in found], dtype=torch.long, **on),
            torch.tensor(asked, dtype=torch.bool, **on),
            patches=torch.tensor(patches, dtype=torch.bool, **on),
            shift=self.shift,
        )

    def question(self, row: Row) -> tuple[dict[str, Tensor], str, str]:
        """What stands before the first answer of a row, as its own class takes it; the same as text without the image; and that answer."""
        view, device = self.view([row]), next(self.module.parameters()).device
        asked, seen, ids = view.span("response"), view.span("vision"), view.inputs["ids"]
        first = int(asked.int().argmax())
        end = first + int((~asked[first:]).int().argmax()) if not asked[first:].all() else len(ids)
        dtype = next(self.module.get_submodule(self.family.vision).parameters()).dtype
        pixels, before = self.preprocessing(view.inputs["pixels"].to(device), dtype), ids[None, :first].to(device)
        inputs = {"input_ids": before, "attention_mask": torch.ones_like(before), "pixel_values": pixels}
        words = [self.tokenizer.decode(some.tolist(), skip_special_tokens=True) for some in (ids[:first][~seen[:first]], ids[first:end])]
        return inputs, words[0], words[1]

    def fits(self, lengths: Sequence[int], names: Sequence[str]) -> None:
        for length, name in zip(lengths, names, strict=True):
            if self.context is not None and length > self.context:
                do = "shorten the text of the row, or start from a model with a longer context"
                expected = f"at most {self.context:,} tokens, the context of {type(self.module).__name__}"
                raise Refused("context", f"row {name}", expected, f"{length:,} tokens, {self.num_patches:,} of them of the image", do)

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        if view.patches is None:
            do = "leave out what asks about text alone, or start from a language model"
            raise Refused("image", type(self.module).__name__, "rows that hold an image each", "text alone", do)
        patch, pixels, none = view.patches.nonzero()[:, 0], view.inputs["pixels"], view.num_rows == 0
        if none:  # as text: one is run, and nobody listens
            pixels = torch.zeros(1, *pixels.shape[1:], dtype=pixels.dtype, device=pixels.device)
        seen = {name: x[:0] if none else x for name, x in self.see(pixels, {} if none else inject).items()}
        if len(patch) != len(seen["patch_embedding"]):
            got = f"{len(patch):,} of them, for images of {len(seen['patch_embedding']):,} visual tokens"
            raise Refused("image", type(self.module).__name__, "a position for each visual token", got, "let the role read the rows itself")
        flat, unflat, inputs = self.lay_out(view)
        words = self.module.get_submodule(self.anatomy.path("embedding"))(view.inputs["ids"].masked_fill(view.patches, 0))
        inputs = {name: x for name, x in inputs.items() if name != "input_ids"}
        inputs["inputs_embeds"] = unflat(words.index_copy(0, patch, seen["patch_embedding"].to(words.dtype)))
        beside = {name: name.removeprefix("patch_") for name in names if name.startswith("patch_hidden.")}
        beside |= {"patch_logits": "final"} if "patch_logits" in names else {}
        asked = (*(name for name in names if not name.startswith("patch_")), *beside.values())
        out = self.run(view, asked, {name: x for name, x in inject.items() if name not in SEEN}, flat, unflat, inputs)
        out |= {name: out[heard][patch] for name, heard in beside.items()} | seen
        if "patch_logits" in out:
            out["patch_logits"] = Logits(out["patch_logits"], self.head, torch.is_grad_enabled())
        return {name: out[name] for name in names}

    def probe(self, num: int) -> dict[str, Tensor]:
        """A text with an image in it, as its own class takes it: of so many ids, and noise."""
        noise = torch.rand(1, *self.shape, generator=torch.Generator().manual_seed(0), device="cpu")
        ids = torch.arange(num, device="cpu") % (self.vocab or num)
        ids = torch.cat([ids[:1], torch.full((self.num_patches,), self.image_id, device="cpu"), ids[ids != self.image_id]])
        return {"input_ids": ids[None], "pixel_values": noise}

    def accompany(self, folder: Path) -> None:
        """What transformers' processors read; a tokenizer of bytes has none."""
        write_json(folder / PROCESSOR, self.preprocessing.processor())
        if self.family.family != "llava" or isinstance(self.tokenizer, ByteTokenizer):
            return
        config: Any = self.module.config
        strategy, patch, (_, high, wide) = config.vision_feature_select_strategy, config.vision_config.patch_size, self.shape
        more = self.num_patches - (high // patch) * (wide // patch) + (strategy == "default")
        told = {"processor_class": "LlavaProcessor", "image_token": self.mark, "patch_size": patch, "num_additional_image_tokens": more}
        write_json(folder / PROCESSORS, {**told, "vision_feature_select_strategy": strategy})


def spelled(value: Any, mark: str) -> Any:
    """A text, or what is made of texts, with the mark of images as a tokenizer writes it."""
    if isinstance(value, str):
        return value.replace(MARK, mark)
    if isinstance(value, Mapping):
        return {name: spelled(x, mark) for name, x in value.items()}
    return type(value)(spelled(x, mark) for x in value) if isinstance(value, (list, tuple)) else value
