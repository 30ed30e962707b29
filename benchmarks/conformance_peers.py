"""Do released peers keep the invariances that `limbeck check` asks of limbeck? The same tiny Llamas, four rows of unequal length, one step of SGD.

In an environment of its own: `pip install trl==1.16.0 nvidia-modelopt==0.47.0 'pulp<4' nvidia-ml-py omegaconf scipy`,
`pip install --no-deps liger-kernel==0.8.5`; then `python benchmarks/conformance_peers.py`.

Each probe states what the step should be, computed in bare PyTorch in float64: the gradient of the mean KL over all targets that are asked for.
Shown: size of the step taken over that of the right one, and the cosine between them; 1 and 1 are right.
"""

import copy
import functools
import json
import math
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from record import record
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB, EXTRA, LENGTHS, PROMPTS = 96, 64, (5, 9, 17, 30), (2, 3, 5, 4)
PROBES: dict[str, dict[str, Any]] = {
    "one batch": {},
    "four micro-batches": {"accumulate": 4},
    "32 more positions of padding": {"padding": 32},
    "prompts not asked for, four micro-batches": {"accumulate": 4, "prompts": True},
    "teacher's head padded by 64 rows": {"teacher_rows": EXTRA},
}


def model(layers: int, seed: int, rows: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB + rows}
    made = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers, max_position_embeddings=128, tie_word_embeddings=False))
    made.lm_head.weight.data.mul_(8)  # predictions that are sure of something, so that divergences differ between targets
    return made.eval()


def texts() -> list[list[int]]:
    random = torch.Generator().manual_seed(0)
    return [torch.randint(2, VOCAB, (n,), generator=random).tolist() for n in LENGTHS]


def asked(i: int, prompts: bool) -> list[bool]:
    """Which positions of a row are to be predicted."""
    return [place >= (PROMPTS[i] if prompts else 1) for place in range(LENGTHS[i])]


def right(student: Any, teacher: Any, prompts: bool = False, **_: Any) -> Tensor:
    """The gradient that a step of SGD with learning rate 1 should follow; the teacher's further ids are cut before the softmax."""
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    total, num = torch.zeros((), dtype=torch.float64), 0
    for i, ids in enumerate(texts()):
        mask = torch.tensor(asked(i, prompts)[1:])
        with torch.no_grad():
            log_p = teacher(torch.tensor([ids])).logits[0, :-1, :VOCAB].log_softmax(-1)
        log_q = student(torch.tensor([ids])).logits[0, :-1, :VOCAB].log_softmax(-1)
        total, num = total + (log_p.exp() * (log_p - log_q)).sum(-1)[mask].sum(), num + int(mask.sum())
    (total / num).backward()
    return flat(student, lambda p: p.grad)


def flat(module: Any, of: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([of(p).double().flatten() for _, p in sorted(module.named_parameters())])


def trained(make: Callable[..., Any], student: Any, teacher: Any, accumulate: int = 1, padding: int = 0, prompts: bool = False, **_: Any) -> Tensor:
    """The step that a trainer of the transformers family takes."""
    rows = [{"input_ids": ids, "labels": [t if a else -100 for t, a in zip(ids, asked(i, prompts), strict=True)]} for i, ids in enumerate(texts())]

    def collate(some: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in some) + padding

        def pad(name: str, value: int) -> Tensor:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in some])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in some])
        return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": mask}

    own = copy.deepcopy(student)
    settings = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": len(rows) // accumulate, "gradient_accumulation_steps": accumulate,
        "max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "report_to": [], "use_cpu": True,
        "bf16": False, "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False, "logging_strategy": "no",
    }  # fmt: skip
    before = flat(own, lambda p: p.detach().clone())
    make(own, copy.deepcopy(teacher), settings, rows, collate).train()
    return before - flat(own, lambda p: p.detach())


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, "<unk>")), pad_token="<pad>", unk_token="<unk>"
    )


def trl(student: Any, teacher: Any, settings: dict[str, Any], rows: list[Any], collate: Any) -> Any:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    config = GKDConfig(**settings, lmbda=0.0, beta=0.0)
    return GKDTrainer(student, teacher, config, data_collator=collate, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())


def modelopt(student: Any, teacher: Any, settings: dict[str, Any], rows: list[Any], collate: Any) -> Any:
    from datasets import Dataset
    from modelopt.torch.distill.plugins.huggingface import DistillArgsWithTeacherModel, KDTrainer
    from transformers import TrainingArguments

    how = DistillArgsWithTeacherModel(teacher_model=teacher)
    return KDTrainer(
        model=student, args=TrainingArguments(**settings), train_dataset=Dataset.from_list(rows), data_collator=collate, distill_args=how,
        processing_class=tokenizer(),
    )  # fmt: skip


def limbeck(student: Any, teacher: Any, accumulate: int = 1, padding: int = 0, prompts: bool = False, **_: Any) -> Tensor:
    """The same through limbeck's window; it has no padding of its own to add, so all rows are padded to one length or packed."""
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

    own, mark = copy.deepcopy(student), fingerprint(ByteTokenizer())
    content = [{"text": "", "ids": {mark: ids}, "asked": {mark: asked(i, prompts)}} for i, ids in enumerate(texts())]
    rows = Rows((Part(tuple(Row(str(i), one) for i, one in enumerate(content))),))
    layout = "padded" if padding else "packed"
    roles = Models({n: Text(m, ByteTokenizer(), anatomy(m), layout) for n, m in {"student": own, "teacher": copy.deepcopy(teacher)}.items()})
    plain = {"lr": 1.0, "clip": None}
    stage = validate(Stage, {"steps": 1, "batch": len(LENGTHS), "micro": accumulate, "objective": ["forward_kl"], "optimiser": plain}, "benchmark")
    loop = Loop(stage, World(roles, rows, teacher=Live(model="given:teacher"), streams=Streams(0)))
    loop.running[0].optimiser = torch.optim.SGD(own.parameters(), lr=1.0)
    for group in loop.running[0].optimiser.param_groups:
        group["rate"] = 1.0
    before = flat(own, lambda p: p.detach().clone())
    loop.run()
    return before - flat(own, lambda p: p.detach())


def liger(student: Any, teacher: Any, **_: Any) -> Tensor:
    """Its chunked loss alone, over final states of each row by itself: it has no trainer."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    own, loss = copy.deepcopy(student), LigerFusedLinearJSDLoss(0.0, 1.0, beta=0.0, compiled=False, chunk_size=128)
    states, theirs = [], []
    for ids in texts():
        states.append(own.model(torch.tensor([ids])).last_hidden_state[0, :-1])
        with torch.no_grad():
            theirs.append(teacher.model(torch.tensor([ids])).last_hidden_state[0, :-1])
    labels = torch.tensor([t for ids in texts() for t in ids[1:]])
    loss(torch.cat(states), own.lm_head.weight, torch.cat(theirs), teacher.lm_head.weight, labels).backward()
    return flat(own, lambda p: p.grad)


PEERS: dict[str, Callable[..., Tensor]] = {
    "limbeck": limbeck,
    "TRL 1.16.0 GKD": functools.partial(trained, trl),
    "ModelOpt 0.47.0 KDTrainer": functools.partial(trained, modelopt),
    "Liger 0.8.5 chunked loss": liger,
}
FUNCTIONS = ("Liger 0.8.5 chunked loss",)
"""Peers that are a loss only: probes of accumulation and padding are not theirs."""


def probed(peer: str, probe: str) -> dict[str, Any]:
    """Ratio and cosine of a peer's step, or what it said."""
    how = PROBES[probe]
    if peer in FUNCTIONS and how.keys() & {"accumulate", "padding", "prompts"}:
        return {"verdict": "no trainer"}
    student, teacher = model(2, 1), model(3, 2, how.get("teacher_rows", 0))
    expected = right(student, teacher, **how)
    try:
        step = PEERS[peer](student, teacher, **how)
    except ImportError as error:
        raise SystemExit(f"{peer} is not here ({error}): see the top of this file") from error
    except Exception as error:
        return {"verdict": "refused" if isinstance(error, ValueError) else "fails", "said": f"{type(error).__name__}: {str(error)[:160]}"}
    ratio, cosine = float(step.norm() / expected.norm()), float(step @ expected / step.norm() / expected.norm())
    good = math.isclose(ratio, 1, abs_tol=1e-3) and cosine > 1 - 1e-5
    return {"verdict": "right" if good else "wrong", "ratio": ratio, "cosine": cosine}


def main() -> None:
    torch.set_num_threads(2)
    found = {peer: {probe: probed(peer, probe) for probe in PROBES} for peer in PEERS}
    print(json.dumps(found, indent=1))
    record("conformance_peers", {"probes": found})


if __name__ == "__main__":
    main()
