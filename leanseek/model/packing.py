"""Packing: how packed tokens are laid side by side for attention, among themselves or over a cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leanseek.kernels.attention import expanded_attention
from leanseek.kernels.invariance import KEY_MULTIPLE, filled_up, invariant_attention
from leanseek.model.cache import CacheView
from leanseek.model.segments import AttentionGroup, Segments

# Up to so many new tokens a text, texts are laid side by side for invariant attention; longer ones come in turn.
MOST_LEVEL_QUERIES = 9
# Scores in memory at once, where a text has many new tokens.
MOST_SCORES = 1 << 22
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


def attend_invariant(
    q_THC: Tensor,
    keys_SKC: Tensor,
    values_SKV: Tensor,
    segments: Segments,
    hidden_SQK: Tensor | None,
    scale: float,
) -> Tensor:
    """Attend from each segment's tokens over its row of cached keys, which all heads share; [T, H, V].

    A token's result has the same bits however its text was cut and whatever else is in the call.

    Args:
        q_THC: queries of the packed tokens.
        keys_SKC, values_SKV: a row per segment, padded by finite numbers to a multiple of `KEY_MULTIPLE`.
        segments: whose tokens the queries are.
        hidden_SQK: True where a query may not look; None: plain causal order.
        scale: factor on the scores.
    """
    sequences, queries, keys = len(segments.lengths), max(segments.lengths), keys_SKC.shape[1]
    heads, device = q_THC.shape[1], q_THC.device
    if queries <= MOST_LEVEL_QUERIES:
        q_SQHC = in_rows(q_THC, segments)
        hidden_SMK: Tensor | None
        if hidden_SQK is not None:
            hidden_SMK = hidden_SQK.repeat_interleave(heads, dim=1)
        elif queries == 1 and segments.level:  # all see all but the padding
            hidden_SMK = torch.arange(keys, device=device) >= segments.longest if keys > segments.longest else None
        else:
            hidden_SMK = segments.hidden_SMK(queries, keys, heads)
        out = invariant_attention(
            q_SQHC.view(sequences, queries * heads, -1),
            keys_SKC,
            values_SKV,
            hidden_SMK,
            scale,
        )
        return out_of_rows(out.view(sequences, queries, heads, -1), segments)
    out_THV = values_SKV.new_empty(q_THC.shape[0], heads, values_SKV.shape[2])
    for s, (at, length, first) in enumerate(
        zip(segments.starts, segments.lengths, segments.first_positions, strict=True)
    ):
        seen = -(-(first + length) // KEY_MULTIPLE) * KEY_MULTIPLE
        step = max(MOST_SCORES // (seen * heads), 1)
        for begin in range(0, length, step):
            count = min(step, length - begin)
            if hidden_SQK is None:
                last_Q = first + begin + torch.arange(count, device=device)
                hidden_QK = torch.arange(seen, device=device) > last_Q[:, None]
            else:
                hidden_QK = hidden_SQK[s, begin : begin + count, :seen]
            out = invariant_attention(
                q_THC[at + begin : at + begin + count].reshape(1, count * heads, -1),
                keys_SKC[s : s + 1, :seen],
                values_SKV[s : s + 1, :seen],
                hidden_QK.repeat_interleave(heads, dim=0)[None],
                scale,
            )
            out_THV[at + begin : at + begin + count] = out.view(count, heads, -1)
    return out_THV


def read_invariant(cache: CacheView, layer: int, segments: Segments) -> Tensor:
    """Return the segments' cache entries, padded to a multiple of `KEY_MULTIPLE`: [S, K, C]."""
    wanted = -(-segments.longest // KEY_MULTIPLE) * KEY_MULTIPLE
    return filled_up(cache.read(layer, wanted, segments), wanted, 1)


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
