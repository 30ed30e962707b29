"""How fast a student is, and how big."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.evaluate._memory import measured
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.signals import Row, dense

ROWS = 8
"""Rows in one forward pass of a role that does not write text."""
Clock = Callable[[], float]


class Speed(Evaluator):
    r"""How fast teacher and student write and read, how much memory they take, how big they are.

    With $t_0$ the time when a prompt is handed over and $t_i$ that of the i-th new token, for n new tokens after a prompt of c:

    $$ \mathrm{prefill} = \frac{c}{t_1 - t_0}, \qquad \mathrm{decode} = \frac{n - 1}{t_n - t_1} $$

    in tokens a second: greedy, batch 1, with a cache, always n tokens (an end of text is ruled out), in one process with one number of
    threads. Each subject is warmed up once; then the subjects take turns, so that a machine that slows down slows both. Median, and
    10 to 90 % of the repeats. Only `teacher` and `student` are measured: what differs from the student in weights alone is as fast. A
    role that does not write is timed in rows a second instead.

    With `Exam.context["folders"]`: bytes on disk, and the peak memory of a process of its own that opens the folder and decodes, Python
    and its libraries included. Part `decode_by_context`: milliseconds a token. Contexts that a model is not made for are left out.

    Example:
        >>> Speed(contexts=(512, 2048)).repeats
        5

    References:
        Georges et al., Statistically Rigorous Java Performance Evaluation, 2007, doi:10.1145/1297027.1297033 (warm-up, repeats, intervals).
    """

    kind: Literal["speed"] = "speed"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        name: (0.0, math.inf)
        for name in (
            "decode_tokens_per_second",
            "decode_low",
            "decode_high",
            "prefill_tokens_per_second",
            "forward_rows_per_second",
            "parameters",
            "memory_bytes",
            "disk_bytes",
        )
    }
    repeats: int = Field(default=5, ge=2)
    """Times that each subject is measured."""
    new_tokens: int = Field(default=32, ge=2)
    """Tokens written each time."""
    prompt_tokens: int = Field(default=64, gt=0)
    """Tokens before them, for the figures of the table."""
    contexts: tuple[Annotated[int, Field(gt=0)], ...] = (64, 256)
    """Tokens before them, for the plot."""

    @classmethod
    def example(cls) -> "Speed":
        return cls(repeats=2, new_tokens=4, prompt_tokens=8, contexts=(16,))

    def __call__(self, exam: Exam) -> dict[str, Any]:
        subjects = [name for name in ("teacher", "student") if name in exam.subjects] or list(exam.subjects[:1])
        with ExitStack() as stack, torch.no_grad():
            roles = {name: stack.enter_context(exam.open(name)) for name in subjects}
            for role in roles.values():
                stack.enter_context(listening(role))
            out = self.timings(roles, exam.rows)
            writers = {name for name, role in roles.items() if role.writes}
            sizes = {name: sum(p.numel() for p in role.module.parameters()) for name, role in roles.items()}  # tied ones once
        context = max((entry["context"] for entry in out["decode_by_context"]), default=self.prompt_tokens)
        for name in subjects:
            out[name] = {**out.get(name, {}), "parameters": sizes[name]}
            folder = exam.context.get("folders", {}).get(name)
            if folder is None or not Path(folder).is_dir():
                continue
            out[name]["disk_bytes"] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            if name in writers and (memory := measured(Path(folder), context, self.new_tokens)) is not None:  # that of writing text alone
                out[name], out["memory_context"] = out[name] | memory, context
        return out

    def timings(self, roles: Mapping[str, Role], rows: Sequence[Row], clock: Clock = time.perf_counter) -> dict[str, Any]:
        """All that is timed: figures by subject, and `decode_by_context`."""
        writers = {name: role for name, role in roles.items() if role.writes}
        readers = {
            name: partial(forward, role, rows[:ROWS], clock) for name, role in roles.items() if name not in writers and "logits" in role.offers
        }
        out: dict[str, Any] = {
            name: {"forward_rows_per_second": statistics.median(min(len(rows), ROWS) / seconds for seconds in found)}
            for name, found in alternate(readers, self.repeats).items()
        }
        room = min([context - self.new_tokens for role in writers.values() if (context := getattr(role, "context", None))], default=None)
        head = self.prompt_tokens if room is None else min(self.prompt_tokens, room)
        lengths = sorted({head, *self.contexts} if room is None else {c for c in (head, *self.contexts) if 0 < c <= room})
        out["decode_by_context"] = []
        for length in lengths if writers else ():
            write = {name: partial(decode, role, rows, length, self.new_tokens, clock) for name, role in writers.items()}
            runs = alternate(write, self.repeats)
            each = {f"{name}_ms": spread([1000 * seconds for _, seconds in found]) for name, found in runs.items()}
            out["decode_by_context"].append({"context": length, **each})
            for name, found in runs.items() if length == head else ():
                median, low, high = spread([1 / seconds for _, seconds in found])
                out[name] = {
                    "decode_tokens_per_second": median,
                    "decode_low": low,
                    "decode_high": high,
                    "prefill_tokens_per_second": statistics.median(length / prefill for prefill, _ in found),
                }
        return out


class Ticks:
    """Notes the time of each token that `generate` hands over: stands where transformers expects a streamer."""

    def __init__(self, clock: Clock):
        self.clock, self.times = clock, []

    def put(self, tokens: Any) -> None:
        """Called with the prompt, and then with each token."""
        self.times.append(self.clock())

    def end(self) -> None:
        """Called when all is written."""


def decode(role: Role, rows: Sequence[Row], length: int, new_tokens: int, clock: Clock) -> tuple[float, float]:
    """Seconds to read a prompt of so many held-out tokens, and seconds for each new token after the first."""
    ids = role.view(rows).inputs["ids"]
    prompt = ids.repeat(-(-length // len(ids)))[None, :length].to(next(role.parameters()).device)
    ticks = Ticks(clock)
    role.module.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,  # type: ignore[operator]
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=0,
        streamer=ticks,
    )
    start, first, *_, last = ticks.times
    return first - start, (last - first) / (new_tokens - 1)


def forward(role: Role, rows: Sequence[Row], clock: Clock) -> float:
    """Seconds for one forward pass of some rows."""
    view = role.view(rows).to(next(role.parameters()).device)
    began = clock()
    float(dense(role.says(view, ("logits",), {})["logits"]).detach().sum())  # a number waits for the device
    return clock() - began


def alternate(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """What each piece of work says each time: all are warmed up once, and then take turns."""
    for run in work.values():
        run()
    turns = [{name: run() for name, run in work.items()} for _ in range(repeats)]
    return {name: [turn[name] for turn in turns] for name in work}


def spread(values: Sequence[float]) -> list[float]:
    """Median, and the values that 10 % and 90 % lie below (linear between neighbours)."""
    return torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)).tolist()
