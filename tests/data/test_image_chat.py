"""Chats about images in files: what is read, and what is wrong with a record is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.check.models import pictures
from limbeck.data.base import Place, Rows
from limbeck.data.image_chat import ImageChat
from limbeck.errors import Refused
from limbeck.export._png import png
from limbeck.model.base import Models
from limbeck.numerics import Streams

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A line."}]


def write(folder: Path, *records: dict[str, Any]) -> ImageChat:
    (folder / "images").mkdir(exist_ok=True)
    for i, row in enumerate(pictures()[:4]):
        (folder / "images" / f"{i}.png").write_bytes(png(row.content["pixels"]))
    (folder / "images" / "no.png").write_bytes(b"no picture")
    (folder / "talk.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return ImageChat(path="talk.jsonl", images="images", size=8, channels=1, split=0.0)


def read(folder: Path, step: ImageChat) -> Rows:
    return step.rows(Rows(), Place(Models({}), Streams(0), base=str(folder)))


def test_conversations_as_llava_has_them_become_messages_with_pixels(tmp_path: Path) -> None:
    rows = read(tmp_path, write(tmp_path, *({"id": i, "image": f"{i}.png", "conversations": TALK} for i in range(4))))
    for row, before in zip(rows.train, pictures(), strict=False):
        assert torch.equal(row.content["pixels"], before.content["pixels"])
        assert row.content["messages"][0] == {"role": "user", "content": "<image>\nWhat is it?"}
    assert len({row.key for row in rows.train}) == 4 and str(tmp_path) not in repr([row.content["messages"] for row in rows.train])


def test_two_talks_about_one_image_are_two_rows_of_one_source(tmp_path: Path) -> None:
    other = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Bright?"}]}, {"role": "assistant", "content": "Yes."}]
    rows = read(tmp_path, write(tmp_path, {"image": "0.png", "messages": TALK}, {"image": "0.png", "messages": other}))
    assert len(rows.train) == 2 and len({row.source for row in rows.train}) == 1 and len({row.key for row in rows.train}) == 2


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"image": "no.png", "messages": TALK}, "image no.png: UnidentifiedImageError"),
        ({"image": "absent.png", "messages": TALK}, "absent.png: FileNotFoundError"),
        ({"image": "../talk.jsonl", "messages": TALK}, "leads out of the folder"),
        ({"image": "0.png", "messages": [{"role": "user", "content": "What?"}, TALK[1]]}, "0 of <image> for 1 image"),
        ({"image": "0.png", "messages": [TALK[0], TALK[1], *TALK]}, "2 of <image> for 1 image"),
        ({"image": "0.png", "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "<image>"}]}, "1 of <image>"),
        ({"image": "0.png", "messages": TALK[:1]}, "no answer"),
        ({"messages": TALK}, "no field image"),
        ({"conversations": [{"from": "human", "value": "Hello."}, TALK[1]]}, "a record of text alone"),
        ({"image": "0.png", "talk": TALK}, "no field messages"),
        ({"image": 3, "messages": TALK}, "image is int, not text"),
    ],
    ids=["no_picture", "absent", "outside", "no_mark", "two_marks", "in_the_answer", "no_answer", "no_image", "text_alone", "no_messages", "no_name"],
)
def test_a_record_whose_text_and_image_disagree_is_named_with_its_line(tmp_path: Path, record: dict[str, Any], told: str) -> None:
    step = write(tmp_path, {"image": "0.png", "messages": TALK}, record)
    with pytest.raises(Refused) as caught:
        read(tmp_path, step)
    assert "talk.jsonl:2" in caught.value.where and told in caught.value.got and "max_bad: 1" in caught.value.do
    allowed = read(tmp_path, ImageChat.model_validate({**dict(step), "max_bad": 1}))
    assert len(allowed.train) == 1 and "1 broken records" in allowed.notes[0]


def test_a_file_that_is_one_list_as_llava_is_published_gives_the_rows_of_json_lines(tmp_path: Path) -> None:
    records = [{"id": i, "image": f"{i}.png", "conversations": TALK} for i in range(4)]
    lines = read(tmp_path, step := write(tmp_path, *records))
    for text in (json.dumps(records), json.dumps(records, indent=2), "".join(json.dumps(record) + "\n" for record in records)):
        (tmp_path / "talk.json").write_text("\ufeff" + text, encoding="utf-8")
        rows = read(tmp_path, ImageChat.model_validate({**dict(step), "path": "talk.json"}))
        assert [row.key for row in rows.train] == [row.key for row in lines.train]


@pytest.mark.parametrize(
    ("text", "where", "told"),
    [('[{"image": "0.png"}', "talk.json", "no JSON"), ("[3]", "talk.json record 0", "no mapping"), ('[{"image": "0.png"}]', "record 0", "no field")],
)
def test_a_list_that_is_broken_or_holds_no_records_is_named(tmp_path: Path, text: str, where: str, told: str) -> None:
    step = write(tmp_path)
    (tmp_path / "talk.json").write_text(text)
    with pytest.raises(Refused) as caught:
        read(tmp_path, ImageChat.model_validate({**dict(step), "path": "talk.json"}))
    assert caught.value.where.endswith(where) and told in caught.value.got
