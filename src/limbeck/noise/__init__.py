"""How noise is added to samples, and what a prediction about a noisy sample means."""

from limbeck.component import menu

__getattr__, __dir__ = menu(__name__)
