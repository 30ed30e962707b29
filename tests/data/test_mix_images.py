
import pytest
import torch
from pydantic import ValidationError

from limbeck.check.models import CLASSES, classifier, pictures
from limbeck.data.base import Place
from limbeck.data.mix_images import MixImages
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.signals import Batch

MODELS = Models({"student": classifier(), "teacher": classifier(1)})
ROWS = pictures()[:16]


def window(step: MixImages, number: int = 0) -> Batch:
    return step.window(MODELS.batch(ROWS), Place(MODELS, Streams(0), number), None)


def partner(batch: Batch, i: int) -> tuple[int, float]:
    """The other row and the share of the first, as the key of the mixed row says them."""
    _, plus, rest = batch.keys[i].partition("+")
    other, _, share = rest.partition("@")
    return ([row.key for row in ROWS].index(other), float(share)) if plus else (i, 1.0)


def test_weights_of_images_are_those_of_their_labels() -> None:
    batch = window(MixImages(cutmix=0.0))
    inputs, plain = batch.view("student").inputs, torch.stack([row.content["pixels"] for row in ROWS]).float()
    for i, row in enumerate(ROWS):
        other, share = partner(batch, i)
        assert torch.allclose(inputs["pixels"][i], share * plain[i] + (1 - share) * plain[other], atol=1e-3)
        expected = torch.zeros(CLASSES)
        expected[row.content["label"]] += share
        expected[ROWS[other].content["label"]] += 1 - share
        assert torch.allclose(inputs["label"][i], expected, atol=1e-5)


def test_a_box_holds_the_other_image_and_its_area_is_the_share_of_the_other_label() -> None:
    batch = window(MixImages(mixup=0.0))
    inputs, plain = batch.view("student").inputs, torch.stack([row.content["pixels"] for row in ROWS]).float()
    boxes = 0
    for i in range(len(ROWS)):
        other, share = partner(batch, i)
        kept = inputs["pixels"][i] == plain[i]
        assert (kept | (inputs["pixels"][i] == plain[other])).all()
        boxes += 0 < share < 1
        if other != i and share < 1:
            assert float(kept.float().mean()) >= share - 1e-6 and share * 64 == pytest.approx(round(share * 64), abs=1e-3)  # 64 pixels
    assert boxes > 4


def test_labels_make_one_and_rows_that_are_not_mixed_keep_theirs() -> None:
    batch = window(MixImages(share=0.5))
    label = batch.view("student").inputs["label"]
    assert torch.allclose(label.sum(-1), torch.ones(len(ROWS))) and (label >= 0).all()
    same = [i for i, row in enumerate(ROWS) if batch.keys[i] == row.key]
    assert 2 < len(same) < 14 and all(label[i].argmax() == ROWS[i].content["label"] and label[i].max() == 1 for i in same)


def test_the_cross_entropy_of_a_mixed_row_is_mixed_from_those_of_its_labels() -> None:
    batch = window(MixImages(cutmix=0.0))
    with torch.no_grad():
        said = MODELS.says("student", batch, ("logits", "label"))
        log_q = said["logits"].dense().log_softmax(-1)
    values = CrossEntropy().values(said)
    for i, row in enumerate(ROWS):
        other, share = partner(batch, i)
        expected = -share * log_q[i, row.content["label"]] - (1 - share) * log_q[i, ROWS[other].content["label"]]
        assert values[i].item() == pytest.approx(expected.item(), abs=1e-4)


def test_one_window_is_mixed_alike_again_and_another_one_otherwise() -> None:
    assert window(MixImages()).keys == window(MixImages()).keys != window(MixImages(), 1).keys


def test_mixed_windows_can_be_cut() -> None:
    batch = window(MixImages())
    parts = batch.cut(3)
    assert torch.cat([part.view("student").inputs["label"] for part in parts]).equal(batch.view("student").inputs["label"])


def test_one_that_mixes_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="mixup or cutmix"):
        MixImages(mixup=0.0, cutmix=0.0)
