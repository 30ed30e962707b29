"""The recipe that quantifies distillation, whole: its toy, what its page says, and a judge that is added on the command line."""

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import Failed, Refused
from limbeck.planning import plan
from limbeck.start import evaluate, run
from scripted_server import Fault, serving
from test_judging import says
from toy import STEPS, TINY, at_home, toy

__all__ = ["at_home"]


@pytest.mark.slow
def test_the_toy_runs_and_its_figures_stand_on_the_page_in_words() -> None:
    done = run("quantify", toy=True)
    assert {"rouge_l", "ngram_jaccard", "first_token", "js_divergence", "identity_strict"} <= done.summary["student"].keys()
    assert done.summary["teacher"]["rouge_l"] == 1.0 and done.summary["similarity"]["control"] == "text_only"
    assert all("closer" in x for x in done.summary["similarity"]["measures"])
    page = (done.path / "report.html").read_text()
    for words in ("student closer than text only", "shared words in the same order", "claims another maker or its models", "judged by rules"):
        assert words in page
    assert len((done.path / "evidence" / "similarity.jsonl").read_text().splitlines()) == 4 * 6


def test_a_run_asks_a_judge_once_and_its_page_tells_figures_and_judge_in_words(tmp_path: Path) -> None:
    with serving(writes=lambda question: says(question, "style=2 structure=3 content=1")) as server:
        judge = {"url": server.url, "model": "j"}
        alike = {"kind": "similarity", "num": 3, "prompt_bytes": 24, "new_tokens": 6, "judge": judge}
        who = {"kind": "identity", "num": 4, "new_tokens": 6, "facts": {"name": "Limber"}}
        first = run(toy(tmp_path, {"steps": 1}, evaluate=[alike, who]))
        assert first.summary["student"]["judged"] == 2.0 and first.summary["teacher"]["judged"] == 5.0
        assert first.summary["similarity"]["control"] == "start" and all("closer" in x for x in first.summary["similarity"]["measures"])
        page = (first.path / "report.html").read_text()
        for words in ("student closer than before", "likeness by a judge, 1 to 5", "j was asked about", "claims another maker or its models"):
            assert words in page
        assert len((first.path / "evidence" / "similarity.jsonl").read_text().splitlines()) == 3 * 3
        server.always = Fault(500)
        assert evaluate(first.path).summary["student"] == first.summary["student"]


def test_a_judge_that_obeys_is_named_on_the_terminal_and_the_page_with_the_command_that_asks_another(tmp_path: Path) -> None:
    with serving(writes=lambda question: says(question, "identity=consistent")) as server:
        who = {"kind": "identity", "num": 2, "new_tokens": 4, "facts": {"name": "Limber"}, "judge": {"url": server.url, "model": "j"}}
        found = run(toy(tmp_path, {"steps": 1}, evaluate=["perplexity", who]))
    assert found.summary["not_measured"][0] == {
        "what": "identity by the judge j, which did what the texts before it asked for",
        "command": f"limbeck run {found.path.name} evaluate.1.judge.model=ANOTHER",
    }
    assert "identity by the judge j" in (found.path / "report.html").read_text() and "identity_strict" not in (found.summary["student"] or {})


def test_a_run_whose_budget_is_used_up_goes_on_where_it_stopped_and_trains_nothing_again(tmp_path: Path) -> None:
    with serving(writes=lambda question: says(question, "identity=contradicts")) as server:
        judge = {"url": server.url, "model": "j", "concurrency": 1}
        who = {"kind": "identity", "num": 8, "new_tokens": 6, "facts": {"name": "Limber"}}
        with pytest.raises(Failed) as caught:
            run(toy(tmp_path, {"steps": 1}, evaluate=[{**who, "judge": {**judge, "budget_tokens": 2000}}]))
        done, steps = len(server.questions), STEPS[0]
        assert caught.value.slug == "budget" and 2 < done < 2 + 3 * 8
        found = run(toy(tmp_path, {"steps": 1}, evaluate=[{**who, "judge": judge}]))
        assert found.finished and len(server.questions) == len(set(server.questions)) > done and STEPS[0] == steps


def test_a_model_that_is_no_subject_is_compared_with_by_its_reference(tmp_path: Path) -> None:
    refs = ["teacher", f"config:{TINY}"]
    alike = {"kind": "similarity", "references": refs, "num": 3, "prompt_bytes": 24, "new_tokens": 6}
    found = run(toy(tmp_path, {"steps": 1}, evaluate=[alike])).summary
    assert found["student"]["rouge_l_preference"] == 0.0 and found["similarity"]["preference"][0]["reference"] == refs[1]  # the same model again


def test_a_plan_asks_nothing_and_says_how_much_will_be_asked(tmp_path: Path) -> None:
    with serving() as server:
        model = {"url": server.url, "model": "j"}
        alike = {"kind": "similarity", "num": 3, "served": {"far": model}, "judge": model}
        who = {"kind": "identity", "num": 10, "facts": {"name": "Limber"}, "judge": model}
        notes = plan(toy(tmp_path, evaluate=[alike, who]), probe=False).notes
        assert server.paths == []
    asked = [note for note in notes if "requests to j" in note]  # teacher, before, student, and the served one
    numbers = ("similarity: at most 3 ", f"similarity: at most {3 + 2 * 3 * 4} ", f"identity: at most {2 + 10 * 3} ")
    assert len(asked) == 3 and all(note.startswith(number) for note, number in zip(asked, numbers, strict=True))


@pytest.mark.parametrize(
    "evaluator, slug",
    [
        ("identity", "facts"),
        ({"kind": "identity", "facts": "none.json"}, "facts"),
        ({"kind": "similarity", "answers": {"far": "none.jsonl"}}, "answers"),
        ({"kind": "similarity", "references": ["teachr"]}, "name"),
        ({"kind": "similarity", "control": "nobody"}, "name"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_spent(tmp_path: Path, evaluator: Any, slug: str) -> None:
    with pytest.raises(Refused) as caught:
        plan(toy(tmp_path, evaluate=[evaluator]), probe=False)
    assert caught.value.slug == slug
