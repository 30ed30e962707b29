"""Encoder-decoders of speech that transformers has: a waveform in, and the text of what was said, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.model.anatomy import Anatomy, family_files
from limbeck.model.base import listening
from limbeck.model.headers import quoted
from limbeck.model.log_mel import HOP, RATE, extractor, log_mel
from limbeck.model.measured_cost import measured_cost
from limbeck.model.sound import EXTRACTOR, Hearing
from limbeck.model.text import Text
from limbeck.model.waves import one_wave
from limbeck.signals import Row, View
from limbeck.store import write_json

USUAL_TOKENS = 32
"""Positions of a transcript whose length is not known yet."""


def is_transcriber(module: Any) -> bool:
    """Whether a module is an encoder-decoder of transformers that hears and writes, of a family that is known."""
    config = getattr(module, "config", module)
    return str(getattr(config, "model_type", "")) in family_files("speech")


class Transcriber(Text):
    """Speaks for a model whose encoder hears a waveform and whose decoder writes what was said: Whisper, or what was distilled from it.

    A row holds a `wave`, an empty `prompt` and as `answer` its transcript. Positions are those of the decoder: the tokens with which its
    tokenizer begins (of Whisper: start, language, task, no time marks), the transcript, and the end; targets are transcript and end. So all
    that a language model says it says too, layers being those of the decoder, and text of two vocabularies is aligned as any other. The
    waveform is heard as log-mel features of a window of one length, 30 s in the published models, with silence behind what is shorter: a clip
    says the same whoever is beside it. What a config asks for by chance in training, masked spans and dropped blocks, is switched off.
    """

    offers = Text.offers - {"text", "mixing"}
    packs = False

    def __init__(self, module: Any, tokenizer: Any, anatomy: Anatomy, layout: Literal["auto", "packed", "padded"] = "auto"):
        super().__init__(module, tokenizer, anatomy, layout)
        self.hearing = Hearing(RATE, normalise=False)
        config: Any = module.config
        config.apply_spec_augment, config.encoder_layerdrop, config.decoder_layerdrop = False, 0.0, 0.0
        for part in (module.model.encoder, module.model.decoder):
            part.layerdrop = 0.0

    @property
    def writes(self) -> bool:
        return False  # not after text alone

    def refuse_change(self, where, surgeries):
        if where != "compile" and not (surgeries and all(surgery.kind == "drop_blocks" for surgery in surgeries)):
            do = "write drop_blocks alone under student.surgery, or start from another model"
            got = ", ".join(surgery.kind for surgery in surgeries) or where.split(".")[-1]
            raise Refused("part", where, "drop_blocks, which takes blocks of the decoder, or no surgery", got, do)

    @property
    def reads_as(self) -> tuple[Any, ...]:
        return (type(self).__name__,)

    @property
    def bands(self) -> int:
        """Bands of the features that it hears."""
        config: Any = self.module.config
        return config.num_mel_bins

    @property
    def window(self) -> int:
        """Numbers of the longest waveform that it hears: its encoder has one position for two frames."""
        config: Any = self.module.config
        return 2 * HOP * config.max_source_positions

    def refuse(self, rows: Sequence[Row]) -> None:
        for row in rows:
            wave = one_wave(row, RATE)
            if not 0 < len(wave) <= self.window:
                do = "cut the clip into shorter ones, each with what is said in it, or leave it out"
                expected = f"a clip of at most {self.window / RATE:g} s, the window of {type(self.module).__name__}"
                raise Refused("length", f"row {row.key}", expected, f"{len(wave) / RATE:,.2f} s", do)
            if not isinstance(row.content.get("answer"), str):
                do = "name where transcripts are: transcripts of sound_folder"
                raise Refused("transcript", f"row {row.key}", "a sound with its transcript", ", ".join(row.content), do)
            if row.content.get("prompt"):
                do = "leave out the step that writes it"
                raise Refused("prompt", f"row {row.key}", "no words before the transcript", quoted(row.content["prompt"]), do)

    def view(self, rows: Sequence[Row]) -> View:
        self.refuse(rows)
        view, waves = super().view(rows), [row.content["wave"] for row in rows]
        if view.asked is not None and bool(view.asked[view.offsets == 0].any()):
            where, expected = type(self.tokenizer).__name__, "a tokenizer that puts a begin before a text"
            raise Refused("tokenizer", where, expected, "one that puts nothing there", "give it a post-processor, and save it again")
        instants = torch.tensor([len(wave) for wave in waves], dtype=torch.long, device="cpu")
        wave = torch.cat(waves) if waves else torch.zeros(0, device="cpu")
        return replace(view, inputs={**view.inputs, "wave": wave}, instants=instants)

    def features(self, view: View) -> Float[Tensor, "row band frame"]:
        """What its encoder hears of each row."""
        assert view.instants is not None, "these rows have no waveform"
        waves = view.inputs["wave"].split(view.instants.tolist())
        filled = torch.stack([nn.functional.pad(wave, (0, self.window - len(wave))) for wave in waves])
        return log_mel(filled, self.bands).to(next(self.module.parameters()).dtype)

    def lay_out(self, view: View) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], dict[str, Tensor]]:
        if view.instants is None:
            do = "leave out what asks about text alone, or start from a language model"
            raise Refused("data", type(self.module).__name__, "rows that hold a sound each", "text alone", do)
        flat, unflat, inputs = super().lay_out(view)
        heard = self.features(view) if view.num_rows else self.silence()
        return flat, unflat, {"input_features": heard, **{f"decoder_{name}": x for name, x in inputs.items()}}

    def silence(self) -> Float[Tensor, "row band frame"]:
        """The features of one row of nothing."""
        return next(self.module.parameters()).new_zeros(1, self.bands, self.window // HOP)

    def row_cost(self, rows: Sequence[Row]) -> tuple[float, float] | None:
        lengths = [len(self.view([row]).inputs["ids"]) for row in rows if self.tokenizer is not None] or [USUAL_TOKENS]
        ids = torch.zeros(1, max(lengths), dtype=torch.long, device=next(self.module.parameters()).device)
        return measured_cost(self.module, lambda: self.module(input_features=self.silence(), decoder_input_ids=ids))

    def transcribe(self, rows: Sequence[Row], new_tokens: int = 224) -> list[str]:
        """What it writes of each row, taking the best entry each time and none left out, up to its end or so many tokens."""
        module, end = self.module, self.tokenizer.eos_token_id
        view = self.view(rows).to(next(module.parameters()).device)
        if not rows:
            return []
        begin = view.inputs["ids"][: int(view.targets[0])]  # the same of all rows, whose prompts are empty
        with listening(module), torch.no_grad():
            heard = module.model.encoder(self.features(view))  # type: ignore[union-attr, operator]
            ids, known, written = begin.expand(len(rows), -1), None, []
            done = torch.zeros(len(rows), dtype=torch.bool, device=ids.device)
            for _ in range(min(new_tokens, (self.context or new_tokens) - len(begin))):
                said = module.model(encoder_outputs=heard, decoder_input_ids=ids, past_key_values=known, use_cache=True)  # type: ignore[operator]
                ids, known = self.head(said.last_hidden_state[:, -1]).argmax(-1, keepdim=True), said.past_key_values
                done = done | (ids[:, 0] == end)
                written.append(ids.masked_fill(done[:, None], end))
                if done.all():
                    break
        every = torch.cat(written, 1).tolist()
        return [self.tokenizer.decode([i for i in row if i != end], skip_special_tokens=True).strip() for row in every]

    def probe(self, num: int) -> dict[str, Tensor]:
        """Noise and a text of so many ids, as its own class takes them."""
        random = torch.Generator().manual_seed(0)
        wave = 0.1 * torch.randn(1, self.window, generator=random, device="cpu")
        ids = torch.arange(min(num, self.context or num), device="cpu") % (self.vocab or num)
        return {"input_features": log_mel(wave, self.bands), "decoder_input_ids": ids[None]}

    def accompany(self, folder: Path) -> None:
        """What transformers' feature extractor reads."""
        write_json(folder / EXTRACTOR, extractor(self.bands, self.window / RATE))
