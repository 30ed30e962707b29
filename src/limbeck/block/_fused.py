"""Kernels of flash-linear-attention, in place of chunks of plain torch: where that package is installed, on CUDA, in 16 bits.

In 32 bits and more, and everywhere else, the plain forms are taken: kernels multiply in fewer bits.

This file is carried along beside exported weights: it imports torch, and, when it is first asked on CUDA, `fla` if that is there.
"""

import functools
import importlib

import torch


@functools.cache
def installed(place, name):
    """`fla.ops.<place>.<name>`; None where the package is not installed."""
    try:
        return getattr(importlib.import_module(f"fla.ops.{place}"), name, None)
    except ImportError:
        return None


def takes(v):
    """Whether kernels are to be tried for values like these."""
    return v.is_cuda and v.dtype in (torch.bfloat16, torch.float16)


def fused(place, name, q, k, v, state, **more):
    """What a kernel says and the state after it, for q and k [B, T, H, K], v [B, T, H, V] and a state [B, H, K, V]; None: take the plain form.

    Queries are not scaled: kernels scale them by 1 / sqrt(K) where nothing is said. States are float32.
    """
    kernel = installed(place, name) if takes(v) else None
    if kernel is None:
        return None
    q, k = q.to(v.dtype), k.to(v.dtype)
    return kernel(q, k, v, **more, scale=1.0, initial_state=None if state is None else state.float(), output_final_state=True)
