"""How a student is made: surgeries on a role."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

from limbeck.component import Choice, Component
from limbeck.model.base import Role

Score = Callable[[Role], float]
"""Mean KL from the teacher to a role on calibration rows, in nats a target: lower is better."""


@runtime_checkable
class Tryout(Protocol):
    """A score for roles that learn first: where a surgery belongs to a stage, it is given one."""

    def __call__(self, role: Role) -> float: ...

    def learn(self, role: Role, steps: int) -> None:
        """So many steps as the stage has them, on the rows that it draws first: the same ones in the same order for each role."""
        ...


class Surgery(Component):
    """Changes a role; what depends on measurements is settled first, and the settled form is kept with the run."""

    room: ClassVar[str] = "student"
    policy: ClassVar[Literal["stock", "import", "carried"]] = "stock"
    """How the result is exported: a transformers class fits it exactly, or `import limbeck` registers one, or the code is carried along."""
    keeps_function: ClassVar[bool] = False
    """Claim: the role says the same before and after."""
    keeps_weights: ClassVar[bool] = False
    """Claim: it adds to the weights that are there, and these never learn: the model that they come from may hold the same ones."""
    reduces: ClassVar[frozenset[str]] = frozenset()
    """Claim: these shrink: parameters, layers, width."""

    on_blocks: ClassVar[bool] = True
    """It changes blocks that must be known, as those of language models are."""
    family: ClassVar[str] = "llama"
    """Of the small model that contracts try it on."""
    follows: ClassVar[tuple[str, ...]] = ()
    """Kinds of surgery that must come before it."""
    retokenizes: ClassVar[bool] = False
    """Claim: the student may read with another tokenizer afterwards."""

    @property
    def tries(self) -> int:
        """Steps that it has candidates learn, at most one for each block of the student, while it is settled."""
        return 0

    def measures(self, role: Role) -> int:
        """How often the role is scored while the surgery is settled, at most: for the planner, which asks before any of a recipe's surgeries.

        Raises:
            Refused: where the role, as large as it is then, is too small for it already.
        """
        return 0

    def reads(self, tokenizer: Any, plan: bool = False) -> Any:
        """The tokenizer of the student, given the one before; None where a plan would have to convert a file to know it."""
        return tokenizer

    def based(self, folder: str) -> "Surgery":
        """The same surgery with relative files looked for from a folder, that of the recipe."""
        return self

    def settle(self, role: Role, score: Score) -> "Surgery":
        """The same surgery with everything written out that had to be measured; it then needs no score."""
        return self

    def shape(self) -> "Surgery":
        """A surgery with a result of the same shapes, that measures nothing and reads no weight: for the planner."""
        return self

    @abstractmethod
    def __call__(self, role: Role) -> Role:
        """The changed role; the one that came in may be used up."""


AnySurgery = Annotated[Surgery, Choice()]
