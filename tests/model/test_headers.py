import json
import struct
import tracemalloc
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from limbeck.errors import Failed
from limbeck.model.folder import check_index, inside
from limbeck.model.headers import BITS, BLOCKS, check_gguf, check_safetensors, read_json

gguf = pytest.importorskip("gguf")


def tensors() -> dict[str, np.ndarray]:
    return {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, dtype=np.int64), "empty": np.zeros((0, 2), dtype=np.float16)}


@pytest.fixture
def tiny_safetensors(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_license("apache-2.0")
    writer.add_chat_template("x" * 1001)
    writer.add_token_list(["<s>", "a", "b\u00e9"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bool("llama.flag", True)
    writer.add_tensor("token_embd.weight", np.arange(24, dtype=np.float32).reshape(3, 8))
    writer.add_tensor("packed", np.zeros((2, 18), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


def damaged(data: bytes, num: int) -> list[bytes]:
    """Deterministic variants: a third cut short, a third with one flipped bit, a third with eight random bytes."""
    draw, out = Random(20), []
    for i in range(num):
        if i % 3 == 0:
            out.append(data[: draw.randrange(len(data))])
        elif i % 3 == 1:
            at = draw.randrange(len(data))
            out.append(data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :])
        else:
            at = draw.randrange(len(data) - 8)
            out.append(data[:at] + draw.randbytes(8) + data[at + 8 :])
    return out


def survives(check, path: Path, data: bytes) -> bool:
    """Whether a variant passes; anything but a result or our error fails the test."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        check(path)
        return True
    except Failed as error:
        assert error.slug == "corrupt" and error.code == 4 and str(error).count("\n") == 3
        assert all(c.isprintable() or c == "\n" for c in str(error))
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000, f"{peak:,} bytes"


def test_a_safetensors_header_is_read_as_the_safetensors_library_reads_it(tiny_safetensors: Path):
    stored = check_safetensors(tiny_safetensors)
    with safetensors.safe_open(tiny_safetensors, "np") as file:
        theirs = {name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) for name in file.keys()}
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()} == theirs


def test_200_damaged_safetensors_files_end_in_our_error_or_are_still_valid(tiny_safetensors: Path, tmp_path: Path):
    kinds = {True: 0, False: 0}
    for data in damaged(tiny_safetensors.read_bytes(), 200):
        passed = survives(check_safetensors, tmp_path / "bad.safetensors", data)
        kinds[passed] += 1
        if passed:  # then the reference implementation takes it too
            with safetensors.safe_open(tmp_path / "bad.safetensors", "np") as file:
                assert len(list(file.keys())) == 3
    assert kinds[False] > 100 and kinds[True] > 0


def test_200_damaged_gguf_files_end_in_our_error_or_are_still_valid(tiny_gguf: Path, tmp_path: Path):
    kinds = {True: 0, False: 0}
    for data in damaged(tiny_gguf.read_bytes(), 200):
        passed = survives(check_gguf, tmp_path / "bad.gguf", data)
        kinds[passed] += 1
        if passed:
            assert len(gguf.GGUFReader(tmp_path / "bad.gguf").tensors) == 2
    assert kinds[False] > 80 and kinds[True] > 0


def test_every_cut_of_a_gguf_file_is_noticed(tiny_gguf: Path, tmp_path: Path):
    data = tiny_gguf.read_bytes()
    padding = -36 % 32  # the last tensor has two rows of 18 bytes, then comes padding
    for length in [*range(0, len(data) - padding, 17), len(data) - padding - 1]:
        assert not survives(check_gguf, tmp_path / "bad.gguf", data[:length])


@pytest.mark.parametrize(
    ("name", "header", "told"),
    [
        ("longer than the file", None, "a header that fits"),
        ("no JSON", b"{", "JSON"),
        ("a list", b"[]", "a JSON object"),
        ("a key twice", b'{"a":1,"a":1}', "a key stands twice"),
        ("NaN", b'{"a":NaN}', "the word NaN"),
        ("deep", b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "JSON"),
        ("unknown dtype", b'{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}', "F33"),
        ("negative", b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "-1"),
        ("a float as shape", b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', "1.0"),
        ("true as shape", b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "True"),
        ("huge shape", b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}', "4611686018427387904"),
        ("size is not the product", b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', "8 bytes"),
        ("outside", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "one behind the other"),
        ("too many bytes", b"{}", "bytes of weights"),
        (
            "overlap",
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
            "one behind the other",
        ),
        ("extra field", b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}}', "dtype, shape"),
    ],
)
def test_a_safetensors_header_that_lies_is_noticed(tmp_path: Path, name: str, header: bytes | None, told: str):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62 if header is None else len(header)) + (header or b"{}") + b"\0\0\0\0")
    with pytest.raises(Failed, match="corrupt") as caught:
        check_safetensors(path)
    assert told in str(caught.value), name


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (0, b"GGML", "begins with"),
        (4, struct.pack("<I", 4), "version 4"),
        (4, struct.pack(">I", 3), "version 50,331,648"),
        (8, struct.pack("<Q", 1 << 40), "tensors"),
        (16, struct.pack("<Q", 1 << 40), "keys"),
        (24, struct.pack("<Q", 1 << 63), "bytes of a key"),
    ],
)
def test_a_gguf_file_that_lies_about_its_counts_is_noticed(tiny_gguf: Path, at: int, value: bytes, told: str):
    data = tiny_gguf.read_bytes()
    tiny_gguf.write_bytes(data[:at] + value + data[at + len(value) :])
    with pytest.raises(Failed, match=told):
        check_gguf(tiny_gguf)


def test_a_gguf_file_that_ends_in_a_longer_array_than_it_holds_is_noticed(tmp_path: Path):
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def file(num: int) -> bytes:
        architecture = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
        return b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + architecture + text(b"a") + struct.pack("<IIQ", 9, 4, num) + bytes(12)

    assert survives(check_gguf, tmp_path / "x.gguf", file(3))  # three numbers of four bytes
    assert not survives(check_gguf, tmp_path / "x.gguf", file(4))


def test_a_gguf_tensor_of_an_unknown_type_is_noticed(tiny_gguf: Path):
    data = tiny_gguf.read_bytes()
    place = data.index(b"packed") + len(b"packed") + 4 + 16
    assert struct.unpack_from("<I", data, place) == (2,)  # Q4_0
    tiny_gguf.write_bytes(data[:place] + struct.pack("<I", 999) + data[place + 4 :])
    with pytest.raises(Failed, match="type 999"):
        check_gguf(tiny_gguf)


def test_a_header_that_claims_to_be_long_is_not_allocated(tmp_path: Path):
    assert not survives(check_safetensors, tmp_path / "x.safetensors", struct.pack("<Q", 90_000_000) + b"{}")


def test_a_gguf_header_tells_architecture_metadata_and_shapes(tiny_gguf: Path):
    header = check_gguf(tiny_gguf)
    assert header.architecture == "llama"
    assert header.metadata["general.license"] == "apache-2.0" and header.metadata["llama.block_count"] == 1 and header.metadata["llama.flag"] is True
    assert header.metadata["tokenizer.chat_template"] is None  # longer than is kept
    assert header.arrays["tokenizer.ggml.tokens"] == 3 and header.arrays["tokenizer.ggml.scores"] == 3
    assert header.shapes == {"token_embd.weight": (3, 8), "packed": (2, 32)}


def test_a_gguf_tensor_outside_the_file_or_on_another_is_noticed(tiny_gguf: Path):
    data = tiny_gguf.read_bytes()
    place = data.index(b"packed") + len(b"packed") + 4 + 16 + 4  # name, axes, two lengths, type
    assert struct.unpack_from("<Q", data, place) == (96,)  # behind the 24 floats
    for offset, told in ((1 << 50, "a file of"), (32, "overlap")):
        tiny_gguf.write_bytes(data[:place] + struct.pack("<Q", offset) + data[place + 8 :])
        with pytest.raises(Failed, match=told):
            check_gguf(tiny_gguf)


def test_block_sizes_are_those_of_the_gguf_package():
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: theirs[kind] for kind in BLOCKS} == BLOCKS


def test_element_sizes_are_those_that_numpy_has():
    for name, dtype in (("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("I64", np.int64), ("U16", np.uint16), ("BOOL", np.bool_)):
        assert BITS[name] == 8 * np.dtype(dtype).itemsize


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../x", "x\0y", "", "..", "a\\b", "link.safetensors", "folder/secret"])
def test_an_index_cannot_name_files_outside_its_folder(tmp_path: Path, name: str):
    root = tmp_path / "model"
    root.mkdir()
    (tmp_path / "other.safetensors").write_bytes(b"secret")
    (root / "link.safetensors").symlink_to(tmp_path / "other.safetensors")
    (root / "folder").symlink_to(tmp_path)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(Failed) as caught:
        check_index(root)
    assert caught.value.slug == "corrupt"


def test_an_index_names_every_shard_and_each_has_to_exist(tmp_path: Path):
    (tmp_path / "one.safetensors").write_bytes(b"")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    assert check_index(tmp_path) == {"a": tmp_path / "one.safetensors", "b": tmp_path / "one.safetensors"}
    (tmp_path / "one.safetensors").unlink()
    with pytest.raises(Failed, match="no such file"):
        check_index(tmp_path)


def test_links_within_one_entry_of_the_hub_cache_are_followed(tmp_path: Path):
    entry = tmp_path / "models--org--name"
    (entry / "blobs").mkdir(parents=True)
    (entry / "snapshots" / "abc").mkdir(parents=True)
    (entry / "blobs" / "1").write_bytes(b"")
    (entry / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/1")
    assert inside(entry / "snapshots" / "abc", "model.safetensors").is_file()
    (entry / "snapshots" / "abc" / "out").symlink_to("../../../secret")
    with pytest.raises(Failed):
        inside(entry / "snapshots" / "abc", "out")


def test_a_json_file_has_a_limit_and_an_absent_file_is_our_error(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"a": "x" * 100}))
    assert read_json(tmp_path / "a.json") == {"a": "x" * 100}
    with pytest.raises(Failed, match="at most 50 bytes"):
        read_json(tmp_path / "a.json", 50)
    for check in (read_json, check_safetensors, check_gguf):
        with pytest.raises(Failed, match="none of this name"):
            check(tmp_path / "absent")
