"""Chosen before rejected, for models without a likelihood."""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.errors import Refused
from limbeck.numerics import segment_mean, segment_sum, upcast
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals


class ElboPreference(Objective):
    r"""Direct preference optimisation with the bound on the likelihood in the place of the likelihood.

    $$ -\log \sigma\Big(\beta\big[(B_\theta - B_{\mathrm{ref}})(y^+) - (B_\theta - B_{\mathrm{ref}})(y^-)\big]\Big), \qquad
       B(y) = \sum_{i\ \mathrm{hidden}} \frac{\log q(y_i)}{t_i} $$

    Rows of one group are answers to one prompt, with the tags `chosen` and `rejected`; of several with one tag the mean counts. Policy and
    reference see the same hidden tokens (`forward: denoised_blocks`), so that most of the noise of the bound cancels. The mean of B over draws
    is the bound only for rates that are uniform over (0, 1), the default of `rate`; on a narrow band it is a weighted pseudo-likelihood. The
    reference fills in blocks too: a causal one hides nothing, so that there is no bound to take, and is refused: use DPO proper.

    Example:
        >>> ElboPreference().needs["reference"]
        ('target_logprob', 'target_weight')

    References:
        Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290.
        Zhu et al., LLaDA 1.5: Variance-Reduced Preference Optimization for Large Language Diffusion Models, 2025, arXiv:2505.19223.
        Bie et al., LLaDA2.0: Scaling Up Diffusion Language Models to 100B, 2025, arXiv:2512.15745.
    """

    kind: Literal["elbo_preference"] = "elbo_preference"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly differences count; the smaller, the further the policy may go from the reference."""

    @property
    def unit(self) -> str:
        return "group"

    @property
    def needs(self) -> Needs:
        return {"student": ("target_logprob", "target_weight"), "reference": ("target_logprob", "target_weight")}

    def values(self, student: Signals, reference: Signals) -> Float[Tensor, " group"]:
        gain = (upcast(student["target_logprob"]) - upcast(reference["target_logprob"])) * student["target_weight"].detach()
        of_row = segment_sum(gain, student.rows["target"], len(student.tags))
        signs = [("rejected", "", "chosen").index(tag) - 1 if tag in ("chosen", "rejected") else 0 for tag in student.tags]
        sign, num = torch.tensor(signs, device=of_row.device), student.num("group")
        means = [segment_mean(of_row, torch.where(sign == s, student.group, -1), num) for s in (1, -1)]
        there = [torch.bincount(student.group[sign == s], minlength=num) for s in (1, -1)]
        if 0 in signs or any((count == 0).any() for count in there):
            do = "use pairs: rows of one group with the tags chosen and rejected"
            raise Refused("tag", "objective: elbo_preference", "a chosen and a rejected row in each group, and no others", str(student.tags)[:80], do)
        return -torch.nn.functional.logsigmoid(self.beta * (means[0] - means[1]))
