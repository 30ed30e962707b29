"""Whole runs of rankers: from lists to verdict, report and a folder that opens as a scorer again; what is refused before it begins."""

import pytest
import torch

from limbeck.errors import Refused
from limbeck.model.opening import open_pretrained
from limbeck.model.ranker import CrossEncoder
from limbeck.model.role import as_role
from limbeck.planning import plan
from limbeck.recipe import load, text_only
from limbeck.start import run
from toy import at_home, metrics, state  # noqa: F401

SMALL = ("data.0.num=12", "train.1.data.0.num=12", "data.0.candidates=5", "train.1.data.0.candidates=5", "train.0.steps=1", "train.1.steps=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_HOME", str(tmp_path_factory.mktemp("home")))
        return run("rank_distillm", *SMALL, "threads=1", toy=True, runs=tmp_path_factory.mktemp("runs"))


def test_a_ranker_goes_from_lists_to_a_verdict_in_words_of_ranking(finished):
    summary = finished.summary
    assert "in nDCG@10" in finished.verdict and "on labels alone" in finished.verdict and "token" not in finished.verdict
    assert summary["unit"] == "candidate" and summary["held_out"]["targets"] == 5 * summary["held_out"]["documents"]
    assert all(0 <= summary[arm]["ndcg"] <= 1 for arm in ("teacher", "start", "student", "baseline"))
    assert set(summary["gaps"]) >= {"start", "baseline"} and not any("task" in x["what"] for x in summary["not_measured"])


def test_its_report_shows_the_first_documents_of_teacher_and_student_and_runs_lie_beside_it(finished):
    page = (finished.path / "report.html").read_text()
    assert "the first documents of teacher and student" in page and "nDCG@10" in page and "ranking" in page
    assert finished.summary["rankings"][0]["query"] in page
    runs = {path.name for path in (finished.path / "evidence" / "runs").iterdir()}
    assert runs == {"teacher.run", "start.run", "student.run", "labels_only.run"}
    lines = (finished.path / "evidence" / "runs" / "student.run").read_text().splitlines()
    assert len(lines) == finished.summary["held_out"]["targets"] and all(len(line.split()) == 6 for line in lines)


def test_the_stages_learn_from_labels_and_then_from_orders_and_the_baseline_from_labels_alone(finished):
    logged = {(r["arm"], r["stage"], r["name"]) for r in metrics(finished.path)}
    objectives = {x for x in logged if x[2] in ("info_nce", "rank_net")}
    assert objectives == {
        ("student", "contrast", "info_nce"),
        ("student", "order", "rank_net"),
        ("labels_only", "contrast", "info_nce"),
        ("labels_only", "order", "info_nce"),
    }


def test_what_was_exported_opens_as_a_cross_encoder_that_scores_as_the_student_did(finished):
    role = as_role(open_pretrained(f"path:{finished.path / 'student'}"))
    assert isinstance(role, CrossEncoder)
    own = {name: x for name, x in state(finished.path, "order").items()}
    assert all(torch.equal(x, own[name]) for name, x in role.module.state_dict().items())
    scored = [line.split() for line in (finished.path / "evidence" / "runs" / "student.run").read_text().splitlines()]
    rows = load("rank_distillm", SMALL, toy=True).data[0]
    from limbeck.data.base import Place, Rows
    from limbeck.model.base import Models
    from limbeck.numerics import Streams

    held = {row.content["document_id"]: row for row in rows.rows(Rows(), Place(Models({}), Streams(0))).held_out}
    with torch.no_grad():
        said = [role.says(role.view([held[line[2]]]), ("score",), {})["score"].item() for line in scored]
    assert said == pytest.approx([float(line[4]) for line in scored], abs=1e-5)


def test_the_baseline_of_a_recipe_learns_from_what_the_recipe_says_and_else_from_cross_entropy():
    recipe = load("rank_distillm")
    assert [[o.kind for o in stage.turn[0].objective] for stage in text_only(recipe).train] == [["info_nce"], ["info_nce"]]
    assert text_only(recipe).train[1].data == recipe.train[1].data and text_only(recipe).teacher is None
    assert [o.kind for o in text_only(load("taid")).train[0].turn[0].objective] == ["cross_entropy"]
    with pytest.raises(Refused, match="one that does without the teacher"):
        load("rank_distillm", ["baseline_objective=[rank_net]"])


def test_a_baseline_that_cannot_learn_is_refused_by_the_plan():
    with pytest.raises(Refused) as caught:
        plan("rank_distillm", *SMALL, "baseline_objective=[]", toy=True, probe=False)
    assert caught.value.slug == "need" and caught.value.expected == "logits of student"


def test_orders_can_come_from_the_data_alone_without_a_teacher(tmp_path):
    from limbeck.check.models import quiet

    recipe = {
        "data": [{"kind": "word_overlap", "num": 10, "candidates": 4, "labels": "graded"}],
        "student": {"start": f"config:{tiny()}"},
        "train": [{"objective": [{"kind": "rank_net", "against": "rank"}], "steps": 2, "batch": 2}],
        "evaluate": ["ranking"],
        "threads": 1,
    }
    with quiet():
        done = run(recipe, runs=tmp_path)
    assert "nDCG@10" in done.verdict and done.summary["teacher"] is None


def tiny() -> str:
    from limbeck.recipe import SHIPPED

    return str(SHIPPED / "models" / "tiny_bert.json")


def test_a_run_without_ranks_is_stopped_at_once_by_an_objective_that_needs_them(tmp_path):
    (tmp_path / "docs.tsv").write_text("".join(f"d{i}\tword {i}\n" for i in range(6)))
    (tmp_path / "queries.tsv").write_text("".join(f"q{i}\tword {i}\n" for i in range(6)))
    (tmp_path / "qrels.txt").write_text("".join(f"q{i} 0 d{i} 1\n" for i in range(6)))
    (tmp_path / "run.txt").write_text("".join(f"q{i} Q0 d{(i + k) % 6} {k} {9 - k} t\n" for i in range(6) for k in (1, 2, 3)))
    source = {"kind": "rankings", "documents": "docs.tsv", "queries": "queries.tsv", "qrels": "qrels.txt", "run": "run.txt", "split": 0.0}
    recipe = {
        "data": [{**source, "negatives": "sampled", "group": 2}],
        "student": {"start": f"config:{tiny()}"},
        "train": [{"objective": [{"kind": "listwise_kl", "against": "given_score"}], "steps": 1, "batch": 6}],
        "threads": 1,
    }
    with pytest.raises(Refused) as caught:
        run(recipe, runs=tmp_path / "runs", base=tmp_path)
    assert caught.value.slug == "row" and caught.value.expected == "rows that all have a score", "what was relevant was not in the run"
