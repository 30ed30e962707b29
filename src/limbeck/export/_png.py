"""Small pictures inside the report: the one function that makes a data URI."""

import base64
import struct
import zlib
from typing import Any

MOST_SIDE = 64
"""Pictures are thinned to this, so that a page stays small."""


def png(pixels: Any) -> bytes:
    """The PNG file of a tensor of `[channel, height, width]` bytes: one channel is grey, three are colours, of others the mean is shown."""
    if pixels.shape[0] not in (1, 3):
        pixels = pixels.float().mean(0, keepdim=True).to(pixels.dtype)
    every = max(1, -(-max(pixels.shape[1:]) // MOST_SIDE))
    channels, high, wide = (pixels := pixels[:, ::every, ::every]).shape
    lines = pixels.permute(1, 2, 0).reshape(high, wide * channels).cpu().numpy()
    packed = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines), 9)
    head = struct.pack(">2I5B", wide, high, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def data_uri(pixels: Any) -> str:
    """A picture as text that an `<img>` shows without asking anybody."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")
