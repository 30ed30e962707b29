"""How unlike each other the samples of a window are."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from limbeck.numerics import segment_mean, upcast
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals


class Spread(Objective):
    r"""Mean squared distance of the samples that the student makes from their mean over the window.

    $$ \frac{1}{n d} \sum_i \|x_i - \bar x\|^2 $$

    Measured with `weight: 0`, it is what an `alarm:` hears when all samples become alike, long before a loss shows it. It does not see that
    some of several far modes are gone: see `covered` and `recall` of the evaluator `samples`. With a weight it draws samples together.

    Example:
        >>> Spread(weight=0).needs
        {'student': ('made',)}

    References:
        (folklore)
    """

    kind: Literal["spread"] = "spread"
    whole: ClassVar[bool] = True

    @property
    def unit(self) -> str:
        return "group"

    @property
    def needs(self) -> Needs:
        return {"student": ("made",)}

    def values(self, student: Signals) -> Float[Tensor, " group"]:
        made = upcast(student["made"]).flatten(1)
        each = (made - made.mean(0)).square().mean(1)
        return segment_mean(each, student.group, student.num("group"))
