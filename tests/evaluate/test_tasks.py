"""Tasks with right answers: topic choice offline, and lm-eval."""

import json
import sys
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from limbeck.errors import Failed, Refused
from limbeck.evaluate._lm_eval import lm_eval_scores, readable
from limbeck.evaluate._scoring import score
from limbeck.evaluate._topic_choice import accuracy, passage, topic_choice
from limbeck.evaluate.tasks import Tasks
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Role
from limbeck.model.text import Text
from limbeck.planning import plan
from limbeck.signals import Row, View
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.spans import encode
from toy import toy

LETTERS = "abcdef"


def letters(num: int = 6, length: int = 60) -> list[Row]:
    """Documents that each speak of one letter."""
    return [Row(f"row{i}", {"text": f"{c * 4} " * (length // 5)}, source=c) for i, c in enumerate(LETTERS[:num])]


class Echo(Role):
    """Expects the byte that stood two places before with a certain strength; below 0 it expects anything else."""

    offers = frozenset({"logits", "label"})

    def __init__(self, strength: float):
        super().__init__(nn.Identity())
        self.tokenizer, self.strength = ByteTokenizer(), strength

    def view(self, rows: Sequence[Row]):
        encoded = [encode(row, self.tokenizer) for row in rows]
        return View(
            {"ids": torch.tensor([i for ids, _ in encoded for i in ids])},
            torch.tensor([len(ids) for ids, _ in encoded]),
            torch.tensor([asked for _, each in encoded for asked in each]),
        )

    def says(self, view, names, inject):
        ids, targets = view.inputs["ids"], view.targets
        said = nn.functional.one_hot(ids[(targets - 2).clamp(min=0)], 258) * self.strength
        return {"logits": said, "label": ids[targets]}


def test_questions_are_the_same_each_time_and_change_with_the_seed():
    rows = letters()
    assert topic_choice(rows, 10, 40, seed=0) == topic_choice(rows, 10, 40, seed=0)
    assert topic_choice(rows, 10, 40, seed=0) != topic_choice(rows, 10, 40, seed=1)


def test_each_question_has_the_true_continuation_first_and_three_of_other_documents():
    for question in topic_choice(letters(), 10, 40, seed=0):
        assert question.context.strip()[0] == question.choices[0].strip()[0] == LETTERS[question.document]
        firsts = {choice.strip()[0] for choice in question.choices}
        assert len(firsts) == 4 and len({len(choice.encode()) for choice in question.choices}) == 1
        assert question.choices[0].startswith(" ") and not question.context.endswith(" ")


def test_a_passage_is_cut_where_a_word_ends_and_never_within_a_character():
    assert passage("one two three four five", 9) == ("one two", " three fo")
    assert passage("日本語日本語日本語日本語", 10) == ("日本語", "日本語")
    assert passage("one two three four five", 16) is None  # after `one two three` there are 10 bytes, not 16
    assert passage("one two three four five", 10) == ("one two", " three fou") and passage("one two three fou", 10) == ("one two", " three fou")
    assert passage("one two three fo", 10) is None
    assert passage("", 8) is None and passage(" " * 40, 8) is None


def test_each_document_asks_once_and_no_more_than_wanted():
    rows = [row for row in letters() for _ in range(3)]
    assert len(topic_choice(rows, 10, 40, seed=0)) == 6
    assert len(topic_choice(rows, 4, 40, seed=0)) == 4


def test_too_few_documents_are_refused():
    with pytest.raises(Refused) as refused:
        topic_choice([*letters(3), Row("short", {"text": "d"}, source="d"), Row("none", {"pixels": 1})], 10, 40, seed=0)
    assert refused.value.slug == "data" and "3 of 5" in str(refused.value)
    with pytest.raises(Refused):
        topic_choice([], 10, 40, seed=0)


@pytest.mark.parametrize(("strength", "share"), [(9.0, 1.0), (-9.0, 0.0), (0.0, 0.25)])
def test_the_most_probable_continuation_is_chosen_and_ties_count_their_share(strength, share):
    found = accuracy(Echo(strength), topic_choice(letters(), 10, 40, seed=0))
    assert found["value"] == share and found["error"] == 0.0


def test_the_error_is_that_of_the_share(speaker):
    questions = topic_choice(letters(), 10, 40, seed=0)
    found = accuracy(speaker(5), questions)
    value, num = found["value"], len(questions)
    assert value in [i / num for i in range(1, num)]  # some right, some wrong
    assert found["error"] == pytest.approx((value * (1 - value) / (num - 1)) ** 0.5)


def test_answers_are_scored_given_the_context(speaker):
    role, question = speaker(5), topic_choice(letters(), 1, 40, seed=0)[0]
    table = score(role, question.rows(), None)
    ids = torch.tensor([role.tokenizer.encode(question.context + question.choices[1])])
    log_probs = role.module(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    answer = len(question.choices[1].encode())
    torch.testing.assert_close(table.label_logprob[table.row == 1].sum(), log_probs[-answer:].sum().detach(), rtol=1e-5, atol=1e-4)


def test_passages_longer_than_a_context_are_refused_with_what_to_change(speaker):
    with pytest.raises(Refused) as refused:
        accuracy(speaker(0, max_position_embeddings=32), topic_choice(letters(), 10, 40, seed=0))
    assert refused.value.slug == "context" and "passage_bytes" in refused.value.do


def test_subjects_are_asked_the_same_questions(examine, speaker):
    found = Tasks(questions=4, passage_bytes=40)(examine(letters(), {"teacher": Echo(9.0), "student": Echo(-9.0)}))
    assert {name: x["tasks"]["topic_choice"]["value"] for name, x in found.items()} == {"teacher": 1.0, "student": 0.0}


def test_without_lm_eval_its_tasks_are_refused_with_what_to_install(examine, speaker, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(Refused) as refused:
        Tasks(names=("lm_eval:hellaswag",))(examine(letters(), {"student": speaker(0)}))
    assert refused.value.slug == "extra" and refused.value.code == 3 and refused.value.do == "pip install 'limbeck[eval]'"


def test_a_plan_says_that_lm_eval_is_not_there_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(Refused, match="pip install"):
        plan(toy(tmp_path, evaluate=[{"kind": "tasks", "names": ["topic_choice", "lm_eval:hellaswag"]}]))
    assert plan(toy(tmp_path, evaluate=["tasks"]))


@pytest.mark.parametrize("name", ["hellaswag", "lm_eval:", "lm_eval:../x.yaml", "lm_eval:a b"])
def test_names_of_no_task_are_refused(name):
    with pytest.raises(ValidationError):
        Tasks(names=(name,))


def test_every_metric_of_the_harness_is_told_with_its_error():
    found = {
        "results": {
            "sums": {
                "alias": "sums",
                "exact_match,strict": 0.5,
                "exact_match_stderr,strict": 0.1,
                "exact_match,none": 1.0,
                "exact_match_stderr,none": "N/A",
            },
            "a": {"acc,none": 0.25, "acc_stderr,none": 0.01},
            "b": {"acc,none": 0.75, "acc_stderr,none": 0.02},
            "all": {"alias": "all"},
        },
        "groups": {"mean": {"acc,none": 0.5, "acc_stderr,none": 0.0}},
        "group_subtasks": {"all": ["a", "b"], "mean": ["a", "b"]},
    }
    assert readable(found, ["sums"]) == {"sums exact_match (strict)": {"value": 0.5, "error": 0.1}, "sums exact_match": {"value": 1.0, "error": None}}
    assert readable(found, ["mean"]) == {"mean acc": {"value": 0.5, "error": 0.0}}
    assert readable(found, ["all"]) == {"a acc": {"value": 0.25, "error": 0.01}, "b acc": {"value": 0.75, "error": 0.02}}


def spelling(speaker) -> Text:
    """A random model with a tokenizer of transformers: one id a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<end>": 256}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    role = speaker(5)
    return Text(role.module, PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>"), anatomy(role.module))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and caches of its own, for lm-eval and what it reads data with."""
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_task_of_lm_eval_agrees_with_our_own_scores(examine, speaker, offline):
    lines = [{"question": f"cat {i} sat on the", "choices": ["mat", "dog", "sun"], "answer": i % 3} for i in range(12)]
    (offline / "cats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (offline / "cats.yaml").write_text(
        json.dumps(
            {
                "task": "cats",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(offline / "cats.jsonl")}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "answer",
                "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            }
        )
    )
    role = spelling(speaker)
    found = Tasks(names=("lm_eval:cats",))(examine(letters(), {"student": role}, lm_eval_tasks=str(offline)))["student"]["tasks"]
    rows = [Row(f"{i}.{c}", {"prompt": line["question"], "answer": " " + c, "open": True}) for i, line in enumerate(lines) for c in line["choices"]]
    table = score(role, rows, None)
    total = torch.zeros(36).index_add(0, table.row, table.label_logprob).view(12, 3)
    right = (total.argmax(-1) == torch.arange(12) % 3).double()
    assert found == {"cats acc": {"value": pytest.approx(float(right.mean())), "error": pytest.approx(float(right.std()) / 12**0.5)}}
    assert 0 < float(right.mean()) < 1
    assert role.tokenizer.pad_token is None  # the harness was given a tokenizer of its own


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_unknown_tasks_strange_tokenizers_and_data_out_of_reach_are_told_apart(speaker, offline):
    with pytest.raises(Refused) as refused:
        lm_eval_scores(spelling(speaker), ["hellaswagg"], 2, None, 0)
    assert refused.value.slug == "task" and refused.value.do == "write lm_eval:hellaswag"
    with pytest.raises(Refused) as refused:
        lm_eval_scores(speaker(0), ["hellaswag"], 2, None, 0)
    assert refused.value.slug == "tokenizer"
    with pytest.raises(Failed) as failed:
        lm_eval_scores(spelling(speaker), ["hellaswag"], 2, None, 0)
    assert failed.value.slug == "task" and failed.value.code == 4
