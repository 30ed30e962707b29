"""How alike what models answer is."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.endpoint.judging import Judge, Ruling
from limbeck.errors import Refused
from limbeck.evaluate._answers import Answering, Prompt, Said, answer_logits, keep, opened, prompts_of, refuse_unknown
from limbeck.evaluate._lexical import MEASURES
from limbeck.evaluate._pairs import Values, js, told
from limbeck.evaluate._rubrics import MOST_ALIKE, SIMILARITY, ask, reliability
from limbeck.evaluate.base import Exam
from limbeck.model.base import listening
from limbeck.model.reference import refuse_missing
from limbeck.text.tokens import fingerprint

Answers = Mapping[str, Sequence[Said | None]]


class Similarity(Answering):
    r"""Compares what each subject answers to held-out prompts with what a reference answers, beside a control that was not distilled.

    Answers are compared in pairs a, b to one prompt: `ngram_jaccard`, shared 4-grams of characters,
    $|G_a \cap G_b| / |G_a \cup G_b|$; `rouge_l`, $2\,\mathrm{LCS}(a, b) / (|a| + |b|)$ over words; `first_token`, the same first word;
    `js_divergence`, where both are roles with one tokenizer: the mean of
    $\tfrac12 \mathrm{KL}(p \| m) + \tfrac12 \mathrm{KL}(q \| m)$ with $m = (p + q) / 2$, in bits, over the reference's answer; and with a
    `judge` its marks from 1 to 5 for style, structure and content, asked in both orders. Equal answers are 5 and are not asked about.
    A pair of which either order has no verdict counts nowhere. A judge that does what a judged text tells it to goes into a trap
    laid for it, and then no mark is told.

    Alike answers may come from common text or one right answer: look at `closer`, the student's figure minus that of the control.
    With a second reference, `preference` says how much closer each is to the first. Intervals hold 95 %, by bootstrap over documents.
    Choose it for models that can only be asked; `agreement` compares probabilities on given text.

    Example:
        >>> Similarity(references=("teacher", "path:other")).perfect["rouge_l"]
        1.0

    References:
        Lee et al., Quantification of large language model distillation, 2025, arXiv:2501.12619.
        Lin, ROUGE: A package for automatic evaluation of summaries, 2004, ACL W04-1013.
    """

    kind: Literal["similarity"] = "similarity"
    perfect: ClassVar[Mapping[str, float]] = {**dict.fromkeys(MEASURES, 1.0), "js_divergence": 0.0, "judged": MOST_ALIKE}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {**dict.fromkeys([*MEASURES, "js_divergence"], (0.0, 1.0)), "judged": (1.0, MOST_ALIKE)}
    references: tuple[str, ...] = Field(default=("teacher",), min_length=1)
    """Who is compared with: subjects, names in answers or served, or model references; the first is told in the table."""
    control: str | None = None
    """Who was not distilled: a name as in references; none: text_only, else the student before training."""
    num: int = Field(default=64, gt=0)
    """Prompts at most."""
    prompt_bytes: int = Field(default=200, ge=8)
    """Bytes of a text that are its prompt; shorter texts are left out. Rows with answers need none."""

    @classmethod
    def example(cls) -> "Similarity":
        judge: Any = {"url": "http://localhost:8000/v1", "model": "judge"}
        return cls(judge=judge, num=3, new_tokens=4, prompt_bytes=40)

    def most(self, speakers: int) -> tuple[int, int]:
        return self.num, len(SIMILARITY.traps) + 2 * self.num * (speakers + bool(self.control)) * len(self.references)

    def notes(self, subjects: Sequence[str], base: str) -> tuple[str, ...]:
        for name in (*self.references, *([self.control] if self.control else [])):
            known = [*subjects, "teacher", *self.answers, *self.served]
            refuse_unknown(name, known, "evaluate similarity")
            if name not in known:
                refuse_missing(name, base, "evaluate similarity")
        return super().notes(subjects, base)

    def __call__(self, exam: Exam) -> dict[str, Any]:
        names = self.speakers(exam)
        if self.references[0] == "teacher" not in names:
            return {}
        names += [self.control] if self.control and self.control not in names else []
        prompts = prompts_of(exam.rows, self.num, self.prompt_bytes, exam.seed)
        if not prompts:
            do = "lower prompt_bytes, or hold out rows with prompts"
            raise Refused("data", "evaluate similarity", f"held-out prompts, or texts over {self.prompt_bytes} bytes", "none", do)
        said = {name: self.said(name, prompts, exam) for name in dict.fromkeys([*names, *self.references])}
        judge = Judge(self.judge, SIMILARITY, "evaluate similarity", exam.context) if self.judge else None
        followed = judge.trapped() if judge else 0
        pairs = [(name, reference) for reference in self.references for name in names]
        rulings = {(a, b): ask(judge, prompts, said[a], said[b], f"{a} {b}") if judge and not followed else [] for a, b in pairs}
        values = {(a, b): self.values(prompts, said[a], said[b], rulings[a, b]) | self.spread(a, b, said, exam) for a, b in pairs}
        keep(exam, "similarity", self.evidence(prompts, said, values, rulings))
        found = told(names, self.references, self.control, [prompt.document for prompt in prompts], values, exam.seed)
        if judge:
            of_judge = {"model": judge.writer.model, "traps": len(SIMILARITY.traps), "followed": followed}
            found["similarity"]["judge"] = of_judge | reliability(rulings.values())
        return found

    def values(self, prompts: Sequence[Prompt], a: Sequence[Said | None], b: Sequence[Said | None], rulings: Sequence[Ruling]) -> dict[str, Values]:
        """Measure -> its value for each prompt that both answer."""
        texts = [(x.text, y.text) if x and y else None for x, y in zip(a, b, strict=True)]
        out: dict[str, Values] = {name: [pair and measure(*pair) for pair in texts] for name, measure in MEASURES.items()}  # type: ignore[misc]
        if rulings:
            out["judged"] = [fmean(ruling.marks.values()) if ruling.marks else None for ruling in rulings]
            out |= {f"judged_{mark}": [r.marks[mark] if r.marks else None for r in rulings] for mark in SIMILARITY.marks}
        return out

    def spread(self, name: str, reference: str, said: Answers, exam: Exam) -> dict[str, Values]:
        """The divergence of both over the reference's answers; nothing where either is no role, or they read by other tokenizers."""
        if not all(one and one.ids for who in (name, reference) for one in said[who]):
            return {}
        where = "evaluate similarity"
        with opened(name, exam, where) as role, opened(reference, exam, where) as other, listening(role), listening(other), torch.no_grad():
            if fingerprint(role.tokenizer) != fingerprint(other.tokenizer):
                return {}
            answers = [(one.prompt, one.ids) for one in said[reference] if one]
            each = zip(answer_logits(role, answers), answer_logits(other, answers), strict=True)
            return {"js_divergence": [float(js(*both).mean()) for both in each]}

    def evidence(self, prompts: Sequence[Prompt], said: Answers, values: Any, rulings: Any) -> Iterator[dict[str, Any]]:
        """What was compared, and all that the judge said."""
        for (name, reference), of in values.items():
            for i, prompt in enumerate(prompts):
                texts = [one.text if (one := said[who][i]) else None for who in (name, reference)]
                orders = [verdict._asdict() for verdict in rulings[name, reference][i].orders] if rulings[name, reference] else []
                yield {"prompt": prompt.text, "of": [name, reference], "answers": texts, **{m: each[i] for m, each in of.items()}, "judge": orders}
