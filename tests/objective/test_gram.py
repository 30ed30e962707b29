"""Gram relations: invariant to rotation and scale, of any widths, one number an image; and divergences at visual tokens."""

import pytest
import torch
from torch import Tensor

from limbeck.check.models import Trial, described, sighted
from limbeck.check.window import same
from limbeck.numerics import log_probs
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.gram import Gram
from limbeck.objective.jsd import JSD
from limbeck.signals import Signals, dense


def states(x: Tensor, sizes: list[int], name: str = "patch_embedding") -> Signals:
    rows, num = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), len(sizes)
    return Signals({name: x}, {"patch": rows, "row": torch.arange(num)}, ("",) * num, torch.arange(num), torch.ones(num))


def drawn(num: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(x: Tensor, y: Tensor, sizes: list[int], **fields: bool) -> Tensor:
    return Gram(**fields).values(states(x, sizes), states(y, sizes))  # type: ignore[arg-type]


@pytest.mark.parametrize("cosine", [True, False])
def test_a_rotation_and_a_scale_of_all_states_change_nothing(cosine: bool) -> None:
    x = drawn(9, 5)
    q = torch.linalg.qr(drawn(5, 5, 1)).Q
    assert values(x, 3.7 * x @ q, [4, 5], cosine=cosine).abs().max() < 1e-12
    wider = torch.cat([x @ q, torch.zeros(9, 3, dtype=torch.float64)], -1)  # the same states in a wider space
    assert values(x, 0.1 * wider, [4, 5], cosine=cosine).abs().max() < 1e-12
    assert values(x, drawn(9, 8, 2), [4, 5], cosine=cosine).min() > 1e-3


def test_two_states_by_hand() -> None:
    x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [3.0, 0.0]])
    # cosine: (1 0; 0 1) and (1 1; 1 1): 1 - 2 / (sqrt 2 * 2); plain: (1 0; 0 4) and 9 (1 1; 1 1): 1 - 45 / (sqrt 17 * 18)
    assert values(x, y, [2]).item() == pytest.approx(1 - 1 / 2**0.5, abs=1e-6)
    assert values(x, y, [2], cosine=False).item() == pytest.approx(1 - 45 / (17**0.5 * 18), abs=1e-6)


def test_every_image_has_its_own_number_also_the_last_one() -> None:
    x, y, sizes = drawn(12, 4), drawn(12, 7, 1), [2, 5, 5]
    expected, at = [], 0
    for size in sizes:
        a, b = (z[at : at + size] / z[at : at + size].norm(dim=-1, keepdim=True) for z in (x, y))
        top = sum(float(a[i] @ a[j]) * float(b[i] @ b[j]) for i in range(size) for j in range(size))
        norms = [sum(float(z[i] @ z[j]) ** 2 for i in range(size) for j in range(size)) ** 0.5 for z in (a, b)]
        expected.append(1 - top / (norms[0] * norms[1]))
        at += size
    found = values(x, y, sizes)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64)) and len(set(found.tolist())) == 3


def test_answers_and_visual_tokens_together_are_all_that_is_not_prompt() -> None:
    models = sighted()
    batch = models.batch(described().train)
    said = {name: models.says(name, batch, ("logits", "patch_logits", "hidden.-1")) for name in ("student", "teacher")}
    response, vision = ForwardKL()(said), ForwardKL(per="patch")(said)  # type: ignore[call-arg]
    view = batch.view("student")
    places = torch.cat([view.span("vision").nonzero()[:, 0], view.targets - 1])
    p, q = (
        log_probs(models[name].head(models[name].module.model.language_model.norm(said[name]["hidden.-1"])))[places]  # type: ignore[operator, union-attr]
        for name in ("teacher", "student")
    )
    assert torch.allclose(response.total + vision.total, (p.exp() * (p - q)).sum())
    assert (response.count, vision.count) == (len(view.targets), int(view.span("vision").sum()))  # each its own mean: 40 do not drown the others


def test_a_wrong_shift_of_the_mask_would_be_another_number() -> None:
    models = sighted()
    batch = models.batch(described().train)
    said = {name: models.says(name, batch, ("logits", "hidden.-1")) for name in ("student", "teacher")}
    view = batch.view("student")
    p, q = (
        log_probs(models[name].head(models[name].module.model.language_model.norm(said[name]["hidden.-1"])))[view.targets]  # type: ignore[operator, union-attr]
        for name in ("teacher", "student")
    )
    assert not torch.allclose(ForwardKL()(said).total, (p.exp() * (p - q)).sum(), rtol=1e-3)  # labels as given, on logits that are not shifted


@pytest.mark.parametrize("objective", [ForwardKL(per="patch"), JSD(per="patch"), Gram(of="patch_hidden", layer=1)], ids=["kl", "jsd", "hidden"])  # type: ignore[call-arg]
def test_how_a_window_is_cut_and_laid_out_changes_no_gradient(objective: Gram) -> None:
    trial = Trial(objective=(objective,), only=("model.*",))
    same(trial.gradients(micro=2), trial.whole, "two micro-batches")
    same(trial.gradients(layout="padded"), trial.whole, "padded")


def test_the_connector_alone_learns_from_how_its_visual_tokens_relate() -> None:
    models = sighted()
    with models.turn("student", ("model.multi_modal_projector.*",)):
        batch = models.batch(described().train)
        said = {name: models.says(name, batch, ("patch_embedding", "patch_logits")) for name in ("student", "teacher")}
        (Gram()(said).total + ForwardKL(per="patch", chunk=7)(said).total).backward()  # type: ignore[call-arg]
        moved = {name for name, p in models["student"].module.named_parameters() if p.grad is not None and p.grad.any()}
        for parameter in models["student"].parameters():
            parameter.grad = None
    assert moved == {f"model.multi_modal_projector.linear_{i}.{what}" for i in (1, 2) for what in ("weight", "bias")}
    assert not dense(said["teacher"]["patch_logits"]).requires_grad
