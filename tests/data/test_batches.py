"""Batches: windows over the corpus with an exact position, and packed conversations."""

from __future__ import annotations

import pytest
import torch

from leanseek.data.batches import IGNORED, TokenStream, packed_examples
from leanseek.errors import DataError


def test_windows_hold_what_follows_and_what_follows_that():
    tokens = torch.arange(100, dtype=torch.int32)
    batch = TokenStream(tokens, 8, 3, seed=0).batch(0)
    assert batch.segments.lengths == (8, 8, 8) and batch.tokens_T.dtype == torch.int64
    assert torch.equal(batch.targets_T, batch.tokens_T + 1) and torch.equal(batch.second_targets_T, batch.tokens_T + 2)
    assert torch.equal(batch.next_tokens_T, batch.targets_T) and batch.learnt == 24
    assert all(int(start) % 8 == 0 for start in batch.tokens_T[::8])


def test_a_pass_sees_every_window_once_and_the_next_in_another_order():
    stream = TokenStream(torch.arange(98), 8, 3, seed=0)
    assert (stream.windows, stream.batches_per_pass) == (12, 4)
    passes = [[int(s) for step in range(4) for s in stream.batch(4 * n + step).tokens_T[::8]] for n in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(0, 96, 8))
    assert passes[0] != passes[1] and passes[0] != sorted(passes[0])


def test_a_step_has_the_same_batch_whoever_asks_and_whenever():
    tokens = torch.arange(500)
    one, other = TokenStream(tokens, 8, 4, seed=3), TokenStream(tokens, 8, 4, seed=3)
    for step in (40, 2, 17, 2):
        assert torch.equal(one.batch(step).tokens_T, other.batch(step).tokens_T)
        other = TokenStream(tokens, 8, 4, seed=3)
    assert not torch.equal(one.batch(0).tokens_T, TokenStream(tokens, 8, 4, seed=4).batch(0).tokens_T)


def test_validation_sees_every_window_once_in_order():
    batches = TokenStream(torch.arange(98), 8, 3, seed=0).validation(5)
    assert [len(batch.segments.lengths) for batch in batches] == [5, 5, 2]
    assert torch.cat([batch.tokens_T for batch in batches]).tolist() == list(range(96))


def test_the_last_window_still_has_its_second_targets():
    stream = TokenStream(torch.arange(18), 8, 2, seed=0)
    assert stream.windows == 2 and int(stream.validation(2)[0].second_targets_T.max()) == 17
    assert TokenStream(torch.arange(17), 8, 1, seed=0).windows == 1


def test_mtp_learns_nothing_across_documents():
    """Where a document begins (0) on the way from a token to the one after the next, nothing is asked of MTP."""
    tokens = torch.tensor([0, 5, 6, 7, 0, 8, 0, 0, 9, 4, 3, 2], dtype=torch.int32)
    x = IGNORED
    batch = TokenStream(tokens, 10, 1, seed=0, bos_id=0).batch(0)
    assert batch.tokens_T.tolist() == [0, 5, 6, 7, 0, 8, 0, 0, 9, 4]
    assert batch.targets_T.tolist() == [5, 6, 7, 0, 8, 0, 0, 9, 4, 3], "the end of a document is learnt"
    assert batch.second_targets_T.tolist() == [6, 7, x, x, x, x, x, 4, 3, 2]
    assert batch.next_tokens_T.tolist() == batch.targets_T.tolist()
    assert TokenStream(tokens, 10, 1, seed=0).batch(0).second_targets_T.tolist() == [6, 7, 0, 8, 0, 0, 9, 4, 3, 2]


def test_too_little_text_is_refused():
    with pytest.raises(DataError, match=r"has 20 tokens; one batch of 3 x 8 needs 26: give more text"):
        TokenStream(torch.arange(20), 8, 3, seed=0)
    with pytest.raises(DataError):
        TokenStream(torch.arange(0), 8, 1, seed=0)


def test_conversations_are_packed_with_loss_only_where_asked():
    batch = packed_examples([([0, 5, 6, 7, 1], [False, False, True, True, True]), ([0, 8, 1], [False, False, True])])
    x = IGNORED
    assert batch.tokens_T.tolist() == [0, 5, 6, 7, 0, 8]
    assert batch.targets_T.tolist() == [x, 6, 7, 1, x, 1]
    assert batch.second_targets_T.tolist() == [6, 7, 1, x, 1, x], "nothing is asked beyond a conversation's end"
    assert batch.next_tokens_T.tolist() == [5, 6, 7, 1, 8, 1]
    assert batch.segments.lengths == (4, 2) and batch.learnt == 4


def test_pieces_are_whole_segments_and_their_shares_sum_to_one():
    examples = [([0] * n + [1], [False] + [True] * n) for n in (4, 9, 2, 2, 30, 1)]
    batch = packed_examples(examples)
    assert batch.pieces(1, None) == batch.pieces(1, 48) == [(batch, 1.0)]
    pieces = batch.pieces(1, 13)
    assert [piece.segments.lengths for piece, _ in pieces] == [(4, 9), (2, 2), (30,), (1,)]
    assert sum(share for _, share in pieces) == pytest.approx(1.0)
    assert [share for _, share in pieces] == pytest.approx([piece.learnt / batch.learnt for piece, _ in pieces])
    for name in ("tokens_T", "targets_T", "second_targets_T", "next_tokens_T"):
        assert torch.equal(torch.cat([getattr(piece, name) for piece, _ in pieces]), getattr(batch, name))


@pytest.mark.parametrize("workers", [2, 3])
def test_every_worker_gets_a_part_of_about_the_same_size(workers):
    batch = TokenStream(torch.arange(500), 8, 12, seed=0).batch(0)
    pieces = batch.pieces(workers, None)
    assert [piece.segments.tokens for piece, _ in pieces] == [96 // workers] * workers
    assert [share for _, share in pieces] == pytest.approx([1 / workers] * workers)


def test_a_batch_on_its_device_is_itself():
    batch = packed_examples([([0, 5, 1], [False, True, True])])
    assert batch.to("cpu") is batch and batch.metrics == {}
    moved = batch.to("meta")
    assert {t.device.type for t in (moved.tokens_T, moved.targets_T)} == {"meta"} and moved.segments.device == "meta"
    assert moved.segments.lengths == batch.segments.lengths


def test_masked_documents_are_segments_of_their_own():
    """Nothing of one document says anything of another: not by attention, not by a target."""
    tokens = torch.tensor([0, 5, 6, 7, 0, 8, 9, 0, 10, 11, 12, 13, 14, 0, 15, 16, 17, 18])
    stream = TokenStream(tokens, 8, 1, 0, bos_id=0, masked=True)
    (first, second) = stream.validation(1)
    assert first.tokens_T.tolist() == [0, 5, 6, 7, 0, 8, 9, 0] and first.segments.lengths == (4, 3, 1)
    assert first.targets_T.tolist() == [5, 6, 7, IGNORED, 8, 9, IGNORED, 10]
    assert second.segments.lengths == (5, 3) and second.targets_T[4] == IGNORED
    plain = TokenStream(tokens, 8, 1, 0, bos_id=0).validation(1)[0]
    assert plain.segments.lengths == (8,) and plain.targets_T.tolist() == [5, 6, 7, 0, 8, 9, 0, 10]


def test_a_batch_of_any_size_follows_from_its_place():
    stream = TokenStream(torch.arange(1000), 10, 4, 3)
    whole = [stream.batch(step).tokens_T for step in range(60)]
    parts = torch.cat([stream.take(first, 3).tokens_T for first in range(0, 240, 3)])
    assert torch.equal(torch.cat(whole), parts)
