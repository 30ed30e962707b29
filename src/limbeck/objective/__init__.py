"""How far apart two roles are."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
