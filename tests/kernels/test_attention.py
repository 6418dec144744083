"""Both forms of attention against a softmax written out query by query."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leanseek.kernels.attention import absorbed_attention, expanded_attention


def naive(q_QD: Tensor, k_KD: Tensor, v_KV: Tensor, visible_QK: Tensor, scale: float) -> Tensor:
    """One head of one sequence, one query at a time."""
    rows = []
    for query, visible_K in zip(q_QD, visible_QK, strict=True):
        keys = visible_K.nonzero().squeeze(1)
        shares = torch.softmax(scale * (k_KD[keys] @ query), dim=0)
        rows.append(shares @ v_KV[keys])
    return torch.stack(rows)


@pytest.mark.parametrize("masked", [False, True])
def test_expanded_attention_is_softmax_over_the_visible_keys(masked):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 5, 3, 6, generator=generator).unbind(0)
    v = torch.randn(2, 5, 3, 4, generator=generator)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    visible = (causal & (torch.rand(2, 1, 5, 5, generator=generator) < 0.7)) | torch.eye(5, dtype=torch.bool)
    out = expanded_attention(q, k, v, visible if masked else None, 0.37)
    for s in range(2):
        for h in range(3):
            expected = naive(q[s, :, h], k[s, :, h], v[s, :, h], visible[s, 0] if masked else causal, 0.37)
            assert torch.allclose(out[s, :, h], expected, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_absorbed_attention_shares_one_key_and_takes_its_first_part_as_value(masked):
    generator = torch.Generator().manual_seed(1)
    q_SMC, latents_SKC = torch.randn(2, 6, 9, generator=generator), torch.randn(2, 7, 9, generator=generator)
    hidden = torch.rand(2, 6, 7, generator=generator) < 0.4
    hidden[:, :, 0] = False
    out = absorbed_attention(q_SMC, latents_SKC, hidden if masked else None, 0.2, 5)
    assert out.shape == (2, 6, 5)
    for s in range(2):
        visible = ~hidden[s] if masked else torch.ones(6, 7, dtype=torch.bool)
        expected = naive(q_SMC[s], latents_SKC[s], latents_SKC[s, :, :5], visible, 0.2)
        assert torch.allclose(out[s], expected, atol=1e-5)


def test_one_mask_may_serve_every_head():
    generator = torch.Generator().manual_seed(2)
    q_SMC, latents_SKC = torch.randn(2, 3, 9, generator=generator), torch.randn(2, 7, 9, generator=generator)
    hidden_S1K = torch.arange(7) > torch.tensor([2, 6])[:, None, None]
    wide = hidden_S1K.expand(2, 3, 7)
    assert torch.equal(
        absorbed_attention(q_SMC, latents_SKC, hidden_S1K, 0.2, 5), absorbed_attention(q_SMC, latents_SKC, wide, 0.2, 5)
    )
