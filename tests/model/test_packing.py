"""Laying packed tokens out in rows, and back."""

from __future__ import annotations

import pytest
import torch

from leanseek.model.packing import in_rows, out_of_rows
from leanseek.model.segments import Segments


@pytest.mark.parametrize("lengths", [(3,), (2, 2, 2), (4, 1, 2)])
@pytest.mark.parametrize("cached", [None, 5])
def test_rows_begin_with_a_segments_tokens_and_end_with_zeros(lengths, cached):
    segments = Segments(lengths, cached_lengths=None if cached is None else (cached,) * len(lengths))
    x = torch.arange(1.0, sum(lengths) * 2 + 1).view(-1, 2)
    rows = in_rows(x, segments)
    assert rows.shape == (len(lengths), max(lengths), 2)
    for row, piece in zip(rows, x.split(lengths), strict=True):
        assert torch.equal(row[: len(piece)], piece) and not row[len(piece) :].any()
    assert torch.equal(out_of_rows(rows, segments), x)
