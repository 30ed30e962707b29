"""Another tokenizer for a model that is there."""

import copy
import logging
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn

from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.base import Role
from limbeck.model.loading import BYTES_KEY, named_tokenizer, tokenizer_names
from limbeck.model.opening import open_meta
from limbeck.model.reference import Reference, located
from limbeck.model.served import reader
from limbeck.numerics import Streams
from limbeck.store import Cache
from limbeck.student._channels import anatomy_of, use_config
from limbeck.student._vocabulary import carried, sources, told
from limbeck.student.base import Surgery
from limbeck.text.bytes_of import exact
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.tokens import fingerprint

log = logging.getLogger(__name__)
WHERE = "student.surgery  transplant_vocab"


class Vocabulary(NamedTuple):
    """What a student will read with."""

    tokenizer: Any
    """None where a plan would have to convert a file first."""
    size: int


@cache
def opened(text: str, plan: bool) -> Vocabulary:
    """The tokenizer of a name, or of the model that a reference names; opened once a process, so that all students share it."""
    if text in tokenizer_names():
        tokenizer, size = named_tokenizer(text), 0
    else:
        cached, reference = Cache(), Reference.parse(text)
        tokenizer, size, _ = reader(reference, cached, plan)
        size = size or open_meta(reference, cache=cached)[1].vocab_size
    return Vocabulary(tokenizer, size if tokenizer is None else max(len(tokenizer), len(exact(tokenizer, WHERE).bytes)))


class TransplantVocab(Surgery):
    r"""Gives a model another tokenizer: its blocks stay, its embedding and its head are made anew from the rows that are there.

    With $b_v$ the bytes that a new entry spells, and $E$ the old rows,

    $$ E'_v = \begin{cases} E_u & b_u = b_v \text{ for an old entry } u \\
       \frac1n \sum_i E_{u_i} & u_1 \dots u_n \text{: what the old tokenizer makes of } b_v \\
       \mathcal{N}(\mathrm{mean}\,E, \mathrm{std}\,E) & \text{else} \end{cases} $$

    Marks go by what they are for (begin, end), else by name. A head of its own is made in the same way from its own rows; a tied one stays
    tied. Transplanted to its own tokenizer, a model stays what it was, bit by bit. It is a start, and near chance where pieces become
    longer or shorter: teach it, by the model that it was, with `align: byte_chunks`. With the teacher's tokenizer as the new one,
    `forward_kl` will do. The saved folder is a stock one with the new tokenizer's files; for `bytes`, which has none, its config says
    `limbeck_tokenizer: bytes`: one id a byte, then begin and end. Not in the middle of a run: rows are cut by what the student reads.

    Example:
        >>> TransplantVocab(tokenizer="bytes").reads(None).eos_token_id
        257

    References:
        Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025, arXiv:2503.20083 (section 3.3).
    """

    kind: Literal["transplant_vocab"] = "transplant_vocab"
    retokenizes: ClassVar[bool] = True
    tokenizer: str
    """`bytes`, `python_4k` (byte-level BPE of 4,096 entries), or a model whose tokenizer it is: path:DIR, hf:org/name, package:NAME, ..."""
    seed: int = 0
    """Of the rows that are drawn."""

    @classmethod
    def example(cls) -> "TransplantVocab":
        return cls(tokenizer="python_4k")

    def reads(self, tokenizer, plan=False):
        return opened(self.tokenizer, plan).tokenizer

    def based(self, folder):
        return TransplantVocab(tokenizer=located(self.tokenizer, folder), seed=self.seed)

    def __call__(self, role: Role) -> Role:
        planned = next(role.module.parameters()).is_meta
        new, size = opened(self.tokenizer, planned)
        if role.tokenizer is not None and new is not None and fingerprint(role.tokenizer) == fingerprint(new):
            return role
        table, head = self.tables(role)
        old = None if planned else exact(role.tokenizer, f"{WHERE}: the model's own tokenizer")
        of = sources(exact(new, WHERE), old, role.tokenizer, size) if old is not None else []
        tied, known = head is not None and head.weight is table.weight, 0 if old is None else len(old.bytes)
        for name, part in (("embedding", table), ("head", head)):
            if part is None or name == "head" and tied:
                continue
            rows, stream = part.weight, Streams(self.seed)("transplant_vocab", name)
            made = rows.new_empty(size, rows.shape[1]) if planned else carried(rows.detach(), of, min(known, len(rows)), stream)
            part.weight = nn.Parameter(made, requires_grad=rows.requires_grad)
        if head is not None and tied:
            head.weight = table.weight
        if not planned:
            log.info("transplant_vocab: rows of %s: %s", self.tokenizer, told(of))
        role.tokenizer = new
        fit(role, table, head, size, new)
        return role

    def tables(self, role: Role) -> tuple[Any, Any]:
        """The embedding and the head, if there is one.

        Raises:
            Refused: `adapters`; `part`, for a head that is more than a matrix.
        """
        anatomy = anatomy_of(role, WHERE)
        if adapted(role.module):
            raise Refused("adapters", WHERE, "a model without adapters", "adapters, made for the old tokenizer", "transplant before lora")
        table, head = (role.module.get_submodule(anatomy.path(part)) if anatomy.has(part) else None for part in ("embedding", "head"))
        if head is not None and (type(head) is not nn.Linear or head.bias is not None):
            got = "one with a bias" if isinstance(head, nn.Linear) else type(head).__name__
            raise Refused("part", WHERE, "a head that is one matrix", got, "use a causal language model", code=3)
        return table, head


def fit(role: Role, table: Any, head: Any, size: int, tokenizer: Any) -> None:
    """Sizes and special ids, everywhere where a model says them."""
    module: Any = role.module
    before, config = table.num_embeddings, copy.deepcopy(module.config)
    table.num_embeddings, table.padding_idx = size, None  # an embedding does not learn the row that it is told to pad with
    if head is not None:
        head.out_features = size
    for part in module.modules():
        if getattr(part, "vocab_size", None) == before:
            part.vocab_size = size
        if getattr(part, "padding_idx", None) is not None:
            part.padding_idx = None
    setattr(config, anatomy_of(role, WHERE).family.sizes["vocab"], size)
    ids = {"bos_token_id": None, "eos_token_id": None} if tokenizer is None else {n: getattr(tokenizer, n) for n in ("bos_token_id", "eos_token_id")}
    for holder in filter(None, (config, getattr(module, "generation_config", None))):
        for name, value in (*ids.items(), ("pad_token_id", None)):
            setattr(holder, name, value)
    if hasattr(config, BYTES_KEY):
        delattr(config, BYTES_KEY)
    if isinstance(tokenizer, ByteTokenizer):
        setattr(config, BYTES_KEY, "bytes")
    use_config(module, config)
