"""The cached teacher: what it keeps, how it is attached, and what is refused; draws are right on average."""

import dataclasses
import math

import pytest
import torch
from pydantic import ValidationError

from limbeck.check.models import TOKENIZER, Trial, pair, rows
from limbeck.component import find
from limbeck.errors import Failed, Refused
from limbeck.model.base import Models
from limbeck.model.recorded import Recorded
from limbeck.numerics import RULED_OUT, draws, log_probs
from limbeck.objective.base import Objective
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.signals import Head, Logits, Signals, TopK
from limbeck.store import Answers
from limbeck.teacher._capture import capture
from limbeck.teacher._packing import unpack
from limbeck.teacher.cached import Cached
from limbeck.train.settle import settle
from limbeck.train.stage import Turn

VOCAB = 12


def teacher(**fields) -> Cached:
    return Cached(model="config:x", **fields)


def opened(one: Cached):
    """A role of three blocks, narrowed to what is kept."""
    role = pair()["teacher"]
    before, narrowed = role.offers, one.open(lambda _: role).offers
    role.offers = before
    return role, narrowed


# draws


def test_draws_by_hand():
    """Where one id has all the mass, it is drawn each time; the other places are ruled out."""
    log_p = torch.tensor([[0.0, RULED_OUT, RULED_OUT]])
    ids, weights = draws(log_p, 4, 1.0, torch.Generator().manual_seed(0))
    assert ids.tolist() == [[0, 0, 0, 0]] and weights.tolist() == [[0.0, *[pytest.approx(RULED_OUT)] * 3]]


@pytest.mark.parametrize("power", [1.0, 0.6])
def test_each_id_counts_on_average_for_its_probability(power):
    log_p = log_probs(2 * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).expand(4000, VOCAB)
    ids, weights = draws(log_p, 8, power, torch.Generator().manual_seed(1))
    assert (ids.sort(-1).values.diff(dim=-1) >= 0).all() and ids.max() < VOCAB
    mean = torch.zeros(4000, VOCAB, dtype=torch.float64).scatter_add(-1, ids, weights.exp())
    error = mean.std(0) / math.sqrt(4000)
    assert ((mean.mean(0) - log_p[0].exp()).abs() <= 4 * error + 1e-12).all()
    if power == 1:
        torch.testing.assert_close(weights.exp().sum(-1), torch.ones(4000, dtype=torch.float64))


def signals(name, value, num):
    of = {"target": torch.zeros(num, dtype=torch.long), "row": torch.arange(1)}
    return Signals({name: value}, of, ("",), torch.arange(1), torch.ones(1))


def gradient(value, name, num, hidden, weight):
    """The gradient of forward KL by the student's final states."""
    states = hidden.detach().requires_grad_()
    student = signals("logits", Logits(states, Head(weight), True), num)
    ForwardKL(chunk=100)({"student": student, "teacher": signals(name, value, num)}).total.backward()
    return states.grad


@pytest.mark.parametrize("power", [1.0, 0.6])
def test_the_gradient_of_draws_is_on_average_that_of_the_whole_distribution_and_that_of_the_best_entries_is_not(power):
    random = torch.Generator().manual_seed(0)
    weight, logits = (torch.randn(VOCAB, n, generator=random, dtype=torch.float64) for n in (5, 1))
    hidden, num = torch.randn(1, 5, generator=random, dtype=torch.float64), 5000
    log_p = log_probs(logits.mT)
    exact = gradient(logits.mT, "logits", 1, hidden, weight)[0]
    ids, weights = draws(log_p.expand(num, VOCAB), 4, power, random)
    drawn = TopK(ids, weights, torch.full((num,), RULED_OUT, dtype=torch.float64))
    found = gradient(drawn, "sampled_logits", num, hidden.expand(num, 5), weight)
    error = found.std(0) / math.sqrt(num)
    assert ((found.mean(0) - exact).abs() <= 4 * error).all() and error.norm() < 0.02 * exact.norm()
    best = log_p.topk(4)
    renormalised = TopK(best.indices, best.values - best.values.logsumexp(-1, keepdim=True), torch.full((1,), RULED_OUT, dtype=torch.float64))
    wrong = gradient(renormalised, "sampled_logits", 1, hidden, weight)[0]
    assert (wrong - exact).norm() > 5 * (found.mean(0) - exact).norm(), "what raw best entries give is off, however long one averages"


def test_a_row_gets_the_same_draws_whenever_and_beside_whichever_rows_it_is_asked():
    one, every = teacher(keep="sampled", k=6), list(rows().train)
    role = opened(one)[0]
    whole, alone = one.capture(every, role), one.capture(every[3:4], role)
    key = every[3].key
    assert torch.equal(whole[key]["ids"], alone[key]["ids"]) and torch.equal(whole[key]["log_weights"], alone[key]["log_weights"])
    other = one.capture([dataclasses.replace(every[3], key="another")], role)["another"]
    assert not torch.equal(other["ids"], alone[key]["ids"]), "another row, other draws"


@pytest.mark.parametrize("objective", ["reverse_kl", "jsd", "skew_kl", "total_variation"])
def test_only_what_is_linear_in_the_teacher_takes_draws(objective):
    one = teacher(keep="sampled", k=6)
    role, offers = opened(one)
    role.offers = offers
    try:
        with pytest.raises(Refused) as caught:
            settle(Turn(objective=(find(Objective, objective).example(),)), (), Models({**pair(), "teacher": role}), "train.0")
    finally:
        role.offers = type(role).offers
    assert caught.value.slug == "need" and "sampled_logits" in caught.value.got


# taps


def test_taps_are_kept_and_attached_and_a_layer_that_was_not_kept_is_refused():
    one, every = teacher(taps=("hidden.2",), keep="top_k", k=5), rows().train
    role, offers = opened(one)
    kept, live = one.capture(every, role), role.says(role.view(every), ("hidden.2",), {})["hidden.2"]
    batch = one.attach(pair().batch(every), pair(), kept)
    assert torch.equal(batch.said["teacher"]["hidden.2"], live) and offers == {"top_logits", "label", "hidden.2"}
    role.offers = offers
    try:
        models = Models({**pair(), "teacher": role})
        assert Trial(0, one, kept, models=models, objective=(HiddenMSE(layers=(2,)),)).gradients()[0].any()
        with pytest.raises(Refused) as caught:
            settle(Turn(objective=(HiddenMSE(layers=(1,)),)), (), models, "train.0")
    finally:
        role.offers = type(role).offers
    assert caught.value.slug == "need" and "hidden.1 of teacher" in caught.value.expected and "hidden.2" in caught.value.got


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_states_in_8_bits_are_told_to_be_coarse_and_a_recorded_model_says_in_how_many_bits_it_was_kept(bits, tmp_path):
    one, every = teacher(bits=bits), rows().train
    role, _ = opened(one)
    said = one.capture(every, role)
    assert one.attach(pair().batch(every), pair(), said).said["teacher"]["logits"].coarse == (bits == 8)
    facts = {"models": ["config:x"], "offers": ["logits"], "vocab": role.vocab, "shift": role.shift, "context": None, "layers": 3, "provenance": {}}
    recorded = Recorded(tmp_path, {"identity": {"teacher": one.keeps}, "facts": facts}, TOKENIZER, role.head)
    models = Models({**pair(), "teacher": recorded})
    assert Cached(model="cache:there").attach(pair().batch(every), models, said).said["teacher"]["logits"].coarse == (bits == 8)


# a capture


class Counting:
    """A teacher that counts the rows that it is asked about."""

    def __init__(self, one: Cached, monkeypatch, spoil=lambda x: x):
        self.asked: list[str] = []
        original = Cached.capture

        def listen(own, some, role):
            self.asked += [row.key for row in some]
            return {key: {name: spoil(x) for name, x in said.items()} for key, said in original(own, some, role).items()}

        monkeypatch.setattr(Cached, "capture", listen)


@pytest.fixture
def place(tmp_path):
    return Answers(tmp_path / "said", {"n": 1}, unpack=unpack)


def test_rows_are_asked_once_whatever_their_order(place, monkeypatch):
    one, every = teacher(), rows().train
    role, counting = opened(one)[0], Counting(one, monkeypatch)
    told: list[tuple[int, int]] = []
    assert capture(one, role, every[:4], place, lambda *x: told.append(x)) == 4
    assert capture(one, role, every[::-1], place, lambda *x: told.append(x)) == len(every) - 4
    assert capture(one, role, [*every, *every], place) == 0
    assert sorted(counting.asked) == sorted(row.key for row in every) and told[-1] == (len(every), len(every))
    again = one.capture(every, role)
    assert all(torch.equal(place[row.key]["hidden"], again[row.key]["hidden"]) for row in every)


def test_8_bits_are_measured_on_rows_that_were_there_before(place, monkeypatch):
    monkeypatch.setattr("limbeck.teacher._packing.FEWEST", 20)
    one, every = teacher(bits=8), rows().train
    capture(one, opened(one)[0], every, place)
    kinds = [sorted(part.ends) for part in place.parts.values()]
    assert sorted(map(len, kinds)) == [1, 3] and ["hidden"] in kinds, "the first part in 16 bits: nothing was there to measure on"
    first, second = sorted(place.parts.values(), key=lambda part: len(part.ends))
    others = torch.cat([place[key]["hidden"] for key in first.rows])
    key = next(iter(second.rows))
    torch.testing.assert_close(place.written(key)["hidden/mean"], others.mean(0), rtol=1e-5, atol=1e-6)


def test_a_capture_that_goes_on_measures_8_bits_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.teacher._capture.FIRST_ROWS", 2)
    monkeypatch.setattr("limbeck.teacher._capture.PART_ROWS", 2)
    monkeypatch.setattr("limbeck.teacher._packing.FEWEST", 2)
    one, role, every = teacher(bits=8), pair()["teacher"], rows().train
    capture(one, role, every, Answers(tmp_path / "whole", {"n": 1}, unpack=unpack))
    for num in range(2, len(every), 2):  # what is there after a kill, opened anew each time
        capture(one, role, every[:num], Answers(tmp_path / "stopped", {"n": 1}, unpack=unpack))
    capture(one, role, every, Answers(tmp_path / "stopped", {"n": 1}, unpack=unpack))
    whole, stopped = (Answers(tmp_path / name, {"n": 1}) for name in ("whole", "stopped"))
    assert whole.parts.keys() == stopped.parts.keys() and len(whole.parts) == 5
    for key in whole:
        for name, x in whole.written(key).items():
            assert torch.equal(x, stopped.written(key)[name]), f"{name} of {key}"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_kept(place, monkeypatch, bad):
    one = teacher()
    Counting(one, monkeypatch, lambda x: x.index_fill(0, torch.tensor([0]), bad) if len(x) else x)
    with pytest.raises(Failed) as caught:
        capture(one, opened(one)[0], rows().train, place)
    error = caught.value
    assert (error.slug, error.expected, error.got, error.code) == ("nan", "finite answers", "hidden is not", 5) and "row 0-0-chosen" in error.where
    assert len(place) == 0 and not list(place.folder.glob("[!.]*")), "nothing is written"


def test_nan_in_a_cache_is_refused_when_it_is_attached(place):
    one, every = teacher(), rows().train
    kept = one.capture(every, opened(one)[0])
    kept[every[0].key]["hidden"][0, 0] = math.nan
    with pytest.raises(Failed) as caught:
        one.attach(pair().batch(every), pair(), kept)
    assert caught.value.slug == "nan" and every[0].key in caught.value.where


def test_answers_about_other_text_are_refused():
    one, every = teacher(), rows().train
    kept = one.capture(every, opened(one)[0])
    kept[every[0].key] = {"hidden": kept[every[0].key]["hidden"][1:]}
    with pytest.raises(Refused) as caught:
        one.attach(pair().batch(every), pair(), kept)
    assert caught.value.slug == "cache" and "one for each of their targets" in caught.value.expected and "capture again" in caught.value.do


@pytest.mark.parametrize("name, value, expected", [("ids", len(TOKENIZER), f"ids below {len(TOKENIZER):,}"), ("hidden", 0, "final states 24 wide")])
def test_ids_and_widths_that_the_head_does_not_have_are_refused(name, value, expected):
    one, every = teacher(keep="top_k" if name == "ids" else "hidden", k=3), rows().train
    kept = one.capture(every, opened(one)[0])
    if name == "ids":
        kept[every[0].key]["ids"][0, 0] = value
    else:
        kept = {key: {"hidden": said["hidden"][:, 1:]} for key, said in kept.items()}
    with pytest.raises(Refused, match=expected):
        one.attach(pair().batch(every), pair(), kept)


# what is kept


def test_identity_holds_what_matters_for_what_is_kept_and_nothing_else():
    assert teacher(k=3).keeps == teacher(k=5).keeps == {"revision": 1, "kind": "cached", "bits": 32, "keep": "hidden", "taps": []}
    assert teacher(keep="top_k", k=3).keeps != teacher(keep="top_k", k=5).keeps
    assert teacher(keep="top_k", power=2).keeps == teacher(keep="top_k").keeps
    assert teacher(keep="sampled", power=2).keeps != teacher(keep="sampled").keeps
    assert Cached(model="config:y").keeps == teacher().keeps, "weights are told by their hash, not by their place"


@pytest.mark.parametrize("field", [{"keep": "top_k"}, {"k": 3}, {"bits": 8}, {"taps": ("hidden.1",)}])
def test_a_recorded_teacher_takes_no_fields_that_could_have_no_effect(field):
    assert Cached(model="cache:x").bytes_a_target(100, 100) == 0
    with pytest.raises(ValidationError, match="stands in the cache itself"):
        Cached(model="cache:x", **field)


def test_what_another_process_answers_while_one_waits_for_its_turn_is_not_asked_again(place, monkeypatch):
    one, every = teacher(), rows().train
    role, turn, counting = opened(one)[0], Answers.turn, Counting(one, monkeypatch)
    other = Answers(place.folder, {"n": 1}, unpack=unpack)

    def late(self):
        if self is place and not len(other):
            capture(one, role, every[:6], other)
        return turn(self)

    monkeypatch.setattr(Answers, "turn", late)
    assert capture(one, role, every, place) == len(every) - 6
    assert sorted(counting.asked) == sorted(row.key for row in every)
