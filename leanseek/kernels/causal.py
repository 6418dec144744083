"""Causal: latent attention of packed texts with the gradient of all that went in, in fp32.

Torch's own form puts queries and keys together, lays texts of like length side by side, and fills them up; the native
one reads what the projections gave, text by text, and keeps of the scores each query's sum alone for the way back.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanseek.kernels import native
from leanseek.kernels.attention import expanded_attention
from leanseek.kernels.invariance import is_invariant
from leanseek.kernels.registry import chosen, native_implementation, reference
from leanseek.kernels.rope import rotate

# Channels of keys and of values are multiples of this.
STEP = 16


def learns_natively(q_THD: Tensor, k_rope_TR: Tensor, value: int) -> bool:
    """Whether a native kernel attends with these queries and shared keys, whose gradients are wanted.

    Args:
        q_THD, k_rope_TR: as of `causal_attention_reference`.
        value: channels of a value.
    """
    heads, channels = q_THD.shape[1:]
    return (
        torch.is_grad_enabled()
        and not is_invariant()
        and not torch.compiler.is_compiling()
        and all(t.requires_grad and t.dtype == torch.float32 and t.device.type == "cpu" for t in (q_THD, k_rope_TR))
        and channels % STEP == 0
        and value % STEP == 0
        and torch.get_num_threads() <= heads  # a head is one thread's
        and chosen("causal_attention") is not None
    )


def causal_attention(
    q_THD: Tensor, kv_THX: Tensor, k_rope_TR: Tensor, rotations_TR: Tensor, spans_S4: Tensor, scale: float
) -> Tensor:
    """Attend inside packed texts; arguments as of `causal_attention_reference`, for which `learns_natively` says yes.

    Returns:
        [T, H, V].
    """
    function = chosen("causal_attention")
    assert function is not None, "callers ask `learns_natively` first"
    out: Tensor = function(q_THD, kv_THX, k_rope_TR, rotations_TR, spans_S4, scale)
    return out


@reference("causal_attention")
def causal_attention_reference(
    q_THD: Tensor, kv_THX: Tensor, k_rope_TR: Tensor, rotations_TR: Tensor, spans_S4: Tensor, scale: float
) -> Tensor:
    """Attend text by text in plain torch; the definition of the op.

    Args:
        q_THD: queries, [T, H, N + R], their R last channels not turned yet.
        kv_THX: keys without position and values, [T, H, N + V].
        k_rope_TR: the key that all heads share, not turned yet.
        rotations_TR: complex64, [T, R / 2].
        spans_S4: of each text the first token, how many, and the same of what it goes on from, an earlier text that
            goes on from none; int64.
        scale: factor on the scores.
    Returns:
        [T, H, V].
    """
    nope = q_THD.shape[-1] - k_rope_TR.shape[-1]
    q_THD = torch.cat((q_THD[..., :nope], rotate(q_THD[..., nope:], rotations_TR)), dim=-1)
    turned_T1R = rotate(k_rope_TR.unsqueeze(1), rotations_TR)
    k_THD = torch.cat((kv_THX[..., :nope], turned_T1R.expand(-1, q_THD.shape[1], -1)), dim=-1)
    out_THV = kv_THX.new_zeros(*q_THD.shape[:2], kv_THX.shape[-1] - nope)
    for first, count, before, more in spans_S4.tolist():
        own = torch.arange(first, first + count)
        keys = torch.cat((torch.arange(before, before + more), own))
        visible_QK = torch.arange(more + count) <= more + torch.arange(count)[:, None]
        out = expanded_attention(
            q_THD[own][None], k_THD[keys][None], kv_THX[keys][None, ..., nope:], visible_QK[None, None], scale
        )
        out_THV = out_THV.index_put((own,), out[0])
    return out_THV


@native_implementation("causal_attention")
def _causal_attention(variant: str, *given: Any) -> Tensor:
    *tensors, scale = given
    out: Tensor = _Causal.apply(variant, scale, *tensors)
    return out


class _Attention(ctypes.Structure):
    """Twin of csrc/trained.h's leanseek_attention."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "nope", "turned", "value", "segments")),
        *((name, ctypes.c_void_p) for name in ("spans", "queries", "keys_values", "rope", "turns", "out", "logs")),
        *((name, ctypes.c_void_p) for name in ("out_gradient", "queries_gradient", "keys_values_gradient")),
        *(("rope_gradient", ctypes.c_void_p), ("scale", ctypes.c_float)),
    ]


class _Causal(torch.autograd.Function):
    """The op, both ways; `tensors` are its first five arguments."""

    @staticmethod
    def forward(ctx: Any, variant: str, scale: float, *tensors: Tensor) -> Tensor:
        tensors = tuple(t.contiguous() for t in tensors)
        q_THD, kv_THX, k_rope_TR = tensors[:3]
        tokens, heads, channels = q_THD.shape
        out_THV = q_THD.new_empty(tokens, heads, kv_THX.shape[-1] - channels + k_rope_TR.shape[-1])
        logs_HT = q_THD.new_empty(heads, tokens)
        given = _given(*tensors, out_THV, logs_HT, scale)
        native.call("attend_forward", variant, ctypes.addressof(given))
        ctx.save_for_backward(*tensors, out_THV, logs_HT)
        ctx.variant, ctx.scale = variant, scale
        return out_THV

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        out_gradient = gradients[0].contiguous()
        found = [torch.empty_like(t) for t in saved[:3]]
        given = _given(*saved, ctx.scale)
        given.out_gradient = out_gradient.data_ptr()
        given.queries_gradient, given.keys_values_gradient, given.rope_gradient = (t.data_ptr() for t in found)
        native.call("attend_backward", ctx.variant, ctypes.addressof(given))
        return None, None, *found, None, None


def _given(
    q_THD: Tensor,
    kv_THX: Tensor,
    k_rope_TR: Tensor,
    rotations_TR: Tensor,
    spans_S4: Tensor,
    out_THV: Tensor,
    logs_HT: Tensor,
    scale: float,
) -> _Attention:
    tokens, heads, channels = q_THD.shape
    turned = k_rope_TR.shape[-1]
    sizes = (tokens, heads, channels - turned, turned, out_THV.shape[-1], spans_S4.shape[0])
    tensors = (t.data_ptr() for t in (spans_S4, q_THD, kv_THX, k_rope_TR, rotations_TR, out_THV, logs_HT))
    return _Attention(*sizes, *tensors, scale=scale)
