"""Forwards of denoisers: against naive loops, closed forms, and what must be refused."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.align.base import Aligned
from limbeck.errors import Refused
from limbeck.forward.consistency import Consistency
from limbeck.forward.noised import Noised
from limbeck.guidance import Guidance
from limbeck.model.base import Models
from limbeck.model.denoiser import NO_LABEL, Denoiser
from limbeck.model.denoising import Boundary
from limbeck.model.gaussian_mixture import GaussianMixture, ring
from limbeck.model.mlp_denoiser import MLPDenoiser
from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.noise.vp import VP
from limbeck.numerics import Streams
from limbeck.objective.denoising import Denoising
from limbeck.signals import Batch, Row

LATENT = VP(betas="scaled_linear", start=0.00085, end=0.012)
NEEDS = {"student": ("denoised",), "teacher": ("denoised",)}
CLASSES = 4


def student(noise: Any = LATENT, predicts: Any = "epsilon", null: int | None = CLASSES, shape: tuple[int, ...] = (2,)) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        known = Parametrisation(noise=noise, predicts=predicts, null_label=null)
        return Denoiser(MLPDenoiser(known, shape, 16, 2, CLASSES).double()).eval()


def teacher(noise: Any = LATENT, means: Any = None, width: float = 0.3) -> Denoiser:
    known = Parametrisation(noise=noise, predicts="denoised", null_label=CLASSES)
    return Denoiser(GaussianMixture(known, means or ring(CLASSES, 1.0), width).double()).eval()


def batch(models: Models, num: int = 12) -> Batch:
    draw = torch.Generator().manual_seed(5)
    return models.batch([Row(f"r{i}", {"clean": torch.randn(2, generator=draw, dtype=torch.float64), "label": i % CLASSES}) for i in range(num)])


def run(forward: Any, models: Models, num: int = 12, place: int = 0, needs: Mapping[str, Any] = NEEDS) -> tuple[Batch, dict[str, Any]]:
    drawn = forward.draw(batch(models, num), Streams(0), (0, 0, place))
    return drawn, forward(Aligned(models, ()), drawn, needs)


def with_guidance(scale: float | tuple[float, float], convention: Any = "extra", **more: Any) -> Consistency:
    return Consistency(guidance=Guidance(scale=scale, convention=convention), **more)


def test_consistency_says_what_a_naive_loop_says() -> None:
    models = Models({"student": student(), "teacher": teacher()})
    forward = with_guidance((5.0, 15.0))
    drawn, said = run(forward, models)
    inputs, bar = drawn.view("student").inputs, LATENT.kept(torch.arange(1000, dtype=torch.float64))
    rungs, net, exact = set(), models["student"], models["teacher"]

    def alone(role: Any, x: Tensor, t: int, label: int) -> tuple[Tensor, Tensor]:
        """Clean sample and noise, by the formulas of the schedule."""
        out, time = role.module(x[None], torch.tensor([float(t)]), torch.tensor([label]))[0], bar[t]
        clean = out if role is exact else (x - (1 - time).sqrt() * out) / time.sqrt()
        return clean, (x - time.sqrt() * clean) / (1 - time).sqrt()

    def f(x: Tensor, t: int, label: int) -> Tensor:
        s = 10.0 * t
        return 0.25 / (s**2 + 0.25) * x + s / (s**2 + 0.25) ** 0.5 * alone(net, x, t, label)[0]

    for i in range(12):
        rung = int(inputs["time_draw"][i, 0] * 50)
        t = 999 - 20 * rung
        then = max(t - 20, 0)
        rungs.add(t)
        w, label = 5 + 10 * float(inputs["time_draw"][i, 1]), int(inputs["label"][i])
        z = bar[t].sqrt() * inputs["clean"][i] + (1 - bar[t]).sqrt() * inputs["noise"][i].double()
        (clean, eps), (clean0, eps0) = alone(exact, z, t, label), alone(exact, z, t, NO_LABEL)
        clean, eps = clean + w * (clean - clean0), eps + w * (eps - eps0)
        nearer = bar[then].sqrt() * clean + (1 - bar[then]).sqrt() * eps
        assert torch.allclose(said["student"]["denoised"][i], f(z, t, label), rtol=1e-5, atol=1e-6)
        assert torch.allclose(said["teacher"]["denoised"][i], f(nearer, then, label), rtol=1e-5, atol=1e-5)
    assert len(rungs) > 6 and all((t + 1) % 20 == 0 for t in rungs)


def test_the_last_rung_ends_where_a_little_noise_is_left() -> None:
    models = Models({"student": student(), "teacher": teacher()})
    forward = Consistency()
    drawn = forward.draw(batch(models), Streams(0), (0, 0, 0)).with_inputs("student", time_draw=torch.full((12, 2), 0.999))
    said = forward(Aligned(models, ()), drawn, NEEDS)
    clean, eps = drawn.view("student").inputs["clean"], drawn.view("student").inputs["noise"].double()
    z = LATENT.noised(clean, eps, torch.full((12,), 19.0))
    told = models["teacher"].says(drawn.with_inputs("teacher", sample=z, time=torch.full((12,), 19.0)).view("teacher"), ("denoised", "epsilon"), {})
    left = LATENT.noised(told["denoised"], told["epsilon"], torch.zeros(12))  # with what is left after the first step, 0.99915, and not 1
    assert torch.equal(said["teacher"]["denoised"], left)
    assert (left - told["denoised"]).abs().max() > 1e-3


def test_where_a_condition_tells_nothing_guidance_changes_nothing() -> None:
    same = teacher(means=[[0.2, 0.1]] * CLASSES)
    models = Models({"student": student(), "teacher": same})
    found = [run(with_guidance(scale), models)[1]["teacher"]["denoised"] for scale in (0.0, 3.0, 14.0)]
    assert torch.allclose(found[0], found[1], atol=1e-6) and torch.allclose(found[0], found[2], atol=1e-6)


def test_both_conventions_of_guidance_differ_by_one() -> None:
    models = Models({"student": student(), "teacher": teacher()})
    extra, cfg, same_number = (run(with_guidance(s, c), models)[1]["teacher"]["denoised"] for s, c in ((2.0, "extra"), (3.0, "cfg"), (2.0, "cfg")))  # type: ignore[misc]
    assert torch.allclose(extra, cfg) and (extra - same_number).abs().max() > 1e-3


def test_the_target_gets_no_gradient_and_the_student_does() -> None:
    models = Models({"student": student(), "teacher": teacher()})
    forward = Consistency()
    drawn = forward.draw(batch(models), Streams(0), (0, 0, 0))
    with models.turn("student"):
        said = forward(Aligned(models, ()), drawn, NEEDS)
    assert said["student"]["denoised"].requires_grad and not said["teacher"]["denoised"].requires_grad


def test_a_running_mean_can_say_the_target_and_another_role_take_the_step() -> None:
    models = Models({"student": student(), "teacher": student(), "solver": teacher()})
    models["teacher"].module.last.weight.data.mul_(0.5)
    forward = Consistency(solver="solver", target="teacher")
    forward.suits(models, "train.0")
    mean = run(forward, models)[1]["teacher"]["denoised"]
    itself = run(Consistency(solver="solver"), models)[1]["teacher"]["denoised"]
    assert (mean - itself).abs().max() > 1e-3
    assert forward.requires(NEEDS)["solver"] == ("denoised", "epsilon")


def test_noise_and_time_are_a_row_s_own_whatever_the_window() -> None:
    models = Models({"student": student()})
    forward = Noised()
    whole = forward.draw(batch(models, 12), Streams(0), (0, 0, 3)).view("student").inputs
    part = forward.draw(batch(models, 12).at(torch.tensor([2, 7])), Streams(0), (0, 0, 3)).view("student").inputs
    for name in ("noise", "time_draw"):
        assert torch.equal(whole[name][[2, 7]], part[name])
    other = forward.draw(batch(models, 12), Streams(0), (0, 0, 4)).view("student").inputs
    assert not torch.equal(whole["noise"], other["noise"])
    assert len({float(x) for x in whole["time_draw"][:, 0]}) == 12


@pytest.mark.parametrize("signal", ["denoised", "epsilon", "velocity"])
def test_what_is_left_of_the_loss_of_an_exact_denoiser_is_what_noise_hides(signal: Any) -> None:
    # of N(0, S^2): Var(x0 | x_t) = S^2 sigma^2 / V, of the noise alpha^2 / sigma^2 as much, of the velocity (with sigma = t, alpha = 1 - t) 1 / t^2
    width, noise = 0.7, RectifiedFlow()
    exact = teacher(noise, [[0.0, 0.0]] * CLASSES, width)
    models = Models({"student": exact})
    draw = torch.Generator().manual_seed(1)
    rows = [Row(f"r{i}", {"clean": width * torch.randn(2, generator=draw), "label": 0}) for i in range(1500)]
    objective = Denoising(signal=signal)  # type: ignore[call-arg]
    forward = Noised()
    drawn = forward.draw(models.batch(rows), Streams(0), (0, 0, 0))
    drawn = drawn.with_inputs("student", time_draw=0.2 + 0.6 * drawn.view("student").inputs["time_draw"])  # where no weight is large
    total, count = objective(forward(Aligned(models, ()), drawn, objective.needs))
    t = 1 - drawn.view("student").inputs["time_draw"][:, 0].double()
    hidden = width**2 * t**2 / ((1 - t) ** 2 * width**2 + t**2)
    factor = {"denoised": 1.0, "epsilon": ((1 - t) / t) ** 2, "velocity": 1 / t**2}[signal]
    assert float(total) / count == pytest.approx(float((hidden * factor).mean()), rel=0.06)


def test_labels_are_left_out_as_often_as_is_asked() -> None:
    models = Models({"student": student()})
    drawn = Noised(drop_label=0.25).draw(batch(models, 400), Streams(0), (0, 0, 0)).view("student").inputs["label"]
    assert 70 < int((drawn == NO_LABEL).sum()) < 130
    assert torch.equal(drawn[drawn >= 0], (torch.arange(400) % CLASSES)[drawn >= 0])


def test_a_student_can_learn_what_the_teacher_says_with_guidance() -> None:
    models = Models({"student": student(RectifiedFlow(), "velocity"), "teacher": teacher(RectifiedFlow())})
    needs = {"student": ("velocity",), "teacher": ("velocity",)}
    plain, pushed = (run(Noised(guidance=g), models, needs=needs)[1]["teacher"]["velocity"] for g in (None, Guidance(scale=3.0, convention="cfg")))
    drawn = Noised().draw(batch(models), Streams(0), (0, 0, 0)).view("student").inputs
    view = {"sample": RectifiedFlow().noised(drawn["clean"], drawn["noise"], 1 - drawn["time_draw"][:, 0]), "time": 1 - drawn["time_draw"][:, 0]}
    from limbeck.signals import View

    alone = models["teacher"].says(View(view), ("velocity",), {})["velocity"]
    assert torch.allclose(pushed, alone + 3 * (plain - alone), atol=1e-5)


REFUSED: list[tuple[Any, dict[str, Any], str, str]] = [
    (Noised(), {"student": student(), "teacher": teacher(RectifiedFlow())}, "noise", "kind: vp and rectified_flow"),
    (Noised(), {"student": student(), "teacher": teacher(VP())}, "noise", "betas: scaled_linear and linear"),
    (Noised(), {"student": student(shape=(3,)), "teacher": teacher()}, "size", r"\(3,\) and \(2,\)"),
    (with_guidance(5.0), {"student": student(), "teacher": student(null=None)}, "condition", "only conditions"),
    (Noised(drop_label=0.1), {"student": student(null=None)}, "condition", "only conditions"),
    (Noised(guidance=Guidance(scale=3, convention="cfg")), {"student": student(), "teacher": student(null=None)}, "condition", "only conditions"),
    (Consistency(solver="base"), {"student": student(), "teacher": teacher()}, "role", "base"),
]


@pytest.mark.parametrize("forward, roles, slug, got", REFUSED)
def test_roles_that_cannot_be_run_so_are_refused_before_anything_runs(forward: Any, roles: dict[str, Any], slug: str, got: str) -> None:
    with pytest.raises(Refused, match=got) as told:
        forward.suits(Models(roles), "train.0")
    assert told.value.slug == slug


def test_a_role_that_hears_no_noise_is_refused() -> None:
    from limbeck.check.models import classifier

    with pytest.raises(Refused, match="teacher that hears noisy samples"):
        Noised().suits(Models({"student": student(), "teacher": classifier()}), "train.0")


def test_an_objective_that_wants_more_of_the_target_is_refused() -> None:
    with pytest.raises(Refused, match="velocity"):
        Consistency().requires({"student": ("velocity",), "teacher": ("velocity",)})


BELOW = [{"scale": 0.5, "convention": "cfg"}, {"scale": -1, "convention": "extra"}, {"scale": [3, 2], "convention": "cfg"}, {"scale": 3}]


@pytest.mark.parametrize("fields", BELOW)
def test_a_guidance_without_a_convention_or_below_off_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Guidance(**fields)


def test_guidance_that_is_off_asks_nobody_without_a_condition() -> None:
    models = Models({"student": student(), "teacher": student(null=None)})
    for off in (Guidance(scale=1, convention="cfg"), Guidance(scale=0, convention="extra")):
        Consistency(guidance=off).suits(models, "train.0")
        without, plain = (run(Consistency(guidance=guidance), models)[1]["teacher"]["denoised"] for guidance in (off, None))
        assert torch.equal(without, plain)


def test_a_boundary_of_its_own_is_used_on_both_sides() -> None:
    models = Models({"student": student(), "teacher": teacher()})
    plain, wide = (run(Consistency(boundary=b), models)[1] for b in (Boundary(), Boundary(time_scale=0.001)))
    assert all((plain[name]["denoised"] - wide[name]["denoised"]).abs().max() > 1e-2 for name in ("student", "teacher"))
