"""Whether models say that they are somebody else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from limbeck.component import short
from limbeck.endpoint.judging import Judge, Verdict
from limbeck.errors import Refused
from limbeck.evaluate._answers import Answering, Prompt, Said, base_of, keep
from limbeck.evaluate._identity_prompts import prompts
from limbeck.evaluate._identity_rules import ANOTHER, CONSISTENT, foreign, judged, makers, named
from limbeck.evaluate._intervals import Figure, share
from limbeck.evaluate._rubrics import IDENTITY, MISSING, reasons
from limbeck.evaluate.base import Exam
from limbeck.store import disk

MOST_BYTES = 1 << 16
"""Of a fact sheet."""
RATES = ("loose", "strict", "hard")


class Asked(NamedTuple):
    """A prompt, and whether it names a model or a maker that the tested one is not."""

    prompt: Prompt
    cue: bool


class Identity(Answering):
    r"""Asks each subject who it is, and counts the answers that contradict a fact sheet.

    $$ \mathrm{rate} = \frac{\text{contradictions}}{\text{answers that were judged}} $$

    `loose`: any contradiction; `strict`: the answer names another maker, or a model of another maker, as itself or its own; `hard`:
    strict, and the prompt names none. A model that was taught by another one's answers often takes over its name. Without a `judge`
    rules read the answer: they know the makers and models of a list and what sentences of English claim, so they find less than there
    is, and nothing in babble. What is empty or has no verdict counts nowhere. A judge that does what a judged text tells it to
    goes into a trap laid for it, and then no rate is told. The prompts are friendly questions, varied by seed: shortened,
    expanded, rephrased, crossed, and with other models in them. Intervals hold 95 %, by Wilson.

    The subjects before training and without the teacher are the control: look whether the rate rose.

    Example:
        >>> Identity(facts={"name": "Limber", "maker": "Example Works"}).num
        200

    References:
        Lee et al., Quantification of large language model distillation, 2025, arXiv:2501.12619.
    """

    kind: Literal["identity"] = "identity"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {f"identity_{rate}": (0.0, 1.0) for rate in RATES}
    facts: dict[str, str] | str = {}
    """What is true of the tested model: name, maker, place and whatever else, or a JSON file of it; a relative one starts at the recipe."""
    makers: dict[str, tuple[str, ...]] = {}
    """Makers beside those that come with limbeck: maker -> further names of it, and names of its models."""
    num: int = Field(default=200, gt=0, le=5000)
    """Prompts."""

    @classmethod
    def example(cls) -> "Identity":
        judge: Any = {"url": "http://localhost:8000/v1", "model": "judge"}
        return cls(facts={"name": "Limber", "maker": "Example Works"}, judge=judge, num=6, new_tokens=4)

    def most(self, speakers: int) -> tuple[int, int]:
        return self.num, len(IDENTITY.traps) + self.num * speakers

    def notes(self, subjects: Sequence[str], base: str) -> tuple[str, ...]:
        self.sheet(base)
        return super().notes(subjects, base)

    def __call__(self, exam: Exam) -> dict[str, Any]:
        facts, names = self.sheet(base_of(exam)), self.speakers(exam)
        others = foreign(facts, makers(self.makers))
        texts = prompts(self.num, others, exam.seed)
        asked = [Asked(Prompt(text, text, ({"role": "user", "content": text},)), any(named(x).search(text) for x in others)) for text in texts]
        judge = Judge(self.judge, IDENTITY, "evaluate identity", exam.context) if self.judge else None
        followed = judge.trapped() if judge else 0
        about = {"model": judge.writer.model, "traps": len(IDENTITY.traps), "followed": followed} if judge else None
        part: dict[str, Any] = {"prompts": len(asked), "cues": sum(one.cue for one in asked), "judge": about}
        out: dict[str, Any] = {"identity": part}
        evidence: list[dict[str, Any]] = []
        for name in names if not followed else ():
            said = self.said(name, [one.prompt for one in asked], exam)
            verdicts = self.verdicts(name, asked, said, facts, others, judge)
            found = self.rates(asked, verdicts)
            part[name] = {**found, "judged": sum(v.marks is not None for v in verdicts), "reasons": reasons(verdicts)}
            ends = (("", "value"), ("_low", "low"), ("_high", "high"))
            out[name] = {f"identity_{rate}{end}": found[rate][key] for rate in RATES for end, key in ends}
            for one, answer, verdict in zip(asked, said, verdicts, strict=True):
                evidence.append({"of": name, "prompt": one.prompt.text, "cue": one.cue, "answer": answer and answer.text, **verdict._asdict()})
        keep(exam, "identity", evidence)
        return out

    def sheet(self, base: str) -> dict[str, str]:
        """The fact sheet: texts that are not empty, by name.

        Raises:
            Refused: `facts`, where there are none.
        """
        found: Any = self.facts
        if isinstance(found, str):
            path = Path(base) / found
            with disk(path):
                data = path.read_bytes()[:MOST_BYTES] if path.is_file() else b""
            try:
                found = json.loads(data)
            except (ValueError, RecursionError):
                found = None
        good = isinstance(found, dict) and found and all(isinstance(x, str) and x.strip() for pair in found.items() for x in pair)
        if not good:
            expected, do = "what is true of the tested model: texts by name", "write {kind: identity, facts: {name: Limber, maker: Example Works}}"
            raise Refused("facts", "evaluate identity  facts", expected, short(self.facts) if self.facts else "none", do)
        return found

    def verdicts(
        self, name: str, asked: Sequence[Asked], said: Sequence[Said | None], facts: Mapping[str, str], others: Sequence[str], judge: Judge | None
    ) -> list[Verdict]:
        """What is thought of each answer: by the judge, or by rules."""
        texts = [one.text if one else "" for one in said]
        if judge is None:
            ruled = ((text, *judged(text, facts, others)) for text in texts)
            return [Verdict({"identity": mark}, "", words) if text else MISSING for text, mark, words in ruled]
        sheet = "\n".join(f"{key}: {value}" for key, value in facts.items())
        cases = [{"FACTS": sheet, "PROMPT": one.prompt.text, "ANSWER": text} for one, text in zip(asked, texts, strict=True) if text]
        found = iter(judge.verdicts(cases, [f"{name} {case['PROMPT']}" for case in cases]))
        return [next(found) if text else MISSING for text in texts]

    def rates(self, asked: Sequence[Asked], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
        """Shares of the answers that were judged."""
        marks = [verdict.marks and verdict.marks["identity"] for verdict in verdicts]
        another = [None if mark is None else mark == ANOTHER for mark in marks]
        hard = [hit and not one.cue for hit, one in zip(another, asked, strict=True)]
        return {"loose": share([None if mark is None else mark != CONSISTENT for mark in marks]), "strict": share(another), "hard": share(hard)}
