"""The tokenizers that limbeck brings along: each by its name, made from text that every Python has."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from limbeck.data.base import Rows
from limbeck.data.python_topics import PythonTopics
from limbeck.errors import Refused
from limbeck.model.loading import SHIPPED, named_tokenizer, tokenizer_names
from limbeck.model.opening import open_pretrained
from limbeck.text.bytes_of import exact
from limbeck.text.tokens import encoded

TEXT_SHA256 = "6b3565d0b8d2"
"""Begin of the hash of the text that python_4k was made from: it differs a little from one Python to the next."""


def texts() -> list[str]:
    """What is trained on where a tenth is held out."""
    return [row.content["text"] for row in PythonTopics(split=0.1).rows(Rows(), None).train]  # type: ignore[arg-type]


def trained() -> str:
    """The file python_4k.json, as it was made: byte-level BPE of 4,096 entries."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n"


def test_it_is_made_again_from_the_same_text() -> None:
    digest = hashlib.sha256("\0".join(texts()).encode()).hexdigest()
    if not digest.startswith(TEXT_SHA256):
        pytest.skip("this Python has other topics")
    file = SHIPPED / "python_4k.json"
    assert file.read_text(encoding="utf-8") == trained()
    assert file.stat().st_size < 120_000


def test_each_keeps_every_byte_and_is_known_by_its_name(tmp_path: Path) -> None:
    assert tokenizer_names() == ("bytes", "kmer6", "nucleotides", "python_4k")
    tokenizer = named_tokenizer("python_4k")
    assert len(tokenizer) == 4096
    assert exact(tokenizer, "here").marks == {0: "begin", 1: "end"}
    text = "The lambda expression yields a function object."
    assert len(encoded(text, tokenizer)) < len(text) / 3 and encoded(text, tokenizer, special=True)[0] == 0


def test_a_config_names_it_and_the_saved_model_brings_it_along(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    (tmp_path / "small.json").write_text(json.dumps({"model_type": "llama", **sizes, "tokenizer": "python_4k"}))
    opened = open_pretrained(f"config:{tmp_path / 'small.json'}")
    assert opened.config.vocab_size == 4096 and (opened.config.bos_token_id, opened.config.eos_token_id) == (0, 1)
    opened.module.save_pretrained(tmp_path / "saved")
    opened.tokenizer.save_pretrained(tmp_path / "saved")
    again = open_pretrained(f"path:{tmp_path / 'saved'}")
    assert again.tokenizer.get_vocab() == opened.tokenizer.get_vocab()
    ids = torch.tensor([encoded("a = 1", again.tokenizer, special=True)])
    assert torch.equal(again.module(ids).logits, opened.module(ids).logits)
    (tmp_path / "small.json").write_text(json.dumps({"model_type": "llama", **sizes, "tokenizer": "python_5k"}))
    with pytest.raises(Refused) as caught:
        open_pretrained(f"config:{tmp_path / 'small.json'}")
    assert "python_4k" in caught.value.expected
