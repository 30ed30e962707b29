"""Low-rank adapters beside the weights."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from limbeck.component import nearest
from limbeck.errors import Refused
from limbeck.model.adapters import adapted, learning
from limbeck.model.anatomy import Anatomy
from limbeck.model.base import Role, matches
from limbeck.numerics import Streams
from limbeck.student.base import Surgery

WHERE = "student.surgery  lora"
ATTENTION = ("query", "key", "value", "output")


class Lora(Surgery):
    r"""Adds low-rank adapters to linear layers; from then on they alone learn.

    $$ W' = W + \frac{\alpha}{r} B A, \qquad A \in \mathbb{R}^{r \times in},\ B \in \mathbb{R}^{out \times r},\ B = 0 \text{ at the start} $$

    The adapters are peft's (`pip install 'limbeck[lora]'`), put into the model in place, so that parts keep their names; in float32
    where the weights are narrower. Optimiser and gradients take a few percent of what the whole model would, and `teacher: adapters_off`
    needs no second copy of the weights. Adapters are added to the weights when the student is evaluated or exported: what is written
    loads without peft. A change of low rank is less than a whole model can learn: train all of it where memory suffices. Surgeries
    that come later may drop blocks, and change no width.

    Example:
        >>> Lora(rank=8, targets=("q_proj", "*.mlp.*")).keeps_function
        True

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685.
        peft (`inject_adapter_in_model`)
    """

    kind: Literal["lora"] = "lora"
    keeps_function: ClassVar[bool] = True
    keeps_weights: ClassVar[bool] = True
    on_blocks: ClassVar[bool] = False
    rank: int = Field(default=16, gt=0)
    """Rank r of the adapters."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Their product is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Patterns of names of linear layers, whole or the last part (`q_proj`, `*.mlp.*`); none: those of attention. The head is left out.
    Of a denoiser convolutions too; none: attention, feed-forward, convolutions, and what hears the time."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that are left out while it learns."""
    seed: int = 0
    """Of what A starts from."""

    def __call__(self, role: Role) -> Role:
        if adapted(role.module):
            raise Refused("adapters", WHERE, "a model without adapters", "adapters already", "keep one lora, with all its targets")
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.tuners_utils import cast_adapter_dtype
        except ImportError as error:
            got = "not installed" if error.name == "peft" else str(error)
            raise Refused("extra", WHERE, "the package peft", got, "pip install 'limbeck[lora]'", 3) from None
        places, parameter = self.places(role), next(role.module.parameters())
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=places,
            fan_in_fan_out=any(not isinstance(role.module.get_submodule(place), (nn.Linear, nn.Conv2d)) for place in places),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Streams(self.seed).number("lora"))
            inject_adapter_in_model(config, role.module, low_cpu_mem_usage=parameter.is_meta)
        cast_adapter_dtype(role.module, "default")
        role.learns = learning(role.module)
        return role.requires_grad_(False)

    def places(self, role: Role) -> list[str]:
        """Names of the layers that get an adapter.

        Raises:
            Refused: `pattern`, for one that fits no linear layer; `part`, where the parts of attention are not known.
        """
        known = {name: part for name, part in linear(role)}
        if not self.targets and role.adaptable:
            return [name for name in known if fits(name, role.adaptable)]
        if not self.targets:
            anatomy = getattr(role, "anatomy", None)
            if not isinstance(anatomy, Anatomy):
                raise Refused("part", f"{WHERE}.targets", "names of layers, since the parts of this model are not known", "none", "name targets")
            parts = [part for part in ATTENTION if anatomy.has(part)]
            found = [path for path in dict.fromkeys(anatomy.path(part, i) for i in range(role.num_layers) for part in parts) if path in known]
            short = next((i for i in range(role.num_layers) if not any(path.startswith(anatomy.path("mixer", i) + ".") for path in found)), None)
            if short is not None:
                got = f"block {short} holds {type(role.module.get_submodule(anatomy.path('mixer', short))).__name__}"
                raise Refused("part", f"{WHERE}.targets", "attention, or parts named as in it, in each block", got, "name targets, such as *_proj")
            return found
        for pattern in self.targets:
            if not any(fits(name, (pattern,)) for name in known):
                last = list(dict.fromkeys(name.rpartition(".")[2] for name in known))
                expected = f"a pattern that fits linear layers: {', '.join(last)}"
                raise Refused("pattern", f"{WHERE}.targets", expected, pattern, f"write {nearest(pattern, last)}")
        return [name for name in known if fits(name, self.targets)]


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether the name of a layer, or its last part, fits one of the patterns."""
    return matches(name, patterns) or matches(name.rpartition(".")[2], patterns)


def linear(role: Role) -> Iterator[tuple[str, Any]]:
    """Name and layer of every linear layer but the head, whose weight may be the embedding's; of what hears noisy samples convolutions too."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D) if role.parametrisation is None else (nn.Linear, Conv1D, nn.Conv2d)
    head: Any = getattr(role.module, "get_output_embeddings", lambda: None)()
    for name, part in role.module.named_modules():
        if isinstance(part, kinds) and part is not head:
            yield name, part
