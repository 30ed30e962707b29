"""A tokenizer as bytes: what each id spells, and who loses something."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import Refused
from limbeck.text.bytes_of import LETTERS, Spelling, exact, spelled_alike, spelling
from limbeck.text.bytes_tokenizer import ByteTokenizer


def made(normalizer: Any = None, sentencepiece: bool = False) -> Any:
    """A small tokenizer of transformers: over bytes as in GPT-2, or with ▁, <0x..> and a space put in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if sentencepiece:
        pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "<?>", "▁", *"he", "▁h"]
        tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "h")], byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        tokenizer.add_special_tokens(["<unk>", "<s>"])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "he"])}, [("h", "e")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(["<end>", "<turn>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


KINDS = {"bytes": ByteTokenizer(), "level": made(), "sentencepiece": made(sentencepiece=True)}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_ids_spell_their_text(kind: str, text: str) -> None:
    if kind == "sentencepiece" and "▁" in text:
        return  # the one character that it takes for a space
    tokenizer, spelled = KINDS[kind], spelling(KINDS[kind])
    assert spelled is not None
    ids = [i for i in tokenizer.encode(text, add_special_tokens=False)]
    whole = b"".join(spelled.bytes[i] for i in ids)
    assert whole[bool(ids) and spelled.led(ids[0]) :] == text.encode()


def test_every_byte_has_one_letter() -> None:
    from tokenizers import pre_tokenizers

    assert sorted(LETTERS.values()) == list(range(256)) and set(LETTERS) == set(pre_tokenizers.ByteLevel.alphabet())
    assert LETTERS["Ġ"] == 32 and LETTERS["Ċ"] == 10


def test_one_byte_is_spelled_exactly_so_and_a_question_is_none() -> None:
    tokenizer = KINDS["sentencepiece"]
    spelled, ids = exact(tokenizer, "here"), tokenizer.get_vocab()
    assert spelled.bytes[ids["<0xE2>"]] == b"\xe2" and spelled.bytes[ids["<?>"]] == b"<?>"


def test_marks_spell_nothing_and_keep_what_they_are_for() -> None:
    level = exact(KINDS["level"], "here")
    assert level.marks == {257: "end", 258: "<turn>"} and level.bytes[257:] == (b"", b"")
    assert exact(ByteTokenizer(), "here").marks == {256: "begin", 257: "end"}
    assert exact(KINDS["sentencepiece"], "here").marks[1] == "begin"


def test_a_tokenizer_that_changes_text_is_refused_and_says_what_is_lost() -> None:
    from tokenizers import normalizers

    for normalizer, lost in ((normalizers.Lowercase(), "'hello world'"), (normalizers.NFKC(), "fin"), (normalizers.NFC(), "é")):
        with pytest.raises(Refused) as caught:
            exact(made(normalizer), "tokenizer of teacher")
        assert caught.value.slug == "tokenizer" and lost in caught.value.got and caught.value.where == "tokenizer of teacher"
    with pytest.raises(Refused, match="tokenizer"):
        exact(None, "here")


def test_entries_are_matched_by_their_bytes_and_never_by_their_names() -> None:
    level, piece = KINDS["level"], KINDS["sentencepiece"]
    one, other = (exact(tokenizer, "here") for tokenizer in (level, piece))
    found = dict(spelled_alike(one, other))
    ours, theirs = level.get_vocab(), piece.get_vocab()
    assert found[ours["Ġ"]] == theirs["▁"] and found[ours["h"]] == theirs["h"] != theirs["<0x68>"]  # the piece that is written, not its byte
    assert found[ours["Â"]] == theirs["<0xC2>"] and theirs["▁h"] not in found.values() and theirs["<?>"] not in found.values()
    assert all(one.bytes[i] == other.bytes[j] for i, j in found.items())
    assert ours["<turn>"] not in found and set(ours) & set(theirs) != {name for name, i in ours.items() if i in found}


def test_of_several_ids_with_one_spelling_the_last_counts_and_marks_without_a_name_match_nothing() -> None:
    one = Spelling((b"a", b"b", b"a", b"", b""), {3: "end", 4: "id 4"}, False)
    other = Spelling((b"", b"a", b"c", b"a", b""), {0: "end", 4: "id 4"}, False)
    assert spelled_alike(one, other) == ((2, 3), (3, 0)) and spelled_alike(other, one) == ((0, 3), (3, 2))
