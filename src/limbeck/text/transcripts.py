"""Tokenizers of models that write what they hear: what they put before a transcript."""

from typing import Any

MULTILINGUAL = 50_257
"""Id of the end of text in Whisper's vocabulary of many languages; in that of English it is one less."""


def begun(tokenizer: Any) -> Any:
    """Whisper's tokenizer, made to put before a text what its model was trained with; any other one as it is.

    It says for itself which language and task it was saved for; where it says none and knows many, it is told to write English, without time
    marks.
    """
    if hasattr(tokenizer, "set_prefix_tokens") and tokenizer.eos_token_id >= MULTILINGUAL and tokenizer.language is None:
        told = {"language": "en", "task": "transcribe", "predict_timestamps": False}
        tokenizer.init_kwargs.update(told)  # so that it is saved with them
        tokenizer.set_prefix_tokens(**told)
    return tokenizer
