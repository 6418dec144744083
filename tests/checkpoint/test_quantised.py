"""Quantised: FP8 blocks times scales are what numpy makes of the bytes, and rounding to FP8 loses what it may."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from leanseek.checkpoint import quantised
from leanseek.checkpoint.names import entries
from leanseek.checkpoint.quantised import (
    check_form,
    dequantise_blocks,
    grid_shape,
    is_quantised,
    pieces,
    quantise_blocks,
    read_tensor,
    scales_of,
)
from leanseek.checkpoint.shards import read_shard
from leanseek.errors import CheckpointError

FP8, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


def e4m3_in_numpy(codes: np.ndarray) -> np.ndarray:
    """Decode bytes: a sign, four bits of exponent with bias 7, three of mantissa; no infinities, one NaN a sign."""
    sign = np.where(codes & 0x80, np.float32(-1), np.float32(1))
    exponent, mantissa = ((codes >> 3) & 15).astype(np.int32), (codes & 7).astype(np.float32)
    subnormal = np.ldexp(mantissa / np.float32(8), -6)
    normal = np.ldexp(np.float32(1) + mantissa / np.float32(8), exponent - 7)
    return sign * np.where(exponent == 0, subnormal, normal).astype(np.float32)


def dequantised_in_numpy(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Multiply block by block, in fp32."""
    out = np.empty(codes.shape, np.float32)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            block = np.s_[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
            out[block] = e4m3_in_numpy(codes[block]) * scale[i, j]
    return out


def random_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Return FP8 numbers of every kind but NaN."""
    codes = torch.randint(0, 256, (rows, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return torch.where(codes % 128 == 127, torch.zeros_like(codes), codes).view(FP8)


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (130, 127), (576, 300), (3, 1000)])
def test_dequantising_is_what_numpy_does(shape):
    weight = random_weight(*shape)
    scale = torch.rand(grid_shape(shape), generator=torch.Generator().manual_seed(1)) + 1e-4
    ours = dequantise_blocks(weight, scale).numpy()
    theirs = dequantised_in_numpy(weight.view(torch.uint8).numpy(), scale.numpy())
    assert ours.dtype == np.float32 and ours.tobytes() == theirs.tobytes()


def test_every_code_is_looked_up_as_torch_converts_it():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    for some in (codes, codes.t(), codes[::3, 1:], codes[:0]):
        got = quantised.e4m3_numbers(some)
        assert got.shape == some.shape and got.is_contiguous()
        assert torch.equal(got.view(torch.int32), some.float().contiguous().view(torch.int32))  # NaN too


def test_scales_of_one_byte_are_powers_of_two():
    codes = torch.tensor([[0, 1, 127], [128, 200, 254]], dtype=torch.uint8)
    ours = dequantise_blocks(torch.ones(256, 384).to(FP8), codes.view(E8M0))[::128, ::128]
    assert torch.equal(ours, torch.ldexp(torch.ones(2, 3), codes.int() - 127))


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (130, 127), (3, 300)])
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_rounding_to_fp8_keeps_every_weight_to_a_sixteenth(shape, scale_fmt):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.02
    rounded, scale = quantise_blocks(weight, scale_fmt=scale_fmt)
    assert rounded.dtype == FP8 and scale.dtype == torch.float32 and tuple(scale.shape) == grid_shape(shape)
    back = dequantise_blocks(rounded, scale)
    # Three bits of mantissa: half a step is a sixteenth; below the smallest normal number, steps are 2^-9 of the scale.
    wide = scale.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    assert ((back - weight).abs() <= torch.maximum(weight.abs() / 16, wide * 2**-10) * 1.0001).all()
    if scale_fmt == "ue8m0":
        assert (torch.frexp(scale).mantissa == 0.5).all()
    else:
        largest = torch.stack([block.abs().max() for row in weight.split(128) for block in row.split(128, dim=1)])
        assert torch.equal(scale.flatten(), largest / 448)


def test_a_power_of_two_stays_one_and_others_round_up():
    for largest, expected in ((448.0, 1.0), (448.5, 2.0), (896.0, 2.0), (447.0, 1.0), (224.0, 0.5), (225.0, 1.0)):
        _, scale = quantise_blocks(torch.full((2, 2), largest), scale_fmt="ue8m0")
        assert scale.item() == expected


def test_blocks_of_zeros_and_of_tiny_or_huge_weights_are_safe():
    for value in (0.0, 1e-44, 1e-38, 3e38):
        for scale_fmt in (None, "ue8m0"):
            rounded, scale = quantise_blocks(torch.full((4, 4), value), scale_fmt=scale_fmt)
            back = dequantise_blocks(rounded, scale)
            assert scale.isfinite().all() and (scale > 0).all() and back.isfinite().all()
            assert abs(back[0, 0].item() - value) <= max(value / 16, 2e-38)
    assert quantise_blocks(torch.zeros(4, 4))[1].item() == 1.0


def test_weights_that_are_not_finite_show_in_the_scale():
    for value in (float("nan"), float("inf")):
        weight = torch.zeros(200, 4)
        weight[150, 2] = value
        for scale_fmt in (None, "ue8m0"):
            assert quantise_blocks(weight, scale_fmt=scale_fmt)[1].isfinite().tolist() == [[True], [False]]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 260), columns=st.integers(1, 260), seed=st.integers(0, 99))
def test_rounding_twice_with_powers_of_two_changes_nothing_more(rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    rounded, scale = quantise_blocks(weight, scale_fmt="ue8m0")
    once = dequantise_blocks(rounded, scale)
    assert torch.equal(dequantise_blocks(*quantise_blocks(once, scale_fmt="ue8m0")), once)


def test_what_deepseek_leaves_alone_is_left_alone(make_model):
    """Sheet: embed_tokens, lm_head, norms, router and its bias, eh_proj, shared_head, weights_proj and k_norm."""
    model = make_model(model_type="deepseek_v32", q_lora_rank=6, index_n_heads=2, index_head_dim=8, index_topk=4)
    names = {entry.name for entry in entries(model)}
    kept = {name for name in names if not is_quantised(name)}
    endings = {name.split(".", 3)[-1] if name.startswith("model.layers.") else name for name in kept}
    assert endings == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "self_attn.q_a_layernorm.weight",
        "self_attn.kv_a_layernorm.weight",
        "self_attn.indexer.k_norm.weight",
        "self_attn.indexer.k_norm.bias",
        "self_attn.indexer.weights_proj.weight",
        "mlp.gate.weight",
        "mlp.gate.e_score_correction_bias",
        "enorm.weight",
        "hnorm.weight",
        "eh_proj.weight",
        "shared_head.norm.weight",
        "shared_head.head.weight",
        "embed_tokens.weight",
    }
    assert "model.layers.3.mlp.experts.7.down_proj.weight" in names - kept
    assert "model.layers.0.self_attn.indexer.wq_b.weight" in names - kept


def stored(tmp_path: Path, **tensors: torch.Tensor):
    """Write tensors (dots are double underscores) and return their places."""
    path = tmp_path / "x.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    if any(tensor.dtype == E8M0 for tensor in named.values()):
        # The library writes no such tensors: bytes, renamed in the header, which stays as long.
        save_file({k: t.view(torch.uint8) if t.dtype == E8M0 else t for k, t in named.items()}, path)
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        for name, tensor in named.items():
            if tensor.dtype == E8M0:
                header[name]["dtype"] = "F8_E8M0"
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    else:
        save_file(named, path)
    return dict(read_shard(path).tensors)


@pytest.mark.parametrize("kind", [torch.float32, E8M0])
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_pieces_are_the_whole(tmp_path, monkeypatch, kind, piece):
    monkeypatch.setattr(quantised, "PIECE", piece)
    weight = random_weight(700, 200)
    scale = torch.ldexp(torch.ones(6, 2), torch.arange(12).view(6, 2) - 6).to(kind)
    tensors = stored(tmp_path, a__weight=weight, a__weight_scale_inv=scale, b=torch.randn(7, 2, 3))
    found = list(pieces(tensors["a.weight"], scales_of(tensors)["a.weight"]))
    assert [first for first, _ in found] == (list(range(0, 700, 128)) if piece == 1 else [0])
    expected = dequantised_in_numpy(weight.view(torch.uint8).numpy(), scale.float().numpy())
    assert torch.cat([rows for _, rows in found]).numpy().tobytes() == expected.tobytes()
    assert torch.equal(read_tensor(tensors["a.weight"], tensors["a.weight_scale_inv"]), torch.from_numpy(expected))
    assert len(list(pieces(tensors["b"]))) == (7 if piece == 1 else 1)
    assert read_tensor(tensors["b"]).shape == (7, 2, 3)


ONES = torch.ones(200, 4)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a__weight": ONES.to(FP8)}, r"a\.weight is F8_E4M3, but its scale a\.weight_scale_inv is missing"),
        ({"a__weight_scale_inv": torch.ones(2, 1)}, r"a\.weight_scale_inv is the scale of a weight that is not there"),
        ({"a__weight": ONES, "a__weight_scale_inv": torch.ones(2, 1)}, r"a\.weight is F32 and has a scale"),
        ({"a__weight": ONES.to(torch.float8_e5m2), "a__weight_scale_inv": torch.ones(2, 1)}, "is F8_E5M2 and has"),
        ({"a__weight": ONES.to(FP8), "a__weight_scale_inv": torch.ones(1, 1)}, r"shape \[1, 1\].* needs \[2, 1\]"),
        ({"a__weight": ONES.to(FP8), "a__weight_scale_inv": torch.ones(1, 2)}, r"shape \[1, 2\].* needs \[2, 1\]"),
        ({"a__weight": ONES.to(FP8), "a__weight_scale_inv": torch.ones(2)}, r"shape \[2\].* needs \[2, 1\]"),
        ({"a__weight": ONES[0].to(FP8), "a__weight_scale_inv": torch.ones(1)}, "needs weights of two dimensions"),
        ({"a__weight": ONES.to(FP8), "a__weight_scale_inv": torch.ones(2, 1).half()}, "is F16; scales are F32 or"),
    ],
)
def test_scales_that_do_not_belong_are_refused(tmp_path, tensors, reason):
    with pytest.raises(CheckpointError, match=reason):
        scales_of(stored(tmp_path, **tensors))


@pytest.mark.parametrize(
    "scale",
    [
        torch.tensor([[1.0], [float("nan")]]),
        torch.tensor([[1.0], [float("inf")]]),
        torch.tensor([[1.0], [-1.0]]),
        torch.tensor([[127], [255]], dtype=torch.uint8).view(E8M0),
    ],
)
def test_scales_that_are_no_numbers_are_refused(tmp_path, scale):
    tensors = stored(tmp_path, a__weight=ONES.to(FP8), a__weight_scale_inv=scale)
    with pytest.raises(CheckpointError, match=r"a\.weight_scale_inv has the scale \S+ at \[1, 0\]"):
        list(pieces(tensors["a.weight"], scales_of(tensors)["a.weight"]))


def test_other_forms_of_quantisation_are_refused():
    form = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    for accepted in (form, {**form, "scale_fmt": "ue8m0"}, None):
        check_form({"quantization_config": accepted}, "config.json")
    check_form({}, "config.json")
    for change in ({"quant_method": "gptq"}, {"weight_block_size": [64, 64]}, {"fmt": "e5m2"}, {"scale_fmt": "x"}):
        (name,) = change
        with pytest.raises(CheckpointError, match=rf"config\.json: quantization_config\.{name} = .* is read"):
            check_form({"quantization_config": {**form, **change}}, "config.json")
    with pytest.raises(CheckpointError, match="an object or null"):
        check_form({"quantization_config": 3}, "config.json")
