"""How well held-out text is predicted."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from limbeck.evaluate._scoring import by_document
from limbeck.evaluate.base import Evaluator, Exam


class Perplexity(Evaluator):
    r"""How well each subject predicts held-out text: per token, and per byte of text.

    $$ \mathrm{perplexity} = \exp\Big(-\frac{1}{N} \sum_{t=1}^{N} \log q_t\Big), \qquad
       \mathrm{bits\ per\ byte} = \frac{-\sum_t \log_2 q_t}{\sum_t b_t} $$

    where $q_t$ is what the subject gives to the label of target t, and $b_t$ the UTF-8 bytes of the text that it stands for.
    Perplexities compare models of one tokenizer; bits per byte compare any. What is never predicted (the first token of a row
    without a begin mark, prompts, a user's turns) counts neither in bits nor in bytes; marks that are no text (an end of text)
    cost bits and stand for no byte. Errors are standard errors over documents: $\mathrm{perplexity} \cdot \mathrm{SE}$ of the mean for the first.

    Example:
        >>> Perplexity().ranges["bits_per_byte"][0]
        0.0

    References:
        Gao et al., The Pile, 2020, arXiv:2101.00027 (bits per byte, section 3.1).
    """

    kind: Literal["perplexity"] = "perplexity"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "perplexity": (1.0, math.inf),
        "perplexity_error": (0.0, math.inf),
        "bits_per_byte": (0.0, math.inf),
        "bits_per_byte_error": (0.0, math.inf),
    }

    def __call__(self, exam: Exam) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name in exam.subjects:
            table = exam.table(name)
            if table.label_logprob is None:
                continue
            mean, error = by_document(-table.label_logprob, table, exam.rows)
            perplexity = math.inf if mean > 700 else math.exp(mean)
            out[name] = {"perplexity": perplexity, "perplexity_error": None if error is None else perplexity * error}
            if table.num_bytes is not None and table.num_bytes.any():
                bits, error = by_document(-table.label_logprob / math.log(2), table, exam.rows, per=table.num_bytes.double())
                out[name] |= {"bits_per_byte": bits, "bits_per_byte_error": error}
        return out
