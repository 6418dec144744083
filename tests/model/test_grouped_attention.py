"""Grouped attention: its equations by hand, head by head."""

from __future__ import annotations

import pytest
import torch

from leanseek.kernels.rope import inverse_frequencies, rotate_halves, rotations
from leanseek.model.grouped_attention import GroupedAttention
from leanseek.model.segments import Segments

STUDENT = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "num_nextn_predict_layers": 0}


@pytest.mark.parametrize("changes", [{"model_type": "qwen3"}, {"model_type": "qwen2"}, {"model_type": "llama"}])
@torch.no_grad()
def test_it_computes_the_papers_equations(make_config, changes):
    config = make_config(**STUDENT, **changes)
    attention = GroupedAttention(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in attention.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    assert hasattr(attention.q_proj, "bias") == (changes["model_type"] == "qwen2")
    assert hasattr(attention, "q_norm") == (changes["model_type"] == "qwen3")
    x_TD = torch.randn(5, config.hidden_size, generator=generator)
    turns_TR = rotations(torch.arange(5), inverse_frequencies(6, config.rope_theta, None))

    def heads(project, norm: str) -> torch.Tensor:
        out = x_TD @ project.weight.T + getattr(project, "bias", 0)
        out = out.view(5, -1, 6)
        if hasattr(attention, norm):
            weight = getattr(attention, norm).weight
            out = out / torch.sqrt(out.square().mean(-1, keepdim=True) + config.rms_norm_eps) * weight
        return out

    q = rotate_halves(heads(attention.q_proj, "q_norm"), turns_TR)
    k = rotate_halves(heads(attention.k_proj, "k_norm"), turns_TR)
    v = heads(attention.v_proj, "none")
    rows = []
    for t in range(5):
        outs = []
        for head in range(4):
            shares = torch.softmax(k[: t + 1, head // 2] @ q[t, head] * 6**-0.5, 0)
            outs.append(shares @ v[: t + 1, head // 2])
        rows.append(attention.o_proj.weight @ torch.cat(outs))
    got = attention(x_TD, turns_TR, Segments.single(5), None, 0)
    assert torch.allclose(got, torch.stack(rows), atol=1e-4)
