"""Text roles of every family against the models themselves: logits, losses, layers, and layouts that change nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.text import Text
from limbeck.numerics import log_probs
from limbeck.signals import Row, View, dense

Small = Callable[..., Text]
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "bert")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""In double precision, but norms and rotations of transformers are float32."""


def view_of(lengths: tuple[int, ...], prompts: tuple[int, ...] | None = None, shift: int = 1, seed: int = 0) -> View:
    """Rows of bytes, of which the first `prompts` positions are not asked for; the end of text, which is also the padding, stands within."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(256, (sum(lengths),), generator=g)
    ids[::7] = 257
    asked = None if prompts is None else torch.tensor([i >= p for n, p in zip(lengths, prompts, strict=True) for i in range(n)])
    return View({"ids": ids}, torch.tensor(lengths, dtype=torch.long), asked, shift)


def rows_of(view: View) -> list[torch.Tensor]:
    return [row[None] for row in view.inputs["ids"].split(view.ragged.tolist())]


@pytest.mark.parametrize("layout", ["padded", "packed", "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_model_at_the_positions_that_predict(family: str, layout: Any, small: Small) -> None:
    role = small(family)
    role.layout = layout
    view = view_of((9, 2, 17), shift=role.shift)
    with torch.no_grad():
        said = role.says(view, ("logits", "label", "target_logprob"), {})
        theirs = [role.module(ids).logits[0] for ids in rows_of(view)]
    shifted = torch.cat([x[:-1] if role.shift else x for x in theirs])
    torch.testing.assert_close(dense(said["logits"]), shifted, **CLOSE)
    label = torch.cat([ids[0, role.shift :] for ids in rows_of(view)])
    assert torch.equal(said["label"], label)
    torch.testing.assert_close(said["target_logprob"], log_probs(shifted).gather(-1, label[:, None])[:, 0], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_cross_entropy_equals_the_models_own_loss_with_prompts_left_out(family: str, small: Small) -> None:
    role = small(family)
    view = view_of((9, 4, 17), prompts=(3, 0, 16), shift=role.shift)
    assert view.asked is not None
    with torch.no_grad():
        said = role.says(view, ("logits", "label"), {})
        ours = torch.nn.functional.cross_entropy(dense(said["logits"]), said["label"], reduction="sum")
        theirs = torch.zeros((), dtype=torch.float64)
        for ids, asked in zip(rows_of(view), view.asked.split(view.ragged.tolist()), strict=True):
            labels = ids.masked_fill(~asked, -100)
            num = int((labels[0, role.shift :] != -100).sum())
            theirs += role.module(ids, labels=labels).loss.double() * num
    assert len(said["label"]) == (6 + 3 + 1 if role.shift else 6 + 4 + 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(9, 2, 17), (1, 12), (11, 11)])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_padded_and_auto_agree_in_value_and_gradient(family: str, lengths: tuple[int, ...], small: Small) -> None:
    found = []
    for layout in ("padded", "packed", "auto"):
        role = small(family)
        role.layout = layout  # type: ignore[assignment]
        view = view_of(lengths, shift=role.shift)
        said = role.says(view, ("logits", "label", "hidden.1"), {})
        value = torch.nn.functional.cross_entropy(dense(said["logits"]), said["label"], reduction="sum") + said["hidden.1"].square().sum()
        value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in role.module.parameters() if p.grad is not None)])
    assert len(found[0]) > 20
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=2e-5)


def test_rows_longer_than_the_sliding_window_do_see_less_than_a_full_attention(small: Small) -> None:
    narrow, full = small("gemma3_text"), small("gemma3_text", sliding_window=64)
    view = view_of((17, 4))
    with torch.no_grad():
        here, there = (dense(role.says(view, ("logits",), {})["logits"]) for role in (narrow, full))
    assert (here[:3] - there[:3]).abs().max() < 1e-6 and (here[:16] - there[:16]).abs().max() > 1e-3 and (here[16:] - there[16:]).abs().max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_that_the_model_lists_and_the_last_one_stands_before_the_final_norm(family: str, small: Small) -> None:
    role = small(family)
    view = view_of((9, 17), shift=role.shift)
    with torch.no_grad():
        said = role.says(view, tuple(f"hidden.{i}" for i in range(4)) + ("input.1", "input.3", "hidden.-1"), {})
        theirs = [
            torch.cat(layer, 1)[0]
            for layer in zip(*(role.module(ids, output_hidden_states=True).hidden_states for ids in rows_of(view)), strict=True)
        ]
        for i in range(role.num_layers):
            torch.testing.assert_close(said[f"hidden.{i}"], theirs[i], **CLOSE)
        last = said["hidden.3"]
        if role.anatomy.has("final_norm"):
            assert (last - theirs[3]).abs().max() > 1e-3
            last = role.module.get_submodule(role.anatomy.path("final_norm"))(last)
        torch.testing.assert_close(last, theirs[3], **CLOSE)
    assert all(torch.equal(said[a], said[b]) for a, b in (("input.1", "hidden.0"), ("input.3", "hidden.2"), ("hidden.-1", "hidden.3")))


def test_queries_keys_and_values_of_gpt2_are_the_three_parts_of_one_layer(small: Small) -> None:
    role = small("gpt2")
    view = view_of((5, 8))
    with torch.no_grad():
        said = role.says(view, ("input.2", "query.2", "key.2", "value.2"), {})
        block = role.module.transformer.h[1]  # type: ignore[index, union-attr]
        whole = block.attn.c_attn(block.ln_1(said["input.2"]))  # type: ignore[operator, union-attr]
    for name, piece in zip(("query.2", "key.2", "value.2"), whole.split(32, -1), strict=True):
        torch.testing.assert_close(said[name], piece, **CLOSE)


def test_grouped_queries_give_narrower_keys_and_values(small: Small) -> None:
    said = small("llama").says(view_of((5, 8)), ("query.1", "key.1", "value.1"), {})
    assert [tuple(said[name].shape) for name in ("query.1", "key.1", "value.1")] == [(13, 32), (13, 16), (13, 16)]


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_hears_what_is_put_in_and_what_comes_before_it_hears_no_gradient(family: str, layout: Any, small: Small) -> None:
    role = small(family)
    role.layout = layout
    view = view_of((9, 5), shift=role.shift)
    forced = torch.randn(14, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    said = role.says(view, ("hidden.1", "hidden.2", "input.2", "logits"), {"input.2": forced})
    torch.testing.assert_close(said["input.2"], forced, rtol=0, atol=0)
    dense(said["logits"]).sum().backward()
    first = role.module.get_submodule(role.anatomy.path("block", 0))
    second = role.module.get_submodule(role.anatomy.path("block", 1))
    assert all(p.grad is None or not p.grad.any() for p in first.parameters())
    assert any(p.grad is not None and p.grad.any() for p in second.parameters())
    with torch.no_grad():
        plain = role.says(view, ("hidden.1", "hidden.2"), {})
        again = role.says(view, ("hidden.2",), {"input.2": plain["hidden.1"]})
    torch.testing.assert_close(again["hidden.2"], plain["hidden.2"], **CLOSE)
    assert (said["hidden.2"] - plain["hidden.2"]).abs().max() > 1e-2 and torch.equal(said["hidden.1"], plain["hidden.1"])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_rows_say_nothing_with_the_usual_axes(family: str, small: Small) -> None:
    role = small(family)
    names = ("logits", "label", "hidden.2", "query.1", "target_logprob")
    for lengths in ((), (0, 0)):
        said = role.says(view_of(lengths, shift=role.shift), names, {})
        assert {name: tuple(dense(said[name]).shape) for name in names} == {
            "logits": (0, 264),
            "label": (0,),
            "hidden.2": (0, 32),
            "query.1": (0, 32),
            "target_logprob": (0,),
        }


def test_a_row_of_no_length_among_others_changes_nothing(small: Small) -> None:
    role = small("llama")
    both, without = view_of((9, 0, 4)), view_of((9, 4))
    for layout in ("padded", "packed"):
        role.layout = layout  # type: ignore[assignment]
        with torch.no_grad():
            a, b = (dense(role.says(view, ("logits",), {})["logits"]) for view in (both, without))
        torch.testing.assert_close(a, b, **CLOSE)


def test_layers_that_a_model_does_not_have_are_refused(small: Small) -> None:
    role = small("llama")
    for name in ("hidden.4", "hidden.-5", "query.0", "input.4"):
        with pytest.raises(Refused, match="a layer from"):
            role.tap(name)
    assert role.layer("hidden.-4") == 0 and role.layer("hidden.-1") == 3


# rows, context, sizes


def test_rows_are_read_with_the_roles_tokenizer_and_answers_are_what_is_asked_for(small: Small) -> None:
    view = small("llama").view([Row("a", {"text": "hi"}), Row("b", {"prompt": "x", "answer": "yz"})])
    assert view.asked is not None and view.ragged.tolist()[0] == len(view.inputs["ids"]) - view.ragged.tolist()[1]
    asked = view.asked.split(view.ragged.tolist())
    assert asked[0].all() and view.inputs["ids"].split(view.ragged.tolist())[1][asked[1]].tolist()[:2] == [ord("y"), ord("z")]
    assert small("bert").view([Row("a", {"text": "hi"})]).shift == 0


def test_a_row_longer_than_the_models_context_is_refused_in_four_lines(small: Small) -> None:
    role = small("llama")
    assert role.view([Row("fits", {"text": "x" * 60})]).num_rows == 1
    with pytest.raises(Refused) as caught:
        role.view([Row("short", {"text": "x"}), Row("long", {"text": "x" * 100})])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4 and lines[0] == "error[context]  row long" and lines[1] == "  expected  at most 64 tokens, the context of LlamaForCausalLM"
    assert lines[2] in ("  got       100 tokens", "  got       101 tokens", "  got       102 tokens") and "length: 64" in lines[3]


def test_a_view_made_for_a_role_of_longer_context_is_refused_by_a_shorter_one(small: Small) -> None:
    for layout in ("padded", "packed"):
        role = small("gpt2")
        role.layout = layout  # type: ignore[assignment]
        with pytest.raises(Refused, match="at most 64 tokens"):
            role.says(view_of((3, 65)), ("logits",), {})


def test_the_size_of_the_head_is_known(small: Small) -> None:
    assert [small(family).vocab for family in FAMILIES] == [264] * 6


# gradients


def test_a_turn_says_who_learns_and_what_is_said_lazily_remembers_it(small: Small) -> None:
    models = Models({"student": small("llama"), "teacher": small("qwen2"), "critic": small("gpt2")})
    batch = models.batch([Row("a", {"text": "hello there"}), Row("b", {"text": "hi"})])
    with models.turn("student", only=("*layers.1*", "lm_head*"), freeze=("*norm*",), through=("critic",)):
        assert {name: models[name].state for name in models} == {"student": "trained", "teacher": "frozen", "critic": "through"}
        assert {name: models[name].module.training for name in models} == {"student": True, "teacher": False, "critic": False}
        learns = [name for name, p in models["student"].module.named_parameters() if p.requires_grad]
        assert learns and all(("layers.1" in name or "lm_head" in name) and "norm" not in name for name in learns)
        assert not any(p.requires_grad for role in ("teacher", "critic") for p in models[role].parameters())
        said = {role: models.says(role, batch, ("logits", "hidden.2")) for role in models}
        logits = {role: dense(said[role]["logits"]) for role in models}
        assert {role: x.requires_grad for role, x in logits.items()} == {"student": True, "teacher": False, "critic": False}
        assert said["critic"]["logits"].learns and not said["teacher"]["logits"].learns and not said["teacher"]["hidden.2"].requires_grad
        forced = torch.zeros(len(batch.view("student").inputs["ids"]), 32, dtype=torch.float64, requires_grad=True)
        for role, passes in (("critic", True), ("teacher", False)):
            through = dense(models.says(role, batch, ("logits",), inject={"input.2": forced})["logits"])
            assert through.requires_grad == passes
        logits["student"].square().sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in models["student"].parameters())
    assert all(models[name].state == "frozen" and not models[name].module.training for name in models)
    with torch.no_grad(), models.turn("student"):
        assert not models.says("student", batch, ("logits",))["logits"].learns


def test_a_head_that_caps_its_logits_is_capped_here_too(small: Small) -> None:
    role = small("gemma3_text", final_logit_softcapping=1.5)
    view = view_of((9,))
    with torch.no_grad():
        ours, theirs = dense(role.says(view, ("logits",), {})["logits"]), role.module(rows_of(view)[0]).logits[0, :-1]
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert ours.abs().max() <= 1.5
