"""RMS normalisation: x / sqrt(mean(x^2) + eps) * weight, computed in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension to unit root mean square and scale it.

    Args:
        x_TD: activations, any leading shape; fp32 or bf16.
        weight_D: scale per channel.
        eps: added to the mean square.
    Returns:
        Same shape and dtype as `x_TD`; the statistics are taken in fp32.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), as used by DeepSeek-V3.
    """
    if x_TD.dtype == torch.float32:
        return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)
    return F.rms_norm(x_TD.float(), weight_D.shape, weight_D.float(), eps).to(x_TD.dtype)
