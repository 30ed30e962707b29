"""Addresses of servers: https, or this machine; never with a key or a name in them."""

import ipaddress
from urllib.parse import urlsplit

from limbeck.errors import Refused


def address(text: str, where: str) -> str:
    """The address of a server without a slash at its end.

    Raises:
        Refused: `url`, for one that is not https (http only on this machine), or that holds more than host, port and path. What may be
            a secret is not repeated.
    """

    def refused(expected: str, got: str, do: str) -> Refused:
        return Refused("url", where, expected, got, do)

    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise refused("an address like https://host/v1", "one that cannot be read", "correct url") from None
    if not text.isascii() or any(c <= " " or c in '\\"<>^`{|}\x7f' for c in text) or port == 0:
        raise refused("an address like https://host/v1", "characters that no address has", "correct url")
    if "@" in parts.netloc:
        raise refused("an address without a name or password", "something in front of @", "remove it, and name the variable: key_env: NAME")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise refused("an address without a key: host, port and path", "more behind ? or #", "remove it, and name the variable: key_env: NAME")
    if parts.scheme not in ("https", "http") or not host:
        raise refused("an address like https://host/v1", ascii(text[:60]), "correct url")
    if parts.scheme == "http" and not is_loopback(host):
        raise refused("https, or http on this machine", f"http to {host}", "write https://, or reach it through a tunnel: http://localhost:PORT")
    return text.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
