"""Tasks of the LM Evaluation Harness (lm-eval), asked of a role."""

import copy
import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from limbeck.errors import Failed, Refused
from limbeck.model.base import Role

BATCH = 8
RESAMPLES = 1000
"""Of the bootstrap, for metrics without a formula for their error."""
WHERE = "evaluate.tasks"


def installed() -> None:
    """Refuses, `extra`, where the harness is not there."""
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        got = "not installed" if error.name == "lm_eval" else str(error)
        raise Refused("extra", WHERE, "the package lm-eval", got, "pip install 'limbeck[eval]'", code=3) from None


def lm_eval_scores(
    role: Role, names: Sequence[str], limit: int | None, num_fewshot: int | None, seed: int, own_tasks: str | None = None
) -> dict[str, dict[str, float | None]]:
    """`NAME metric` -> value and standard error, for every metric of every task.

    Args:
        role: a language model of transformers with a tokenizer of transformers; it is not changed.
        names: tasks or groups.
        limit: documents of each task; None: all.
        num_fewshot: solved examples before each question; None: as the task says.
        seed: draws the solved examples.
        own_tasks: a folder of further tasks, whose files may hold code.

    Raises:
        Refused: `extra`, without the package; `task`, for an unknown name; `tokenizer`, for a role that the harness cannot speak to.
        Failed: `task`, where the harness fails: data that cannot be fetched, above all.
    """
    installed()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    if not isinstance(role.module, PreTrainedModel) or not isinstance(role.tokenizer, PreTrainedTokenizerBase):
        raise Refused(
            "tokenizer",
            WHERE,
            "a model and a tokenizer of transformers, which lm-eval speaks to",
            type(role.tokenizer).__name__,
            "leave out lm_eval tasks; topic_choice works with any tokenizer",
        )
    manager = tasks_of(own_tasks)
    for name in names:
        if name not in manager.all_tasks:  # lm-eval itself would take it for a file, and run what stands in it
            near = difflib.get_close_matches(name, manager.all_tasks, n=1)
            raise Refused(
                "task",
                WHERE,
                "a task of lm-eval" + "".join(f": {x}" for x in near),
                f"lm_eval:{name}",
                f"write lm_eval:{near[0]}" if near else "lm-eval ls tasks",
            )
    try:
        with torch.random.fork_rng():
            model = HFLM(pretrained=role.module, tokenizer=copy.deepcopy(role.tokenizer), batch_size=BATCH)  # it may add a padding token
            found = simple_evaluate(
                model=model,
                tasks=list(names),
                task_manager=manager,
                num_fewshot=num_fewshot,
                fewshot_random_seed=seed,
                limit=limit,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
            )  # the run's own streams are left alone
    except Exception as error:  # a harness of thousands of tasks may raise anything
        raise Failed(
            "task",
            f"{WHERE}  {', '.join(names)}",
            "an answer of lm-eval",
            f"{type(error).__name__}: {error}"[:200],
            "see that its data can be fetched, or is cached, and repeat",
        ) from error
    return readable(found or {}, names)


@cache
def tasks_of(folder: str | None) -> Any:
    """The index of lm-eval's own tasks, and of those of a folder; it takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def readable(found: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Value and error of each metric of the tasks asked for; of a group without a figure of its own, those of its tasks."""
    every = {**found.get("results", {}), **found.get("groups", {})}
    inside = found.get("group_subtasks", {})
    out: dict[str, dict[str, float | None]] = {}
    for name in names:
        own = [name] if any(isinstance(x, float) for x in every.get(name, {}).values()) else inside.get(name) or list(every)
        for task in own:
            for key, value in every.get(task, {}).items():
                metric, _, filter_name = key.partition(",")
                if not filter_name or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                    continue
                error = every[task].get(f"{metric}_stderr,{filter_name}")
                title = f"{task} {metric}" + (f" ({filter_name})" if filter_name != "none" else "")
                out[title] = {"value": float(value), "error": float(error) if isinstance(error, (int, float)) else None}
    return out
