"""Tokenizers over the letters of DNA, and what is known of such letters."""

from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

from limbeck.errors import Refused

BASES = "ACGT"
UNKNOWN = "N"
"""Stands for any base."""
ALPHABET = BASES + UNKNOWN
COMPLEMENT = str.maketrans(ALPHABET, "TGCAN")
NAMES = {"kmer6": 6, "nucleotides": 1}
"""Name of a tokenizer -> bases in its longest entry."""
MARKS = ("<unk>", "<pad>", "<mask>", "<cls>")
"""Entries that spell nothing, with the first ids; the last one stands before each sequence."""
SPELLED: WeakKeyDictionary[Any, frozenset[str] | None] = WeakKeyDictionary()
"""Tokenizer -> the letters that it knows, where it knows no others."""


def nucleotide_tokenizer(span: int) -> Any:
    """Cuts a sequence into `span` bases at a time, from the left, and begins anew after each unknown base; what is left over stays single letters.

    Upper case alone: what a lower case letter means (as a rule a repeat) is for whoever reads the file.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["".join(bases) for bases in product(BASES, repeat=span)] if span > 1 else []
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*MARKS, *words, *ALPHABET])}, unk_token=MARKS[0]))
    pattern = f"[{BASES}]{{{span}}}|." if words else "."
    made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")  # type: ignore[assignment]
    made.decoder = decoders.Fuse()  # type: ignore[assignment]
    made.post_processor = processors.TemplateProcessing(single=f"{MARKS[-1]} $A", special_tokens=[(MARKS[-1], len(MARKS) - 1)])  # type: ignore[assignment]
    unknown, pad, mask, begin = MARKS
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown, pad_token=pad, mask_token=mask, cls_token=begin)


def letters_of(tokenizer: Any) -> frozenset[str] | None:
    """The letters of a tokenizer that writes every text of theirs and no other; None for one that takes any text.

    Such a one is told by its decoder, which puts entries together as they are.
    """
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        return None
    if tokenizer not in SPELLED:
        plain = type(tokenizer.backend_tokenizer.decoder).__name__ == "Fuse"
        known = [entry for entry, i in tokenizer.get_vocab().items() if i not in tokenizer.all_special_ids] if plain else []
        SPELLED[tokenizer] = frozenset(entry for entry in known if len(entry) == 1) if plain else None
    return SPELLED[tokenizer]


def check_letters(text: str, known: frozenset[str], where: str) -> None:
    """Refuses a text with a letter that is none of these, by its place.

    Raises:
        Refused: `letter`.
    """
    place = next((i for i, letter in enumerate(text) if letter not in known), None)
    if place is not None:
        others = sum(letter not in known for letter in text)
        got = f"{text[place]!r} at letter {place + 1:,}" + f", and {others - 1:,} more" * (others > 1)
        do = "read it with a fasta source, which takes lower case, and other: unknown for further letters"
        raise Refused("letter", where, f"a sequence of {', '.join(sorted(known))}", got, do)
