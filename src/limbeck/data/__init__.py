"""Rows in, rows out: sources, packing, mixing."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
