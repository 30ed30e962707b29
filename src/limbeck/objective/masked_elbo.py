"""The bound on the likelihood of a model that fills in masked tokens."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.chunked import Folding, foldable
from limbeck.numerics import segment_sum, upcast
from limbeck.objective.base import Objective, by_chunks
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.signals import Needs, Signals


class MaskedElbo(Objective):
    r"""Upper bound on the negative log-likelihood of a row, in nats a token, from one draw of what is hidden.

    $$ \frac1N \sum_{i\ \mathrm{hidden}} \frac{-\log q(x_i)}{t_i}, \qquad t_i \text{: the probability with which } i \text{ was hidden} $$

    N counts the tokens of the row that could have been hidden, so that the mean over draws is the bound, for rates that are uniform over
    (0, 1). On a narrow band (`rate: [0.3, 0.8]`) it is a weighted pseudo-likelihood and no bound: two bits that are always equal cost 0.693 nats,
    and from 0.1 to 0.3 a model that knows it pays 0.277. Rows count alike, long or short. Its weights are large where little is hidden:
    `cross_entropy`, the plain mean over hidden tokens, is no bound and has less noise; it is what large models were trained with.

    Example:
        >>> MaskedElbo().unit
        'row'

    References:
        Sahoo et al., Simple and Effective Masked Diffusion Language Models, 2024, arXiv:2406.07524.
        Bie et al., LLaDA2.0: Scaling Up Diffusion Language Models to 100B, 2025, arXiv:2512.15745.
    """

    kind: Literal["masked_elbo"] = "masked_elbo"
    chunk: int = Field(default=256, gt=0)
    """Targets whose logits exist at the same time."""

    @property
    def unit(self) -> str:
        return "row"

    @property
    def needs(self) -> Needs:
        return {"student": ("logits", "label", "target_weight", "maskable")}

    def shares(self, student: Signals) -> Float[Tensor, " target"]:
        """What each target counts for in the value of its row."""
        share = upcast(student["target_weight"].detach()) / student["maskable"].detach()[student.rows["target"]]
        return share.to(upcast(getattr(student["logits"], "hidden", student["logits"])).dtype)

    def values(self, student: Signals) -> Float[Tensor, " row"]:
        each = by_chunks(CrossEntropy().part, self.chunk, student["logits"], student["label"])
        return segment_sum(each * self.shares(student), student.rows["target"], student.num("row"))

    def folding(self, factors, student):
        q, label, rows = student["logits"], student["label"], student.rows["target"]
        if not foldable(q, label):
            return None
        shares = self.shares(student)
        return Folding(CrossEntropy().chunk_slope, q, (label,), shares if factors is None else shares * factors[rows].to(shares), self.chunk)
