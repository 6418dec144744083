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
    q_THD: Tensor, k_SKGD: Tensor, v_SKGV: Tensor, visible_SQK: Tensor, segments: Segments, scale: float
) -> Tensor:
    """Attend from each segment's tokens over its row of keys and values; [T, H, V].

    Args:
        q_THD: queries of the packed tokens.
        k_SKGD, v_SKGV: a row per segment, padded; each of G heads serves H / G heads of the queries side by side.
        visible_SQK: True where a query may look, [S, queries, keys].
        segments: whose tokens the queries are.
        scale: factor on the scores.
    """
    q_SQHD, shared = in_rows(q_THD, segments), k_SKGD.shape[2]
    each = q_SQHD.shape[2] // shared
    if each > 1:  # they ask as if they were further tokens, so that keys and values are not copied for each of them
        q_SQHD = q_SQHD.unflatten(2, (shared, each)).transpose(2, 3).flatten(1, 2)
        visible_SQK = visible_SQK.repeat_interleave(each, dim=1)
    out = expanded_attention(q_SQHD, k_SKGD, v_SKGV, visible_SQK.unsqueeze(1), scale)
    if each > 1:
        out = out.unflatten(1, (-1, each)).transpose(2, 3).flatten(2, 3)
    return out_of_rows(out, segments)


def attend_invariant(
    q_THC: Tensor,
    keys_SKGC: Tensor,
    values_SKGV: Tensor,
    segments: Segments,
    hidden_SQK: Tensor | None,
    scale: float,
) -> Tensor:
    """Attend from each segment's tokens over its row of cached keys; [T, H, V].

    A token's result has the same bits however its text was cut and whatever else is in the call.

    Args:
        q_THC: queries of the packed tokens.
        keys_SKGC, values_SKGV: a row per segment, padded by finite numbers to a multiple of `KEY_MULTIPLE`; each of G
            heads serves H / G heads of the queries side by side.
        segments: whose tokens the queries are.
        hidden_SQK: True where a query may not look; None: plain causal order.
        scale: factor on the scores.
    """
    queries, (keys, shared) = max(segments.lengths), keys_SKGC.shape[1:3]
    each, device = q_THC.shape[1] // shared, q_THC.device
    if queries <= MOST_LEVEL_QUERIES:
        hidden_SMK: Tensor | None
        if hidden_SQK is not None:
            hidden_SMK = hidden_SQK.repeat_interleave(each, dim=1)
        elif queries == 1 and segments.level:  # all see all but the padding
            hidden_K = torch.arange(keys, device=device) >= segments.longest if keys > segments.longest else None
            hidden_SMK = None if hidden_K is None else hidden_K.view(1, 1, -1)
        else:
            hidden_SMK = segments.hidden_SMK(queries, keys, each)
        return out_of_rows(
            _attend_shared(in_rows(q_THC, segments), keys_SKGC, values_SKGV, hidden_SMK, scale), segments
        )
    out_THV = values_SKGV.new_empty(*q_THC.shape[:2], values_SKGV.shape[3])
    for s, (at, length, first) in enumerate(
        zip(segments.starts, segments.lengths, segments.first_positions, strict=True)
    ):
        seen = -(-(first + length) // KEY_MULTIPLE) * KEY_MULTIPLE
        step = max(MOST_SCORES // (seen * q_THC.shape[1]), 1)
        for begin in range(0, length, step):
            count = min(step, length - begin)
            if hidden_SQK is None:
                last_Q = first + begin + torch.arange(count, device=device)
                hidden_QK = torch.arange(seen, device=device) > last_Q[:, None]
            else:
                hidden_QK = hidden_SQK[s, begin : begin + count, :seen]
            out_THV[at + begin : at + begin + count] = _attend_shared(
                q_THC[at + begin : at + begin + count][None],
                keys_SKGC[s : s + 1, :seen],
                values_SKGV[s : s + 1, :seen],
                hidden_QK.repeat_interleave(each, dim=0)[None],
                scale,
            )[0]
    return out_THV


def _attend_shared(
    q_SQHC: Tensor, keys_SKGC: Tensor, values_SKGV: Tensor, hidden_SMK: Tensor | None, scale: float
) -> Tensor:
    """Attend by `invariant_attention`, the queries of the heads that share a key side by side; [S, Q, H, V]."""
    sequences, queries, heads = q_SQHC.shape[:3]
    shared = keys_SKGC.shape[2]
    if shared == 1:
        out_SMV = invariant_attention(
            q_SQHC.reshape(sequences, queries * heads, -1), keys_SKGC[:, :, 0], values_SKGV[:, :, 0], hidden_SMK, scale
        )
        return out_SMV.view(sequences, queries, heads, -1)
    each = heads // shared
    q_NMC = q_SQHC.unflatten(2, (shared, each)).transpose(1, 2).reshape(sequences * shared, queries * each, -1)
    keys_NKC, values_NKV = (x.transpose(1, 2).flatten(0, 1) for x in (keys_SKGC, values_SKGV))
    if hidden_SMK is not None and hidden_SMK.shape[0] > 1:
        hidden_SMK = hidden_SMK.repeat_interleave(shared, dim=0)
    out_NMV = invariant_attention(q_NMC, keys_NKC, values_NKV, hidden_SMK, scale)
    return out_NMV.view(sequences, shared, queries, each, -1).transpose(1, 2).flatten(2, 3)


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
