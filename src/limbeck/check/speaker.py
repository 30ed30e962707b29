"""A program that stands in for espeak-ng, where contracts must hold without it."""

import sys
from pathlib import Path

SPEAKER = r"""
import array, math, re, sys
if "--version" in sys.argv:
    print("eSpeak NG text-to-speech: 0.1  Data at: nowhere")
elif "--voices" in sys.argv:
    print("Pty Language Age/Gender VoiceName File Other\n 2 en-us --/M English_(America) gmw/en-US (en 3)\n 2 en-gb --/M English_(Britain) gmw/en")
elif "--voices=variant" in sys.argv:
    print("Pty Language Age/Gender VoiceName File Other\n 5 variant --/F female2 !v/f2")
else:
    sound = array.array("h")
    for speed, pitch, words in re.findall(r"\x01(\d+)S \x01(\d+)P (.*?) \x01", sys.stdin.read()):
        period = 140 - int(pitch) // 2 - sum(map(ord, words)) % 40
        wave = array.array("h", [round(9000 * math.sin(2 * math.pi * i / period)) for i in range(period)])
        sound += wave * (22050 * 30 * len(words.split()) // int(speed) // period) + array.array("h", [0]) * 44100
    size = (1 << 31) - 4096
    form = [b"RIFF", size + 36, b"WAVEfmt ", 16, 1 | 1 << 16, 22050, 44100, 2 | 16 << 16, b"data", size]
    sys.stdout.buffer.write(b"".join(x if isinstance(x, bytes) else x.to_bytes(4, "little") for x in form) + sound.tobytes())
"""
"""A program that is asked as espeak-ng is, and answers with tones: their period tells pitch and words, their length speed and number of words."""


def write_speaker(folder: Path) -> Path:
    """A folder that holds `espeak-ng`, made of `SPEAKER`, so that contracts hold where the program is not installed."""
    folder.mkdir(parents=True)
    (folder / "espeak-ng").write_text(f"#!{sys.executable} -IS\n{SPEAKER}", encoding="utf-8")
    (folder / "espeak-ng").chmod(0o755)
    return folder
