"""A tokenizer over bytes, for models from configs: it needs no vocabulary file, so tests and toys run anywhere."""

from collections.abc import Sequence

BYTES = 256
BOS, EOS = 256, 257
"""Ids after the 256 bytes: begin and end of a text."""


class ByteTokenizer:
    """One id a byte of UTF-8, then begin and end; speaks the few words of transformers' tokenizers that limbeck uses."""

    bos_token_id, eos_token_id, pad_token_id, unk_token_id = BOS, EOS, EOS, None
    chat_template = None
    model_max_length = 1 << 30
    is_fast = False
    all_special_ids = [BOS, EOS]

    def __len__(self) -> int:
        return BYTES + 2

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text, with the begin in front if asked."""
        return [BOS] * add_special_tokens + list(text.encode("utf-8", "surrogatepass"))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of some ids; bytes that are no UTF-8 become the replacement character."""
        special = {BOS: "", EOS: ""} if skip_special_tokens else {BOS: "<s>", EOS: "</s>"}
        out, run = [], bytearray()
        for i in ids:
            if i < BYTES:
                run.append(i)
            else:
                out += [run.decode("utf-8", "replace"), special.get(i, "")]
                run = bytearray()
        return "".join([*out, run.decode("utf-8", "replace")])

    def get_vocab(self) -> dict[str, int]:
        """Names of the ids, for identity checks."""
        return {f"<0x{i:02X}>": i for i in range(BYTES)} | {"<s>": BOS, "</s>": EOS}

    def save_pretrained(self, folder: str) -> None:
        """Nothing to save: whoever opens the model again says `tokenizer: bytes`."""
