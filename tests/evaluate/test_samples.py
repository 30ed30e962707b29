"""Distances of clouds of points, and what is measured of denoisers in few steps."""

import math
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from limbeck.check.models import points
from limbeck.errors import Refused
from limbeck.evaluate._pictures import drawn
from limbeck.evaluate._scoring import score
from limbeck.evaluate._spread import covered, frechet, inside, sliced_w2
from limbeck.evaluate.base import Exam
from limbeck.evaluate.block_denoising import BlockDenoising
from limbeck.evaluate.samples import Samples
from limbeck.forward.consistency import Consistency
from limbeck.forward.noised import Noised
from limbeck.guidance import Guidance
from limbeck.model.base import Models
from limbeck.model.denoiser import Denoiser
from limbeck.model.denoising import Boundary
from limbeck.model.gaussian_mixture import GaussianMixture, ring
from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.edm import EDM
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.signals import Row
from limbeck.train.stage import Select


def cloud(seed: int, num: int = 400, dim: int = 3) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_frechet_distance_is_that_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = cloud(0) * torch.tensor([1.0, 2.0, 0.5]), cloud(1) @ torch.tensor([[1.0, 0.3, 0.0], [0.0, 1.0, 0.2], [0.0, 0.0, 2.0]]).double() + 0.7
    s, t = torch.cov(a.T), torch.cov(b.T)
    root = torch.as_tensor(linalg.sqrtm((s @ t).numpy()).real)
    expected = (a.mean(0) - b.mean(0)).square().sum() + (s + t - 2 * root).trace()
    assert frechet(a, b) == pytest.approx(float(expected), rel=1e-8)


def test_the_frechet_distance_of_a_moved_cloud_is_how_far_it_was_moved() -> None:
    a = cloud(0)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9) and frechet(a, a + torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(25)  # 3^2 + 4^2
    few = cloud(0, num=3, dim=8)  # fewer points than numbers: covariances without an inverse
    assert frechet(few, few) == pytest.approx(0, abs=1e-6)


def test_the_sliced_distance_is_that_of_scipy_along_each_line() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = cloud(0, dim=1), 2 * cloud(1, dim=1)
    ours = sliced_w2(a, b, torch.Generator().manual_seed(0))
    exact = (a.sort(0).values - b.sort(0).values).square().mean().sqrt()  # one line, up to its direction
    assert ours == pytest.approx(float(exact), rel=1e-9)
    assert float(exact) >= stats.wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())  # W2 is at least W1


def test_the_sliced_distance_of_a_moved_cloud_is_its_share_along_a_line() -> None:
    # a move by m along a random direction of d dimensions: E[(m cos)^2] = m^2 / d; of clouds of two sizes too
    a = cloud(0, dim=2)
    assert sliced_w2(a, a + torch.tensor([3.0, 4.0]), torch.Generator().manual_seed(0)) == pytest.approx(5 / math.sqrt(2), rel=0.1)
    assert sliced_w2(a, a[:200], torch.Generator().manual_seed(0)) < 0.2


def test_precision_and_recall_tell_which_cloud_is_too_wide() -> None:
    data, narrow = cloud(0, dim=2), 0.2 * cloud(1, dim=2)
    assert inside(narrow, data) > 0.95 and inside(data, narrow) < 0.3  # all of it lies among data, little of the data among it
    assert inside(data, data) == 1 and inside(data + 100, data) == 0


def test_classes_are_covered_where_points_lie_near_them() -> None:
    means = torch.tensor(ring(4, 1.0))
    label = torch.arange(4).repeat(20)
    data = means[label] + 0.05 * cloud(0, num=80, dim=2).float()
    assert covered(data, data, label) == 1
    assert covered(data[label != 2], data, label) == 0.75
    assert covered(data[:1].repeat(80, 1), data, label) == 0.25


def test_a_picture_of_points_shows_where_they_lie() -> None:
    rows = [Row("a", {"clean": torch.tensor([1.0, 1.0])})]
    picture = torch.tensor(drawn(torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0], [9.0, 9.0]]), rows))
    assert picture.shape == (1, 64, 64) and picture.max() == 255 and int((picture > 0).sum()) == 2
    y, x = (picture[0] == 255).nonzero()[0].tolist()
    assert x > 50 and 28 < y < 36  # to the right, halfway up
    y, x = (picture[0] == 85).nonzero()[0].tolist()  # a third as many, at the top
    assert y < 14 and 28 < x < 36


def test_a_picture_of_images_lays_them_side_by_side() -> None:
    images = torch.full((30, 1, 16, 16), -1.0)
    images[0], images[1] = 1.0, 0.0
    picture = torch.tensor(drawn(images, []))
    assert picture.shape == (1, 64, 64)
    assert picture[0, 0, 0] == 255 and picture[0, 0, 16] == 128 and picture[0, 16, 0] == 0


def exam(roles: dict[str, Denoiser], rows: list[Row]) -> Exam:
    @contextmanager
    def open_(name: str) -> Any:
        yield roles[name]

    return Exam(rows, list(roles), open_, lambda name: None, 0, {})  # type: ignore[arg-type, return-value]


def exact(width: float = 0.1) -> Denoiser:
    return Denoiser(GaussianMixture(Parametrisation(noise=RectifiedFlow(), predicts="denoised", null_label=8), ring(8, 1.0), width)).eval()


def held_out(num: int = 160) -> list[Row]:
    samples, label = exact().module.draw(num, torch.Generator().manual_seed(0))  # type: ignore[operator]
    return [Row(f"{i}", {"clean": x, "label": int(c)}) for i, (x, c) in enumerate(zip(samples, label, strict=True))]


def test_the_exact_denoiser_is_better_in_more_steps_and_a_wrong_one_is_worse() -> None:
    found = Samples(steps=(1, 4), teacher_steps=30, few="flow", num=160)(exam({"teacher": exact(), "student": exact(0.5)}, held_out()))
    teacher = found["teacher"]["samples"]
    assert teacher["30"]["class_frechet"] < teacher["4"]["class_frechet"] < teacher["1"]["class_frechet"]
    assert found["teacher"]["sliced_w2"] == teacher["30"]["sliced_w2"] < found["student"]["samples"]["4"]["sliced_w2"]
    assert found["student"]["sliced_w2"] == found["student"]["samples"]["1"]["sliced_w2"]
    assert teacher["30"]["covered"] == 1 and teacher["30"]["forwards"] == 30
    row = found["student"]["metrics"]["Sliced Wasserstein, 4 steps against 30"]
    assert row["lower_is_better"] and row["value"] == found["student"]["samples"]["4"]["sliced_w2"]
    assert found["teacher"]["metrics"]["Sliced Wasserstein, 4 steps against 30"]["value"] == teacher["30"]["sliced_w2"]


def test_a_student_of_few_steps_is_sampled_as_a_consistency_function_and_the_teacher_never() -> None:
    how: dict[str, Any] = {"steps": (4,), "teacher_steps": 4, "num": 160}
    roles = {"teacher": exact(), "start": exact(), "student": exact()}
    both = [Samples(few=few, **how)(exam(roles, held_out())) for few in ("consistency", "flow")]
    assert both[0]["teacher"]["sliced_w2"] == both[1]["teacher"]["sliced_w2"] == both[0]["start"]["sliced_w2"] == both[1]["student"]["sliced_w2"]
    assert both[0]["student"]["sliced_w2"] != both[1]["student"]["sliced_w2"]


def test_guidance_is_of_the_teacher_and_of_no_student_that_has_it_built_in() -> None:
    guidance = Guidance(scale=(1.0, 3.0), convention="extra")
    roles = {"teacher": exact(), "student": exact()}
    plain, pushed = (Samples(steps=(2,), teacher_steps=4, num=80, guidance=g)(exam(roles, held_out())) for g in (None, guidance))
    assert (pushed["teacher"]["samples"]["4"]["forwards"], pushed["student"]["samples"]["2"]["forwards"]) == (8, 2)  # twice a step where guided
    assert plain["student"]["sliced_w2"] == pushed["student"]["sliced_w2"] and plain["teacher"]["sliced_w2"] != pushed["teacher"]["sliced_w2"]


def test_each_step_of_a_sampler_has_noise_of_its_own() -> None:
    role, drawn = exact(), []
    sample = RectifiedFlow.noised

    def noised(self: Any, clean: Any, noise: Any, time: Any) -> Any:
        drawn.append(noise.clone())
        return sample(self, clean, noise, time)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RectifiedFlow, "noised", noised)
        Samples(steps=(4,), num=8)(exam({"student": role}, held_out(8)))
    several = [x for x in drawn if len(x) == 8]
    assert len(several) == 3 and all(not torch.equal(a, b) for i, a in enumerate(several) for b in several[:i])


def test_a_boundary_that_keeps_what_was_heard_changes_the_samples() -> None:
    near, far = (Samples(steps=(2,), num=80, boundary=Boundary(time_scale=scale))(exam({"student": exact()}, held_out())) for scale in (10.0, 1e-4))
    assert far["student"]["sliced_w2"] > 1.5 * near["student"]["sliced_w2"]  # at 1e-4 half of the noise is left in


def test_what_cannot_be_measured_so_is_refused_by_the_plan() -> None:
    known = Parametrisation(noise=RectifiedFlow(), predicts="denoised")
    plain = Denoiser(GaussianMixture(known, ring(8, 1.0), 0.1)).eval()
    with pytest.raises(Refused, match="no condition") as told:
        Samples(guidance=Guidance(scale=3.0, convention="cfg")).suits(Models({"teacher": plain, "student": exact()}), "evaluate.0")
    assert told.value.where == "evaluate.0.guidance"
    spread = Denoiser(GaussianMixture(Parametrisation(noise=EDM(), predicts="denoised"), ring(8, 1.0), 0.1)).eval()
    with pytest.raises(Refused, match="a clean sample"):
        Samples().suits(Models({"student": spread}), "evaluate.0")
    Samples(few="flow").suits(Models({"student": spread}), "evaluate.0")


def test_the_same_seed_gives_the_same_samples() -> None:
    roles, how = {"student": exact()}, Samples(steps=(2,), num=300)
    first, second = (how(exam(roles, list(points(0, 40).train)))["student"]["sliced_w2"] for _ in range(2))
    assert first == second
    assert list(how(exam(roles, held_out()))["student"]["metrics"])[0] == "Fréchet by class, 2 steps"  # no teacher to stand against


def test_a_student_that_was_taught_with_guidance_is_not_guided_again_however_it_is_sampled() -> None:
    guidance = Guidance(scale=3.0, convention="cfg")
    for few in ("flow", "consistency"):
        factors = {name: Samples(few=few, guidance=guidance).factor(name) for name in ("teacher", "start", "student", "baseline")}
        assert factors == {"teacher": 3.0, "start": 3.0, "student": 1.0, "baseline": 1.0}


def test_a_student_is_sampled_on_the_rungs_and_with_the_boundary_that_it_was_taught_with() -> None:
    taught = Consistency(rungs=10, boundary=Boundary(sigma_data=0.7))
    Samples(rungs=10, boundary=Boundary(sigma_data=0.7)).agrees([taught], "evaluate.0")
    Samples(few="flow").agrees([taught], "evaluate.0")  # what it would be if it had not been taught so
    for other, field in ((Samples(boundary=Boundary(sigma_data=0.7)), "rungs"), (Samples(rungs=10), "boundary")):
        with pytest.raises(Refused, match="as the student was taught with") as told:
            other.agrees([taught], "evaluate.0")
        assert told.value.where == f"evaluate.0.{field}"


def test_a_denoiser_of_many_steps_is_not_sampled_as_a_consistency_function() -> None:
    with pytest.raises(Refused, match="few: flow"):
        Samples().agrees([Noised()], "evaluate.0")
    Samples(few="flow").agrees([Noised()], "evaluate.0")
    Samples().agrees([], "evaluate.0")


def test_the_error_of_a_velocity_and_that_of_a_bound_are_called_otherwise() -> None:
    table = score(exact(), held_out(16), None)
    assert table.velocity_error is not None and table.velocity_error.shape == (16,)
    assert "denoising_error" in BlockDenoising.ranges and "denoising_error" not in vars(table)  # there it is the standard error of `denoising`
    assert "velocity_error" in Select.model_json_schema()["properties"]["metric"]["enum"]


def test_features_of_a_run_that_is_not_there_are_refused_before_anything_is_trained(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LIMBECK_RUNS", str(tmp_path))
    with pytest.raises(Refused, match="an existing folder") as told:
        Samples(features="run:judge-1").notes((), ".")
    assert told.value.where == "evaluate samples  features  run:judge-1"
    (tmp_path / "judge-1/student").mkdir(parents=True)
    assert Samples(features="run:judge-1").notes((), ".") == Samples(features="timm:resnet10t").notes((), ".") == ()
