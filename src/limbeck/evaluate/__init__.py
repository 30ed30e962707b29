"""How close, how good, how fast."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
