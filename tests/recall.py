"""A teacher of four blocks, of which one recalls what stood under a key, by its attention, and the others do next to nothing by theirs."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.block.base import AnyMixer
from limbeck.check.models import TOKENIZER, family_of
from limbeck.data.base import Part, Rows
from limbeck.model.base import Models, Role, clone
from limbeck.model.text import Text
from limbeck.numerics import Streams, kl, log_probs
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.hidden_l2 import HiddenL2
from limbeck.signals import Row, dense
from limbeck.student.linearize import Linearize
from limbeck.text.spans import fingerprint
from limbeck.train.loop import Loop, World
from limbeck.train.optimiser import Optimiser
from limbeck.train.stage import Stage, Turn

NUM = 8
"""Keys, and values: ids 0 to 63 are a value under a key, 64 to 71 ask for a key, 72 to 79 answer."""
ASK, ANSWER = NUM * NUM, NUM * NUM + NUM
SPACE = 16
"""Channels for each of four things: the key of a pair, its value, the key that is asked for, the value that was found."""


def rows(seed: int, num: int) -> tuple[Row, ...]:
    """Six pairs of different keys, then one of these keys, then the value that stood under it: only that is asked for."""
    draw, found, mark = torch.Generator().manual_seed(seed), [], fingerprint(TOKENIZER)
    for i in range(num):
        keys, values = (torch.randperm(NUM, generator=draw)[:6].tolist() for _ in range(2))
        at = int(torch.randint(6, (), generator=draw))
        ids = [*(key * NUM + value for key, value in zip(keys, values, strict=True)), ASK + keys[at], ANSWER + values[at]]
        found.append(Row(f"{seed}-{i}", {"text": "", "ids": {mark: ids}, "asked": {mark: [False] * 7 + [True]}}))
    return tuple(found)


def teacher(seed: int, block: int) -> Text:
    """It, with codes for keys and values that are drawn by seed."""
    role = family_of("llama", seed, torch.float32, layers=4, width=4 * SPACE, heads=1, kv_heads=1, head_dim=SPACE, mlp_width=32)
    module, draw = role.module, torch.Generator().manual_seed(seed)
    keys, values = (torch.linalg.qr(torch.randn(SPACE, NUM, generator=draw)).Q.mT for _ in range(2))
    pairs = torch.arange(NUM * NUM)
    space = [slice(i * SPACE, (i + 1) * SPACE) for i in range(4)]
    with torch.no_grad():
        module.model.rotary_emb.inv_freq.zero_()  # type: ignore[union-attr, operator]
        table, head = module.model.embed_tokens.weight, module.lm_head.weight  # type: ignore[union-attr]
        table[pairs, space[0]], table[pairs, space[1]] = keys[pairs // NUM], values[pairs % NUM]  # type: ignore[index]
        table[ASK:ANSWER, space[2]] = keys  # type: ignore[index]
        head[ANSWER : ANSWER + NUM, space[3]] = values  # type: ignore[index]
        for i, layer in enumerate(module.model.layers):  # type: ignore[union-attr, arg-type]
            attention = layer.self_attn  # type: ignore[union-attr]
            if i != block:
                attention.o_proj.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
                continue
            for part, where in (("q_proj", 2), ("k_proj", 0), ("v_proj", 1)):
                getattr(attention, part).weight.zero_()[:, space[where]] = 1.5 * torch.eye(SPACE)
            attention.o_proj.weight.zero_()[space[3]] = torch.eye(SPACE)  # type: ignore[union-attr, operator]
    return role


def says(role: Role, some: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of what is asked for, and what is right."""
    with torch.no_grad():
        said = role.says(role.view(some), ("logits", "label"), {})
    return log_probs(dense(said["logits"])), said["label"]


def share(role: Role, some: Sequence[Row]) -> float:
    """Share of right answers."""
    log_p, label = says(role, some)
    return float((log_p.argmax(-1) == label).float().mean())


class Distance:
    """Mean KL from the teacher on some rows; a student may learn on others before."""

    def __init__(self, role: Role, some: Sequence[Row], seed: int = 0):
        self.role, self.some, self.seed = role, some, seed

    def __call__(self, role: Role) -> float:
        return float(kl(says(self.role, self.some)[0], says(role, self.some)[0]).mean())

    def learn(self, role: Role, steps: int) -> None:
        turn = Turn(objective=(ForwardKL(),), batch=8, optimiser=Optimiser(lr=1e-3))
        run(role, self.role, turn, steps, self.seed)


def run(student: Role, role: Role, turn: Turn, steps: int, seed: int) -> None:
    """Some steps of a turn, on 32 rows."""
    world = World(Models({"student": student, "teacher": role}), Rows((Part(rows(100 + seed, 32)),)), streams=Streams(seed))
    Loop(Stage(steps=steps, turn=(turn,)), world).run()


def aligned(role: Role, mixer: AnyMixer, steps: int, seed: int) -> Text:
    """A student with another mixer in every block, which has learned to say what attention says there."""
    student = Linearize(mixer=mixer)(clone(role))
    compared = HiddenL2(layers="all", signal="mixer", by_width=True)
    optimiser = Optimiser(lr=1e-3, decay="cosine")
    turn = Turn.model_validate(
        {"objective": (compared,), "forward": "layerwise", "align": ("layer_map",), "only": ("*.self_attn.*",), "batch": 8, "optimiser": optimiser}
    )
    run(student, role, turn, steps, seed)
    assert isinstance(student, Text)
    return student


def apart(role: Text, blocks: Sequence[int]) -> Text:
    """A copy whose attention says nothing in some blocks."""
    made = copy.deepcopy(role, {id(TOKENIZER): TOKENIZER})
    with torch.no_grad():
        for i in blocks:
            made.module.get_submodule(f"model.layers.{i}.self_attn.o_proj").weight.zero_()  # type: ignore[union-attr, operator]
    return made
