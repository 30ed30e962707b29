"""Role: a model with its part in a turn. It does one thing: it looks at a view and says signals."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.signals import Batch, Needs, Row, Signals, View


@dataclass(frozen=True)
class Tap:
    """A place in a module where something can be heard, or overwritten."""

    path: str
    side: Literal["input", "output"] = "output"
    part: tuple[int, int] | None = None
    """(i, n): the i-th of n equal parts of the last axis, where one layer makes several things at once."""


class Role(nn.Module):
    """An adapter around any module, one a modality. Its `state` is set per turn, by `Models.turn` alone."""

    offers: frozenset[str] = frozenset()
    """Names of signals it can say, without layer numbers."""
    tokenizer: Any = None
    num_layers: int = 0
    shift: int = 1
    """Of its views: how many positions before it stands a target is predicted."""
    sees_targets: bool = False
    """What it predicts stands in what it reads, unless something hides it: a masked language model."""
    ragged: bool = True
    """Its rows have positions, which a tokenizer cuts out; else each row is one thing."""
    reads_as: tuple[Any, ...] = ()
    """How it lays out a row, where that is a way of its own: roles of one tokenizer share a view only if they read alike."""
    puts_in: Mapping[str, int] = {}
    """Unit -> how many of it the role puts into each row, beside what its tokenizer reads there."""
    vocab: int | None = None
    """Entries of its logits, where it knows them."""
    exclusive: bool = True
    """Its logits are of one thing out of many; else of many things, each of which may be there or not."""
    state: Literal["frozen", "through", "trained"] = "frozen"
    learns: tuple[str, ...] = ()
    """Patterns of the names of parameters that may ever be trained; none: all of them."""
    adaptable: tuple[str, ...] = ()
    """Patterns of the names of layers that adapters are put beside where none are named, in a model whose blocks are not known."""
    provenance: Mapping[str, Any] = {}
    """Where the weights come from: name, revision, licence."""
    compared_by: str = "ranking"
    """The evaluator that tells how close a student is, where it predicts nothing: rankings, states (`probe`), or samples."""
    parametrisation: Any = None
    """What it says of noisy samples, and their schedule of noise, where it hears such."""
    odds: bool = True
    """Whether its logits are what its head gives; a mixture knows probabilities alone, and logits but for a constant."""
    at_hand: bool = True
    """It can be run here; else there is only what was captured of it."""
    lacks: frozenset[str] = frozenset()
    """Signals that its kind offers and that it does not, since a surgery changed its parts."""
    origins: Mapping[str, str] = {}
    """Name of each parameter that a surgery made anew -> `new`, or what it was copied from; all others are as they were opened."""
    aside: Mapping[int, nn.Module] = {}
    """Block -> the attention that stood there before it was converted: neither trained nor exported."""
    loads: str | None = None
    """What the card of its files says of how they are opened and used; none: as all of their class are."""
    self_description: Mapping[str, Any] = {}
    """What its answers depend on beside the models that its references name: what a server says about itself."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    @property
    def speakers(self) -> tuple["Role", ...]:
        """The roles that speak in the end, where this one speaks for others: itself."""
        return (self,)

    @property
    def writes(self) -> bool:
        """Whether its module writes text by itself after text alone, one token after the other."""
        return self.tokenizer is not None and not self.puts_in and callable(getattr(self.module, "generate", None))

    @property
    def last_layer(self) -> str:
        """How names of the parameters of its last layer begin: here, of the last part that has any."""
        part, dot, _ = [name for name, _ in self.module.named_parameters()][-1].rpartition(".")
        return part + dot

    def told(self) -> tuple[str, ...]:
        """What there is to tell about how it was asked."""
        return ()

    def view(self, rows: Sequence[Row]) -> View:
        """What this role sees of some rows: text roles use their own tokenizer."""
        raise NotImplementedError

    def refuse(self, rows: Sequence[Row]) -> None:
        """Refuses rows that it cannot read: asked of all rows before a run."""

    def cuts(self) -> tuple[str, ...]:
        """What it does not hear of the rows that it was asked about: a line each, for the report."""
        return ()

    def refuse_change(self, where: str, surgeries: Sequence[Any]) -> None:
        """Refuses what cannot be done to it: surgeries at a place of the recipe, or none where that asks to search or to compile."""

    def row_cost(self, rows: Sequence[Row]) -> tuple[float, float] | None:
        """Multiplications and additions of one row like these, and bytes that training keeps of it; None where a row has positions, each of which
        costs what all matrices say."""
        return None

    def row_targets(self, rows: Sequence[Row]) -> int:
        """Predictions that one row like these asks for, where `row_cost` tells what it costs."""
        return 1

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        """Signal name -> value; `inject` overwrites the inputs of parts with flat values."""
        raise NotImplementedError

    def accompany(self, folder: Path) -> None:
        """Writes what must lie beside its weights, so that they are opened as what it is."""

    def tap(self, name: str) -> Tap:
        """Where a signal like `hidden.3` is heard."""
        raise NotImplementedError

    def layer(self, name: str) -> int:
        """The layer number in `hidden.3`; negative ones count from the end.

        Raises:
            Refused: `layer`, for one that the model does not have; only `hidden` has a layer 0.
        """
        signal, number = name.split(".")
        found, first = int(number) if int(number) >= 0 else self.num_layers + 1 + int(number), 0 if signal == "hidden" else 1
        if self.num_layers and not first <= found <= self.num_layers:
            raise Refused("layer", name, f"a layer from {first} to {self.num_layers}", number, "change the number")
        return found


@contextmanager
def taps(module: nn.Module, reads: Mapping[str, Tap], writes: Mapping[str, tuple[Tap, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Hears what parts say and overwrites what they hear.

    Taps, not `output_hidden_states`: in transformers the last of those is the state after the final norm, not what the
    last block says.
    """
    heard: dict[str, Tensor] = {}

    def keep(name: str, tap: Tap, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        heard[name] = value if tap.part is None else value.chunk(tap.part[1], -1)[tap.part[0]]

    def reader(name: str, tap: Tap) -> Any:
        part = module.get_submodule(tap.path)
        if tap.side == "input":
            return part.register_forward_pre_hook(
                lambda _, args, kwargs: keep(name, tap, args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        return part.register_forward_hook(lambda _, args, out: keep(name, tap, out))

    def writer(tap: Tap, value: Tensor) -> Any:
        def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})

        return module.get_submodule(tap.path).register_forward_pre_hook(put, with_kwargs=True)

    with contextlib.ExitStack() as stack:
        for tap, value in writes.values():  # before the readers: they then hear what was put there
            stack.callback(writer(tap, value).remove)
        for name, tap in reads.items():
            stack.callback(reader(name, tap).remove)
        yield heard


class Models(nn.ModuleDict):
    """Role name -> role; the one place that decides about gradients."""

    def __getitem__(self, name: str) -> Role:
        role = super().__getitem__(name)
        assert isinstance(role, Role)
        return role

    def says(self, role: str, batch: Batch, names: Iterable[str], inject: Mapping[str, Tensor] = {}) -> Signals:
        """What a role says about a batch; what it has said already is not asked again."""
        names = tuple(names)
        if role in batch.said and not inject and all(name in batch.said[role].values for name in names):
            return batch.said[role]
        with torch.set_grad_enabled(self[role].state != "frozen" and torch.is_grad_enabled()):
            return batch.signals(role, self[role].says(batch.view(role), names, inject))

    def offers(self) -> Needs:
        """Role -> names of what it can say."""
        return {name: tuple(sorted(self[name].offers)) for name in self}

    def batch(self, rows: Sequence[Row]) -> Batch:
        """One window of rows, as every role that reads in its own way sees them."""
        views: dict[str, View] = {}
        readers: list[Role] = []
        for name in sorted(self, key=lambda name: name != "student"):
            role = self[name]
            if not views or (role.tokenizer is not None or role.reads_as) and not any(alike(role, reader) for reader in readers):
                views[name if views else "student"] = role.view(rows)
                readers.append(role)
        groups = {name: i for i, name in enumerate(dict.fromkeys(row.group or row.key for row in rows))}
        return Batch(
            views,
            tuple(row.tag for row in rows),
            torch.tensor([groups[row.group or row.key] for row in rows], dtype=torch.long),
            tuple(row.key for row in rows),
            torch.ones(len(rows)),
        )

    @contextmanager
    def turn(self, trains: str | None, only: Sequence[str] = (), freeze: Sequence[str] = (), through: Sequence[str] = ()) -> Iterator["Models"]:
        """Inside, one role is trained (what matches `only` and not `freeze`), some let gradients pass, the others are frozen."""
        for name in self:
            role = self[name]
            role.state = "trained" if name == trains else "through" if name in through else "frozen"
            role.train(name == trains)
            role.requires_grad_(False)
        for _, parameter in self.trainable(trains, only, freeze):
            parameter.requires_grad_(True)
        try:
            yield self
        finally:
            for name in self:
                self[name].state = "frozen"
                self[name].eval()

    def trainable(self, trains: str | None, only: Sequence[str] = (), freeze: Sequence[str] = ()) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that a turn trains: of those that the role lets learn, what fits `only` and not `freeze`."""
        named, learns = (self[trains].module.named_parameters(), self[trains].learns) if trains else (iter(()), ())
        return [(name, p) for name, p in named if all(matches(name, some) for some in (learns, only) if some) and not matches(name, freeze)]


def alike(role: Role, other: Role) -> bool:
    """Whether two roles see the same of every row."""
    return role.tokenizer is other.tokenizer and (role.shift, role.reads_as) == (other.shift, other.reads_as)


def clone(role: Role, shared: Iterable[Tensor] = ()) -> Role:
    """A copy of a role with weights of its own, but for those that are `shared`, and the same tokenizer.

    It offers what its kind offers, even if the original was narrowed.
    """
    made = copy.deepcopy(role, {id(x): x for x in (role.tokenizer, *shared)})
    if type(role).offers:
        made.offers = type(role).offers - role.lacks
    return made


@contextmanager
def listening(module: nn.Module) -> Iterator[None]:
    """Inside, a module is in eval mode; afterwards each of its parts is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name fits one of the patterns (`*` and `?` as in file names)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
