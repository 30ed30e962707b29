"""Several sets of weights into one."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
