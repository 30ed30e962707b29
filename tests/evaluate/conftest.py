"""Small language models over bytes, held-out rows, and exams made of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from limbeck.align.shared_vocab import same
from limbeck.evaluate._scoring import score
from limbeck.evaluate.base import Exam, Table
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Role
from limbeck.model.text import Text
from limbeck.signals import Row
from limbeck.text.bytes_tokenizer import ByteTokenizer

TEXTS = (
    "the cat sat on the mat",
    "dogs run",
    "a much longer text about a cat and a dog that sat and ran on the mat all day long",
    "x",
    "the mat sat",
    "and so on, and so on, until it ends",
    "ends",
)


@pytest.fixture
def rows() -> list[Row]:
    """Seven texts of four documents."""
    return [Row(f"row{i}", {"text": text}, source=f"document{i // 2}") for i, text in enumerate(TEXTS)]


@pytest.fixture
def speaker() -> Callable[..., Text]:
    """Makes a random language model; large initial weights, so that no two answers are nearly equal."""

    def make(seed: int, layers: int = 1, layout: str = "auto", vocab: int = 258, **config: Any) -> Text:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
        module = LlamaForCausalLM(LlamaConfig(vocab_size=vocab, num_hidden_layers=layers, initializer_range=0.4, **(sizes | config)))
        return Text(module.eval(), ByteTokenizer(), anatomy(module), layout)  # type: ignore[arg-type]

    return make


@pytest.fixture
def examine() -> Callable[..., Exam]:
    """Makes an exam of roles, or of tables that are given."""

    def make(rows: Sequence[Row], roles: Mapping[str, Role] = {}, tables: Mapping[str, Table] = {}, **context: Any) -> Exam:
        def answers(some: Sequence[Row], view: Any) -> Any:
            return roles["teacher"].says(roles["teacher"].view(some), ("logits",), {})["logits"]

        def table(name: str) -> Table:
            told = "teacher" in roles and same(roles[name].tokenizer, roles["teacher"].tokenizer)
            return tables[name] if name in tables else score(roles[name], rows, answers if told else None)

        return Exam(rows, tuple(roles) or tuple(tables), lambda name: nullcontext(roles[name]), table, 0, context)

    return make
