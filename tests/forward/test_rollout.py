"""Samples that the student makes, made noisier again: against naive loops, exact mixtures, and what goes wrong elsewhere."""

from functools import partial
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from limbeck.align.base import Aligned
from limbeck.data.base import Part, Rows
from limbeck.errors import Refused
from limbeck.forward.rollout import Rollout
from limbeck.guidance import Guidance
from limbeck.model.base import Models
from limbeck.model.denoiser import NO_LABEL, Denoiser
from limbeck.model.gaussian_mixture import GaussianMixture, ring
from limbeck.model.mlp_denoiser import MLPDenoiser
from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.edm import EDM
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.noise.trig_flow import TrigFlow
from limbeck.noise.vp import VP
from limbeck.numerics import Streams
from limbeck.objective.denoising import Denoising
from limbeck.objective.distribution_matching import DistributionMatching
from limbeck.objective.spread import Spread
from limbeck.signals import Row
from limbeck.student.lora import Lora
from limbeck.student.noise_experts import NoiseExperts
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage, Turn

CLASSES = 4
MATCH = {"student": ("made", "denoised", "kept", "added"), "teacher": ("denoised",), "critic": ("denoised",)}
CRITIC = {"critic": ("velocity", "flow", "added", "time", "noise", "clean")}


def network(noise: Any = None, seed: int = 0, predicts: Any = "velocity", null: int | None = CLASSES) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        known = Parametrisation(noise=noise or RectifiedFlow(), predicts=predicts, null_label=null)
        return Denoiser(MLPDenoiser(known, (2,), 16, 2, CLASSES).double()).eval()


def mixture(noise: Any = None, width: float = 0.3) -> Denoiser:
    known = Parametrisation(noise=noise or RectifiedFlow(), predicts="denoised", null_label=CLASSES)
    return Denoiser(GaussianMixture(known, ring(CLASSES, 1.0), width).double()).eval()


def roles(noise: Any = None) -> Models:
    return Models({"student": network(noise), "teacher": mixture(noise), "critic": network(noise, 1)})


def rows(num: int = 12) -> list[Row]:
    draw = torch.Generator().manual_seed(5)
    return [Row(f"r{i}", {"clean": torch.randn(2, generator=draw, dtype=torch.float64), "label": i % CLASSES}) for i in range(num)]


def run(forward: Rollout, models: Models, needs: Any = None, num: int = 12, place: int = 0) -> tuple[Any, dict[str, Any]]:
    drawn = forward.draw(models.batch(rows(num)), Streams(0), (0, 0, place))
    return drawn.view("student").inputs, forward(Aligned(models, ()), drawn, needs or MATCH)


@pytest.mark.parametrize("exit", ["last", "drawn"])
@pytest.mark.parametrize("path, phase", [("flow", None), ("flow", (0, 2)), ("flow", (2, 4)), ("consistency", None), ("consistency", (2, 4))])
def test_what_is_made_and_asked_about_is_what_a_naive_loop_says(exit: Any, path: Any, phase: Any) -> None:
    """On straight lines, where Euler's method is x + (t' - t) v; the kernel in the form a = (1 - t) / (1 - s), b^2 = t^2 - (a s)^2."""
    models = roles()
    forward = Rollout(rungs=4, phase=phase, exit=exit, path=path)
    inputs, said = run(forward, models, num=24)
    first, last = phase or (0, 4)
    s, left = 1 - last / 4, set()
    for i in range(24):
        label, x = inputs["label"][i : i + 1], inputs["noise.start"][i].double()
        u = inputs["time_draw"][i].double()
        leave = first + int(float(u[2]) * (last - first)) if exit == "drawn" else last - 1
        left.add(leave)
        for rung in range(leave + 1):
            t, then = 1 - rung / 4, 1 - (rung + 1) / 4
            if rung == leave:
                then = s
            v = models["student"].module(x[None], torch.tensor([t]), label)[0]  # type: ignore[operator]
            clean = x - t * v
            fresh = inputs[f"noise.{rung + 1}"][i].double() if path == "consistency" and rung < leave else x + (1 - t) * v
            x = (1 - then) * clean + then * fresh
        assert torch.allclose(said["student"]["made"][i], x, atol=1e-6)
        assert torch.allclose(said["student"]["denoised"][i], clean, atol=1e-6)
        t = s + (1 - s) * (0.02 + 0.96 * float(u[0]))
        a = (1 - t) / (1 - s)
        b = (t**2 - (a * s) ** 2) ** 0.5
        noisier = a * x + b * inputs["noise"][i].double()
        assert float(said["student"]["kept"][i]) == pytest.approx(a, abs=1e-6) and float(said["student"]["added"][i]) == pytest.approx(b, abs=1e-6)
        for role in ("teacher", "critic"):
            out = models[role].module(noisier[None], torch.tensor([t]), label)[0]  # type: ignore[operator]
            assert torch.allclose(said[role]["denoised"][i], out if role == "teacher" else noisier - t * out, atol=1e-5)
    assert left == (set(range(first, last)) if exit == "drawn" else {last - 1})


def test_times_reach_beyond_the_phase_up_to_pure_noise_and_never_to_the_sample_s_own() -> None:
    forward = Rollout(rungs=4, phase=(2, 3), times=(0.01, 1.0))
    time = torch.cat([run(forward, roles(), CRITIC, 64, place)[1]["critic"]["time"] for place in range(4)])
    assert float(time.min()) > 0.25 and float(time.max()) > 0.95  # not (0.25, 0.5], the stretch of its expert
    assert float(time.mean()) == pytest.approx(0.625, abs=4 * 0.75 / 12**0.5 / 256**0.5)  # uniform: within four standard errors


SCHEDULES = [VP(betas="scaled_linear", start=0.00085, end=0.012), TrigFlow(), EDM(), RectifiedFlow(shift=3.0)]


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda n: n.kind)
def test_every_schedule_can_be_rolled_out(noise: Any) -> None:
    models = roles(noise)
    for phase in ((0, 1), (1, 3), (0, 3)):
        _, said = run(Rollout(rungs=3, phase=phase, times=(0.02, 1.0)), models, {**MATCH, **CRITIC})
        assert all(x.isfinite().all() for one in said.values() for x in one.values.values())
        own = noise.grid(3)[phase[1]]
        assert (said["critic"]["time"] > own).all() and (said["critic"]["time"] <= noise.highest).all()


def test_only_one_call_of_the_student_has_gradients_and_it_is_the_only_role_that_gets_any() -> None:
    models, calls = roles(), []

    def note(name: str, module: Any, heard: Any) -> None:
        calls.append((name, torch.is_grad_enabled(), any(p.requires_grad for p in module.parameters()), module.training))

    for name in models:
        models[name].module.register_forward_pre_hook(partial(note, name))
    with models.turn("student"):
        _, said = run(Rollout(rungs=4, exit="drawn"), models)
        DistributionMatching()(said).total.backward()
    assert [call for call in calls if call[1]] == [("student", True, True, True)]
    assert {(name, training) for name, _, _, training in calls} == {("student", True), ("teacher", False), ("critic", False)}
    assert all(p.grad is None for name in ("teacher", "critic") for p in models[name].parameters())
    assert all(p.grad is not None for p in models["student"].parameters())


def test_the_critic_learns_what_was_made_and_the_student_nothing_from_it() -> None:
    models = roles()
    with models.turn("critic"):
        _, said = run(Rollout(), models, CRITIC)
        Denoising(seats={"student": "critic"}, clamp=10.0)(said).total.backward()  # type: ignore[call-arg]
    assert not said["student"]["made"].requires_grad
    assert all(p.grad is None for p in models["student"].parameters()) and all(p.grad is not None for p in models["critic"].parameters())
    told = said["critic"]  # at the end of all steps the truth is plain: what was made, and the noise
    assert torch.allclose(told["clean"], said["student"]["made"]) and torch.allclose(told["flow"], told["noise"] - told["clean"])


def test_of_images_too_the_critic_hears_what_was_made_and_not_the_pixels_of_the_rows() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        known = Parametrisation(noise=RectifiedFlow(), predicts="velocity")
        models = Models({name: Denoiser(MLPDenoiser(known, (1, 4, 4), 8, 1)).eval() for name in ("student", "critic")})
    images = [Row(f"r{i}", {"pixels": torch.full((1, 4, 4), 40 * i, dtype=torch.uint8)}) for i in range(6)]
    forward = Rollout()
    drawn = forward.draw(models.batch(images), Streams(0), (0, 0, 0))
    said = forward(Aligned(models, ()), drawn, CRITIC)
    assert said["student"]["made"].shape == (6, 1, 4, 4) and torch.allclose(said["critic"]["clean"], said["student"]["made"])


@pytest.mark.parametrize("fields", [{"exit": "drawn"}, {"exit": "drawn", "path": "consistency"}, {"phase": (1, 2), "exit": "drawn"}], ids=str)
def test_how_a_window_is_cut_changes_nothing_whatever_step_a_row_leaves_at(fields: dict[str, Any]) -> None:
    states = []
    for micro in (1, 3):
        forward = Rollout(rungs=3, **fields)
        turns = (
            Turn(trains="critic", forward=forward, objective=(Denoising(seats={"student": "critic"}, clamp=10.0),), batch=8, micro=micro),  # type: ignore[call-arg]
            Turn(forward=forward, objective=(DistributionMatching(), Spread(weight=0.0)), batch=8, micro=micro),  # type: ignore[call-arg]
        )
        loop = Loop(Stage(steps=2, turn=turns), World(roles(), Rows((Part(tuple(rows(16))),)), streams=Streams(0)))
        loop.run()
        states.append(loop.world.models.state_dict())
    assert all(torch.allclose(x, states[1][name], atol=1e-7) for name, x in states[0].items())


def test_a_guided_teacher_is_heard_beside_a_critic_that_is_not() -> None:
    models = roles()
    plain = run(Rollout(), models)[1]
    inputs, pushed = run(Rollout(guidance=Guidance(scale=3.0, convention="cfg")), models)
    assert torch.equal(plain["critic"]["denoised"], pushed["critic"]["denoised"]) and torch.equal(plain["student"]["made"], pushed["student"]["made"])
    t = 0.02 + 0.96 * inputs["time_draw"][:, 0].double()
    x = (1 - t)[:, None] * plain["student"]["made"] + t[:, None] * inputs["noise"].double()
    alone = models["teacher"].module(x, t, torch.full((12,), NO_LABEL))  # type: ignore[operator]
    assert torch.allclose(pushed["teacher"]["denoised"], alone + 3 * (plain["teacher"]["denoised"] - alone), atol=1e-5)


def test_guidance_in_a_critic_s_turn_is_refused() -> None:
    with pytest.raises(Refused, match="a critic must know the student as it is") as told:
        Rollout(guidance=Guidance(scale=3.0, convention="cfg")).requires(CRITIC)
    assert told.value.slug == "guidance"
    assert Rollout(guidance=Guidance(scale=1.0, convention="cfg")).requires(CRITIC)  # off


def test_roles_that_cannot_be_run_so_are_refused_before_anything_runs() -> None:
    other = Models({"student": network(), "teacher": mixture(), "critic": network(VP())})
    with pytest.raises(Refused, match="one schedule of noise for student and critic"):
        Rollout().suits(other, "train.0")
    unconditional = Models({"student": network(), "teacher": network(null=None)})
    with pytest.raises(Refused, match="knows only conditions"):
        Rollout(guidance=Guidance(scale=3.0, convention="cfg")).suits(unconditional, "train.0")
    with pytest.raises(Refused, match="at most 5 steps"):
        Rollout(rungs=6).suits(Models({"student": network(VP(steps=5))}), "train.0")


DISORDERED = [*({"phase": phase} for phase in ((2, 2), (2, 5), (-1, 2))), *({"times": times} for times in ((0.0, 1.0), (0.5, 0.2), (0.5, 1.1)))]


@pytest.mark.parametrize("fields", DISORDERED)
def test_phases_and_times_out_of_order_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Rollout(rungs=4, **fields)


def test_signals_of_samples_that_nobody_makes_name_the_forward() -> None:
    models = roles()
    with pytest.raises(Refused, match="forward: rollout"):
        models.says("student", models.batch(rows(2)), ("made",))


def phased(phase: tuple[int, int], expert: int, lora: bool = False) -> Loop:
    """Two steps of a phase on a student of two experts, both turns with the same samples."""
    student = NoiseExperts(num=2, rungs=4)(network())
    student = Lora(rank=2)(student) if lora else student
    models = Models({"student": student, "teacher": mixture(), "critic": network(seed=1)})
    forward = Rollout(rungs=4, phase=phase, exit="drawn")
    match = Turn(forward=forward, objective=(DistributionMatching(),), only=(f"experts.{expert}.*",), batch=8)  # type: ignore[call-arg]
    learn = Turn(trains="critic", forward=forward, objective=(Denoising(seats={"student": "critic"}, clamp=10.0),), batch=8)  # type: ignore[call-arg]
    return Loop(Stage(steps=2, turn=(match, learn)), World(models, Rows((Part(tuple(rows(16))),)), streams=Streams(0)))


@pytest.mark.parametrize("expert", [0, 1])
def test_a_phase_changes_its_expert_and_no_other(expert: int) -> None:
    loop = phased(((0, 2), (2, 4))[expert], expert)
    before = {name: p.clone() for name, p in loop.world.models.named_parameters()}
    loop.run()
    moved = {".".join(name.split(".")[:4]) for name, p in loop.world.models.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in moved if name.startswith("student")} == {f"student.module.experts.{expert}"}
    assert any(name.startswith("critic") for name in moved) and not any(name.startswith("teacher") for name in moved)


def test_adapters_learn_and_the_weights_beside_them_get_no_gradient() -> None:
    pytest.importorskip("peft")
    loop = phased((0, 2), 0, lora=True)
    before = {name: p.clone() for name, p in loop.world.models["student"].named_parameters()}
    loop.run()
    for name, p in loop.world.models["student"].named_parameters():
        adapter = "lora_" in name and ".experts.0." in name
        assert p.requires_grad is False or adapter, name
        assert adapter or (p.grad is None and torch.equal(p, before[name])), name
    assert any(p.grad is not None and p.grad.any() for name, p in loop.world.models["student"].named_parameters() if "lora_B" in name)


def test_the_critic_of_a_later_phase_sees_the_samples_that_the_student_is_moved_on() -> None:
    """With the same draws both turns make the same samples, and those begin with what the first expert makes."""
    models = Models({"student": NoiseExperts(num=2, rungs=4)(network()), "teacher": mixture(), "critic": network(seed=1)})
    forward = Rollout(rungs=4, phase=(2, 4))
    before = run(forward, models)[1]["student"]["made"]
    assert torch.equal(before, run(forward, models, CRITIC)[1]["student"]["made"])
    with torch.no_grad():
        models["student"].module.experts[0].last.bias += 1.0  # type: ignore[index, union-attr, operator]
    after = [run(forward, models, needs)[1]["student"]["made"] for needs in (MATCH, CRITIC)]
    assert torch.equal(*after) and (after[0] - before).abs().max() > 0.1


def test_a_phase_that_ends_in_noise_is_no_path_of_a_consistency_function() -> None:
    """The sampler and the next phase put fresh noise there; what is matched would have the student's own."""
    with pytest.raises(ValidationError, match="path: flow, where a phase ends in noise"):
        Rollout(rungs=4, phase=(0, 2), path="consistency")


def test_no_row_leaves_behind_the_phase_however_late_its_draw() -> None:
    models, forward = roles(), Rollout(rungs=4, phase=(2, 4), exit="drawn")
    drawn = forward.draw(models.batch(rows(4)), Streams(0), (0, 0, 0))
    late = torch.full_like(drawn.view("student").inputs["time_draw"], 1 - 2**-24)  # in float32 2 + 2 u is 4
    made = forward(Aligned(models, ()), drawn.with_inputs("student", time_draw=late), CRITIC)["student"]["made"]
    last = Rollout(rungs=4, phase=(2, 4))(Aligned(models, ()), drawn.with_inputs("student", time_draw=late), CRITIC)["student"]["made"]
    assert torch.equal(made, last)


@pytest.mark.parametrize("field, value", [("rungs", 3), ("phase", (1, 3)), ("exit", "drawn"), ("path", "consistency")])
def test_turns_of_a_stage_that_make_other_samples_are_refused(field: str, value: Any) -> None:
    end = 4 if field == "path" else 3  # a consistency function has phases that end in a sample
    fields: dict[str, Any] = {"rungs": 4, "phase": (2, end), "exit": "last", "path": "flow"}
    for change, fits in (({"times": (0.001, 1.0)}, True), ({field: value}, False)):
        match = Turn(forward=Rollout(**fields), objective=(DistributionMatching(),))
        learn = Turn(trains="critic", forward=Rollout(**{**fields, **change}), objective=(Denoising(seats={"student": "critic"}),))  # type: ignore[call-arg]
        if fits:
            Stage(steps=1, turn=(match, learn))
        else:
            with pytest.raises(ValidationError, match=f"{field}: the same in all turns"):
                Stage(steps=1, turn=(match, learn))


def test_a_role_that_gradients_pass_through_hands_them_to_the_sample() -> None:
    """What a discriminator of noisy samples needs."""
    models = roles()
    with models.turn("student", through=("critic",)):
        _, said = run(Rollout(), models)
        said["critic"]["denoised"].square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in models["student"].parameters())
    assert all(p.grad is None for p in models["critic"].parameters())


def probes(x: Tensor) -> Tensor:
    """1, x, y, sin 2x, x y."""
    return torch.stack([torch.ones(len(x)), x[:, 0], x[:, 1], (2 * x[:, 0]).sin(), x.prod(1)], 1)


def correlations(target: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of a target times each probe, and its standard error."""
    each = target[:, None] * probes(x)[:, :, None]
    return each.mean(0), each.std(0) / len(x) ** 0.5


@pytest.mark.parametrize("s, t", [(0.3, 0.7), (0.5, 0.55), (0.5, 0.95)])
def test_the_target_of_a_noisy_sample_is_the_exact_velocity_on_average_and_the_naive_one_is_not(s: float, t: float) -> None:
    """Three modes with a mean that is not 0, 100,000 samples; the velocities that are compared are paired, so that the error is that of their
    difference."""
    noise, num, draw = RectifiedFlow(), 100_000, torch.Generator().manual_seed(0)
    means, weights = [[1.5, 0.0], [-0.5, 1.0], [0.5, -1.0]], [0.5, 0.2, 0.3]
    model = GaussianMixture(Parametrisation(noise=noise, predicts="denoised"), means, 0.2, weights).double()
    since, time = torch.full((num,), s, dtype=torch.float64), torch.full((num,), t, dtype=torch.float64)
    clean, first, fresh = model.draw(num, draw)[0].double(), *torch.randn(2, num, 2, generator=draw, dtype=torch.float64)
    sample = noise.noised(clean, first, since)
    x = noise.noisier(sample, fresh, since, time)
    exact = noise.converted(model(x, time, None), x, time, "denoised", "velocity")
    target = noise.mixed("velocity", *noise.unbiased(sample, fresh, since, time), time)
    a = (1 - t) / (1 - s)
    b = (t**2 - (a * s) ** 2) ** 0.5
    by_hand = ((1 - s) ** 2 * t + (1 - t) * s**2) / ((1 - s) ** 2 * b) * fresh - sample / (1 - s)
    assert torch.allclose(target, by_hand, atol=1e-9)
    gap, error = correlations(target - exact, x)
    assert (gap.abs() < 4 * error).all() and error.max() < 0.06
    naive, error = correlations(fresh - sample - exact, x)
    assert naive.abs().max() > 0.15 and (naive.abs() / error).max() > 20


@pytest.mark.parametrize("noise", [RectifiedFlow(), VP(), TrigFlow(), EDM()], ids=lambda n: n.kind)
def test_of_a_clean_sample_the_target_is_the_plain_one(noise: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    clean, fresh = torch.randn(2, 8, 2, generator=draw, dtype=torch.float64)
    since, time = torch.full((8,), noise.clean), noise.time(torch.linspace(0, 0.9, 8))
    found = noise.unbiased(clean, fresh, since, time)
    assert (found[0] - clean).abs().max() < 1e-6 and (found[1] - fresh).abs().max() < 1e-6


@pytest.mark.parametrize("noise", [RectifiedFlow(), VP(), TrigFlow(), EDM()], ids=lambda n: n.kind)
def test_what_stands_for_sample_and_noise_gives_the_noisier_sample(noise: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    sample, fresh = torch.randn(2, 4, 2, generator=draw, dtype=torch.float64)
    time, since = noise.time(torch.tensor([0.0, 0.1, 0.2, 0.3])), noise.time(torch.full((4,), 0.6))
    clean, truth = noise.unbiased(sample, fresh, since, time)
    assert torch.allclose(noise.noised(clean, truth, time), noise.noisier(sample, fresh, since, time), atol=1e-6)


def test_weights_are_those_of_a_clamped_inverse_variance() -> None:
    """clamp(1 / a^2, 0, 10) |a F - a y|^2 by hand."""
    models = roles()
    _, said = run(Rollout(rungs=2, phase=(0, 1), times=(0.001, 1.0)), models, CRITIC, 64)
    told = said["critic"]
    a = told["added"][:, None]
    expected = ((1 / a.square()).clamp(0, 10) * (a * told["velocity"] - a * told["flow"]).square()).mean(1)
    each = Denoising(clamp=10.0).values(told)  # type: ignore[call-arg]
    assert torch.allclose(each, expected) and (each < Denoising().values(told) - 1e-6).any()
