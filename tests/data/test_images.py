"""Sources of images: pixels, classes, splits, and what is wrong with files."""

import gzip
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from limbeck.data.base import Place, Rows, Step
from limbeck.data.digits import Digits
from limbeck.data.idx_images import FASHION, IdxImages
from limbeck.data.image_folder import ImageFolder
from limbeck.errors import Failed, Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row


def read(step: Step, base: Path | str = ".") -> Rows:
    return step.rows(Rows(), Place(Models({}), Streams(0), base=str(base)))


def every(rows: Rows) -> list[Row]:
    return [*rows.train, *rows.held_out]


# digits


def test_digits_are_those_of_scikit_learn_from_0_to_255() -> None:
    found, theirs = every(read(Digits())), load_digits()
    assert len(found) == 1797 and {row.tag for row in found} == set("0123456789")
    ours = {row.content["pixels"].numpy().tobytes(): row.content["label"] for row in found}
    for image, label in zip(theirs.images[:50], theirs.target[:50], strict=True):
        assert ours[np.rint(image * 255 / 16).astype(np.uint8).tobytes()] == label
    assert found[0].content["pixels"].shape == (1, 8, 8) and found[0].content["pixels"].dtype == torch.uint8


def test_a_smaller_number_is_part_of_a_larger_one_and_moves_no_row_to_the_other_side() -> None:
    few, all_ = read(Digits(num=200)), read(Digits())
    assert len(every(few)) == 200
    assert {row.key for row in few.train} < {row.key for row in all_.train} and {row.key for row in few.held_out} < {row.key for row in all_.held_out}


def test_images_are_scaled_as_pillow_does_it() -> None:
    plain, scaled = (every(read(Digits(num=5, size=size))) for size in (None, 20))
    for a, b in zip(plain, scaled, strict=True):
        theirs = Image.fromarray(a.content["pixels"][0].numpy()).resize((20, 20), Image.Resampling.BILINEAR)
        assert np.abs(np.array(theirs).astype(int) - b.content["pixels"][0].numpy().astype(int)).max() <= 1


def test_pixels_stay_bytes_in_one_tensor() -> None:
    rows = read(Digits()).train
    assert len({row.content["pixels"].untyped_storage().data_ptr() for row in rows}) == 1


def test_rows_with_equal_pixels_are_equal_and_others_are_not() -> None:
    one, again = (every(read(Digits(num=3))) for _ in range(2))
    assert one == again and one[0] != one[1]


# folders


def folder(root: Path, broken: bool = False) -> Path:
    draw = np.random.default_rng(0)
    for n, (name, ending, shape) in enumerate([("rose", "png", (9, 12, 3)), ("rose", "jpg", (12, 9, 3)), ("tulip", "PNG", (8, 8))]):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(root / name / f"{n}.{ending}")
    if broken:
        (root / "rose" / "zz.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return root


def captioned(root: Path, beside: bool = False) -> Path:
    folder(root)
    captions = {"rose/0.png": "a red rose", "rose/1.jpg": " two roses\n", "tulip/2.PNG": "a tulip"}
    if beside:
        for name, text in captions.items():
            (root / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    else:
        lines = [json.dumps({"file_name": name, "text": text, "more": 1}) for name, text in captions.items()]
        (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.mark.parametrize("beside", [True, False])
def test_captions_stand_in_one_file_or_beside_each_picture(tmp_path: Path, beside: bool) -> None:
    source = ImageFolder(path=str(captioned(tmp_path, beside)), size=8, split=0.0, captions=".txt" if beside else "metadata.jsonl")
    found, classes = every(read(source)), every(read(ImageFolder(path=str(tmp_path), size=8, split=0.0)))
    assert [row.content["text"] for row in found] == ["a red rose", "two roses", "a tulip"] and {row.tag for row in found} == {""}
    assert all("label" not in row.content for row in found)
    assert all(torch.equal(a.content["pixels"], b.content["pixels"]) and a.source == b.source for a, b in zip(found, classes, strict=True))


def test_another_caption_is_another_row_of_the_same_picture(tmp_path: Path) -> None:
    source = ImageFolder(path=str(captioned(tmp_path)), size=8, split=0.0, captions="metadata.jsonl")
    before = read(source)
    (tmp_path / "metadata.jsonl").write_text((tmp_path / "metadata.jsonl").read_text().replace("a tulip", "one tulip"))
    after = read(source)
    assert [a.key == b.key for a, b in zip(every(before), every(after), strict=True)] == [True, True, False]
    assert before.provenance[0]["sha256"] != after.provenance[0]["sha256"]


def test_a_picture_without_a_caption_is_named_or_left_out_with_a_count(tmp_path: Path) -> None:
    captioned(tmp_path, beside=True)
    (tmp_path / "rose" / "1.txt").unlink()
    with pytest.raises(Refused, match="no caption") as told:
        read(ImageFolder(path=str(tmp_path), size=8, captions=".txt"))
    assert "1.jpg" in told.value.where and "max_bad: 1" in told.value.do
    rows = read(ImageFolder(path=str(tmp_path), size=8, split=0.0, captions=".txt", max_bad=1))
    assert len(every(rows)) == 2 and any("have no caption left out" in note for note in rows.notes)


@pytest.mark.parametrize(
    "line, got",
    [
        ('{"file_name": "rose/9.png", "text": "x"}', "no picture"),
        ('{"file_name": "../out.png", "text": "x"}', "no picture"),
        ('{"file_name": "rose/0.png"}', "no record with file_name and text"),
        ('{"file_name": "rose/0.png", "text": 3}', "text is int"),
        ("not json", "no JSON"),
    ],
)
def test_a_line_that_is_no_caption_of_a_picture_is_named(tmp_path: Path, line: str, got: str) -> None:
    root = captioned(tmp_path / "in")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "out.png")
    with (root / "metadata.jsonl").open("a") as file:
        file.write("\n" + line)
    with pytest.raises(Refused) as told:
        read(ImageFolder(path=str(root), size=8, captions="metadata.jsonl"))
    assert got in told.value.got and "metadata.jsonl:4" in told.value.where


@pytest.mark.parametrize("captions, expected", [("captions.jsonl", "the file captions.jsonl"), (".caption", "a file 0.caption beside 0.png")])
def test_captions_that_are_not_there_are_refused(tmp_path: Path, captions: str, expected: str) -> None:
    with pytest.raises(Refused) as told:
        read(ImageFolder(path=str(captioned(tmp_path)), size=8, captions=captions))
    assert expected in told.value.expected


def test_a_folder_of_classes_gives_pictures_of_one_size_with_the_names_of_their_classes(tmp_path: Path) -> None:
    found = every(read(ImageFolder(path=str(folder(tmp_path)), size=8, split=0.0)))
    assert [(row.tag, row.content["label"]) for row in found] == [("rose", 0), ("rose", 0), ("tulip", 1)]
    assert {row.content["pixels"].shape for row in found} == {(3, 8, 8)}
    opened = Image.open(tmp_path / "rose" / "0.png").resize((8, 8), Image.Resampling.BILINEAR, box=(1.5, 0, 10.5, 9))  # the middle square
    assert np.abs(np.array(opened).transpose(2, 0, 1).astype(int) - found[0].content["pixels"].numpy().astype(int)).max() <= 1
    grey = every(read(ImageFolder(path=str(tmp_path), size=8, channels=1, split=0.0)))
    assert {row.content["pixels"].shape for row in grey} == {(1, 8, 8)}


def test_held_out_pictures_have_the_numbers_of_the_classes_that_are_trained_on(tmp_path: Path) -> None:
    root = folder(tmp_path / "in")
    (tmp_path / "out" / "tulip").mkdir(parents=True)
    (tmp_path / "out" / "tulip" / "0.png").write_bytes((root / "rose" / "0.png").read_bytes())
    held = read(ImageFolder(path=str(root), size=8, held_out=str(tmp_path / "out"))).held_out
    assert [(row.tag, row.content["label"]) for row in held] == [("tulip", 1)]


def test_a_corrupt_file_is_named_and_left_out_only_where_that_is_allowed(tmp_path: Path) -> None:
    folder(tmp_path, broken=True)
    with pytest.raises(Refused) as caught:
        read(ImageFolder(path=str(tmp_path), size=8))
    assert "zz.png" in caught.value.where and "max_bad: 1" in caught.value.do
    rows = read(ImageFolder(path=str(tmp_path), size=8, split=0.0, max_bad=1))
    assert len(rows.train) == 3 and "1 files that are no pictures left out" in rows.notes[0] and "zz.png" in rows.notes[0]


def test_a_link_out_of_the_folder_and_a_picture_that_claims_billions_of_pixels_are_bad_files(tmp_path: Path) -> None:
    root = folder(tmp_path / "in")
    (tmp_path / "secret.png").write_bytes((root / "rose" / "0.png").read_bytes())
    (root / "rose" / "yy.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(Refused, match="leads out of the folder"):
        read(ImageFolder(path=str(root), size=8))
    (root / "rose" / "yy.png").unlink()
    huge = bytearray((root / "rose" / "0.png").read_bytes())
    huge[16:24] = struct.pack(">2I", 100_000, 100_000)
    huge[29:33] = struct.pack(">I", __import__("zlib").crc32(huge[12:29]))
    (root / "rose" / "yy.png").write_bytes(huge)
    with pytest.raises(Refused, match="DecompressionBomb"):
        read(ImageFolder(path=str(root), size=8))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="pictures in folders of their classes"):
        read(ImageFolder(path=str(tmp_path)))


# idx


def idx(root: Path, name: str = "train", num: int = 6, **change: Any) -> Path:
    pixels = np.arange(num * 12, dtype=np.uint8).tobytes()
    images = struct.pack(">4I", change.get("magic", 0x0803), change.get("claims", num), 3, 4) + pixels
    labels = struct.pack(">2I", 0x0801, change.get("labels", num)) + bytes(i % 3 for i in range(change.get("labels", num)))
    for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
        (root / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    return root / f"{name}-images-idx3-ubyte.gz"


def test_an_idx_pair_gives_its_pixels_and_labels(tmp_path: Path) -> None:
    found = every(read(IdxImages(path=str(idx(tmp_path)), classes=("a", "b", "c"), split=0.0)))
    assert [row.content["label"] for row in found] == [0, 1, 2] * 2 and [row.tag for row in found] == ["a", "b", "c"] * 2
    assert found[1].content["pixels"].tolist() == [[[12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22, 23]]]


def test_a_test_file_is_held_out_and_all_of_the_other_trained_on(tmp_path: Path) -> None:
    path, held = idx(tmp_path), idx(tmp_path, "t10k", num=9)
    rows = read(IdxImages(path=str(path), held_out=str(held)))
    assert len(rows.train) == 6 and len(rows.held_out) == 9


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"magic": 0x0802}, Failed, "0x0802"),
        ({"claims": 7}, Failed, "all of them there"),
        ({"claims": 2**31}, Failed, "all of them there"),
        ({"labels": 5}, Refused, "6 images and 5 labels"),
    ],
)
def test_idx_files_that_do_not_hold_what_they_claim_are_refused(tmp_path: Path, change: dict[str, int], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        read(IdxImages(path=str(idx(tmp_path, **change))))


def test_a_file_that_is_cut_short_or_no_gzip_is_corrupt(tmp_path: Path) -> None:
    path = idx(tmp_path)
    for content in (path.read_bytes()[:-20], b"plain text", b""):
        path.write_bytes(content)
        with pytest.raises(Failed) as caught:
            read(IdxImages(path=str(path)))
        assert caught.value.slug == "corrupt"


def test_labels_outside_of_the_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="a class from 0 to 1"):
        read(IdxImages(path=str(idx(tmp_path)), classes=("a", "b")))


def test_without_the_package_of_fashion_mnist_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.data.idx_images.Path.is_file", lambda self: False)
    with pytest.raises(Refused) as caught:
        read(IdxImages())
    assert caught.value.do == "apt-get install dataset-fashion-mnist"


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_has_six_thousand_pictures_of_each_class() -> None:
    rows = read(IdxImages(held_out=str(FASHION / "t10k-images-idx3-ubyte.gz")))
    assert len(rows.train) == 60_000 and len(rows.held_out) == 10_000  # no picture comes twice
    assert sorted(sum(row.tag == name for row in rows.train) for name in {row.tag for row in rows.train}) == [6000] * 10


def test_without_scikit_learn_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(Refused, match="pip install scikit-learn"):
        read(Digits())


