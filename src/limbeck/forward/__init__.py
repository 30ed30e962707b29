"""Which role sees what, in which order."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
