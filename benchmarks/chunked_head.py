"""What does a divergence through two heads cost, in time and in memory? Forward KL and others, value and gradients, float32, student 576 and
teacher 960 channels wide, 49,152 entries; against dense PyTorch, the four matrix products alone, and released peers where they are installed
(`pip install trl==1.16.0`, `pip install --no-deps liger-kernel==0.8.5`, in an environment of their own). `python benchmarks/chunked_head.py`.

Times: all arms in one process, interleaved. Memory: each arm in a process of its own, its peak less what stood there before.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable

import torch
from memory import apart, extra
from record import record, spread

from limbeck.numerics import log_probs, top_k
from limbeck.objective.base import AbstractDivergence
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.jsd import JSD
from limbeck.objective.reverse_kl import ReverseKL
from limbeck.signals import Head, Logits, Signals, TopK

STUDENT, TEACHER, VOCAB, K, REPEATS = 576, 960, 49_152, 64, 5
TARGETS = (512, 1024, 2560)
Arm = Callable[[], None]
SAME = ("forward_kl", "Liger, chunks of 128", "TRL, chunked")
"""Arms whose gradient must be that of dense PyTorch."""


def said(name: str, value: object, num: int) -> Signals:
    rows = {"target": torch.zeros(num, dtype=torch.long), "row": torch.arange(1)}
    return Signals({name: value}, rows, ("",), torch.arange(1), torch.ones(1))


def arms(num: int) -> tuple[dict[str, Arm], Arm, torch.Tensor]:
    """Name -> runs one value with its gradients, which are left in `.grad`; what clears them, and is run first each time; the hidden states."""
    random = torch.Generator().manual_seed(0)
    hidden, theirs = torch.randn(num, STUDENT, generator=random), torch.randn(num, TEACHER, generator=random)
    head, other = torch.randn(VOCAB, STUDENT, generator=random) * 0.05, torch.randn(VOCAB, TEACHER, generator=random) * 0.05
    hidden.requires_grad_()
    head.requires_grad_()
    kept: dict[str, TopK] = {}

    def clear() -> None:
        hidden.grad = head.grad = None

    def products() -> None:
        with torch.no_grad():
            theirs @ other.mT  # noqa: B018
            logits = hidden @ head.mT
            hidden.grad, head.grad = logits @ head, logits.mT @ hidden

    def dense() -> None:
        log_p, log_q = (theirs @ other.mT).log_softmax(-1), (hidden @ head.mT).log_softmax(-1)
        (log_p.exp() * (log_p - log_q)).sum(-1).mean().backward()

    def ours(objective: AbstractDivergence) -> Arm:
        def go() -> None:
            student, teacher = Logits(hidden, Head(head), True), Logits(theirs, Head(other), False)
            (objective({"student": said("logits", student, num), "teacher": said("logits", teacher, num)}).total / num).backward()

        return go

    def truncated() -> None:
        if not kept:
            parts = [top_k(log_probs(x @ other.mT), K) for x in theirs.split(256)]
            kept["teacher"] = TopK(*(torch.cat(x) for x in zip(*parts, strict=True)))
        student = {"student": said("logits", Logits(hidden, Head(head), True), num), "teacher": said("top_logits", kept["teacher"], num)}
        (ForwardKL()(student).total / num).backward()

    found = {
        "four matrix products": products,
        "dense": dense,
        "forward_kl": ours(ForwardKL()),
        "reverse_kl": ours(ReverseKL()),
        "jsd": ours(JSD()),
        f"forward_kl, top {K}": truncated,
    }

    with contextlib.suppress(ImportError):
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        liger = LigerFusedLinearJSDLoss(0.0, 1.0, beta=0.0, compiled=False, chunk_size=128)
        labels = torch.zeros(num, dtype=torch.long)
        found["Liger, chunks of 128"] = lambda: liger(hidden, head, theirs, other, labels).backward()
    with contextlib.suppress(ImportError):
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        found["TRL, chunked"] = lambda: ChunkedDivergenceFunction.apply(hidden, head, None, theirs, other, None, 0.0)[0].mean().backward()

    def cleared(arm: Arm) -> Arm:
        return lambda: (clear(), arm())[1]

    return {name: cleared(arm) for name, arm in found.items()}, clear, hidden


def extra_bytes(num: int, name: str) -> int:
    """Peak of one arm beyond its inputs and one gradient of the student's head, after a call in which the matrix library takes its own memory."""
    work, clear, _ = arms(num)
    work[name]()
    clear()
    return extra(work[name]) - 4 * VOCAB * STUDENT


def main() -> None:
    torch.set_num_threads(2)
    found = {}
    for num in TARGETS:
        (work, _, hidden), seconds, slopes = arms(num), {}, {}
        for turn in range(REPEATS + 1):
            for name, arm in work.items():
                began = time.perf_counter()
                arm()
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
                else:
                    slopes[name] = hidden.grad.clone()
        median = {name: spread(values) for name, values in seconds.items()}
        found[num] = {
            name: {
                **({"gradient_to_dense": float((slopes[name] - slopes["dense"]).norm() / slopes["dense"].norm())} if name in SAME else {}),
                "seconds": of,
                "to_dense": of["median"] / median["dense"]["median"],
                "to_products": of["median"] / median["four matrix products"]["median"],
                "extra_bytes": apart(str(num), name),
            }
            for name, of in median.items()
        }
        for name, of in found[num].items():
            print(num, name, json.dumps(of), flush=True)
    record("chunked_head", {"targets": found})


if __name__ == "__main__":
    if len(sys.argv) > 2:
        torch.set_num_threads(2)
        print(extra_bytes(int(sys.argv[1]), sys.argv[2]))
    else:
        main()
