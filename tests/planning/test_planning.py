"""The plan: counted against real tensors, monotone in the obvious directions, and refusing what cannot work."""

import json
from pathlib import Path

import pytest
import torch

from limbeck import planning
from limbeck.errors import Refused
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.planning import plan, ranges
from limbeck.planning import probe as machines
from limbeck.planning.cost import cost
from limbeck.planning.steps import FEWEST, affordable
from limbeck.student.drop_blocks import DropBlocks

MODEL = f"config:{Path(__file__).parents[2] / 'src/limbeck/recipes/models/tiny_llama.json'}"


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))


def recipe(**changes):
    base = {
        "data": [{"kind": "text", "path": str(Path(__file__)), "split": 0.0}, {"kind": "pack", "length": 32, "shortest": 8}],
        "teacher": MODEL,
        "student": {"start": "teacher", "surgery": [{"kind": "drop_blocks", "keep": [0, 3]}]},
        "train": [{"steps": 5, "batch": 4, "objective": ["forward_kl"]}],
    }
    return {**base, **changes}


def test_parameters_are_those_of_the_real_model():
    role = as_role(open_pretrained(MODEL))
    real = sum(p.numel() for p in role.module.parameters())
    found = plan(recipe(), probe=False)
    assert found.roles["teacher"][1].parameters == real
    pruned = DropBlocks(keep=(0, 3), choose="given")(role)
    assert found.roles["student"][1].parameters == sum(p.numel() for p in pruned.module.parameters()) < real


def test_the_multiplications_of_a_forward_pass_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    role = as_role(open_pretrained(MODEL))
    length = 64
    role.module.set_attn_implementation("eager")  # torch does not count its fused attention on the CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        role.module(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False, attention_mask=None)
    counted = counter.get_total_flops() / length
    assert cost(role, length).forward_flops == pytest.approx(counted, rel=0.02)


def test_more_micro_batches_cost_less_memory_and_more_steps_more_time():
    small, large = plan(recipe(train=[{"steps": 5, "batch": 4, "micro": 4, "objective": ["forward_kl"]}]), probe=False), plan(recipe(), probe=False)
    less, more = (next(line for line in p.steps if line.step == "train") for p in (small, large))
    assert less.memory_bytes < more.memory_bytes
    longer = plan(recipe(train=[{"steps": 50, "batch": 4, "objective": ["forward_kl"]}]), probe=False)
    assert next(x for x in longer.steps if x.step == "train").seconds == pytest.approx(10 * more.seconds)


def test_a_baseline_is_priced():
    assert "baseline" in [line.step for line in plan(recipe(baseline=["text_only"]), probe=False).steps]


def test_what_is_approximate_is_named():
    found = plan(recipe(teacher={"kind": "cached", "model": MODEL, "keep": "top_k", "k": 8}), probe=False)
    assert any("approximate: top_logits of teacher in place of logits" in line for line in found.needs)


@pytest.mark.parametrize(
    "objective, fields, keep, why",
    [
        ("forward_kl", {"k": 8}, "top_k", "k 8, approximate): 256 bytes a target as hidden, 52 as top_k, in 32 bits"),
        ("forward_kl", {"k": 8, "bits": 8}, "top_k", "70 bytes a target as hidden, 30 as top_k, in 8 bits"),
        ("forward_kl", {"k": 64, "bits": 16}, "hidden", "exact): 128 bytes a target as hidden, 264 as top_k"),
        ("reverse_kl", {"k": 8}, "hidden", "reverse_kl needs the whole distribution)"),
        ({"kind": "forward_kl", "temperature": 2.0}, {"k": 8}, "hidden", "forward_kl needs the whole distribution)"),
    ],
)
def test_the_planner_chooses_what_is_kept_by_bytes_and_by_what_listens(objective, fields, keep, why):
    teacher = {"kind": "cached", "model": MODEL, "keep": "auto", **fields}
    found = plan(recipe(teacher=teacher, train=[{"steps": 5, "batch": 4, "objective": [objective]}]), probe=False)
    (note,) = [note for note in found.notes if "keep: auto" in note]
    assert note.startswith(f"teacher: keep: auto is {keep} (") and why in note
    assert any("approximate: top_logits" in line for line in found.needs) == (keep == "top_k")


def test_what_cannot_work_is_refused_before_a_weight_is_read(monkeypatch):
    monkeypatch.setattr("limbeck.model.opening.open_pretrained", lambda *a, **k: pytest.fail("a weight was read"))
    with pytest.raises(Refused) as caught:
        plan(
            recipe(teacher={"kind": "cached", "model": MODEL, "keep": "top_k", "k": 8}, train=[{"steps": 5, "objective": ["reverse_kl"]}]),
            probe=False,
        )
    assert caught.value.code == 3 and "logits of teacher" in caught.value.expected and "top_logits" in caught.value.got


def test_memory_beyond_the_machine_is_refused_with_what_to_do(monkeypatch):
    tiny = machines.Machine(cpus=2, threads=1, memory_bytes=1_000_000, flops=1e10, measured=False)
    monkeypatch.setattr(planning, "machine", lambda probe: tiny)
    with pytest.raises(Refused) as caught:
        plan(recipe(), probe=False)
    assert caught.value.slug == "memory" and "micro" in caught.value.do and caught.value.code == 3


def test_the_probe_is_made_once_and_kept(monkeypatch):
    made = []
    monkeypatch.setattr(machines, "measured_flops", lambda: made.append(1) or 5e9)
    first, second = machines.machine(), machines.machine()
    assert first == second and first.flops == 5e9 and len(made) == 1
    assert json.loads((Path(machines.home()) / "probe.json").read_text())["machine"]["measured"]


def test_without_a_probe_nothing_is_measured_or_kept(monkeypatch):
    monkeypatch.setattr(machines, "measured_flops", lambda: pytest.fail("measured"))
    assert not machines.machine(probe=False).measured
    assert not (machines.home() / "probe.json").exists()


def test_steps_that_fit_into_the_time_by_hand():
    assert affordable(260, 15.0) == 17
    assert affordable(0.1, 15.0) == affordable(-5, 15.0) == FEWEST


def test_the_plan_is_one_json_document():
    found = json.loads(json.dumps(plan(recipe(), probe=False).as_json()))
    assert found["schema"] == "limbeck.plan/1" and {line["step"] for line in found["steps"]} >= {"data", "train", "evaluate", "export"}


def test_consecutive_layers_are_told_together() -> None:
    assert ranges(["hidden.1", "hidden.2", "hidden.3", "logits", "mixer.5"]) == ["hidden.1 to 3", "logits", "mixer.5"]
    assert ranges(["hidden.1", "hidden.3", "input.4", "hidden.-1"]) == ["hidden.1", "hidden.3", "input.4", "hidden.-1"]


def test_a_draw_that_is_a_list_of_rows_is_priced_as_all_of_them():
    one = plan("rank_objectives", "data.0.candidates=4", "data.0.labels=graded", "data.0.without_relevant=keep", toy=True, probe=False)
    four = plan("rank_objectives", "data.0.candidates=16", "data.0.labels=graded", "data.0.without_relevant=keep", toy=True, probe=False)

    def positions(found):
        return next(int(line.what.split(", ")[1].split()[0].replace(",", "")) for line in found.steps if line.step == "train")

    assert positions(one) == 3 * 4 * 4 * 128 and positions(four) == 4 * positions(one)  # 3 steps of 4 lists, rows of 128 by default
