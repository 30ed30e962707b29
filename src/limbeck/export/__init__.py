"""Files that others can use."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
