"""The report of a run: one HTML file without scripts and requests, made of plain data.

This is the one definition of `summary.json`, schema `limbeck.summary/1`. Every key may be missing: its section then shrinks
or says what was not measured and which command does. Shares lie between 0 and 1. An arm is `teacher`, `start` (the student
before training), `student`, or `baseline` (the same student without the teacher; null if there is none).

```
schema, run, about, date (2026-11-24), wall_seconds, steps, num_stages, tokens, seed, verdict, machine ("one 24 GB GPU")
sources          what errors are over, where the unit does not tell: clips
transcription    {clips, words}                              sounds with a transcript; figures are <arm>.word_error_rate and the like
unit             what one prediction is called: token, image, ...; position of a masked model, which predicts nothing where nothing is hidden
held_out         {documents, targets, overlap_dropped}
closeness        the evaluator that tells how close this student is to its teacher (agreement, or aligned_bytes across tokenizers); null: no teacher
<arm>            {name, accuracy, accuracy_error, top5_accuracy, top5_accuracy_error, kl, kl_error, top1, top1_error,
                 perplexity, perplexity_error, bits_per_byte, bits_per_byte_error,
                 aligned_bytes, rows_without_chunks, chunk_gap, chunk_gap_error,
                 calibration_error, parameters, decode_tokens_per_second, decode_low, decode_high (10 and 90 % of the repeats),
                 prefill_tokens_per_second, forward_rows_per_second, memory_bytes, memory {weights, cache, ...: bytes}, disk_bytes,
                 tasks {name: {value, error, unit}}, metrics {name: {value, error, unit, lower_is_better}}}
baseline_seconds what measuring the missing baseline would take, as planned
memory_context   tokens of context at which memory_bytes was measured
by_certainty     [{low, high, share, student, baseline}]      agreement where the teacher's first choice has that probability
classes          [{name, share, student, error, baseline}]    accuracy by class, the weakest first
accuracy_gaps    {<arm>: {accuracy, accuracy_error}}          the student minus that arm, errors paired over rows
pitch            {clips, frames, within}                     frames with a pitch; cents by which it may be off; accuracy is <arm>.pitch_accuracy
probe            {rows, kinds, most_frequent, layer}          rows whose label was read out of frozen states; accuracy is <arm>.probe_accuracy
slices           [{name, share, student, error, baseline}]    agreement by kind of text
calibration      [{stated, teacher, student, baseline}]       how often right minus stated, by stated probability
parallel_decoding [{threshold, student {tokens_per_forward, agreement, exact}, teacher, start, baseline alike}]
decode_by_context [{context, teacher_ms [median, 10 %, 90 %], student_ms}]
watched          {rows, kl}                                   held-out rows looked at while training, and their KL before it
gaps             {<arm>: {top1, top1_error, kl, kl_error, chunk_gap, chunk_gap_error}}   the student minus that arm, errors paired over documents
similarity       {reference, control, student, prompts, measures [{name, <who>: {value, low, high}, closer}], judge,
                 preference [{name, reference, <who>}]}       answers of each beside the reference's; closer: student minus control
identity         {prompts, cues, judge, <who>: {loose, strict, hard: {value, low, high}, judged, reasons}}
runs             [{name, speed (times the teacher's), top1}]  comparable runs: same data, same held-out text
elsewhere        [{where, teacher, student, unit}]            planned for other machines, never measured
worst_tokens     [{before, token, teacher, kl}]               held-out text: leave it out together with the samples
rankings         [{query, place, teacher, student}]           first documents of both for a query, each with its grade: held-out text too
checks           [{name, result, open}]                       open: nobody has looked at it yet
not_measured     [{what, command}]
gradient_shares  [{step, <term>: share, ...}]
plan             [{what, planned, measured}]                  as text with units
references       [BibTeX]
provenance       [{name, revision, licence, role}]
```

A metric is a record of `metrics.jsonl`: {step, stage, arm, name, sum, count}, or with `value` in place of sum and count;
`held_out_kl` of both arms draws the curve of KL. A sample is {prompt, teacher, student, teacher_seconds, student_seconds,
agreement, marks [[start, end], ...]}; marks are characters of the student's answer that the teacher would not have written. Of pictures
it is {image (a PNG as data URI), label, teacher, student, made (true: made of noise)}, and of pictures with a question also prompt; label is then its
answer; of sounds {sound (a WAV as data URI), label}, and of speech also what teacher and student write; label is then its transcript.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from limbeck.export import _figures_close, _figures_cost, _figures_say
from limbeck.export import _report_text as text
from limbeck.export._figures_parallel import parallel
from limbeck.export._report_data import MOST_SOUNDS, by_arm, clean, curves, flatten, picture, sample, sound
from limbeck.export._table import Row, header, table
from limbeck.export._verdict import ARMS, entries, outcome, parts, unmeasured, verdict, weakest, word
from limbeck.text.show import finite, for_report, number

__all__ = ["Row", "header", "outcome", "render", "table", "unmeasured", "verdict", "weakest"]

SILENT = {"position": "fills in what is hidden of a row", "candidate": "puts candidates in order"}
"""By unit, what a model does that writes no text."""
FIRST_SAMPLES, MOST_SAMPLES, MOST_WORST, MOST_LINES, MOST_DOUBTS = 5, 25, 50, 60, 20
SAMPLE_LIMIT, MORE_LIMIT = 2_000, 600
"""Characters of a prompt or an answer, among the first samples and among the folded ones."""
TEXT_LIMIT = 20_000
"""Characters of the recipe, of the plan, and of all citations together: with the other limits, the page stays below 2 MB whatever it is given."""


@cache
def template() -> Template:
    """The page: everything put into it is escaped, and a name that it does not know is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["typeset"] = text.typeset
    return environment.get_template("_report.html.j2")


def render(
    summary: Mapping[str, Any],
    recipe_text: str = "",
    metrics: Iterable[Mapping[str, Any]] = (),
    plan_text: str = "",
    environment: Mapping[str, Any] | None = None,
    samples: Sequence[Mapping[str, Any]] | None = (),
) -> str:
    """The report as one HTML document under 2 MB.

    Args:
        summary: as defined above.
        recipe_text: the resolved recipe; comments, and lines that end in `# default`, are printed in grey.
        metrics: records of `metrics.jsonl`, in the order in which they were written.
        plan_text: what `limbeck plan` said.
        environment: versions and variables, by name.
        samples: held-out inputs with both answers, drawn by seed; None: the page is to hold no held-out text at all.
    """
    told, references = clean(summary), summary.get("references")
    references = references if isinstance(references, Sequence) and not isinstance(references, str) else ()
    found = curves(metrics)
    shown = None
    if samples is not None:
        drawn = [x for x in samples[:MOST_SAMPLES] if isinstance(x, Mapping) and not {"image", "sound"} & x.keys()]
        shown = [sample(x, SAMPLE_LIMIT if i < FIRST_SAMPLES else MORE_LIMIT) for i, x in enumerate(drawn)]
    others = {"pictures": each(samples, MOST_SAMPLES, picture), "sounds": each(samples, MOST_SOUNDS, sound)}
    names = {x: name for x in ("teacher", "student", "baseline", "start") if (name := header(told).get(x))}
    rows, pieces = table(told), parts(told)
    if word(told, "verdict") and told["verdict"] != "".join(piece for _, piece in pieces):
        pieces = [("", told["verdict"])]  # the run has said it already, and says one thing only
    return template().render(
        title=word(told, "run", "a run"),
        kick=text.kick(told),
        headline=text.headline(pieces),
        arms=names,
        rows=rows,
        first_size=next((i for i, row in enumerate(rows) if row.times), -1),
        strip=_figures_close.strip(told),
        weakest=weakest(told),
        unmeasured=unmeasured(told)[:MOST_DOUBTS],
        said={"close": text.close(told, found), "where": text.where(told), "fast": text.fast(told), "say": _figures_say.judges(told)},
        figures={
            "close": [x for x in (_figures_close.learning(told, found), _figures_close.calibration(told)) if x],
            "where": [x for x in (_figures_close.certainty(told), _figures_close.kinds(told)) if x],
            "fast": [x for x in (_figures_cost.decoding(told), _figures_cost.trade(told), _figures_cost.memory(told), parallel(told)) if x],
            "say": [x for x in (_figures_say.alike(told), _figures_say.preference(told), _figures_say.named(told)) if x],
            "trust": [x for x in (_figures_cost.pull(told),) if x],
            "training": _figures_cost.training(told, found),
        },
        worst=[] if shown is None else worst_tokens(told),
        rankings=[] if shown is None else lists(told),
        elsewhere=grid(told, "elsewhere", ("where", "teacher", "student", "unit")),
        samples=shown,
        **others,
        silent=SILENT.get(word(told, "unit", "token")),
        num_first=FIRST_SAMPLES,
        checks=[(x.get("open") is True, scalar(x.get("name"), 100), scalar(x.get("result"), 300)) for x in entries(told, "checks")[:MOST_LINES]],
        about=scalar(told.get("about"), 500),
        recipe=recipe_lines(for_report(recipe_text.strip(), TEXT_LIMIT, 1_000)),
        plan=grid(told, "plan", ("what", "planned", "measured")),
        plan_text=for_report(plan_text, TEXT_LIMIT, 1_000),
        numbers=by_arm(told, names),
        facts=flatten({k: v for k, v in told.items() if k not in (*ARMS, "verdict", "about") and not isinstance(v, list)}),
        environment=flatten(clean(environment or {}), most=120),
        provenance=[[*row[:3], row[3] or "licence unknown"] for row in grid(told, "provenance", ("role", "name", "revision", "licence"))],
        references=for_report("\n\n".join(x for x in references if isinstance(x, str)), TEXT_LIMIT, 1_000),
        run=word(told, "run", "RUN"),
        footer=text.footer(told, None if shown is None else len(shown), {f"held-out {what}": len(found) for what, found in others.items()}),
    )


def each(samples: Sequence[Any] | None, most: int, make: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    """Those of the first samples that are what is asked for."""
    return [found for x in (samples or ())[:most] if isinstance(x, Mapping) and (found := make(x))]


def scalar(value: Any, limit: int = 120) -> str:
    """A cell of foreign data; nothing for lists and mappings."""
    text = value if isinstance(value, str) else number(value) if finite(value) is not None else ""
    return for_report(text, limit)


def grid(summary: Mapping[str, Any], key: str, columns: Sequence[str]) -> list[list[str]]:
    """A list of mappings as rows of cells."""
    return [[scalar(x.get(column)) for column in columns] for x in entries(summary, key)[:MOST_LINES]]


def recipe_lines(recipe: str) -> list[tuple[str, str, str]]:
    """(what counts, what is grey, "default" or nothing) of each line."""
    lines = []
    for line in recipe.split("\n") if recipe else ():
        body, mark, comment = line.partition("#") if line.startswith("#") else line.partition(" #")
        lines.append((body, mark + comment, "default" if comment.strip() == "default" else ""))
    return lines


def worst_tokens(summary: Mapping[str, Any]) -> list[list[str]]:
    """The predictions of largest KL in their context."""
    found = entries(summary, "worst_tokens")[:MOST_WORST]
    return [[scalar(x.get("before"), 500)[-100:], *(scalar(x.get(k)) for k in ("token", "teacher", "kl"))] for x in found]


def lists(summary: Mapping[str, Any]) -> list[list[str]]:
    """The first documents of teacher and student, query by query."""
    return [[scalar(x.get(k), 300) for k in ("query", "place", "teacher", "student")] for x in entries(summary, "rankings")[:MOST_LINES]]
