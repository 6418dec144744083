"""Attention: softmax(scale q k) v over padded sequences, and its absorbed form over cached latents.

Expanded (training, prefill): every head has its own keys and values. Absorbed (decoding): all heads
share the cached latent as key and value, because the up-projections were moved to the query and
the output side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def expanded_attention(
    q_SQHD: Tensor, k_SKHD: Tensor, v_SKHV: Tensor, visible_SQK: Tensor | None, scale: float
) -> Tensor:
    """Attention with keys and values of each head's own.

    Args:
        q_SQHD: queries, [S, queries, H, N + R].
        k_SKHD: keys, [S, keys, H, N + R].
        v_SKHV: values, [S, keys, H, V].
        visible_SQK: True where a query may look, [S, 1, queries, keys]; None: plain causal order.
        scale: factor on the scores.
    Returns:
        [S, queries, H, V].
    """
    return F.scaled_dot_product_attention(
        q_SQHD.transpose(1, 2),
        k_SKHD.transpose(1, 2),
        v_SKHV.transpose(1, 2),
        attn_mask=visible_SQK,
        is_causal=visible_SQK is None,
        scale=scale,
    ).transpose(1, 2)


def absorbed_attention(
    q_SMC: Tensor, latents_SKC: Tensor, hidden_SMK: Tensor | None, scale: float, value_width: int
) -> Tensor:
    """Attention in which every head shares the latents as keys, and their first part as values.

    Args:
        q_SMC: absorbed queries, [S, M, C] with M = queries x heads (or anything that broadcasts), C = L + R.
        latents_SKC: the cache, [S, keys, C].
        hidden_SMK: True where a query may not look; None: it may look everywhere.
        scale: factor on the scores.
        value_width: L, how many of the C channels are the value.
    Returns:
        [S, M, L]; the softmax is taken in fp32.
    Source: DeepSeek-V2 report (arXiv 2405.04434) section 2.1; V3.2-Exp report appendix A (MQA mode).
    """
    scores_SMK = torch.bmm(q_SMC, latents_SKC.transpose(1, 2)).float().mul_(scale)
    if hidden_SMK is not None:
        scores_SMK.masked_fill_(hidden_SMK, float("-inf"))
    shares_SMK = torch.softmax(scores_SMK, dim=-1).to(latents_SKC.dtype)
    return torch.bmm(shares_SMK, latents_SKC[:, :, :value_width])
