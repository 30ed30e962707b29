"""Tokenizers that cut one text differently, and models that read with them."""

from typing import Any

from limbeck.check.models import family_of
from limbeck.model.base import Models


def bpe(begin: bool = False, pieces: tuple[str, ...] = ("he", "ll"), marks: tuple[str, ...] = ("<begin>", "<end>"), chat: str | None = None) -> Any:
    """Bytes as in GPT-2, with some pieces of two letters, and begin and end; `begin`: it puts its begin in front; `chat`: its template."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: i for i, piece in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces])}
    tokenizer = Tokenizer(BPE(vocab, [(piece[0], piece[1]) for piece in pieces]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(marks))
    if begin:
        first = (marks[0], tokenizer.token_to_id(marks[0]))
        tokenizer.post_processor = processors.TemplateProcessing(f"{marks[0]} $A", special_tokens=[first])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=marks[0], eos_token=marks[1])
    fast.chat_template = chat
    return fast


def models(begin: bool = False) -> Models:
    """A student of bytes, and a teacher that reads pairs of letters."""
    student, teacher = family_of("llama", 0), family_of("llama", 1, vocab=300)
    teacher.tokenizer = bpe(begin)
    return Models({"student": student, "teacher": teacher})
