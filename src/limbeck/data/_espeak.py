"""The program espeak-ng: where it is, its version and voices, and what it says."""

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from limbeck.component import nearest, short
from limbeck.data._sounds import BadSound
from limbeck.errors import Failed, Refused

WHERE = "data spoken"
RATE = 22_050
"""Numbers a second that the program writes."""
TIMEOUT_SECONDS = 120
"""Of one process, which says its utterances in less than a second."""
TOGETHER = 64
"""Utterances that one process says: starting it costs as much as saying fifty words."""
PAUSE = 2
"""Seconds between utterances; within one no pause comes near half of it."""
USUAL = 175
"""Words a minute at which the pause is made, however fast the words are: it would be longer where they are slow."""
SILENT = 0.01
"""Of the peak: what is softer is silence."""
KEPT = 0.02
"""Seconds of silence that stay before and after what is said."""


class Utterance(NamedTuple):
    """What is said, and how."""

    words: str
    speed: int
    """Words a minute."""
    pitch: int
    """From 0 to 99 around the voice's own, 50."""


def run(*arguments: str, text: str = "") -> bytes:
    """What the program writes; `text` is what it reads, so that no word is taken for an option.

    Raises:
        Refused: `extra`, where it is not installed.
        Failed: `program`, where it takes too long or ends with an error.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        do = "apt-get install espeak-ng, or use data that needs no program: vowels, sound_folder"
        raise Refused("extra", WHERE, "the program espeak-ng", "not installed", do, 3)
    try:
        done = subprocess.run([program, *arguments], input=text.encode(), capture_output=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        got = f"none after {TIMEOUT_SECONDS} s"
    except OSError as error:
        got = short(f"{type(error).__name__}: {error}", 160)
    else:
        if not done.returncode:
            return done.stdout
        got = f"exit code {done.returncode}: {short(done.stderr.decode(errors='replace').strip() or 'no message', 160)}"
    raise Failed("program", f"{WHERE}  {program}", "an answer", got, f"see what it says: {program} {' '.join(arguments)} < words.txt", 4)


def version() -> str:
    found = re.search(rb"\b\d+\.\d[\w.+-]*", told := run("--version"))
    if found is None:
        raise Failed("program", WHERE, "the version of espeak-ng", short(told.decode(errors="replace")), "install espeak-ng again", 4)
    return found[0].decode()


def check(voices: Sequence[str]) -> None:
    """Checks that the program has all voices: for one that it has not it would take another, and say nothing.

    Raises:
        Refused: `voice`, with the nearest name.
    """
    lines = [line.split(maxsplit=4) for line in run("--voices").decode(errors="replace").splitlines()[1:]]
    languages = {line[1] for line in lines if len(line) > 4 and not line[4].startswith(("mb/", "!v/"))}  # mb: of mbrola, another program
    variants = set(re.findall(r"!v/(.+?) *(?:\(.*)?$", run("--voices=variant").decode(errors="replace"), flags=re.M))
    for voice in voices:
        language, plus, variant = voice.partition("+")
        for name, known, what in ((language, languages, "a language"), (variant, variants, "a variant")):
            if name not in known and (what == "a language" or plus):
                do = f"write {short(nearest(name, known), 200)}; espeak-ng --voices{'' if what == 'a language' else '=variant'} lists all"
                raise Refused("voice", f"{WHERE}  voices: {short(voice)}", f"{what} that espeak-ng has", short(name) or "none", do)


def said(voice: str, utterances: Sequence[Utterance]) -> list[Float[np.ndarray, " instant"]]:
    """What each utterance sounds like without the silence around it, from -1 to 1; raises `Failed`."""
    out = []
    for first in range(0, len(utterances), TOGETHER):
        some = utterances[first : first + TOGETHER]
        text = "".join(f"\x01{one.speed}S \x01{one.pitch}P {one.words} \x01{USUAL}S\n<break time='{PAUSE}s'/>\n" for one in some)
        try:
            parts = apart(heard(run("-b", "1", "-m", "--stdout", "-v", voice, "--stdin", text=text)))
            if len(parts) != len(some):
                raise BadSound(f"{len(parts)}, as pauses set them apart")
        except BadSound as error:
            do = "leave out this voice, or words that it does not say"
            raise Failed("sound", f"{WHERE}  voice {voice}", f"{len(some)} sounds", str(error), do, 4) from None
        out += parts
    return out


def heard(content: bytes) -> Float[np.ndarray, " instant"]:
    """The WAV that a program writes to a pipe before it knows how long it will be: all that follows is the sound, whatever length is stated.

    Raises:
        BadSound: where it is none of one channel, 16 bits and 22,050 numbers a second.
    """
    form, at = (), 12
    while content[:4] == b"RIFF" and at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        at += 8
        if name == b"data":
            break
        form = struct.unpack_from("<HHI6xH", content.ljust(at + 16, b"\0"), at) if name == b"fmt " else form
        at += size + size % 2
    if form != (1, 1, RATE, 16) or (len(content) - at) % 2:
        raise BadSound(f"no WAV of them: {len(content):,} bytes, which begin with {short(repr(content[:12]))}, form {form or 'unknown'}")
    return np.frombuffer(content[at:], "<i2") / 2.0**15


def apart(sound: Float[np.ndarray, " instant"]) -> list[Float[np.ndarray, " instant"]]:
    """What stands between pauses, each without the silence around it."""
    loud = np.flatnonzero(np.abs(sound) > SILENT * np.abs(sound).max(initial=0))
    ends = np.flatnonzero(np.diff(loud) > PAUSE / 2 * RATE)
    middles = (loud[ends] + loud[ends + 1]) // 2
    return [cut(part) for part in np.split(sound, middles)] if len(loud) else []


def cut(sound: Float[np.ndarray, " instant"]) -> Float[np.ndarray, " instant"]:
    """A sound without what is softer than a hundredth of its peak before and after it, but for 20 ms."""
    loud = np.flatnonzero(np.abs(sound) > SILENT * np.abs(sound).max())
    kept = round(KEPT * RATE)
    return sound[max(0, loud[0] - kept) : loud[-1] + 1 + kept]
