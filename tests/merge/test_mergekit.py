"""Equal to mergekit, in float64, where both offer the same merge: `pip install -c constraints.txt 'limbeck[mergekit]'`, else skipped."""

import pytest
import torch
from torch import Tensor

from limbeck.merge.arcee_fusion import ArceeFusion
from limbeck.merge.average import Average
from limbeck.merge.base import Merge
from limbeck.merge.dare import Dare
from limbeck.merge.sce import Sce
from limbeck.merge.slerp import Slerp
from limbeck.merge.task_arithmetic import TaskArithmetic
from limbeck.merge.ties import Ties

pytestmark = pytest.mark.slow
WEIGHTS = (0.5, 1.0, 2.0)
CASES = [
    ("linear", Average(weights=WEIGHTS), {"weight": WEIGHTS, "normalize": True}),
    ("slerp", Slerp(t=0.3), {"t": 0.3}),
    ("task_arithmetic", TaskArithmetic(weights=WEIGHTS, scale=0.7), {"weight": WEIGHTS, "lambda": 0.7}),
    ("ties", Ties(weights=WEIGHTS, density=0.3, scale=0.7), {"weight": WEIGHTS, "density": 0.3, "lambda": 0.7, "normalize": True}),
    ("dare_linear", Dare(weights=WEIGHTS, density=1), {"weight": WEIGHTS, "density": 1.0}),
    ("dare_ties", Dare(weights=WEIGHTS, density=1, signs="elect"), {"weight": WEIGHTS, "density": 1.0, "normalize": True}),
    ("sce", Sce(density=0.3), {"select_topk": 0.3}),
    ("sce", Sce(density=1), {"select_topk": 1.0}),
]


def tensors(num: int, apart: float) -> list[Tensor]:
    """A base, and some that lie around it."""
    random = torch.Generator().manual_seed(0)
    base = torch.randn(64, 96, generator=random, dtype=torch.float64)
    return [base, *(base + apart * torch.randn(64, 96, generator=random, dtype=torch.float64) for _ in range(num))]


@pytest.mark.parametrize("method, how, parameters", CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)])
def test_merges_are_those_of_mergekit(method: str, how: Merge, parameters: dict) -> None:
    theirs = pytest.importorskip("mergekit.merge_methods").merge_tensors
    base, *models = tensors(2 if how.pair else 3, apart=1.0)
    if method == "slerp":
        expected = theirs([models[0], models[1]], method, base_index=0, parameters=parameters)
    elif method == "linear":
        expected = theirs(models, method, parameters=parameters)
    else:
        weighted = {**parameters, **({"weight": list(parameters["weight"])} if "weight" in parameters else {})}
        expected = theirs([base, *models], method, base_index=0, parameters=weighted)
    torch.testing.assert_close(how("w", models, base), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rescale, theirs_rescale", [("l1_norm", True)])
def test_dare_with_the_same_draws_and_the_l1_norm_is_that_of_mergekit(rescale: str, theirs_rescale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("mergekit.merge_methods").merge_tensors
    base, *models = tensors(3, apart=1.0)
    kept = [Dare(density=0.3)("w", [*[base] * i, model], base) != base for i, model in enumerate(models)]
    draws = iter(kept)
    monkeypatch.setattr(torch, "bernoulli", lambda like: next(draws).to(like.dtype))
    parameters = {"weight": 1.0, "density": 0.3, "rescale": theirs_rescale}
    expected = theirs([base, *models], "dare_linear", base_index=0, parameters=parameters)
    ours = Dare(density=0.3, rescale=rescale)("w", models, base)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)  # theirs draws in float32, and merges what it has drawn in it


def test_fusion_differs_from_mergekit_only_beside_the_threshold() -> None:
    """Theirs adds 1e-8 to both probabilities: what lies nearer to the threshold than that moves it may fall on the other side."""
    theirs = pytest.importorskip("mergekit.merge_methods").merge_tensors
    base, model = tensors(1, apart=0.3)
    expected = theirs([base, model], "arcee_fusion", base_index=0)
    ours = ArceeFusion()("w", [base, model], None)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
