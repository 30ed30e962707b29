"""The role of a served model: how it reads is known without asking, and nothing of it is run."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from limbeck.check.models import family_of
from limbeck.endpoint.vocabulary import Vocabulary
from limbeck.errors import LimbeckError, Refused
from limbeck.model.opening import open_pretrained
from limbeck.model.reference import Reference
from limbeck.model.role import as_role
from limbeck.model.served import open_served, reader
from limbeck.signals import Row
from limbeck.store import Cache
from limbeck.text.tokens import fingerprint
from toy import TINY, at_home  # noqa: F401

URL = Reference.parse("endpoint:http://localhost:1/v1#tutor")


def test_it_reads_as_the_model_that_it_is_told_and_holds_no_weights(tmp_path: Path) -> None:
    role, like = open_served(URL, f"config:{TINY}", Cache()), as_role(open_pretrained(f"config:{TINY}"))
    assert (role.vocab, role.context, role.shift) == (like.vocab, like.context, like.shift) and not list(role.parameters())
    assert fingerprint(role.tokenizer) == fingerprint(like.tokenizer)
    assert not role.at_hand and role.provenance["name"] == "tutor" and role.provenance["licence"] is None
    row = [row_of("a text"), row_of("more")]
    a, b = role.view(row), like.view(row)
    assert torch.equal(a.inputs["ids"], b.inputs["ids"]) and torch.equal(a.targets, b.targets)


def row_of(text: str) -> Row:
    return Row(text, {"text": text})


def test_it_is_never_run() -> None:
    role = open_served(URL, f"config:{TINY}", Cache())
    with pytest.raises(Refused, match="asked about rows ahead of training") as caught:
        role.says(role.view([row_of("x y")]), ("logits",), {})
    assert caught.value.code == 3


def test_a_folder_is_read_without_its_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tutor", byte_level())
    (folder / "model.safetensors").unlink()
    found = reader(Reference.parse(f"path:{folder}"), Cache(), plan=False)
    assert found.size == 300 and found.context == 64 and found.tokenizer.encode("the") == byte_level().encode("the").ids


def test_a_plan_converts_no_file_to_know_how_it_reads(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    role = open_served(URL, f"gguf:{tmp_path}/x.gguf", Cache(), plan=True)
    assert role.tokenizer is None and role.vocab is None and role.self_description == {} and role.told() == ()
    role.connect(4, "auto")
    assert role.server is None


def test_a_model_that_is_not_causal_or_has_no_tokenizer_cannot_read_for_it(tmp_path: Path) -> None:
    plain = {**json.loads(TINY.read_text()), "tokenizer": None}
    (tmp_path / "none.json").write_text(json.dumps(plain))
    bert = family_of("bert").module.config.to_dict()
    keep = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    (tmp_path / "bert.json").write_text(json.dumps({name: bert[name] for name in keep} | {"architectures": ["BertForMaskedLM"]}))
    for name, told in (("none", "one without"), ("bert", "not causal")):
        with pytest.raises(Refused, match=told) as caught:
            reader(Reference.parse(f"config:{tmp_path}/{name}.json"), Cache(), plan=True)
        assert caught.value.slug == "tokenizer" and "teacher.tokenizer" in caught.value.where


@pytest.mark.parametrize("reads", ["", "path:/no/such/folder", "endpoint:http://localhost:1/v1#m", "nonsense"])
def test_what_it_cannot_read_with_is_refused(reads: str) -> None:
    with pytest.raises(LimbeckError) as caught:
        open_served(URL, reads, Cache())
    assert caught.value.slug == "reference" and str(caught.value).count("\n") == 3


def byte_level() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)} | {"th": 256, "the": 257, "\u0120th": 258, "\u0120the": 259, "<end>": 260}
    core = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e"), ("\u0120", "th"), ("\u0120th", "e")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return core


def sentence_like() -> Tokenizer:
    pieces = ["<unk>", "\u2581", "a", "b", "\u2581a", "\u2581b", "ab", "\u2581ab", ".", "\u2581."]
    merges = [("a", "b"), ("\u2581", "a"), ("\u2581", "b"), ("\u2581a", "b")]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return core


def saved(folder: Path, core: Tokenizer) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("core", [byte_level(), sentence_like()], ids=["byte level", "sentence pieces"])
def test_a_token_s_text_keeps_the_space_that_tells_it_from_another(core: Tokenizer) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
    vocabulary = Vocabulary(tokenizer, 300)
    texts = {piece: vocabulary.text(i) for piece, i in core.get_vocab().items() if piece.isascii() and len(piece) > 1 or piece[0] in "\u2581\u0120"}
    assert len(set(texts.values())) == len(texts)
    for piece, text in texts.items():
        assert text == piece.replace("\u2581", " ").replace("\u0120", " ")
        assert vocabulary.id(text) == core.get_vocab()[piece]


def test_a_text_that_several_ids_share_names_none_of_them() -> None:
    vocabulary = Vocabulary(transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level()), 300)
    assert vocabulary.id("\ufffd") is None and vocabulary.id("") is None and vocabulary.id("no such") is None
    assert vocabulary.whole(byte_level().encode(" the th").ids) == " the th"
    assert vocabulary.whole([256, 257]) == "ththe" and vocabulary.whole([256, vocabulary.id("e")]) is None  # type: ignore[list-item]
