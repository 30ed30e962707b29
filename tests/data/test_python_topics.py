from limbeck.data._overlap import drop_overlap
from limbeck.data.base import Rows, held_out
from limbeck.data.python_topics import PythonTopics, apart


def made(place, **fields) -> Rows:
    return PythonTopics(**fields).rows(Rows(), place())


def test_about_an_eighth_of_the_text_is_held_out_by_title(place):
    rows = made(place)
    held, train = (sum(len(row.content["text"].encode()) for row in some) for some in (rows.held_out, rows.train))
    assert 0.10 < held / (held + train) < 0.15  # 0.136, 0.129, 0.122 with Python 3.11, 3.12, 3.13
    assert held + train > 300_000 and len(rows.held_out) >= 10
    assert all(held_out(row.source, 0.13) for row in rows.held_out) and {"with", "numeric-types"} <= {row.source for row in rows.held_out}
    assert {row.split for row in rows.held_out} == {"held_out"} and {row.split for row in rows.train} == {"train"}


def test_no_held_out_topic_is_repeated_in_a_topic_that_is_trained_on(place):
    rows = made(place)
    assert drop_overlap(rows) is rows
    assert "repeats a shorter topic" in rows.notes[0]


def test_the_topics_as_they_come_would_have_leaked():
    from pydoc_data.topics import topics

    statement = 'The "while" statement is used for repeated execution as long as an\nexpression is true'
    assert statement in topics["while"] and statement in topics["compound"]
    unlike = apart(topics)
    assert statement in unlike["while"] and statement not in unlike["compound"]


def test_a_paragraph_is_kept_once_in_the_shortest_topic_that_has_it():
    long = " ".join(f"word{i}" for i in range(20))
    other = " ".join(f"other{i}" for i in range(20))
    topics = {"b": f"First.\n\n{long}\n\n{other}", "a": f"Second.\n\n{long}", "c": long.upper()}
    assert apart(topics) == {"c": long.upper(), "a": "Second.", "b": f"First.\n\n{other}"}


def test_provenance_names_the_version_the_hash_and_the_licence(place):
    import hashlib
    import json
    import platform
    from pydoc_data.topics import topics

    (facts,) = made(place).provenance
    assert facts["revision"] == platform.python_version() and facts["licence"] == "PSF-2.0"
    assert facts["sha256"] == hashlib.sha256(json.dumps(topics, sort_keys=True).encode()).hexdigest()


def test_split_and_licence_are_fields_and_another_file_is_refused(place, refused):
    assert not made(place, split=0).held_out and made(place, licence="x").provenance[0]["licence"] == "x"
    error = refused(lambda: made(place, held_out="a.txt"))
    assert error == ("key", "data python_topics  held_out", "topics, of which split holds out a share", "held_out: a.txt", "remove held_out")
