"""Denoisers of latents: images are noisy in the code of an autoencoder, and what conditions them is a caption."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.model.denoiser import NO_LABEL, Denoiser, no_null
from limbeck.numerics import upcast
from limbeck.signals import Row, View

WITH_CAPTION = 0
"""In a view: the label of a row that is asked with its caption."""


class Encoders:
    """What stands before a denoiser of latents: an autoencoder of images, and an encoder of captions with its tokenizer.

    Both are frozen, in eval mode and in float32, and no part of the module: they are neither trained nor counted. What they said of a row is
    kept, and all copies of a role share them. Of an image the mean of the code is taken, not a draw. Each row is encoded alone, so that its
    code does not depend on its neighbours.
    """

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, content: str):
        """Args:
        vae: AutoencoderKL of diffusers.
        text_encoder: of transformers; the first that it says is heard.
        tokenizer: of the captions.
        content: what their weights are known by: views of roles with the same are the same.
        """
        self.vae, self.text_encoder, self.tokenizer, self.content = vae, text_encoder, tokenizer, content
        for part in (vae, text_encoder):
            part.eval().requires_grad_(False)
        self.codes: dict[str, Float[Tensor, "channel height width"]] = {}
        self.states: dict[str, Float[Tensor, "place dim"]] = {}
        self.cut: set[str] = set()
        """Captions that are longer than can be heard."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Encoders":
        return self

    @property
    def factor(self) -> int:
        """Pixels of a side for one place of the code."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def places(self) -> int:
        """Tokens of a caption, with those around it."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def to(self, device: torch.device) -> "Encoders":
        for part in (self.vae, self.text_encoder):
            if part.device != device:
                part.to(device)
        return self

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Inside nothing is learned, and nothing rounded, whatever precision the network runs in: what is said there is kept."""
        kind = self.vae.device.type
        with torch.no_grad(), nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
            yield

    def encoded(self, pixels: UInt8[Tensor, "channel height width"]) -> Float[Tensor, "channel height width"]:
        """The code of an image, scaled as denoisers hear it."""
        key = hashlib.sha256(repr(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).hexdigest()
        if key not in self.codes:
            config, image = self.vae.config, pixels[None].to(self.vae.device).float() / 127.5 - 1
            with self.exactly():
                mean = self.vae.encode(image, return_dict=False)[0].mode()[0]
            self.codes[key] = ((mean - (config.shift_factor or 0)) * config.scaling_factor).cpu()
        return self.codes[key]

    def decoded(self, codes: Float[Tensor, "row channel height width"]) -> Float[Tensor, "row colour high wide"]:
        """Images between -1 and 1, one by one: a large one fills the memory by itself."""
        config = self.vae.config
        plain = codes.to(self.vae.device).float() / config.scaling_factor + (config.shift_factor or 0)
        with self.exactly():
            return torch.cat([self.vae.decode(one, return_dict=False)[0].cpu() for one in plain.split(1)])

    def heard(self, caption: str) -> Float[Tensor, "place dim"]:
        """States of a caption, filled up to all places, and cut where it is longer."""
        if caption not in self.states:
            how = {"padding": "max_length", "truncation": True, "max_length": self.places, "return_tensors": "pt"}
            ids = self.tokenizer(caption, **how).input_ids.to(self.text_encoder.device)
            with self.exactly():
                said = self.text_encoder(ids)[0][0].float()
            self.states[caption] = said if said.is_meta else said.cpu()
        return self.states[caption]

    def measure(self, captions: Sequence[str]) -> None:
        """Notes which captions will be cut."""
        new = [caption for caption in dict.fromkeys(captions) if len(caption.encode("utf-8", "replace")) >= self.places - 2]
        if new:  # a token is a byte at least
            found = self.tokenizer(new, verbose=False).input_ids
            self.cut |= {caption for caption, ids in zip(new, found, strict=True) if len(ids) > self.places}


class Latents(Denoiser):
    """Speaks for a text-to-image network that hears noisy codes of an autoencoder.

    Rows hold `pixels` and a `text`, their caption. A view holds the code as `clean`, what the encoder says of the caption as `caption`, and
    `label`: 0 asks with the caption; -1 without a condition, which is the empty caption.
    """

    samples = ("pixels",)
    conditions = ("caption",)

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.encoders: Encoders = module.encoders  # type: ignore[assignment]
        self.reads_as = ("latents", self.encoders.content)

    def refuse_change(self, where, surgeries):
        super().refuse_change(where, surgeries)
        if other := [dict(surgery)["kind"] for surgery in surgeries if not surgery.keeps_weights]:
            do = "use lora, or train the whole network"
            raise Refused("part", where, "a change after which the network is one of a pipeline still", other[0], do)

    @property
    def shape(self) -> tuple[int | None, ...]:
        return (self.network.config.in_channels, None, None)

    @property
    def halved(self) -> int:
        return 1

    @property
    def num_classes(self) -> int:
        """With a caption."""
        return 1

    def cuts(self) -> tuple[str, ...]:
        num = len(self.encoders.cut)
        return (f"captions: {num:,} of more than {self.encoders.places} tokens, which are cut there",) if num else ()

    def view(self, rows: Sequence[Row]) -> View:
        self.refuse(rows)
        device = next(self.module.parameters()).device
        encoders = self.encoders.to(device)
        codes = [encoders.encoded(torch.as_tensor(row.content["pixels"], device="cpu")) for row in rows]
        captions = [encoders.heard(row.content["text"]) for row in rows]
        return View({"clean": torch.stack(codes), **self.asked(captions)})

    def asked(self, captions: Sequence[Float[Tensor, "place dim"]]) -> dict[str, Tensor]:
        """Conditions as a view holds them."""
        label = torch.full((len(captions),), WITH_CAPTION, dtype=torch.long, device="cpu")
        return {"label": label, "caption": torch.stack(list(captions))}

    def refuse(self, rows: Sequence[Row]) -> None:
        sizes: set[tuple[int, ...]] = set()
        for row in rows:
            where = f"row {row.key}"
            if "pixels" not in row.content:
                do = "use a source of images with captions: image_folder with captions"
                raise Refused("data", where, "pixels, which are noisy in the code of an autoencoder", ", ".join(row.content), do)
            if not isinstance(row.content.get("text"), str):
                do = "write captions: at the image_folder, metadata.jsonl or .txt"
                raise Refused("data", where, "a caption: text beside its pixels", ", ".join(row.content), do)
            sizes.add(size := tuple(row.content["pixels"].shape))
            self.refuse_image(size, where)
            if len(sizes) > 1:
                got = " and ".join(" x ".join(map(str, each)) for each in sorted(sizes))
                raise Refused("size", where, "images of one size", got, "write size: at the sources, so that all are scaled to it")
        self.encoders.measure([row.content["text"] for row in rows])

    def refuse_image(self, size: tuple[int, ...], where: str) -> None:
        """Refuses an image that the autoencoder does not give back at the size it had."""
        channels, factor, got = self.encoders.vae.config.in_channels, self.encoders.factor, " x ".join(map(str, size))
        if len(size) != 3 or size[0] != channels:
            raise Refused("size", where, f"images of {channels} channels", got, f"write channels: {channels} at the source of the rows")
        if any(side % factor for side in size[1:]):
            near = max(1, round(max(size[1:]) / factor)) * factor
            expected = f"sides that are multiples of {factor}, of which the autoencoder makes one place of its code"
            raise Refused("size", where, expected, got, f"write size: {near} at the source of the rows, the nearest")

    def pictured(self, samples: Float[Tensor, "row channel height width"]) -> Float[Tensor, "row colour high wide"]:
        return self.encoders.decoded(samples)

    def usual(self, num: int) -> dict[str, Tensor]:
        return self.asked([self.encoders.heard("")] * num)

    def condition(self, view: View) -> Float[Tensor, "row place dim"]:
        """What is heard beside the sample; the empty caption stands for none.

        Raises:
            Refused: `condition`, where rows are asked without one and the network was never trained so.
        """
        label, states = view.inputs.get("label"), view.inputs.get("caption")
        if label is None:
            label = torch.full((view.num_rows,), NO_LABEL if states is None else WITH_CAPTION, device=view.device)
        alone = label < 0
        if self.parametrisation.null_label is None and bool(alone.any()):
            raise no_null("forward")
        empty = self.encoders.to(view.device).heard("").to(view.device) if states is None or bool(alone.any()) else None
        if states is None:
            assert empty is not None
            return empty.expand(view.num_rows, *empty.shape)
        return states if empty is None else torch.where(alone[:, None, None], empty, upcast(states))

    def beside(self, condition: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"encoder_hidden_states": condition.to(dtype)}

    def row_cost(self, rows: Sequence[Row]) -> tuple[float, float] | None:
        if not rows:
            return None
        _, high, wide = rows[0].content["pixels"].shape
        code = torch.zeros(self.network.config.in_channels, high // self.encoders.factor, wide // self.encoders.factor, device="cpu")
        return super().row_cost([Row(rows[0].key, {"pixels": code})])
