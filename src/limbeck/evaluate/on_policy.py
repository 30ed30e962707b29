"""How far the subjects are from the teacher in what they write themselves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.evaluate._answers import answer_logits
from limbeck.evaluate._scoring import clustered, documents
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.model.base import Role, listening
from limbeck.model.sampling import write
from limbeck.numerics import Streams, kl, log_probs


class OnPolicy(Evaluator):
    r"""KL from each subject to the teacher on answers that the subject has drawn itself.

    $$ \frac{1}{N} \sum_t \mathrm{KL}\big(q(\cdot \mid y_{<t}) \,\|\, p(\cdot \mid y_{<t})\big), \qquad y \sim q $$

    Held-out text says how well a student follows others; this says where it goes by itself: a student that was only taught on
    given text may drift into what the teacher would never say. Prompts are beginnings of held-out rows, drawn by seed. Errors are
    standard errors over documents.

    Example:
        >>> OnPolicy(num=16).perfect
        {'on_policy_kl': 0.0}

    References:
        Agarwal et al., On-policy distillation of language models, 2024, arXiv:2306.13649.
    """

    kind: Literal["on_policy"] = "on_policy"
    perfect: ClassVar[Mapping[str, float]] = {"on_policy_kl": 0.0}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"on_policy_kl": (-1e-6, float("inf")), "on_policy_kl_error": (0.0, float("inf"))}
    num: int = Field(default=64, gt=0)
    """Prompts at most."""
    prompt_tokens: int = Field(default=32, gt=0)
    """Tokens of a row that are its prompt; shorter rows are left out."""
    new_tokens: int = Field(default=64, gt=0)
    """Tokens that an answer may have."""
    temperature: float = Field(default=1.0, ge=0)
    """Of what is drawn."""

    def __call__(self, exam: Exam) -> dict[str, Any]:
        if "teacher" not in exam.subjects:
            return {}
        order = torch.randperm(len(exam.rows), generator=Streams(exam.seed)("on_policy"), device="cpu").tolist()
        out: dict[str, Any] = {}
        with exam.open("teacher") as teacher:
            for name in exam.subjects:
                with exam.open(name) as role:
                    if role.writes:
                        out |= {name: found} if (found := self.measured(exam, order, role, teacher)) else {}
        return out

    def measured(self, exam: Exam, order: list[int], role: Role, teacher: Role) -> dict[str, Any]:
        """The figures of one subject."""
        long = [(i, ids[: self.prompt_tokens]) for i in order if len(ids := role.view([exam.rows[i]]).inputs["ids"].tolist()) > self.prompt_tokens]
        picked = long[: self.num]
        seeds = [Streams(exam.seed).number("on_policy", exam.rows[i].key) for i, _ in picked]
        with listening(role), listening(teacher), torch.no_grad():
            answers = write(role, [prompt for _, prompt in picked], self.new_tokens, self.temperature, seeds)
            gaps = list(gaps_of(role, teacher, [(prompt, answer) for (_, prompt), answer in zip(picked, answers, strict=True)]))
        if not gaps:
            return {}
        rows = documents([exam.rows[i] for i, _ in picked])
        sums, sizes = torch.stack([each.double().sum() for each in gaps]), rows.new_tensor([len(each) for each in gaps]).double()
        mean, error = clustered(sums, sizes, rows)
        return {"on_policy_kl": mean, "on_policy_kl_error": error}


def gaps_of(role: Role, teacher: Role, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[Float[Tensor, " target"]]:
    """KL from subject to teacher at each token of each answer to a prompt, on the CPU, over the ids that both heads have."""
    for log_q, log_p in zip(answer_logits(role, answers), answer_logits(teacher, answers), strict=True):
        num = min(log_q.shape[-1], log_p.shape[-1])
        yield kl(log_probs(log_q[:, :num]), log_probs(log_p[:, :num]))
