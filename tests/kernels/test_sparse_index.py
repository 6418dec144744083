"""Index scores against their equation."""

from __future__ import annotations

import pytest
import torch

from leanseek.kernels.sparse_index import best_scores, index_scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "queries", "keys"), [(1, 1, 1), (2, 7, 32), (3, 1, 129), (1, 33, 0)])
def test_scores_are_the_weighted_sums_of_relu(rows, queries, keys, dtype):
    generator = torch.Generator().manual_seed(keys)
    q = torch.randn(rows, queries, 3, 8, generator=generator).to(dtype)
    k = torch.randn(rows, keys, 8, generator=generator).to(dtype)
    weights = torch.randn(rows, queries, 3, generator=generator)
    expected = (torch.einsum("sqhi,ski->sqkh", q.double(), k.double()).relu() * weights[:, :, None].double()).sum(-1)
    got = index_scores(q, k, weights)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_of_equal_scores_the_earliest_are_best(count):
    scores = torch.tensor([[[0.0, 2.0, 0.0, -1.0, 0.0, 2.0, float("-inf"), float("-inf")]]])
    order = [1, 5, 0, 2, 4, 3, 6, 7]
    got = best_scores(scores, count)[0, 0].nonzero().flatten().tolist()
    assert got == sorted(order[:count])
