"""Contracts of text roles: what they say is what the model of transformers says, whatever the layout. A role is no component."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.models import rows, spoken
from limbeck.model.text import Text
from limbeck.model.transcriber import Transcriber
from limbeck.numerics import log_probs
from limbeck.signals import View, dense

SAME = {torch.float64: (1e-6, 1e-7), torch.float32: (1e-4, 1e-5)}
"""Models of transformers compute norms and rotations in float32, whatever they are given."""


def seen(role: Text, seed: int = 0) -> View:
    """What the role sees of the example rows; the id of the padding stands within rows too."""
    view = role.view((spoken(seed) if isinstance(role, Transcriber) else rows(seed)).train)
    pad = role.tokenizer.pad_token_id
    if pad is None:
        return view
    middle = view.offsets == (view.ragged // 2).repeat_interleave(view.ragged)
    return replace(view, inputs={**view.inputs, "ids": view.inputs["ids"].masked_fill(middle, pad)})


def say(role: Text, view: View, *names: str, layout: Any = "padded", inject: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """What the role says in a layout."""
    before, role.layout = role.layout, layout
    try:
        with torch.no_grad():
            return role.says(view, names, inject or {})
    finally:
        role.layout = before


def by_row(role: Text, view: View, **more: Any) -> list[Any]:
    """What the model itself says, row by row, without the role; `more` is made of ids and number of each row."""
    out = []
    with torch.no_grad():
        for i, ids in enumerate(view.inputs["ids"].split(view.ragged.tolist())):
            given = {name: f(ids, i)[None] for name, f in more.items()}
            if isinstance(role, Transcriber):  # its class does not shift labels by itself
                shift = {"labels": given["labels"].roll(-1, 1).index_fill(1, torch.tensor([len(ids) - 1]), -100)} if given else {}
                given = {"input_features": heard_alone(role, view, i), "decoder_input_ids": ids[None], **shift}
            else:
                given = {"input_ids": ids[None], **given}
            out.append(role.module(**given, output_hidden_states=not more))
    return out


def heard_alone(role: Transcriber, view: View, row: int) -> Tensor:
    """Features of one clip, by transformers' own extractor."""
    from transformers import WhisperFeatureExtractor

    assert view.instants is not None
    wave = view.inputs["wave"].split(view.instants.tolist())[row].numpy()
    made = WhisperFeatureExtractor(feature_size=role.bands)(
        wave, sampling_rate=16_000, return_tensors="pt", padding="max_length", max_length=role.window
    )
    return made["input_features"].to(next(role.module.parameters()))


def listed_states(out: Any) -> Any:
    """The hidden states that the model lists: of the decoder, where it has two parts."""
    return out.decoder_hidden_states if "decoder_hidden_states" in out else out.hidden_states


def same(role: Text) -> tuple[float, float]:
    return SAME[next(role.module.parameters()).dtype]


@contract
def own_loss(role: Text, seed: int = 0) -> None:
    """Its cross-entropy is the loss that the model computes itself: two models would be shifted alike, so nothing else shows a wrong shift."""
    view = seen(role, seed)
    asked = (view.asked if view.asked is not None else torch.ones_like(view.inputs["ids"], dtype=torch.bool)).split(view.ragged.tolist())
    theirs, counts = 0.0, 0
    first = view.shift  # nothing predicts the first position of a causal model

    def labels(ids: Tensor, i: int) -> Tensor:
        return torch.where(asked[i], ids, -100)

    for out, some in zip(by_row(role, view, labels=labels), asked, strict=True):
        num = int(some[first:].sum())
        theirs, counts = theirs + (out.loss.item() * num if num else 0.0), counts + num
    said = say(role, view, "logits", "label")
    ours = -log_probs(dense(said["logits"])).gather(-1, said["label"][:, None]).sum()
    assert len(said["label"]) == counts, f"it predicts {len(said['label'])} targets, the model {counts}"
    close(ours, theirs, (1e-5, 1e-5), "cross-entropy against the model's own loss")


@contract
def own_logits(role: Text, seed: int = 0) -> None:
    """Its logits are those of the model at the positions that predict, row by row."""
    view = seen(role, seed)
    theirs = torch.cat([out.logits[0] for out in by_row(role, view)])[view.targets - view.shift]
    close(dense(say(role, view, "logits")["logits"]), theirs, same(role), "logits against the model's own")


@contract
def log_probability(role: Text, seed: int = 0) -> None:
    """The log-probability of the target is that of its logits at its label."""
    said = say(role, seen(role, seed), "logits", "label", "target_logprob")
    expected = log_probs(dense(said["logits"])).gather(-1, said["label"][:, None])[:, 0]
    close(said["target_logprob"], expected, same(role), "log-probability of the target")


@contract
def packing(role: Text, seed: int = 0) -> None:
    """Packed, padded, by its own choice, and row by row it says the same, whatever ids the rows hold."""
    view = seen(role, seed)
    every = ("logits", "hidden.0", "hidden.1", f"hidden.{role.num_layers}", "input.1", "mixer.1", "query.1", "key.1", "value.1")
    names = tuple(name for name in every if name.split(".")[0] in role.offers)
    padded = say(role, view, *names)
    others = {"packed": say(role, view, *names, layout="packed"), "auto": say(role, view, *names, layout="auto")}
    alone = [say(role, view.at(torch.tensor([i])), *names) for i in range(view.num_rows)]
    others["row by row"] = {name: torch.cat([dense(part[name]) for part in alone]) for name in names}
    for how, said in others.items():
        for name in names:
            close(dense(said[name]), dense(padded[name]), same(role), f"{name}, {how} against padded")


@contract
def hidden_states(role: Text, seed: int = 0) -> None:
    """Its layers are those that the model itself lists, as far as that list is of blocks: its last entry stands after the final norm."""
    view, layers = seen(role, seed), range(role.num_layers)
    theirs = [torch.cat(each) for each in zip(*([x[0] for x in listed_states(out)] for out in by_row(role, view)), strict=True)]
    said = say(role, view, *(f"hidden.{i}" for i in (*layers, role.num_layers)))
    for i in layers:
        close(said[f"hidden.{i}"], theirs[i], same(role), f"hidden.{i} against the model's own")
    last = said[f"hidden.{role.num_layers}"]
    if role.anatomy.has("final_norm"):
        with torch.no_grad():
            last = role.module.get_submodule(role.anatomy.path("final_norm"))(last)
    close(last, theirs[-1], same(role), "the last block, after the final norm if there is one")
    close(say(role, view, "hidden.-1")["hidden.-1"], said[f"hidden.{role.num_layers}"], (0.0, 0.0), "hidden.-1 against the last block")


@contract
def queries(role: Text, seed: int = 0) -> None:
    """Queries, keys and values are what the weights named by the anatomy make of the normed input of the block."""
    view = seen(role, seed)
    said = say(role, view, "input.1", "query.1", "key.1", "value.1")
    x = said["input.1"]
    if role.anatomy.has("mixer_norm"):
        with torch.no_grad():
            x = role.module.get_submodule(role.anatomy.path("mixer_norm", 0))(x)
    for name in ("query", "key", "value"):
        bias = role.anatomy.bias(role.module, name, 0)
        close(said[f"{name}.1"], x @ role.anatomy.weight(role.module, name, 0).mT + (0 if bias is None else bias), same(role), f"{name}.1")


@contract
def injects(role: Text, seed: int = 0) -> None:
    """A block that is made to hear what it hears anyway says the same; what it hears otherwise changes what is said."""
    view = seen(role, seed)
    if role.num_layers < 2:
        raise NotClaimed("it has one block")
    for layout in ("packed", "padded"):
        plain = say(role, view, "logits", "input.2", layout=layout)
        again = say(role, view, "logits", layout=layout, inject={"input.2": plain["input.2"]})
        close(dense(again["logits"]), dense(plain["logits"]), same(role), f"{layout}, with its own input put in")
        other = say(role, view, "logits", "input.2", layout=layout, inject={"input.2": plain["input.2"] * 0.5 + 1})
        assert (dense(other["logits"]) - dense(plain["logits"])).abs().max() > 1e-3, "what is put in does not arrive"
        close(other["input.2"], plain["input.2"] * 0.5 + 1, same(role), f"{layout}, what is heard where something was put in")


@contract
def nothing(role: Text, seed: int = 0) -> None:
    """No rows give signals of no targets, with the axes that they always have."""
    view = seen(role, seed)
    names = ("logits", "label", "hidden.1", "query.1")
    whole, none = say(role, view, *names), say(role, view.at(torch.arange(0)), *names)
    for name in names:
        assert dense(none[name]).shape == (0, *dense(whole[name]).shape[1:]), f"{name} of no rows has shape {tuple(dense(none[name]).shape)}"


@contract
def untouched(role: Text, seed: int = 0) -> None:
    """Speaking changes no weight, leaves no hook behind, and makes lazy logits that remember whether they may learn."""
    before, hooks = {name: x.clone() for name, x in role.module.state_dict().items()}, num_hooks(role)
    say(role, seen(role, seed), "logits", "hidden.1", "query.1")
    assert all(torch.equal(x, before[name]) for name, x in role.module.state_dict().items()), "weights changed"
    assert num_hooks(role) == hooks, "a hook was left behind"
    assert not say(role, seen(role, seed), "logits")["logits"].learns, "logits made without gradients would learn"


def num_hooks(role: Text) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in role.module.modules())
