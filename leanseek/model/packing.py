"""Packing: how packed tokens are laid side by side for attention, among themselves or over a cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leanseek.kernels.attention import expanded_attention
from leanseek.model.segments import AttentionGroup, Segments

# group -> which of its keys each query may look at, [S, 1, queries, keys]; None: plain causal order.
Choose = Callable[[AttentionGroup], Tensor | None]


def attend_packed(
    q_THD: Tensor, k_THD: Tensor, v_THV: Tensor, segments: Segments, scale: float, choose: Choose | None = None
) -> Tensor:
    """Attend inside each segment and its prefix.

    Args:
        q_THD, k_THD, v_THV: queries, keys and values of every token and head.
        segments: what belongs together.
        scale: factor on the scores.
        choose: narrows down what is seen; None: everything that came before.
    Returns:
        [T, H, V].
    """
    if segments.uniform is not None and choose is None:
        shape = (len(segments.lengths), segments.uniform, q_THD.shape[1])
        out = expanded_attention(q_THD.view(*shape, -1), k_THD.view(*shape, -1), v_THV.reshape(*shape, -1), None, scale)
        return out.reshape(v_THV.shape)
    pieces = []
    for group in segments.groups:
        out = expanded_attention(
            picked(q_THD, group.queries_SQ),
            picked(k_THD, group.keys_SK),
            picked(v_THV, group.keys_SK),
            group.visible_SQK if choose is None else choose(group),
            scale,
        )
        pieces.append(out.reshape(-1, *v_THV.shape[1:]))
    return torch.cat(pieces).index_select(0, segments.places_T)


def attend_rows(
    q_THD: Tensor, k_SKHD: Tensor, v_SKHV: Tensor, visible_SQK: Tensor, segments: Segments, scale: float
) -> Tensor:
    """Attend from each segment's tokens over its row of keys and values; [T, H, V].

    Args:
        q_THD: queries of the packed tokens.
        k_SKHD, v_SKHV: a row per segment, padded.
        visible_SQK: True where a query may look, [S, queries, keys].
        segments: whose tokens the queries are.
        scale: factor on the scores.
    """
    out = expanded_attention(in_rows(q_THD, segments), k_SKHD, v_SKHV, visible_SQK.unsqueeze(1), scale)
    return out_of_rows(out, segments)


def in_rows(x_T: Tensor, segments: Segments) -> Tensor:
    """Lay packed tokens out as a row per segment, padded with zeros: [S, queries, ...]."""
    shape = (len(segments.lengths), max(segments.lengths), *x_T.shape[1:])
    if segments.tokens == shape[0] * shape[1]:
        return x_T.reshape(shape)
    padded = x_T.new_zeros(shape[0] * shape[1], *x_T.shape[1:])
    return padded.index_copy_(0, _places(segments), x_T).view(shape)


def out_of_rows(x_SQ: Tensor, segments: Segments) -> Tensor:
    """Undo `in_rows`: [T, ...]."""
    flat = x_SQ.reshape(-1, *x_SQ.shape[2:])
    return flat if segments.tokens == flat.shape[0] else flat.index_select(0, _places(segments))


def picked(x_T: Tensor, index_SQ: Tensor) -> Tensor:
    """Return the packed tokens that an index names, in its shape: [S, queries, ...]."""
    return x_T.index_select(0, index_SQ.reshape(-1)).view(*index_SQ.shape, *x_T.shape[1:])


def _places(segments: Segments) -> Tensor:
    own_T = segments.positions_T - segments.first_positions_S[segments.segment_T]
    return segments.segment_T * max(segments.lengths) + own_T
