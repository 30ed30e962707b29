"""Models with adapters of peft in them, or rounded weights: what learns, the model without adapters, and the model with all in its weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from limbeck.model.base import Role, Tap, clone, listening
from limbeck.model.quantised import latent, make_stock, quantised, settle_on_grid
from limbeck.signals import Head, Logits, Row, View


def adapted(module: nn.Module) -> dict[str, Any]:
    """Name -> layer, of all layers that peft has put adapters around, or put a second one beside."""
    found = ((name, part) for name, part in module.named_modules() if hasattr(part, "enable_adapters"))
    return {name: part for name, part in found if hasattr(part, "base_layer") or hasattr(part, "modules_to_save")}


def learning(module: nn.Module) -> tuple[str, ...]:
    """Patterns of the names of all parameters of adapters."""
    kinds = (kind for layer in adapted(module).values() for kind in layer.adapter_layer_names if any(True for _ in getattr(layer, kind).parameters()))
    return tuple(dict.fromkeys(f"*{kind}.*" for kind in kinds))


@contextmanager
def off(module: nn.Module) -> Iterator[None]:
    """Inside, adapters do nothing; afterwards those that did something do so again."""
    layers = [layer for layer in adapted(module).values() if not layer.disable_adapters]
    flags = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]  # peft sets them as it switches
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for p, flag in flags:
            p.requires_grad_(flag)


def merged(role: Role) -> Role:
    """A copy of a role with rounded weights on their grid and its adapters added to the weights; the role itself where it has neither.

    The class is a stock one, but for layers that round what they hear.
    """
    if not adapted(role.module) and not latent(role.module):
        return role
    made = clone(role)
    settle_on_grid(made.module)  # first: adapters have learned beside rounded weights
    for name, layer in adapted(made.module).items():
        layer.merge()
        owner, _, last = name.rpartition(".")
        setattr(made.module.get_submodule(owner), last, layer.get_base_layer())
    vars(made.module).pop("peft_config", None)
    made.learns = () if adapted(role.module) else made.learns
    return made


def stock(role: Role) -> Role:
    """A copy of a merged role whose layers hear exact numbers; the role itself where they do."""
    if not quantised(role.module):
        return role
    made = clone(role)
    for part in quantised(made.module).values():
        make_stock(part)
    return made


class WithoutAdapters(Role):
    """Speaks for another role with its adapters off and in eval mode, and leaves it as it was; it has no weights of its own.

    Also for `limbeck.distill`: a student made by peft, in a role, and `WithoutAdapters(role)` as its teacher.
    """

    def __init__(self, other: Role):
        nn.Module.__init__(self)
        self.others = (other,)  # not registered: whoever sets the mode or the gradients of this role must not reach the other
        self.offers, self.tokenizer, self.num_layers = other.offers, other.tokenizer, other.num_layers
        self.shift, self.vocab, self.provenance = other.shift, other.vocab, other.provenance
        self.ragged, self.parametrisation = other.ragged, other.parametrisation

    @property
    def module(self) -> nn.Module:
        return self.others[0].module

    @property
    def speakers(self) -> tuple[Role, ...]:
        return self.others[0].speakers

    def view(self, rows: Sequence[Row]) -> View:
        return self.others[0].view(rows)

    def tap(self, name: str) -> Tap:
        return self.others[0].tap(name)

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        said = self.alone(self.others[0].says)(view, names, inject)
        logits = said.get("logits")
        if isinstance(logits, Logits) and not isinstance(logits.head, Head):  # it runs later, and may have adapters too
            said["logits"] = replace(logits, head=self.alone(logits.head))
        return said

    def alone(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, run without adapters and in eval mode."""

        def run(*args: Any) -> Any:
            with listening(self.module), off(self.module):
                return function(*args)

        return run
