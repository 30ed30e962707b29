"""Direction and distance of normalised states, against numbers worked by hand."""

import math

import torch

from limbeck.objective.hidden_normed import HiddenNormed
from limbeck.signals import Signals


def said(states: list[list[float]], name: str = "hidden.-1") -> Signals:
    rows = torch.zeros(len(states), dtype=torch.long)
    x = torch.tensor(states, dtype=torch.float64)
    return Signals({name: x}, {"pos": rows, "chunk": rows, "row": torch.zeros(1, dtype=torch.long)}, ("",), torch.zeros(1), torch.ones(1))


def test_two_states_by_hand() -> None:
    """(1, 2, 3, 4) has mean 2.5 and variance 1.25; (1, -1, 1, -1) is normalised already, up to epsilon 1e-5."""
    student, teacher = [1.0, 2.0, 3.0, 4.0], [1.0, -1.0, 1.0, -1.0]
    a, b = [(x - 2.5) / math.sqrt(1.25 + 1e-5) for x in student], [x / math.sqrt(1 + 1e-5) for x in teacher]
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
    far = sum(g * g / 2 if g < 1 else g - 0.5 for g in gaps) / 4
    assert min(gaps) < 1 < max(gaps)  # both branches
    for weight in (0.1, 0.0, 2.0):
        value = HiddenNormed(distance_weight=weight).values(said([student]), said([teacher]))
        assert math.isclose(value.item(), 1 - cosine + weight * far, rel_tol=1e-12)
    assert math.isclose(cosine, -0.4472135955, rel_tol=1e-6)  # -1 / sqrt(5)


def test_neither_size_nor_mean_of_a_state_counts() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 64, generator=draw, dtype=torch.float64).tolist() for _ in range(2))
    plain = HiddenNormed().values(said(a), said(b))
    other = HiddenNormed().values(said([[100 * x - 7 for x in row] for row in a]), said([[0.5 * x + 3 for x in row] for row in b]))
    torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-4)  # the epsilon of the norm


def test_of_stretches_the_unit_is_the_stretch() -> None:
    objective = HiddenNormed(signal="chunk_hidden", layers=(1, 2))
    assert objective.unit == "chunk" and objective.needs["teacher"] == ("chunk_hidden.1", "chunk_hidden.2") and HiddenNormed().unit == "pos"
