"""Flash: causal attention with each head's own keys and values, rounded to bf16; scores are never all in memory.

Sixteen queries of a head are the lanes of a register; 64 keys at a time are scored, weighed and gathered, with the
largest score kept beside the sum (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao 2022, arXiv 2205.14135). For
models with packed weights, whose products round their activations to 8 bits anyway: bf16 keeps 8 bits too, and sums
stay fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanseek.kernels import native
from leanseek.kernels.registry import chosen, native_implementation, reference

# Widths that the native kernels have room for.
MOST_CHANNELS = 1024


def flash_attention(q_THX: Tensor, kv_KHX: Tensor, k_rope_KR: Tensor, spans_S4: Tensor, scale: float) -> Tensor:
    """Attend in causal order within each of some texts.

    Args:
        q_THX: queries of all texts, one after the other, [T, H, N + R].
        kv_KHX: keys without position and values of every cached token, [K, H, N + V].
        k_rope_KR: the keys' last channels, which the heads share.
        spans_S4: int64; of each text where its queries begin, how many they are, where its keys begin, and the
            position of its first query among these: the query of position p sees the keys 0 .. p.
        scale: factor on the scores.
    Returns:
        [T, H, V], fp32. A row is the same whatever the other rows are.
    """
    function = (chosen("flash_attention") if _suits(q_THX, kv_KHX, k_rope_KR) else None) or flash_attention_reference
    out: Tensor = function(q_THX.float(), kv_KHX.float(), k_rope_KR.float(), spans_S4, scale)
    return out


@reference("flash_attention")
def flash_attention_reference(
    q_THX: Tensor, kv_KHX: Tensor, k_rope_KR: Tensor, spans_S4: Tensor, scale: float
) -> Tensor:
    """Compute `flash_attention` in plain torch, text by text; shares are rounded to bf16 for the values alone."""
    tokens, heads, channels = q_THX.shape
    nope = channels - k_rope_KR.shape[1]
    out_THV = q_THX.new_zeros(tokens, heads, kv_KHX.shape[2] - nope)
    q_THX = (q_THX * scale).bfloat16().float()
    k_KHX = torch.cat((kv_KHX[..., :nope], k_rope_KR.unsqueeze(1).expand(-1, heads, -1)), dim=-1).bfloat16().float()
    v_KHV = kv_KHX[..., nope:].bfloat16().float()
    for start, length, key, first in spans_S4.tolist():
        end = key + first + length
        scores_HTK = torch.einsum("thx,khx->htk", q_THX[start : start + length], k_KHX[key:end])
        hidden_TK = torch.arange(first + length) > first + torch.arange(length)[:, None]
        scores_HTK.masked_fill_(hidden_TK, float("-inf"))
        weights_HTK = torch.exp(scores_HTK - scores_HTK.amax(-1, keepdim=True))
        mixed_THV = torch.einsum("htk,khv->thv", weights_HTK.bfloat16().float(), v_KHV[key:end])
        out_THV[start : start + length] = mixed_THV / weights_HTK.sum(-1).t().unsqueeze(-1)
    return out_THV


@native_implementation("flash_attention")
def _flash_attention(
    variant: str, q_THX: Tensor, kv_KHX: Tensor, k_rope_KR: Tensor, spans_S4: Tensor, scale: float
) -> Tensor:
    q_THX, kv_KHX, k_rope_KR, spans_S4 = (x.contiguous() for x in (q_THX, kv_KHX, k_rope_KR, spans_S4))
    (tokens, heads, channels), (keys, rope) = q_THX.shape, k_rope_KR.shape
    nope = channels - rope
    value = kv_KHX.shape[2] - nope
    assert kv_KHX.shape[:2] == (keys, heads) and spans_S4.dtype == torch.int64
    out_THV = q_THX.new_empty(tokens, heads, value)
    sizes = (spans_S4.shape[0], tokens, keys, heads, nope, rope, value)
    native.call("expanded_attention", variant, q_THX, kv_KHX, k_rope_KR, spans_S4, *sizes, scale, out_THV)
    return out_THV


def _suits(q_THX: Tensor, kv_KHX: Tensor, k_rope_KR: Tensor) -> bool:
    """Whether the library takes these: on the CPU, pairs of channels, values in whole registers."""
    channels, value = q_THX.shape[2], kv_KHX.shape[2] + k_rope_KR.shape[1] - q_THX.shape[2]
    fits = channels % 2 == 0 and value % 16 == 0 and max(channels, value) <= MOST_CHANNELS
    return fits and q_THX.device.type == "cpu"
