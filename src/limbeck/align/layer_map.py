"""Which teacher layer stands beside which student layer."""

import math
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from limbeck.align.base import Align
from limbeck.errors import Refused

SIGNALS = frozenset({"hidden", "input", "mixer", "mixing", "query", "key", "value"})
Pairs = tuple[tuple[int, int], ...]


def last(student: int, teacher: int) -> Pairs:
    """The last layer of both."""
    return ((student, teacher),)


def last_k(student: int, teacher: int) -> Pairs:
    """Every student layer beside the last layers of the teacher, in order."""
    return tuple((i, teacher - student + i) for i in range(1, student + 1))


def uniform(student: int, teacher: int) -> Pairs:
    """Every student layer, spread evenly over the teacher; where depths do not divide, the layer below."""
    return tuple((i, i * teacher // student) for i in range(1, student + 1))


def uniform_consecutive(student: int, teacher: int) -> Pairs:
    """Every student layer beside each of its stretch of teacher layers, both ends included; 0 is the embedding."""
    k = math.ceil(teacher / student)
    return tuple((i, j) for i in range(1, student + 1) for j in range(k * (i - 1), k * i + 1) if j <= teacher)


def uniform_plus_last(student: int, teacher: int) -> Pairs:
    """Every student layer twice: as in uniform, and as in last_k."""
    return tuple(dict.fromkeys(pair for both in zip(uniform(student, teacher), last_k(student, teacher), strict=True) for pair in both))


MAPS = {f.__name__: f for f in (last, last_k, uniform, uniform_consecutive, uniform_plus_last)}


class LayerMap(Align):
    r"""Says which layers stand beside each other, once, for the forward and for every objective.

    With it, numbers in objectives (`layers: [0, 2]`, `layer: 1`) are those of its pairs, from 0. With $L_S$ and $L_T$ layers:
    `last` $(L_S, L_T)$; `last_k` $(i, L_T - L_S + i)$; `uniform` $(i, \lfloor i L_T / L_S \rfloor)$; `uniform_consecutive`
    $(i, j)$ for j in $[k(i-1), ki]$, $k = \lceil L_T / L_S \rceil$, cut at $L_T$; `uniform_plus_last` both of them; `explicit`
    the pairs that are given. `uniform_plus_last` did best for hidden states in the comparison below.

    Example:
        >>> LayerMap(map="explicit", pairs=((1, 2), (2, 4))).pairs
        ((1, 2), (2, 4))

    References:
        Udagawa et al., A Comparative Analysis of Task-Agnostic Distillation Methods, 2023, arXiv:2310.08797.
    """

    kind: Literal["layer_map"] = "layer_map"
    map: Literal["last", "last_k", "uniform", "uniform_consecutive", "uniform_plus_last", "explicit"] = "uniform"
    """How pairs are found; `explicit`: they are given."""
    pairs: tuple[tuple[int, int], ...] = Field(default=())
    """Student layer and teacher layer of each pair, for `explicit`: 1 is the first block, 0 the embedding, -1 the last block."""
    student: str = "student"
    """The role whose layers come first in a pair."""
    teacher: str = "teacher"
    """The role whose layers come second."""

    @model_validator(mode="after")
    def pairs_where_explicit(self) -> "LayerMap":
        if (self.map == "explicit") != bool(self.pairs):
            raise ValueError("pairs if, and only if, map is explicit")
        return self

    def settle(self, models):
        depth = {role: models[role].num_layers for role in (self.student, self.teacher)}
        ours, theirs = depth[self.student], depth[self.teacher]
        pairs = self.pairs if self.map == "explicit" else MAPS[self.map](ours, theirs)
        counts_back = self.map == "explicit"  # a map that runs out of teacher layers must not go on at the last one
        for pair in pairs:
            for number, role in zip(pair, (self.student, self.teacher), strict=True):
                if not -depth[role] * counts_back <= number <= depth[role]:
                    raise Refused(
                        "layer",
                        "align.layer_map",
                        f"layers from 0 to {depth[role]} of {role}",
                        f"the pair {pair} of map {self.map}",
                        "map: uniform" if self.map != "explicit" else "change the pair",
                    )
        return LayerMap(map="explicit", pairs=pairs, student=self.student, teacher=self.teacher)

    def expand(self, name):
        return tuple(f"{name.split('.')[0]}.{k}" for k in range(len(self.pairs)))

    def own(self, role: str, name: str) -> str:
        """`hidden.k` of pair k -> the role's own layer."""
        signal, _, number = name.partition(".")
        if role not in (self.student, self.teacher) or signal not in SIGNALS:
            return name
        if not -len(self.pairs) <= int(number) < len(self.pairs):
            raise Refused("layer", "objective", f"a pair of the layer map, from 0 to {len(self.pairs) - 1}", name, "change the number, or the map")
        return f"{signal}.{self.pairs[int(number)][role == self.teacher]}"

    def requires(self, role, names):
        return tuple(self.own(role, name) for name in names)

    def __call__(self, role, said, batch):
        if role not in (self.student, self.teacher):
            return said
        numbers = range(-len(self.pairs), len(self.pairs))
        signals = {name.split(".")[0] for name in said.values if name.split(".")[0] in SIGNALS}
        laid = {f"{s}.{k}": said.values[self.own(role, f"{s}.{k}")] for s in signals for k in numbers if self.own(role, f"{s}.{k}") in said.values}
        return replace(said, values={**{n: x for n, x in said.values.items() if n.split(".")[0] not in SIGNALS}, **laid})
