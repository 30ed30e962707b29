"""Recovers the clean sound from what the student says of a corrupted one."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.numerics import upcast
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals

SLACK = 4
"""Spectra that may be left over behind the last frame, in frames: windows of the model are longer than its steps."""


class EnhancementHead(Objective):
    r"""Has a learned head read from the student which part of each frequency is the sound and not the noise, frame by frame.

    $$ \frac{1}{F} \sum_{f=1}^{F} \big| \sigma(m_{tf}) \, |Y_{tf}| - |X_{tf}| \big| $$

    Y is the short-time spectrum of what the student hears, X that of what the teacher hears, m what a bidirectional LSTM makes of the
    student's states, each repeated for the spectra of its frame. Without something that corrupts the student's sound, such as `corrupt_sound`,
    both are one and a mask of ones is all there is to learn. A second task beside a divergence of states, whose head is left out of what is
    exported. From the last state it asks the whole student to keep what is the sound; from the front only its convolutions.

    Example:
        >>> EnhancementHead(hears="front").needs["student"]
        ('front', 'wave')

    References:
        Guimarães et al., RobustDistiller: Compressing Universal Speech Representations for Enhanced Environment Robustness, 2023, arXiv:2302.09437.
    """

    kind: Literal["enhancement_head"] = "enhancement_head"
    hears: Literal["hidden", "front"] = "hidden"
    """hidden: the last state of the student; front: what its convolutions say."""
    window: Annotated[int, Field(ge=4)] = 400
    """Numbers of a waveform that a spectrum is made of, under a Hann window: 25 ms at 16 kHz."""
    size: Annotated[int, Field(ge=4)] = 512
    """Numbers that they are filled up to: the spectrum has half as many frequencies, and one."""
    hop: Annotated[int, Field(ge=1)] = 160
    """Numbers between spectra: 10 ms at 16 kHz."""
    repeat: Annotated[int, Field(ge=1)] = 2
    """Spectra to a frame of the student."""
    width: Annotated[int, Field(ge=1)] = 256
    """Of the LSTM, each way."""
    depth: Annotated[int, Field(ge=1)] = 3
    """Layers of the LSTM."""
    power: Literal[1, 2] = 1
    """1: absolute differences; 2: their squares."""

    @classmethod
    def example(cls) -> "EnhancementHead":
        return cls(window=6, size=8, hop=4, width=5, depth=2)

    @model_validator(mode="after")
    def window_within_size(self) -> "EnhancementHead":
        if self.window > self.size:
            raise ValueError("window: at most size")
        return self

    @property
    def unit(self) -> str:
        return "pos"

    @property
    def state(self) -> str:
        """What is heard of the student."""
        return "front" if self.hears == "front" else "hidden.-1"

    @property
    def needs(self) -> Needs:
        return {"student": (self.state, "wave"), "teacher": ("wave",)}

    def build(self, example: Mapping[str, Signals]) -> nn.Module:
        student = example["student"]
        self.check_frames(student)
        return Masker(student[self.state].shape[-1], self.width, self.depth, self.size // 2 + 1)

    def check_frames(self, student: Signals) -> None:
        """Whether there are as many spectra of each row as its frames ask for.

        Raises:
            Refused: `value`, where there are not.
        """
        for wave, states in zip(rows(student, "wave"), rows(student, self.state), strict=True):
            spectra, asked = 1 + len(wave) // self.hop, self.repeat * len(states)
            if not asked <= spectra <= asked + SLACK * self.repeat:
                got = f"{spectra} spectra for {len(states)} frames"
                do = f"write hop: {len(wave) // max(asked, 1)}, or another repeat"
                raise Refused("value", "enhancement_head.hop", f"{self.repeat} spectra to a frame of the student", got, do)

    def values(self, student: Signals, teacher: Signals, learned: nn.Module) -> Float[Tensor, " pos"]:
        states = upcast(student[self.state])
        if not len(states):
            return states.sum(-1)
        self.check_frames(student)
        frames = [one.repeat_interleave(self.repeat, 0) for one in rows(student, self.state)]
        noisy, clean = (torch.cat(self.spectra(said, frames)) for said in (student, teacher))
        gap = (learned(frames) * noisy - clean).abs() ** self.power
        return gap.unflatten(0, (len(states), self.repeat)).mean((1, 2))

    def spectra(self, said: Signals, frames: Sequence[Tensor]) -> list[Float[Tensor, "spectrum frequency"]]:
        """Magnitudes of each row's sound, as many as there are frames."""
        window = torch.hann_window(self.window, dtype=upcast(said["wave"]).dtype, device=said["wave"].device)
        how: dict[str, Any] = {"hop_length": self.hop, "win_length": self.window, "window": window, "pad_mode": "constant", "return_complex": True}
        each = (torch.stft(upcast(wave), self.size, **how).abs().mT for wave in rows(said, "wave"))
        return [one[: len(asked)] for one, asked in zip(each, frames, strict=True)]


def rows(said: Signals, name: str) -> tuple[Tensor, ...]:
    """A signal row by row."""
    of = said.rows["instant" if name == "wave" else "pos"]
    return upcast(said[name]).split(torch.bincount(of, minlength=said.num("row")).tolist())


class Masker(nn.Module):
    """States of frames to shares of frequencies; what stands behind the end of a row is never seen."""

    def __init__(self, dim: int, width: int, depth: int, frequencies: int):
        super().__init__()
        self.lstm = nn.LSTM(dim, width, depth, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, frequencies)

    def forward(self, rows: Sequence[Float[Tensor, "spectrum dim"]]) -> Float[Tensor, "every frequency"]:
        packed = nn.utils.rnn.pack_sequence(list(rows), enforce_sorted=False)
        heard = nn.utils.rnn.unpack_sequence(self.lstm(packed)[0])
        return torch.sigmoid(self.out(torch.cat(heard)))
