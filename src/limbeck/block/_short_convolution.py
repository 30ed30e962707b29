"""A causal convolution over a few positions, each channel by itself.

This file is carried along beside exported weights: it imports torch alone.
"""

import torch
from torch import nn
from torch.nn import functional as F


class ShortConvolution(nn.Conv1d):
    r"""$y_{tc} = b_c + \sum_{j<n} w_{cj} x_{t-n+1+j,c}$ with `kernel` taps n; it begins as the identity. Before the first position all is zero."""

    def __init__(self, channels, kernel):
        super().__init__(channels, channels, kernel, groups=channels)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[..., -1] = 1
            self.bias.zero_()  # type: ignore[union-attr]

    def plain(self, x):
        """Whether a product and a sum are as exact as a convolution: where neither is in 16 bits."""
        return x.dtype == self.weight.dtype and x.dtype.itemsize >= 4 and not x.is_meta and not torch.is_autocast_enabled(x.device.type)

    def forward(self, x, mask=None, state=None):
        """x [B, T, channels], `mask` [B, T] False where a position is not there, and the state before: the n - 1 positions that were heard last."""
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        before = self.kernel_size[0] - 1
        heard = F.pad(x, (0, 0, before, 0)) if state is None else torch.cat([state.to(x.dtype), x], 1)
        if x.shape[1] == 1 and self.plain(heard):  # while it decodes: a library's convolution of one position takes several times as long
            said = ((heard.mT * self.weight[:, 0]).sum(-1) + self.bias)[:, None]  # type: ignore[operator]
        else:
            said = super().forward(heard.mT).mT
        return said, heard[:, heard.shape[1] - before :]
