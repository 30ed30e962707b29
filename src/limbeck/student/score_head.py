"""A head that scores."""

import logging
from typing import Any, ClassVar, Literal

import torch

from limbeck.errors import Refused
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Role
from limbeck.model.ranker import CrossEncoder
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.student.base import Surgery

log = logging.getLogger(__name__)
WHERE = "student.surgery  score_head"


class ScoreHead(Surgery):
    r"""Makes a scorer of pairs from an encoder: all its weights are kept, its head gives way to one that says a single number.

    The number is a linear function of the pooled first state, of the pair of a query and a document read as one text. What an encoder of
    sentences, or a masked language model, has learned of language stays; the new head is drawn by `seed`, and scores mean nothing before it
    is trained. An encoder whose head already says one number needs none of this.

    Example:
        >>> ScoreHead(seed=3).seed
        3

    References:
        Nogueira and Cho, Passage Re-ranking with BERT, 2019, arXiv:1901.04085.
    """

    kind: Literal["score_head"] = "score_head"
    family: ClassVar[str] = "bert"
    seed: int = 0
    """Of the new weights."""

    def __call__(self, role: Role) -> Role:
        if not isinstance(role, Text) or role.anatomy.causal:
            got = type(role.module).__name__
            raise Refused("part", WHERE, "an encoder, which sees a pair of texts from both sides", got, "start from an encoder, such as BERT", 3)
        if isinstance(role, CrossEncoder):
            raise Refused("part", WHERE, "an encoder without a head of one score", type(role.module).__name__, "remove score_head")
        import transformers

        before: Any = role.module
        config = type(before.config).from_dict({**before.config.to_dict(), "id2label": {0: "relevance"}, "label2id": {"relevance": 0}})
        first = next(before.parameters())
        with torch.random.fork_rng(devices=[]), torch.device("meta" if first.is_meta else "cpu"):
            torch.default_generator.manual_seed(Streams(self.seed).number("score_head"))
            how = {"dtype": first.dtype, "attn_implementation": before.config._attn_implementation}
            module: Any = transformers.AutoModelForSequenceClassification.from_config(config, **how)
        body = role.anatomy.path("body")
        kept = self.copied(before.get_submodule(body), module)
        module.config.architectures = [type(module).__name__]
        made = CrossEncoder(module.to(first.device), role.tokenizer, anatomy(module), getattr(role, "longest", None))
        made.requires_grad_(first.requires_grad)
        told = {name.removeprefix(f"{body}."): how for name, how in role.origins.items()}
        new = [name for name, _ in module.named_parameters() if name not in kept]
        made.provenance = role.provenance
        made.origins = {**{f"{module.base_model_prefix}.{name}": how for name, how in told.items()}, **dict.fromkeys(new, "new")}
        log.info("score_head: %d tensors kept; new: %s", len(kept), ", ".join(new))
        return made.eval()

    @staticmethod
    def copied(body: Any, module: Any) -> set[str]:
        """Puts all weights of an encoder into a classifier; their names there."""
        own, prefix = module.state_dict(), module.base_model_prefix
        known = {f"{prefix}.{name}": weight for name, weight in body.state_dict().items()}
        unlike = [name for name in known if name not in own or own[name].shape != known[name].shape]
        if unlike:
            raise Refused("part", WHERE, f"an encoder whose weights {type(module).__name__} has", unlike[0], "use a plain encoder", 3)
        if not next(module.parameters()).is_meta:
            module.load_state_dict(known, strict=False)
        return set(known)
