"""Pitch trackers: sound in, the log-odds of 360 pitches out, a hundred times a second."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.model.base import Role, listening
from limbeck.model.crepe import FRAME, Crepe
from limbeck.model.measured_cost import measured_cost
from limbeck.model.pitch_scale import BINS, HOP, RATE, off_scale
from limbeck.model.sound import Hearing
from limbeck.signals import Head, Logits, Row, View

AT_ONCE = 128
"""Frames in one pass of a model that does not learn: the first layer of the published one keeps 3 MB of each."""
LEAST = 1e-10
"""That a frame is divided by at least."""


class Pitch(Role):
    """Speaks for a network that tells pitch.

    A frame is 64 ms of sound, every 10 ms, the first around the first number of a row and silence beyond its ends; each is brought to mean 0 and
    standard deviation 1 by itself, so that loudness is not heard. Its targets are the frames. `logits` are log-odds of each of 360 bins, 20 cents
    apart: several may be likely, and none. They are no distribution, so that divergences of distributions between them tell little: `bernoulli_kl`
    compares them bin by bin. `pitch` is the label of a frame in Hz, 0 where there is none. Batch norm in a student sees one micro-batch at a
    time; in a teacher it has its own statistics.
    """

    offers = frozenset({"wave", "logits", "pitch"})
    ragged = False
    shift = 0
    exclusive = False
    compared_by = "pitch"
    vocab = BINS
    reads_as = ("pitch", RATE, FRAME, HOP)

    def __init__(self, module: Crepe):
        super().__init__(module)
        self.hearing = Hearing(RATE, normalise=False)

    def refuse_change(self, where, surgeries):
        do = f"remove {where.split('.')[-1]}, and start from a config of another size"
        raise Refused("part", where, "a language model, whose blocks are known", type(self.module).__name__, do)

    @property
    def head(self) -> Head:
        """From features to log-odds."""
        part: Any = self.module.classifier
        return Head(part.weight, part.bias)

    def view(self, rows: Sequence[Row]) -> View:
        self.refuse(rows)
        waves = [row.content["wave"] for row in rows]
        instants = torch.tensor([len(wave) for wave in waves], dtype=torch.long, device="cpu")
        inputs = {"wave": torch.cat(waves) if waves else torch.zeros(0, device="cpu")}
        if all("pitch" in row.content for row in rows):
            inputs["pitch"] = torch.cat([row.content["pitch"] for row in rows]) if rows else torch.zeros(0, device="cpu")
        return View(inputs, instants // HOP + 1, shift=0, instants=instants)

    def refuse(self, rows: Sequence[Row]) -> None:
        for row in rows:
            wave, rate, pitch, where = row.content.get("wave"), row.content.get("rate"), row.content.get("pitch"), f"row {row.key}"
            if not isinstance(wave, Tensor) or not wave.is_floating_point():
                got = "none" if wave is None else f"{getattr(wave, 'dtype', type(wave).__name__)}"
                raise Refused("data", where, "a waveform of real numbers", got, "use a source of sounds: tones, sound_folder")
            if wave.ndim != 1 or not len(wave):
                do = "mix the channels, or choose one, and leave out empty clips"
                raise Refused("channels", where, "a waveform of one channel, of one number at least", f"shape {tuple(wave.shape)}", do)
            if rate != RATE:
                raise Refused("rate", where, f"{RATE:,} numbers a second", f"{rate}", f"write rate: {RATE} at the source of the rows")
            if pitch is None:
                continue
            frames = len(wave) // HOP + 1
            if not isinstance(pitch, Tensor) or pitch.shape != (frames,) or not bool((pitch >= 0).all()):
                got = f"shape {tuple(pitch.shape)}" if isinstance(pitch, Tensor) and pitch.shape != (frames,) else "others"
                do = f"give one number every {1000 * HOP // RATE} ms from the beginning on"
                raise Refused("pitch", where, f"a pitch of each of its {frames:,} frames in Hz, 0 where there is none", got, do)
            if len(off := off_scale(pitch)):
                do = "write 0 for frames that are to have no pitch, or leave the row out"
                raise Refused("pitch", where, "pitches on the scale, from 31.7 to 2,006 Hz, or 0", f"{float(off[0]):,.6g} Hz", do)

    def frames(self, view: View) -> Float[Tensor, "frame instant"]:
        """The frames of all rows, as the network hears them."""
        assert view.instants is not None, "these rows have no waveform"
        wave = view.inputs["wave"].to(next(self.module.parameters()).dtype)
        if not view.num_rows:
            return wave.new_zeros(0, FRAME)
        padded = (nn.functional.pad(one, (FRAME // 2, FRAME // 2)) for one in wave.split(view.instants.tolist()))
        x = torch.cat([one.unfold(0, FRAME, HOP) for one in padded])
        x = x - x.mean(-1, keepdim=True)
        return x / x.std(-1, keepdim=True).clamp(min=LEAST)

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        if inject:
            raise Refused("inject", next(iter(inject)), "no states of frames to overwrite", "one", "use another forward")
        if "pitch" in names and "pitch" not in view.inputs:
            do = "use a source that knows it: tones; or leave out what learns from labels"
            raise Refused("label", "rows", "the pitch of each frame", "rows without", do)
        said: dict[str, Any] = {name: view.inputs.get(name) for name in ("wave", "pitch")}
        if "logits" in names:
            said["logits"] = Logits(self.features(self.frames(view)), self.head, torch.is_grad_enabled())
        return {name: said[name] for name in names}

    def features(self, frames: Float[Tensor, "frame instant"]) -> Float[Tensor, "frame dim"]:
        """What the head hears; batch norm that learns must see all frames together."""
        module: Any = self.module
        if not len(frames):  # it cannot be trained on nothing: silence is run as in evaluation, and nobody listens
            with listening(module):
                return module.features(frames.new_zeros(1, FRAME))[:0]
        return module.features(frames) if module.training else torch.cat([module.features(some) for some in frames.split(AT_ONCE)])

    def row_targets(self, rows: Sequence[Row]) -> int:
        return max((len(row.content["wave"]) for row in rows if "wave" in row.content), default=RATE) // HOP + 1

    def row_cost(self, rows: Sequence[Row]) -> tuple[float, float] | None:
        number, frame = self.row_targets(rows), next(self.module.parameters()).new_zeros(1, FRAME)
        flops, kept = measured_cost(self.module, lambda: self.module(frame))
        return flops * number, kept * number
