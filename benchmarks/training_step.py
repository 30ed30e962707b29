"""How fast is a training step beside TRL's GKD trainer (off-policy, `lmbda=0`)? The same models, rows, objective: equal losses and gradients are
shown first. Forward and backward pass, no optimiser. `pip install trl==1.16.0` in an environment of its own; `python benchmarks/training_step.py`.

Two windows: rows of one length, and rows of natural, varying length (words a paragraph of Python's own documentation), counted in real tokens.
The floor is the same passes with no loss at all: the sum of the student's logits is what is propagated back; the lower floor leaves out both heads.
"""

import copy
import json
import pydoc_data.topics
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from memory import apart, extra
from record import record, spread
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.component import validate
from limbeck.data.base import Part, Rows
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Models
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.teacher.live import Live
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.tokens import fingerprint
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage
from limbeck.train.window import count, prepare, window

VOCAB, WIDTH, TEACHER, STUDENT, ROWS, LENGTH, REPEATS = 8192, 256, 12, 6, 16, 128, 7
OBJECTIVES = {"jsd": (0.5, 4.0), "forward_kl": (0.0, 1.0)}
"""Kind -> TRL's beta, and what its loss is multiplied by: ours is scaled so that its ends are the two KLs."""
Arm = Callable[[], Any]


def model(layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCAB}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers, max_position_embeddings=1024, tie_word_embeddings=True))


def lengths(which: str) -> list[int]:
    """Of the rows; natural ones are words of paragraphs of more than three words, in the order of a fixed shuffle, at most 512."""
    if which == "equal":
        return [LENGTH] * ROWS
    words = [len(p.split()) for _, text in sorted(pydoc_data.topics.topics.items()) for p in text.split("\n\n")]
    words = [min(n, 512) for n in words if n > 3]
    return [words[i] for i in torch.randperm(len(words), generator=torch.Generator().manual_seed(0))[:ROWS].tolist()]


def ours(kind: str, student: Any, teacher: Any, ids: list[list[int]]) -> Arm:
    tokenizer, mark = ByteTokenizer(), fingerprint(ByteTokenizer())
    rows = tuple(Row(str(i), {"text": "", "ids": {mark: tuple(x)}}) for i, x in enumerate(ids))
    roles = Models({"student": Text(student, tokenizer, anatomy(student)), "teacher": Text(teacher, tokenizer, anatomy(teacher))})
    stage = validate(Stage, {"steps": 1, "batch": len(rows), "objective": [kind]}, "benchmark")
    loop = Loop(stage, World(roles, Rows((Part(rows),)), teacher=Live(model="given:teacher"), streams=Streams(0)))
    running = loop.running[0]

    def go() -> float:
        batch = prepare(loop.draw(running, 0), running, loop.world.teacher, {}, loop.place(0), (0, 0, 0))
        with roles.turn("student"):
            (loss,) = window(running, roles, batch, 0, count(running.turn, batch))
        return float(loss.total) / loss.count

    return go


def theirs(kind: str, student: Any, teacher: Any, ids: list[list[int]]) -> Arm:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, "<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    config = GKDConfig(tempfile.mkdtemp(), lmbda=0.0, beta=OBJECTIVES[kind][0], report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False)
    data = Dataset.from_list([{"input_ids": x} for x in ids])
    trainer = GKDTrainer(student, teacher, config, data_collator=lambda rows: rows, train_dataset=data, processing_class=tokenizer)
    longest = max(map(len, ids))
    padded = torch.tensor([x + [0] * (longest - len(x)) for x in ids])
    mask = torch.tensor([[1] * len(x) + [0] * (longest - len(x)) for x in ids])
    labels = padded.masked_fill(mask == 0, -100)
    targets = int((labels[:, 1:] != -100).sum())

    def go() -> float:
        inputs = {"input_ids": padded, "attention_mask": mask, "labels": labels}
        return float(trainer.training_step(trainer.model, inputs, num_items_in_batch=torch.tensor(targets)))

    return go


def floor(student: Any, teacher: Any, ids: list[list[int]], heads: bool) -> Arm:
    x = torch.tensor(ids)

    def go() -> None:
        with torch.no_grad():
            (teacher if heads else teacher.model)(input_ids=x, use_cache=False)
        said = (student if heads else student.model)(input_ids=x, use_cache=False)
        (said.logits if heads else said.last_hidden_state).sum().backward()

    return go


def arms(kind: str, which: str) -> dict[str, tuple[Arm, Any]]:
    """Name -> one step, and the student whose gradients it leaves."""
    teacher, student = model(TEACHER, 1).eval().requires_grad_(False), model(STUDENT, 2)
    random = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, VOCAB, (n,), generator=random).tolist() for n in lengths(which)]
    found: dict[str, tuple[Arm, Any]] = {}
    for name, make in {"limbeck": ours, "TRL GKD": theirs}.items():
        own = copy.deepcopy(student)
        found[name] = make(kind, own, teacher, ids), own
    if which == "equal":
        for name, heads in {"floor": True, "floor without heads": False}.items():
            own = copy.deepcopy(student)
            found[name] = floor(own, teacher, ids, heads), own
    return found


def gradient(student: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for _, p in sorted(student.named_parameters()) if p.grad is not None])


def measured(kind: str, which: str) -> dict[str, Any]:
    """Times of all arms, interleaved, after a first step that shows that losses and gradients are equal."""
    work, seconds, factor = arms(kind, which), {}, OBJECTIVES[kind][1]
    losses, slopes = {}, {}
    for turn in range(REPEATS + 1):
        for name, (arm, student) in work.items():
            student.zero_grad(set_to_none=True)
            began = time.perf_counter()
            value = arm()
            if turn:
                seconds.setdefault(name, []).append(time.perf_counter() - began)
            elif name in ("limbeck", "TRL GKD"):
                losses[name], slopes[name] = value, gradient(student)
    a, b = slopes["limbeck"], factor * slopes["TRL GKD"]
    found: dict[str, Any] = {
        "real_tokens": sum(lengths(which)),
        "loss": {"limbeck": losses["limbeck"], "TRL GKD": factor * losses["TRL GKD"]},
        "gradient_gap": float((a - b).norm() / b.norm()),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "extra_bytes": {name: apart(kind, which, name) for name in work},
    }
    pairs = {name: [y / x for x, y in zip(seconds["limbeck"], seconds[name], strict=True)] for name in work if name != "limbeck"}
    found["speed_over"] = {name: statistics.median(values) for name, values in pairs.items()}
    found["memory_over"] = found["extra_bytes"]["limbeck"] / found["extra_bytes"]["TRL GKD"]
    return found


def main() -> None:
    torch.set_num_threads(2)
    found = {}
    for kind in OBJECTIVES:
        for which in ("equal", "natural"):
            found[f"{kind}, {which} lengths"] = measured(kind, which)
            print(kind, which, json.dumps(found[f"{kind}, {which} lengths"], indent=1), flush=True)
    record("training_step", {"windows": found})


if __name__ == "__main__":
    if len(sys.argv) > 3:
        torch.set_num_threads(2)
        kind, which, name = sys.argv[1:4]
        print(extra(arms(kind, which)[name][0]))
    else:
        main()
