"""A small tokenizer without files, and a place for data that needs no models."""

from types import SimpleNamespace

import pytest
import tokenizers
import transformers

from limbeck.data.base import Place
from limbeck.numerics import Streams

CORPUS = ["the quick brown fox jumps over the lazy dog and the other dogs answer it", "what is the answer to that question? the answer is 42"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def bpe() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE with a ChatML template, whose end of turn is also its end of text and its padding."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.train_from_iterator(
        CORPUS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    out = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    out.chat_template = CHATML
    return out


@pytest.fixture
def place(tmp_path):
    """Where data is made: a folder, and a student that is nothing but its tokenizer."""

    def make(tokenizer=None, base=tmp_path) -> Place:
        return Place({"student": SimpleNamespace(tokenizer=tokenizer)}, Streams(0), base=str(base))  # type: ignore[arg-type]

    return make


@pytest.fixture
def refused():
    """The refusal of a call, as its four lines; the exit code is checked too."""
    from limbeck.errors import LimbeckError

    def call(function, *args, code: int = 2) -> tuple[str, str, str, str, str]:
        with pytest.raises(LimbeckError) as caught:
            function(*args)
        assert caught.value.code == code, caught.value
        return tuple(caught.value.as_json()["error"].values())

    return call
