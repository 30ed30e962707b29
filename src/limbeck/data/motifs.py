"""Random DNA, in some of which a motif is hidden."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from limbeck.data.base import Place, Source, key_of
from limbeck.errors import Refused
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.store import sha256_json
from limbeck.text.nucleotides import BASES

TRIES = 100
"""How often a sequence is drawn again that holds a motif by chance."""


class Motifs(Source):
    r"""Draws sequences of random bases; in every second one a motif is planted at a random place, in each other one the motif's letters shuffled.

    $$ x \sim \mathrm{Uniform}(A, C, G, T)^{n}, \qquad
       x_{j:j+m} = \begin{cases} \text{motif} & y = 1 \\ \text{the same letters, shuffled anew} & y = 0 \end{cases} $$

    `label` is y, whether the motif is there; a sequence with y = 0 that holds one by chance is drawn again. How often each base stands in a sequence
    tells nothing about y, only their order does. Each planted letter is replaced by another one with the probability `mutate`. A seed of their
    own draws the motifs, so that they are the same in all runs; the seed of the recipe draws everything else. For trials and claims about models
    of DNA; it says nothing about genomes: `fasta` reads those.

    Example:
        >>> Motifs(num=100, bases=50).motif_length
        18

    References:
        Sandve and Drabløs, A survey of motif discovery methods in an integrated framework, Biology Direct 1:11, 2006 (planted motifs).
    """

    kind: Literal["motifs"] = "motifs"
    makes: ClassVar[str] = "dna"
    num: Annotated[int, Field(ge=2, le=1_000_000)] = 1000
    """Sequences drawn, with those held out."""
    bases: Annotated[int, Field(ge=8, le=100_000)] = 100
    """Bases in a sequence."""
    motif_length: Annotated[int, Field(ge=4)] = 18
    """Bases in a motif."""
    motifs: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many motifs there are; a sequence holds one of them at most."""
    motif_seed: int = 0
    """Of the motifs."""
    mutate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a planted letter is another one."""
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of sequences that is held out for evaluation, chosen by hash."""
    licence: str | None = "CC0-1.0"
    """Licence of the rows, for the model card."""

    @model_validator(mode="after")
    def motif_fits(self) -> "Motifs":
        if self.motif_length > self.bases:
            raise ValueError(f"motif_length: at most bases, {self.bases}")
        return self

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            do = "remove held_out"
            raise Refused("key", "data motifs  held_out", "sequences, of which split holds out a share", f"held_out: {path}", do)
        stream = place.streams("motifs")
        own = Streams(self.motif_seed)("motifs", "themselves")  # not the stream of the sequences: they would begin with the motif
        motifs = torch.randint(4, (self.motifs, self.motif_length), generator=own, device="cpu")
        drawn = [self.row(i, motifs, stream) for i in range(self.num)]
        rows = [self.without(i, motifs, place) if row is None else row for i, row in enumerate(drawn)]
        told = ", ".join(spelled(motif) for motif in motifs[:3]) + ", ..." * (self.motifs > 3)
        facts = {"name": "motifs", "sha256": sha256_json([row.key for row in rows]), "rows": len(rows), "licence": self.licence}
        return rows, facts, [f"motifs: {told} in {sum(row.content['label'] for row in rows):,} of {len(rows):,} sequences"]

    def without(self, i: int, motifs: torch.Tensor, place: Place) -> Row:
        """A sequence that holds no motif, in the place of one that did by chance; of a stream of its own, so that no other row is moved.

        Raises:
            Refused: `value`, where almost any sequence holds one.
        """
        stream = place.streams("motifs", "again", i)
        for _ in range(TRIES):
            if (row := self.row(i, motifs, stream)) is not None:
                return row
        got = f"a motif of {self.motif_length} bases by chance in {TRIES} of {TRIES} sequences of {self.bases:,}"
        raise Refused("value", "data motifs  motif_length", "sequences without any motif", got, "take longer or fewer motifs, or fewer bases")

    def row(self, i: int, motifs: torch.Tensor, stream: torch.Generator) -> Row | None:
        """One sequence; the i-th holds a motif if i is odd. None where it holds one by chance and should not."""
        drawn = torch.randint(4, (self.bases,), generator=stream, device="cpu")
        motif = motifs[(i // 2) % self.motifs]
        if i % 2 == 0:
            motif = motif[torch.randperm(self.motif_length, generator=stream, device="cpu")]
        other = torch.rand(self.motif_length, generator=stream, device="cpu") < self.mutate
        motif = torch.where(other, (motif + torch.randint(1, 4, motif.shape, generator=stream, device="cpu")) % 4, motif)
        at = int(torch.randint(self.bases - self.motif_length + 1, (1,), generator=stream, device="cpu"))
        drawn[at : at + self.motif_length] = motif
        text = spelled(drawn)
        if i % 2 == 0 and any(spelled(each) in text for each in motifs):
            return None
        key = key_of("motifs", text, str(i % 2))
        return Row(key, {"text": text, "label": i % 2}, source=key)


def spelled(bases: torch.Tensor) -> str:
    """Numbers from 0 to 3 as letters."""
    return "".join(BASES[i] for i in bases.tolist())
