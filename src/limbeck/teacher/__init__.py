"""What the teacher says, and where from."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
