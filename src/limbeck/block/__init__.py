"""What can stand in the place of a block's attention or MLP."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
