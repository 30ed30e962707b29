"""Matrices that mix positions: attention against its formula and against transformers, blocks in its place against a loop; no layout changes them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from limbeck.block._mixing import Mixing, hear_padding
from limbeck.check.role import num_hooks
from limbeck.errors import Refused
from limbeck.forward.layerwise import Layerwise
from limbeck.model.base import Models, clone
from limbeck.model.mixing import eager
from limbeck.model.text import Text
from limbeck.signals import Row, View

Small = Callable[..., Text]
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "bert")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""In double precision, but transformers' softmax, norms and rotations are float32."""
HEADS, CHANNELS = 4, 8
"""Of the small models."""


def view_of(lengths: tuple[int, ...], shift: int = 1) -> View:
    ids = torch.randint(256, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    return View({"ids": ids}, torch.tensor(lengths, dtype=torch.long), shift=shift)


def say(role: Text, view: View, *names: str, layout: Any = "auto") -> dict[str, Any]:
    role.layout = layout
    with torch.no_grad():
        return role.says(view, names, {})


def rows_of(matrix: Tensor, view: View) -> list[Tensor]:
    """[head, T, T] of each row; what lies behind its end must be zero."""
    found = []
    for row in matrix.split(view.ragged.tolist()):
        assert not row[..., len(row) :].any()
        found.append(row[..., : len(row)].transpose(0, 1))
    return found


class Fading(Mixing):
    """Linear attention that forgets: M[t, s] = (q_t . k_s) f_(s+1) ... f_t, a share f of its own for each head and position."""

    def __init__(self, width: int = 32, heads: int = HEADS):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.f = nn.Linear(width, heads)

    def materialize(self, x: Tensor, rope: Any, mask: Any) -> tuple[Tensor, Tensor]:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        k = k if mask is None else k * mask[:, None, :, None]
        fade = nn.functional.logsigmoid(self.f(x)).transpose(1, 2).cumsum(-1)
        return (q @ k.mT * (fade[..., None] - fade[..., None, :]).exp()).tril(), v

    def output(self, o: Tensor, x: Tensor) -> Tensor:
        return self.o(o.transpose(1, 2).flatten(2))

    def mix(self, x: Tensor, rope: Any, mask: Any, state: Any) -> tuple[Tensor, None]:
        matrix, v = self.materialize(x, rope, mask)
        return self.output(matrix @ v, x), None


def by_loop(mixer: Fading, x: Tensor) -> Tensor:
    """The matrix [head, T, T] of one row, entry by entry."""
    q, k = (part(x).unflatten(-1, (mixer.heads, -1)) for part in (mixer.q, mixer.k))
    share = mixer.f(x).sigmoid()
    out = torch.zeros(mixer.heads, len(x), len(x), dtype=x.dtype)
    for head in range(mixer.heads):
        for t in range(len(x)):
            for s in range(t + 1):
                out[head, t, s] = (q[t, head] @ k[s, head]) * math.prod(share[s + 1 : t + 1, head].tolist())
    return out


def put(role: Text, layer: int, mixer: nn.Module) -> Text:
    """A copy of a role with another module in the place of the attention of a layer (from 1)."""
    made = clone(role)
    owner, _, name = made.anatomy.path("mixer", layer - 1).rpartition(".")
    setattr(made.module.get_submodule(owner), name, mixer)
    made.module.get_submodule(made.anatomy.path("body")).register_forward_pre_hook(hear_padding, with_kwargs=True)
    return made


def converted(role: Text, layer: int = 2) -> Text:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return put(role, layer, Fading().double())


def heard_by(role: Text, layer: int, said: dict[str, Any]) -> Tensor:
    """What the mixer of a llama hears: the normed input of its block."""
    with torch.no_grad():
        return role.module.get_submodule(role.anatomy.path("mixer_norm", layer - 1))(said[f"input.{layer}"])


def test_of_grouped_and_rotated_attention_it_is_the_softmax_of_queries_and_keys(small: Small) -> None:
    role, view = small("llama"), view_of((9, 2, 17))
    said = say(role, view, "query.2", "key.2", "mixing.2")
    assert said["mixing.2"].shape == (28, HEADS, 17)
    parts = zip(*(x.split(view.ragged.tolist()) for x in (said["query.2"], said["key.2"])), rows_of(said["mixing.2"], view), strict=True)
    for q, k, found in parts:
        q, k = (x.unflatten(-1, (-1, CHANNELS)).transpose(0, 1)[None] for x in (q, k))
        assert q.shape[1] == 2 * k.shape[1]  # grouped: two query heads to a key head
        cos, sin = role.module.model.rotary_emb(q, torch.arange(q.shape[2])[None])  # type: ignore[union-attr, operator]
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        scores = (q @ repeat_kv(k, 2).mT / math.sqrt(CHANNELS))[0]
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        torch.testing.assert_close(found, scores.masked_fill(later, -math.inf).softmax(-1), **CLOSE)
        assert not found[later].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_it_is_what_transformers_says_itself_and_rows_sum_to_one(family: str, small: Small) -> None:
    role = small(family)
    view = view_of((9, 2, 17), role.shift)
    said = say(role, view, "mixing.1", "mixing.2", "mixing.-1")
    ids = view.inputs["ids"].split(view.ragged.tolist())
    with torch.no_grad(), eager(role.module):
        theirs = [role.module(one[None], output_attentions=True).attentions for one in ids]
    for name, layer in (("mixing.1", 0), ("mixing.2", 1), ("mixing.-1", 2)):
        torch.testing.assert_close(said[name].sum(-1), torch.ones(28, HEADS, dtype=torch.float64), **CLOSE)
        for found, every in zip(rows_of(said[name], view), theirs, strict=True):
            torch.testing.assert_close(found, every[layer][0], **CLOSE)


@pytest.mark.parametrize("lengths", [(9, 2, 17), (11, 11), (5,), (9, 0, 4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_padded_and_row_by_row_agree(family: str, lengths: tuple[int, ...], small: Small) -> None:
    role = clone(small(family))
    role.module.float()  # transformers masks with the smallest double, -inf to its softmax: NaN where a window holds nothing but padding
    view = view_of(lengths, role.shift)
    padded, *others = (say(role, view, "mixing.1", "mixing.3", layout=layout) for layout in ("padded", "packed", "auto"))
    alone = [say(role, view.at(torch.tensor([i])), "mixing.1", "mixing.3") for i in range(view.num_rows)]
    for name in ("mixing.1", "mixing.3"):
        assert padded[name].shape == (sum(lengths), HEADS, max(lengths))
        for other in others:
            torch.testing.assert_close(other[name], padded[name], **CLOSE)
        for found, one, num in zip(padded[name].split(lengths), alone, lengths, strict=True):
            torch.testing.assert_close(found[..., :num], one[name], **CLOSE)


@pytest.mark.parametrize("lengths", [(9, 2, 17), (11, 11), (5,), (9, 0, 4)])
@pytest.mark.parametrize("layout", ["padded", "packed", "auto"])
def test_a_block_in_the_place_of_attention_writes_its_matrix_out(layout: str, lengths: tuple[int, ...], small: Small) -> None:
    role, view = converted(small("llama")), view_of(lengths)
    said = say(role, view, "input.2", "mixing.2", "mixing.3", layout=layout)
    mixer = role.module.get_submodule("model.layers.1.self_attn")
    assert said["mixing.2"].shape == said["mixing.3"].shape == (sum(lengths), HEADS, max(lengths))  # beside the attention of another layer
    for x, found in zip(heard_by(role, 2, said).split(lengths), rows_of(said["mixing.2"], view), strict=True):
        torch.testing.assert_close(found, by_loop(mixer, x), rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_gradients_reach_what_makes_the_matrix_and_nothing_else_of_the_block(layout: Any, small: Small) -> None:
    role = converted(small("llama"))
    role.layout = layout
    role.says(view_of((9, 4)), ("mixing.2",), {})["mixing.2"].square().sum().backward()
    moved = {name for name, p in role.module.get_submodule("model.layers.1").named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"self_attn.q.weight", "self_attn.k.weight", "self_attn.f.weight", "self_attn.f.bias", "input_layernorm.weight"}


def test_layer_by_layer_the_students_matrix_is_that_of_what_the_teachers_block_hears(small: Small) -> None:
    teacher, student = small("llama"), converted(small("llama"))
    with torch.no_grad():
        student.module.get_submodule("model.embed_tokens").weight.mul_(0.5)  # type: ignore[operator, union-attr]
    models = Models({"student": student, "teacher": teacher})
    batch = models.batch([Row("a", {"text": "hello there"}), Row("b", {"text": "hi"})])
    needs = {"student": ("mixing.2",), "teacher": ("mixing.2",)}
    with models.turn("student"):
        said = Layerwise()(models, batch, needs)
        own = models.says("student", batch, ("mixing.2",))["mixing.2"]
        x = heard_by(teacher, 2, said["teacher"].values)  # type: ignore[arg-type]
        mixer, view = student.module.get_submodule("model.layers.1.self_attn"), batch.view("student")
        for one, found in zip(x.split(view.ragged.tolist()), rows_of(said["student"]["mixing.2"], view), strict=True):
            torch.testing.assert_close(found, by_loop(mixer, one), rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
        assert (own - said["student"]["mixing.2"]).abs().max() > 1e-3 and not said["teacher"]["mixing.2"].requires_grad
        said["student"]["mixing.2"].sum().backward()
    before = [p for name, p in student.module.named_parameters() if "layers.0." in name or "embed" in name]
    assert before and all(p.grad is None or not p.grad.any() for p in before)


def test_attention_is_eager_only_where_its_matrix_is_asked_for(small: Small) -> None:
    role, view, seen = small("llama"), view_of((9, 4)), []
    config = role.module.config
    hook = role.module.get_submodule("model.layers.0.self_attn").register_forward_hook(lambda *_: seen.append(config._attn_implementation))
    try:
        plain = say(role, view, "hidden.3", layout="packed")
        both = say(role, view, "hidden.3", "mixing.1", layout="packed")
        student = converted(role)  # its own config, with the same hook
        say(student, view, "mixing.2")
    finally:
        hook.remove()
    assert seen == ["sdpa", "eager", "sdpa"] and config._attn_implementation == "sdpa"
    torch.testing.assert_close(both["hidden.3"], plain["hidden.3"], **CLOSE)


def test_after_an_error_attention_is_as_it_was_and_no_hook_is_left(small: Small) -> None:
    role = small("llama")
    before = num_hooks(role)  # transformers leaves some of its own, where it has listed attentions
    stop = role.module.get_submodule("model.layers.2").register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            say(role, view_of((5,)), "mixing.1")
    finally:
        stop.remove()
    assert role.module.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert num_hooks(role) == before


class Silent(nn.Module):
    """Stands in the place of attention and says what it hears."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return hidden_states, None


@pytest.mark.parametrize("mixer", [Silent, Mixing])
def test_a_block_without_a_matrix_is_refused(mixer: type[nn.Module], small: Small) -> None:
    role = put(small("llama"), 2, mixer())
    with pytest.raises(Refused) as caught:
        say(role, view_of((5,)), "mixing.2")
    assert (caught.value.slug, caught.value.where, caught.value.code) == ("need", "mixing.2", 3) and mixer.__name__ in caught.value.got
    with pytest.raises(Refused, match="a layer from 1 to 3"):
        say(role, view_of((5,)), "mixing.0")


@pytest.mark.parametrize("lengths", [(), (0, 0)])
def test_no_rows_have_no_matrix_and_stay_connected(lengths: tuple[int, ...], small: Small) -> None:
    for role, layer in ((small("llama"), 1), (small("bert"), 1), (converted(small("llama")), 2)):
        found = role.says(view_of(lengths, role.shift), (f"mixing.{layer}",), {})[f"mixing.{layer}"]
        assert found.shape == (0, HEADS, 0) and found.requires_grad
