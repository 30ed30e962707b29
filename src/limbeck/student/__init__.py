"""How a student is made: surgeries."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
