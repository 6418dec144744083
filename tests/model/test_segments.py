"""Segments: positions, prefixes, groups and masks, against what a loop over texts says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.errors import UsageError
from leanseek.model.segments import Segments


def visible_tokens(segments: Segments) -> list[set[int]]:
    """For each packed token, the packed tokens that it may see: its text so far."""
    prefixes = segments.prefixes or (-1,) * len(segments.lengths)
    seen = []
    for start, length, prefix in zip(segments.starts, segments.lengths, prefixes, strict=True):
        before = set()
        if prefix >= 0:
            before = set(range(segments.starts[prefix], segments.starts[prefix] + segments.lengths[prefix]))
        seen += [before | set(range(start, start + i + 1)) for i in range(length)]
    return seen


def grouped_visible(segments: Segments) -> list[set[int]]:
    """The same, as the attention groups lay it out."""
    queries, seen = [], []
    for group in segments.groups:
        for row in range(group.queries_SQ.shape[0]):
            for query in range(group.queries_SQ.shape[1]):
                keys = group.keys_SK[row]
                if group.visible_SQK is None:
                    mask = torch.arange(len(keys)) <= query
                else:
                    mask = group.visible_SQK[row, 0, query]
                queries.append(int(group.queries_SQ[row, query]))
                seen.append(keys[mask].tolist())
    picked = segments.places_T.tolist()
    assert [queries[place] for place in picked] == list(range(segments.tokens))
    chosen = [seen[place] for place in picked]
    assert all(len(set(keys)) == len(keys) for keys in chosen), "a key counted twice weighs double"
    return [set(keys) for keys in chosen]


@st.composite
def batches(draw: st.DrawFn) -> Segments:
    """Any lengths; some segments continue an earlier one that continues nobody."""
    lengths = tuple(draw(st.lists(st.integers(1, 45), min_size=1, max_size=9)))
    prefixes: list[int] = []
    for segment in range(len(lengths)):
        roots = [p for p in range(segment) if prefixes[p] < 0]
        prefixes.append(draw(st.sampled_from([-1, *roots])))
    return Segments(lengths, prefixes=tuple(prefixes) if draw(st.booleans()) else None)


@given(batches())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_groups_show_each_token_its_own_text_so_far_and_nothing_else(segments):
    assert grouped_visible(segments) == visible_tokens(segments)


@given(batches())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_positions_count_from_the_start_of_the_text(segments):
    assert segments.positions_T.tolist() == [len(seen) - 1 for seen in visible_tokens(segments)]
    assert segments.pairs == sum(len(seen) for seen in visible_tokens(segments))
    assert segments.longest == max(len(seen) for seen in visible_tokens(segments))
    assert segments.tokens == sum(segments.lengths) == len(segments.segment_T)
    assert segments.last_S.tolist() == [s + n - 1 for s, n in zip(segments.starts, segments.lengths, strict=True)]


def test_prefixes_that_are_shorter_than_what_follows_need_no_mask():
    """Their tokens are queries again: half a square instead of all pairs of a reply with its prompt and itself."""
    short, long = Segments((3, 22, 21), prefixes=(-1, 0, 0)), Segments((20, 18, 17), prefixes=(-1, 0, 0))
    assert [group.visible_SQK is None for group in short.groups] == [True, True]
    assert [group.visible_SQK is None for group in long.groups] == [True, False]
    assert short.groups[1].queries_SQ.shape == (2, 25) and long.groups[1].queries_SQ.shape == (2, 18)
    assert Segments((100, 8, 7), prefixes=(-1, 0, 0)).groups[1].queries_SQ.shape == (2, 8)


def test_padding_is_bounded():
    """Lengths from 1 to 400 in one batch: the groups' padded queries stay near the tokens themselves."""
    segments = Segments(tuple(range(1, 401)))
    padded = sum(group.queries_SQ.numel() for group in segments.groups)
    assert padded < 1.2 * segments.tokens


def test_equal_lengths_need_no_groups():
    assert Segments((4, 4, 4)).uniform == 4
    assert Segments((4, 5)).uniform is None
    assert Segments((4, 4), prefixes=(-1, 0)).uniform is None


def test_the_cached_mask_hides_the_future_and_the_padding():
    segments = Segments((2, 1), cached_lengths=(3, 0))
    hidden = segments.hidden_SMK(queries=2, longest=5, heads=2)
    assert hidden is not None and hidden.shape == (2, 4, 5)
    seen = (~hidden).sum(-1)
    # Two heads stand side by side for each query: positions 3 and 4, then 0 and (padding) 1.
    assert seen.tolist() == [[4, 4, 5, 5], [1, 1, 2, 2]]


def test_a_level_decode_step_needs_no_mask_and_an_uneven_one_has_one_for_all_heads():
    level = Segments.decode(torch.tensor([4, 4]), 5, level=True)
    assert level.hidden_SMK(1, 5, 8) is None
    uneven = Segments.decode(torch.tensor([4, 1]), 5, level=False)
    hidden = uneven.hidden_SMK(1, 5, 8)
    assert hidden is not None and hidden.tolist() == [[[False] * 5], [[False, False, True, True, True]]]


def test_decode_is_what_real_lengths_would_give():
    positions = torch.tensor([7, 2, 5])
    fast, plain = Segments.decode(positions, 8, level=False), Segments((1, 1, 1), cached_lengths=(7, 2, 5))
    for name in ("positions_T", "segment_T", "first_positions_S", "last_S"):
        assert torch.equal(getattr(fast, name), getattr(plain, name)), name
    assert (fast.longest, fast.level, fast.tokens, fast.lengths) == (8, plain.level, 3, plain.lengths)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 50))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_chunks_are_runs_of_whole_segments_of_about_the_size_asked_for(lengths, tokens):
    segments = Segments(tuple(lengths))
    runs = segments.chunks(tokens)
    assert [s for first, last in runs for s in range(first, last)] == list(range(len(lengths)))
    assert len(runs) <= -(-sum(lengths) // tokens)
    for first, last in runs:
        assert last > first and sum(lengths[first:last]) <= tokens + max(lengths)


def test_a_chunk_ends_nearest_to_its_share():
    assert Segments((4, 9, 4, 7)).chunks(12) == [(0, 2), (2, 4)]
    assert Segments((4, 4, 4, 4)).chunks(8) == [(0, 2), (2, 4)]
    assert Segments((30, 1, 1)).chunks(16) == [(0, 1), (1, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": (3, 0)}, "at least one token"),
        ({"lengths": (3, 2), "prefixes": (-1,)}, "prefixes has 1 entries for 2 segments"),
        ({"lengths": (3,), "cached_lengths": (1, 2)}, "cached_lengths has 2 entries for 1 segments"),
        ({"lengths": (3, 2), "prefixes": (-1, 1)}, "segment 1 continues 1"),
        ({"lengths": (3, 2, 2), "prefixes": (-1, 0, 1)}, "continue nobody"),
        ({"lengths": (3, 2), "prefixes": (-1, 0), "cached_lengths": (0, 0)}, "cannot be used together"),
    ],
)
def test_impossible_shapes_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Segments(**arguments)
