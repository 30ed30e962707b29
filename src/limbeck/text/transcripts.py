"""Tokenizers of models that write what they hear: what they put before a transcript."""

from typing import Any

from limbeck.text.tokens import specials

MULTILINGUAL = 50_257
"""Id of the end of text in Whisper's vocabulary of many languages; in that of English it is one less."""


def begun(tokenizer: Any) -> Any:
    """The tokenizer, made to put before a text what such a model was trained with, and its end behind it.

    Whisper's own says for itself which language and task it was saved for; where it says none and knows many, it is told to write English, without
    time marks. Any other that puts nothing before a text puts its begin there: the first word could not be predicted otherwise.
    """
    if hasattr(tokenizer, "set_prefix_tokens"):
        if tokenizer.eos_token_id >= MULTILINGUAL and tokenizer.language is None:
            told = {"language": "en", "task": "transcribe", "predict_timestamps": False}
            tokenizer.init_kwargs.update(told)  # so that it is saved with them
            tokenizer.set_prefix_tokens(**told)
    elif getattr(tokenizer, "is_fast", False) and not specials(tokenizer)[0] and tokenizer.bos_token_id is not None:
        from tokenizers import processors

        begin, end = tokenizer.bos_token, tokenizer.eos_token
        marks = [(begin, tokenizer.bos_token_id), (end, tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=marks)
    return tokenizer
