"""Laying what roles say side by side."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
