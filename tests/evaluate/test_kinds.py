"""Kinds of held-out text."""

import pytest

from limbeck.evaluate._kinds import kind_of, kinds
from limbeck.signals import Row

PROSE = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little."  # Melville, 1851


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("prose", PROSE),
        ("prose", "Dear sir;\nthank you for the letter; it was good to hear from you.\nYours, A"),
        ("code", "def f(x):\n    return x ** 2\n\n\nprint(f(3))"),
        ("code", 'int main() {\n  puts("so");\n  return 0;\n}'),
        ("lists and tables", "Buy:\n- milk\n- eggs\n- bread"),
        ("lists and tables", "| a | b |\n|---|---|\n| 1 | 2 |"),
        ("numbers", "3.14 2.71 1.41\n100 200 300"),
        ("dialogue", "“Who goes there?” he said.\n“Nobody.”\nHe laughed.\n“Then come in.”"),
        ("dialogue", "Alice: hello\nBob: hi there"),
        ("other", " \n\n"),
    ],
)
def test_kinds_are_found_from_the_lines(kind, text):
    assert kind_of({"text": text}) == kind


def test_of_a_chat_the_answers_are_looked_at():
    question = {"role": "user", "content": "How do I square?"}
    assert kind_of({"messages": [question, {"role": "assistant", "content": "Multiply it by itself."}]}) == "dialogue"
    assert kind_of({"messages": [question, {"role": "assistant", "content": "def f(x):\n    return x ** 2"}]}) == "code"
    assert kind_of({"prompt": "def f(x):", "answer": PROSE}) == "prose"


def test_what_is_no_text_is_other():
    assert kind_of({"pixels": [1, 2]}) == "other" and kind_of({"text": ""}) == "other"


def test_tags_come_before_rules():
    rows = [Row("0", {"text": PROSE}, tag="sea"), Row("1", {"text": "def f():\n    x()"})]
    assert kinds(rows) == ["sea", "other"]
    assert kinds([Row("0", {"text": PROSE}), rows[1]]) == ["prose", "code"]


def test_a_long_line_of_open_brackets_is_no_burden():
    assert kind_of({"text": "f(" * 200_000}) == "prose"  # looked at whole, this would take hours
