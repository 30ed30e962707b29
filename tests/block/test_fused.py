"""Kernels of flash-linear-attention: what they are asked, by a package of the same signatures that computes in loops; and the real one, on CUDA."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from limbeck.block import _fused
from limbeck.block._delta_rule import gated_delta_rule, gated_delta_rule_steps
from limbeck.block._linear_recurrence import linear_recurrence, linear_recurrence_steps
from limbeck.check.models import family_of
from limbeck.check.surgery import logits
from limbeck.student.linearize import Linearize

B, T, H, K, V = 2, 70, 2, 16, 32
"""More than a chunk of 64; sizes that the kernels have."""
CASES = ["delta", "delta, no decay", "none", "head", "channel"]
PLACES = {"delta": "gated_delta_rule", "none": "simple_gla", "head": "simple_gla", "channel": "gla"}


def checked(q: Any, k: Any, v: Any, scale: float | None, state: Any) -> tuple[Any, Any]:
    """What the kernels of version 0.6.0 insist on; queries as they scale them, and the state they begin with, transposed to be read by loops."""
    assert q.dtype == k.dtype == v.dtype in (torch.bfloat16, torch.float16) and q.shape == k.shape == (B, T, H, K) and v.shape == (B, T, H, V)
    assert state is None or state.dtype == torch.float32 and state.shape == (B, H, K, V)
    q = q.double() * (K**-0.5 if scale is None else scale)
    return q, torch.zeros(B, H, V, K, dtype=torch.float64) if state is None else state.double().mT


# parameters, their order and defaults are those of fla.ops 0.6.0


def chunk_gated_delta_rule(q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False, **kwargs):
    assert not kwargs and not use_qk_l2norm_in_kernel and g.shape == beta.shape == (B, T, H) and g.dtype == beta.dtype == torch.float32
    queries, s = checked(q, k, v, scale, initial_state)
    said, eye = [], torch.eye(K, dtype=torch.float64)
    for t in range(T):
        key, value, rate = k[:, t].double(), v[:, t].double(), beta[:, t].double()[..., None, None]
        s = g[:, t].double().exp()[..., None, None] * s @ (eye - rate * key[..., :, None] * key[..., None, :])
        s = s + rate * value[..., :, None] * key[..., None, :]
        said.append((s @ queries[:, t, ..., None])[..., 0])
    return torch.stack(said, 1).to(v.dtype), s.mT.float() if output_final_state else None


def faded(q, k, v, fade, scale, state, output):
    queries, s = checked(q, k, v, scale, state)
    said = []
    for t in range(T):
        s = s * fade(t) + v[:, t].double()[..., :, None] * k[:, t].double()[..., None, :]
        said.append((s @ queries[:, t, ..., None])[..., 0])
    return torch.stack(said, 1).to(v.dtype), s.mT.float() if output else None


def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False, state_v_first=False):
    assert not state_v_first and g.shape == q.shape, "q, k, g must have the same shape."
    return faded(q, k, v, lambda t: g[:, t].double().exp()[..., None, :], scale, initial_state, output_final_state)


def chunk_simple_gla(q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, state_v_first=False):
    assert not state_v_first and g_gamma is None and (g is None or g.shape == (B, T, H))
    return faded(q, k, v, lambda t: 1.0 if g is None else g[:, t].double().exp()[..., None, None], scale, initial_state, output_final_state)


CALLED: list[str] = []


@pytest.fixture(params=["loops", "cuda"])
def device(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where kernels run: those of loops on the CPU, the real ones where there are both a device and the package."""
    CALLED.clear()
    _fused.installed.cache_clear()
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        pytest.importorskip("fla.ops")
    else:
        monkeypatch.setattr(_fused, "takes", lambda v: v.dtype in (torch.bfloat16, torch.float16))
        for function in (chunk_gated_delta_rule, chunk_gla, chunk_simple_gla):
            place = function.__name__.removeprefix("chunk_")
            module = ModuleType(f"fla.ops.{place}")

            def noted(*args: Any, function: Any = function, place: str = place, **fields: Any) -> Any:
                CALLED.append(place)
                return function(*args, **fields)

            vars(module)[function.__name__] = noted
            for name, made in (("fla", ModuleType("fla")), ("fla.ops", ModuleType("fla.ops")), (module.__name__, module)):
                monkeypatch.setitem(sys.modules, name, made)
    yield "cuda" if request.param == "cuda" else "cpu"
    _fused.installed.cache_clear()


def drawn(case: str, device: str, dtype: torch.dtype) -> tuple[Any, list[Any]]:
    """The chunked form with its steps, and what both are given: numbers that 16 bits hold exactly, so that only what is computed can differ."""
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(torch.bfloat16).to(device)

    q, k, v, state = some(B, T, H, K) / 4, some(B, T, H, K) / 4, some(B, T, H, V), some(B, H, K, V).float()
    decay = {"none": None, "delta, no decay": None, "channel": -some(B, T, H, K).float().abs() / 8}.get(case, -some(B, T, H).float().abs() / 8)
    more = [some(B, T, H).float().sigmoid()] if case.startswith("delta") else []
    forms = (gated_delta_rule, gated_delta_rule_steps) if more else (linear_recurrence, linear_recurrence_steps)
    return forms, [q.float(), k.float(), v.to(dtype), *more, decay, state]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("begun", [True, False], ids=["from a state", "from nothing"])
def test_a_kernel_gives_what_the_recurrence_gives_as_it_is_written(case: str, begun: bool, device: str) -> None:
    (chunked, steps), values = drawn(case, device, torch.bfloat16)
    values[-1] = values[-1] if begun else None
    said, state = chunked(*values)
    expected, after = steps(*values)
    assert said.dtype == torch.bfloat16 and state.dtype == torch.float32 and (device != "cpu" or CALLED == [PLACES[case.split(",")[0]]])
    torch.testing.assert_close(said, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(state, after, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("case", CASES)
def test_in_32_bits_no_kernel_is_asked(case: str, device: str) -> None:
    (chunked, steps), values = drawn(case, device, torch.float32)
    torch.testing.assert_close(chunked(*values), steps(*values), rtol=1e-4, atol=1e-4)
    assert not CALLED


def test_a_tensor_on_the_cpu_takes_no_kernel_and_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused, "installed", lambda place, name: pytest.fail("asked for"))
    (chunked, _), values = drawn("delta", "cpu", torch.bfloat16)
    assert chunked(*values)[0].isfinite().all() and not _fused.takes(values[2])


def test_where_the_package_is_not_there_the_plain_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused, "takes", lambda v: True)
    monkeypatch.setitem(sys.modules, "fla", None)  # import fla fails
    _fused.installed.cache_clear()
    (chunked, steps), values = drawn("head", "cpu", torch.bfloat16)
    torch.testing.assert_close(chunked(*values)[0], steps(*values)[0], rtol=2e-2, atol=2e-2)
    _fused.installed.cache_clear()


def test_a_student_in_32_bits_says_the_same_with_the_package_and_without(device: str) -> None:
    student = Linearize(mixer={"kind": "gated_delta_net"})(family_of("llama", dtype=torch.float32))  # type: ignore[arg-type]
    assert logits(student).isfinite().all() and not CALLED
