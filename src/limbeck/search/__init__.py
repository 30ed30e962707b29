"""Propose, score, keep: which variant of each layer."""
