"""What two vocabularies share compared entry by entry, and the rest of both only sorted."""

from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.numerics import log_probs
from limbeck.objective.base import Objective, by_chunks
from limbeck.objective.jsd import jsd
from limbeck.objective.sorted_l1 import sorted_gap
from limbeck.schedule import Share
from limbeck.signals import Needs, Signals, dense

HEARD = ("chunk_logits", "rest_logits", "lead_logprob")


class HybridL1(Objective):
    r"""Jensen-Shannon divergence over what two vocabularies spell alike, and the distance of the sorted rest.

    $$ m\,\mathrm{JSD}_s(p \,\|\, q) + (1 - m) \sum_i |Q_{(i)} - P_{(i)}| $$

    p and q are the shared entries where a chunk begins, where both sides have read the same bytes, made one again. P and Q are the other
    entries where it ends, times the probability of the tokens before them in the chunk; they are not made one: where one side has no
    other entries, the mass of the other's still counts. For different tokenizers with `align: byte_chunks`. The more both share, the
    nearer this is to `jsd` with `per: chunk`, which is simpler; for a student of bytes nearly all of the teacher is the rest.

    Example:
        >>> HybridL1(matched=0.8).matched
        0.8

    References:
        Patiño et al., GOLD, 2025, https://huggingface.co/spaces/HuggingFaceH4/general-on-policy-logit-distillation.
    """

    kind: Literal["hybrid_l1"] = "hybrid_l1"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")

    share: Share = 0.5
    """Share of the teacher in the mixture: near 0 as forward KL, near 1 as reverse KL."""
    matched: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of the shared entries, m; none: their share of the teacher's vocabulary."""
    chunk: int = Field(default=256, gt=0)
    """Chunks whose logits exist at the same time."""

    @property
    def unit(self) -> str:
        return "chunk"

    @property
    def needs(self) -> Needs:
        return {"student": HEARD, "teacher": HEARD}

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " chunk"]:
        return by_chunks(self.part, self.chunk, *(said[name] for name in HEARD for said in (student, teacher)))

    def part(self, q: Any, p: Any, rest_q: Any, rest_p: Any, lead_q: Tensor, lead_p: Tensor) -> Float[Tensor, " chunk"]:
        """The value of some chunks: this function compiles whole."""
        log_q, log_p = log_probs(dense(q)), log_probs(dense(p))
        ours, theirs = ((log_probs(dense(x)) + lead[:, None]).exp()[:, :-1] for x, lead in ((rest_q, lead_q), (rest_p, lead_p)))
        num = log_p.shape[-1]
        matched = num / (num + theirs.shape[-1]) if self.matched is None else self.matched
        return matched * jsd(log_p, log_q, self.share) + (1 - matched) * sorted_gap(ours, theirs)
