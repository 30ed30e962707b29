"""How many bytes of text each id stands for."""

from typing import Any

import pytest
import torch

from limbeck.evaluate._token_bytes import token_bytes
from limbeck.signals import View
from limbeck.text.bytes_tokenizer import ByteTokenizer

TEXTS = ("Hello world", " two  spaces\n\n\tand a tab", "Straße, naïve", "日本語 🙂", "a")


def byte_level() -> Any:
    """As in GPT-2: a character of the vocabulary is a byte; here with three longer pieces, an end mark and a plain added token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ll", "llo", "Ġw"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("l", "l"), ("ll", "o"), ("Ġ", "w")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|turn|>", special=True)])
    tokenizer.add_tokens([AddedToken("日記")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def metaspace() -> Any:
    """As in Llama 2: a space is written as ▁, one is put in front, and bytes without a piece are <0x..>."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"Helo wrd", "ll", "ß", "▁w"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("l", "l"), ("▁", "w")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def bytes_of(tokenizer: Any, *texts: str, first: int = 0) -> int:
    """Bytes that the targets of some texts stand for, where the first `first` positions are not predicted."""
    found = token_bytes(tokenizer)
    assert found is not None
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    view = View({"ids": torch.tensor([i for x in ids for i in x])}, torch.tensor([len(x) for x in ids]), shift=first)
    return int(found.at_targets(view).sum())


@pytest.mark.parametrize("make", [ByteTokenizer, byte_level, metaspace])
def test_the_ids_of_a_text_stand_for_all_its_bytes(make):
    tokenizer = make()
    for text in TEXTS:
        assert bytes_of(tokenizer, text) == len(text.encode()), text
    assert bytes_of(tokenizer, *TEXTS) == sum(len(text.encode()) for text in TEXTS)


def test_what_is_never_predicted_is_not_counted():
    assert bytes_of(ByteTokenizer(), "Straße", first=1) == 6
    assert bytes_of(byte_level(), "llo world", first=1) == 6  # the first id is `llo`


def test_marks_stand_for_nothing_and_added_words_for_themselves():
    assert bytes_of(byte_level(), "a<|end|>日記") == 1 + 0 + 6
    assert bytes_of(byte_level(), "<|turn|>a") == 1  # a mark that no role of the tokenizer names
    assert token_bytes(ByteTokenizer()).sizes[254:].tolist() == [1, 1, 0, 0]


def test_a_space_that_the_tokenizer_puts_in_front_is_not_text():
    tokenizer = metaspace()
    assert tokenizer.tokenize("world")[0] == "▁w"
    assert bytes_of(tokenizer, "world") == 5 and bytes_of(tokenizer, " world") == 6


def test_a_tokenizer_that_drops_spaces_says_nothing():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    assert token_bytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")) is None
    assert token_bytes(None) is None
