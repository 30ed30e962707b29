"""What cannot work is refused before anything runs; what is not exact is said."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
import transformers

from limbeck.align.shared_vocab import SharedVocab
from limbeck.component import LOADED
from limbeck.data.base import Step
from limbeck.errors import Refused
from limbeck.evaluate._scoring import score
from limbeck.examine import shared_ids
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Models
from limbeck.model.text import Text
from limbeck.numerics import log_probs
from limbeck.signals import Row, dense
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.train.settle import settle
from limbeck.train.stage import Turn
from limbeck.train.window import Running, count, window

TOKENIZER = ByteTokenizer()


def llama(layers: int = 2, vocab: int = 258, tokenizer: Any = TOKENIZER, seed: int = 0) -> Text:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=vocab,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=64,
            eos_token_id=257,
            bos_token_id=256,
        )
        module = transformers.LlamaForCausalLM(config).double().eval()
    return Text(module, tokenizer, anatomy(module))


def models(**changes: Any) -> Models:
    return Models({"student": llama(2), "teacher": llama(4, seed=1)} | changes)


def turn(*objectives: Any, **more: Any) -> Turn:
    return Turn.model_validate({"objective": list(objectives or ("forward_kl",)), **more})


def refused(turn: Turn, models: Models, steps: Sequence[Step] = ()) -> Refused:
    with pytest.raises(Refused) as caught:
        settle(turn, steps, models, "train.0")
    return caught.value


def test_what_each_role_must_say_is_gathered_over_all_objectives_once() -> None:
    found = settle(turn("forward_kl", "cross_entropy", {"kind": "hidden_mse", "layers": [1, -1]}), (), models(), "train.0")
    assert found.needs == {"student": ("logits", "label", "hidden.1", "hidden.-1"), "teacher": ("logits", "hidden.1", "hidden.-1")}
    assert found.align == () and found.notes == ()


def test_all_layers_are_written_out_by_a_settled_map() -> None:
    found = settle(turn({"kind": "hidden_mse", "layers": "all"}, align=["layer_map"]), (), models(), "train.0")
    assert found.needs == {"student": ("hidden.0", "hidden.1"), "teacher": ("hidden.0", "hidden.1")}
    assert found.align[0].pairs == ((1, 2), (2, 4))  # type: ignore[attr-defined]


@pytest.mark.parametrize("more, where", [({"trains": "critic"}, "train.0.trains"), ({"through": ["critic"]}, "train.0.through")])
def test_a_role_that_is_not_there_is_refused(more: dict[str, Any], where: str) -> None:
    error = refused(turn(**more), models())
    assert (error.slug, error.where, error.got, error.expected) == ("role", where, "critic", "one of student, teacher")


def test_an_objective_that_teaches_another_role_than_the_turn_trains_is_refused_with_the_seats_that_would_do() -> None:
    error = refused(turn("cross_entropy", "forward_kl", trains="teacher"), models())
    assert (error.slug, error.where) == ("seat", "train.0.objective.0")
    assert error.got == "cross_entropy teaches student" and error.do == "trains: student, or seats: {student: teacher}"
    settle(turn({"kind": "cross_entropy", "seats": {"student": "teacher"}}, trains="teacher"), (), models(), "train.0")


def test_a_seat_whose_role_is_missing_is_refused() -> None:
    error = refused(turn(), Models({"student": llama()}))
    assert (error.slug, error.expected, error.got) == ("role", "a role called teacher", "the recipe has student")


def test_all_layers_without_a_map_are_refused() -> None:
    error = refused(turn("forward_kl", {"kind": "hidden_mse", "layers": "all"}), models())
    assert (error.slug, error.where, error.got) == ("layer", "train.0.objective.1", "layers: all without align: layer_map")


@pytest.mark.parametrize("layers, got", [([3], "hidden.3"), ([-4], "hidden.-4"), ([0, 5], "hidden.5")])
def test_a_layer_that_a_model_does_not_have_is_refused(layers: list[int], got: str) -> None:
    error = refused(turn({"kind": "hidden_mse", "layers": layers}), models())
    assert (error.slug, error.where, error.got) == ("layer", "train.0", got) and "student" in error.expected


def test_relations_of_the_embedding_are_refused() -> None:
    assert refused(turn({"kind": "relations", "layer": 0}), models()).expected == "a layer from 1 to 2 of student"


def test_a_pair_that_a_map_does_not_have_is_refused() -> None:
    assert "a pair of the layer map" in refused(turn({"kind": "hidden_mse", "layers": [2]}, align=["layer_map"]), models()).expected


def narrowed(*offers: str) -> Text:
    role = llama(4, seed=1)
    role.offers = frozenset(offers)
    return role


def test_a_need_that_nobody_meets_is_refused_as_impossible_here() -> None:
    error = refused(turn("reverse_kl"), models(teacher=narrowed("top_logits", "label")))
    assert (error.slug, error.code, error.expected, error.got) == ("need", 3, "logits of teacher", "it offers label, top_logits")


def test_a_later_alternative_is_taken_and_said() -> None:
    found = settle(turn(), (), models(teacher=narrowed("top_logits", "label")), "train.0")
    assert found.needs["teacher"] == ("top_logits",) and found.notes == ("train.0: approximate: top_logits of teacher in place of logits",)


def test_what_a_forward_needs_besides_is_asked_for_too() -> None:
    error = refused(turn({"kind": "hidden_mse", "layers": [1]}, forward="layerwise"), models(teacher=narrowed("logits", "hidden")))
    assert error.slug == "need" and error.expected == "input.1 of teacher"
    assert refused(turn({"kind": "hidden_mse", "layers": [0]}, forward="layerwise"), models()).got == "input.0"


def test_a_truncated_teacher_beside_a_temperature_is_refused() -> None:
    error = refused(turn({"kind": "forward_kl", "temperature": 2}), models(teacher=narrowed("top_logits")))
    assert (error.slug, error.where) == ("temperature", "train.0.objective.0.temperature")


class Writer(Step):
    """A data step whose teacher must be able to write."""

    kind: Literal["limbeck:test_writer"] = "limbeck:test_writer"
    unread: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        return {"teacher": ("text",)}


del LOADED["data", "limbeck:test_writer"]


def test_a_data_step_has_needs_too() -> None:
    settle(turn(), (Writer(),), models(), "train.0")
    error = refused(turn(), models(teacher=narrowed("logits")), (Writer(),))
    assert (error.slug, error.where, error.expected) == ("need", "train.0, data limbeck:test_writer", "text of teacher")


@pytest.mark.parametrize("more", [{"freeze": ["*"]}, {"only": ["*.mlp.*"], "freeze": ["*.mlp.*"]}])
def test_a_turn_in_which_nothing_learns_is_refused(more: dict[str, Any]) -> None:
    error = refused(turn(**more), models())
    assert (error.slug, error.where) == ("freeze", "train.0.only") and error.got == "none: only and freeze leave nothing"


@pytest.mark.parametrize("more", [{"only": ["nothing.*"]}, {"freeze": ["nothing.*"]}, {"optimiser": {"groups": [{"match": ["nothing.*"]}]}}])
def test_a_pattern_that_fits_nothing_is_refused(more: dict[str, Any]) -> None:
    error = refused(turn(**more), models())
    assert error.slug == "pattern" and error.got == "nothing.*" and "model." in error.expected


def test_a_layer_map_that_nobody_asks_is_refused() -> None:
    assert refused(turn(align=["layer_map"]), models()).slug == "layer"


def test_a_source_among_the_steps_of_a_turn_is_refused() -> None:
    assert refused(turn(data=["python_topics"]), models()).slug == "data"


# heads of other sizes


def test_heads_of_other_sizes_are_cut_to_what_they_share_and_that_is_said() -> None:
    found = settle(
        turn("forward_kl", {"kind": "hidden_mse", "layers": "all"}, align=["layer_map"]), (), models(teacher=llama(4, vocab=300)), "train.0"
    )
    assert found.align[0] == SharedVocab(num=258) and found.align[1].kind == "layer_map"  # type: ignore[attr-defined]
    assert found.notes == ("train.0: logits of student (258), teacher (300) are cut to the 258 ids they share",)


def test_heads_of_one_size_alignments_written_out_and_labels_alone_are_left_as_they_are() -> None:
    other = {"teacher": llama(4, vocab=300)}
    assert settle(turn(), (), models(), "train.0").align == ()
    assert settle(turn("cross_entropy"), (), models(**other), "train.0").align == ()
    assert settle(turn({"kind": "hidden_mse"}), (), models(**other), "train.0").align == ()
    assert settle(turn(align=[{"kind": "shared_vocab", "num": 100}]), (), models(**other), "train.0").align == (SharedVocab(num=100),)


def test_heads_of_other_sizes_and_other_tokenizers_are_refused() -> None:
    class Other(ByteTokenizer):
        def get_vocab(self) -> dict[str, int]:
            return {**super().get_vocab(), "more": 258}

    assert refused(turn(), models(teacher=llama(4, vocab=300, tokenizer=Other()))).slug == "tokenizer"


def test_a_truncated_teacher_with_a_larger_head_is_refused() -> None:
    teacher = llama(4, vocab=300)
    teacher.offers = frozenset({"top_logits"})
    error = refused(turn(), models(teacher=teacher))
    assert (error.slug, error.got, error.do) == ("vocab", "student (258), teacher (300)", "let teacher keep: hidden")


def test_a_window_over_cut_heads_has_the_loss_and_gradient_of_a_softmax_cut_by_hand() -> None:
    made = Models({"student": llama(2, vocab=264), "teacher": llama(3, vocab=300, seed=1)})
    what = turn("forward_kl", micro=2)
    running = Running(what, (), [], settle(what, (), made, "train.0"), [None])
    batch = made.batch([Row("a", {"text": "limbeck"}), Row("b", {"text": "still"})])
    with made.turn("student"):
        loss = window(running, made, batch, 0, count(what, batch))[0]
        ours = {name: p.grad.clone() for name, p in made["student"].module.named_parameters() if p.grad is not None}
        made["student"].zero_grad()
        p, q = (log_probs(dense(made.says(role, batch, ("logits",))["logits"])[:, :258]) for role in ("teacher", "student"))
        by_hand = (p.exp() * (p - q)).sum()
        (by_hand / len(q)).backward()
    assert loss.count == len(q) and loss.total.item() == pytest.approx(by_hand.item(), rel=1e-9)
    head = ours["lm_head.weight"]
    assert not head[258:].any() and head[:258].any()
    for name, gradient in ours.items():
        theirs = made["student"].module.get_parameter(name).grad
        assert theirs is not None
        torch.testing.assert_close(gradient, theirs, rtol=1e-6, atol=1e-9)


def test_uncut_the_loss_would_be_another() -> None:
    made = Models({"student": llama(2, vocab=264), "teacher": llama(3, vocab=264, seed=1)})
    batch = made.batch([Row("a", {"text": "limbeck"})])
    p, q = (dense(made.says(role, batch, ("logits",))["logits"]) for role in ("teacher", "student"))
    whole, cut = ((log_probs(x).exp() * (log_probs(x) - log_probs(y))).sum().item() for x, y in ((p, q), (p[:, :258], q[:, :258])))
    assert abs(whole - cut) > 1e-4 * whole  # far beyond the tolerance of the test above


def test_evaluations_cut_heads_of_other_sizes_as_training_does() -> None:
    student, teacher = llama(2, vocab=264), llama(3, vocab=300, seed=1)
    rows = [Row("a", {"text": "limbeck"}), Row("b", {"text": "still"})]
    table = score(student, rows, lambda rows, view: teacher.says(view, ("logits",), {})["logits"], align=shared_ids(student, teacher))
    view = student.view(rows)
    with torch.no_grad():
        p, q = (log_probs(dense(role.says(view, ("logits",), {})["logits"])[:, :258]) for role in (teacher, student))
    assert table.kl is not None
    torch.testing.assert_close(table.kl, (p.exp() * (p - q)).sum(-1), rtol=1e-6, atol=1e-9)
    assert shared_ids(student, None) is None and shared_ids(student, llama(3, vocab=264)) is None
