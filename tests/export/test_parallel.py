"""The curve of what is written at once and what of it is right."""

from limbeck.export._figures_parallel import parallel

POINT = {"tokens_per_forward": 1.0, "agreement": 0.5, "exact": 0.0}
CURVE = [
    {"threshold": 0.9, "student": POINT, "start": {**POINT, "agreement": 0.1}},
    {"threshold": 0.5, "student": {**POINT, "tokens_per_forward": 3.5, "agreement": 0.25}, "start": {**POINT, "agreement": 0.1}},
]


def test_every_threshold_is_a_point_of_each_arm():
    figure = parallel({"closeness": None, "student": {"exact": 0.0}, "start": {"exact": 0.0}, "parallel_decoding": CURVE})
    assert figure is not None and figure.rows[0] == ["before", "0.9", "1", "10.0 %"]
    assert ["student", "0.5", "3.5", "25.0 %"] in figure.rows and len(figure.rows) == 4
    assert "3.5 tokens a pass" in figure.svg


def test_without_a_curve_there_is_no_figure():
    assert parallel({"student": {}}) is None
    assert parallel({"closeness": None, "student": {}, "parallel_decoding": CURVE[:1]}) is None
    assert parallel({"closeness": None, "student": {}, "parallel_decoding": [{"threshold": "x", "student": 3}, 7]}) is None
