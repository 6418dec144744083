"""The registry: every implementation agrees with its reference, and the choice among them is said and kept."""

from __future__ import annotations

import pytest
import torch

from leanseek.errors import ConfigError
from leanseek.kernels import native, registry
from leanseek.kernels.packed import BITS, Packed, empty_packed
from leanseek.kernels.stack import Panels
from leanseek.kernels.stored import Stored, StoredExperts
from leanseek.model.cache import ContiguousCache
from leanseek.model.config import ModelConfig
from leanseek.model.decoder import Decoder
from leanseek.model.initialise import initialise
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer
from tests.conftest import TINY

ROWS = (0, 1, 7, 32, 129)
# Each op's examples: (T, dtype) -> arguments. Sizes on purpose no multiples of a register.


def _random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _packed(bits, outputs, inputs, *stack, halves=1):
    """Return a weight of random codes: every code that there can be."""
    weight = empty_packed(bits, outputs, inputs, *stack, halves=halves)
    generator = torch.Generator().manual_seed(bits)
    weight.codes.copy_(torch.randint(0, 256, weight.codes.shape, generator=generator))
    weight.scales.copy_(torch.rand(weight.scales.shape, generator=generator) / 64)
    return weight


def _packing(bits, rows):
    weight = empty_packed(bits, rows, 77)
    return _random(rows, 77), weight.codes, weight.scales


def _mixture(bits, rows, dtype):
    """Return arguments of `packed_experts`: expert 4 is nobody's, and each token's three are different."""
    weights = torch.rand(rows, 3, generator=torch.Generator().manual_seed(3))
    chosen = torch.rand(rows, 5, generator=torch.Generator().manual_seed(4)).argsort(-1)[:, :3]
    chosen = torch.where(chosen == 4, 5, chosen)
    gate_up, down = _packed(bits, 64, 77, 6, halves=2), _packed(bits, 77, 64, 6)
    return _random(rows, 77), weights, chosen, gate_up, down


def _stored(kind, outputs, inputs, seed=1):
    """Return a weight as a checkpoint has it; of FP8 every number that there can be."""
    if kind == "bf16":
        return Stored(_random(outputs, inputs, seed=seed, dtype=torch.bfloat16))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (outputs, inputs), generator=generator, dtype=torch.uint8)
    codes[codes & 127 == 127] = 3  # not a number
    scales = torch.rand(-(-outputs // 128), -(-inputs // 128), generator=generator) / 64
    return Stored(codes.view(torch.float8_e4m3fn), scales)


def _packed_parts(codes, scales):
    weight = Packed(codes, scales, *(codes.shape[0] * 16, codes.shape[1] * 32))
    return (codes, scales) if weight.bits == 8 else (codes, *weight.scales_of_groups)


def _stored_mixture(kind, rows):
    x, weights, chosen = _mixture(8, rows, torch.float32)[:3]
    wide = [[_stored(kind, 70, 77, seed) for seed in range(first, first + 6)] for first in (10, 20)]
    return x, weights, chosen, StoredExperts(*wide, [_stored(kind, 77, 70, seed) for seed in range(30, 36)])


def _learning(rows):
    """Return arguments of `learning_experts`: expert 4 is nobody's; rows are no multiple of a tile's."""
    weights, chosen = _mixture(8, rows, torch.float32)[1:3]
    gate_up, down = _random(6, 2 * 32, 48, seed=1) / 7, _random(6, 48, 32, seed=2) / 6
    return _random(rows, 48), (gate_up,), down, weights, chosen


def _decoding(rows):
    """Return arguments of `decode`: texts of a tiny model, whose layers are of every kind."""
    model = initialise(Transformer(ModelConfig.from_dict({**TINY, "q_lora_rank": 9})), 0)
    lengths = (max(rows, 1), 3)
    tokens = torch.randint(0, 320, (sum(lengths),), generator=torch.Generator().manual_seed(5))
    cache = ContiguousCache(model.cache_specs(), 2, max(lengths))
    return Decoder(model), tokens, Segments(lengths), cache, None, None, True


def _texts(rows):
    """Return arguments of `flash_attention`: some texts, the last of which goes on with 70 cached tokens."""
    lengths = [rows - rows // 3, rows // 3] if rows > 2 else [rows] * bool(rows)
    before = [0] * (len(lengths) - 1) + [70] * bool(lengths)
    spans, query, key = [], 0, 0
    for length, cached in zip(lengths, before, strict=True):
        spans.append([query, length, key, cached])
        query, key = query + length, key + length + cached
    spans_S4 = torch.tensor(spans, dtype=torch.int64).view(-1, 4)
    kv = _random(key, 3, 22 + 32, seed=1)
    return _random(rows, 3, 30), kv, _random(key, 8, seed=2), spans_S4, 0.3


def _spans(rows):
    """Return arguments of `causal_attention`: some texts, the last of which goes on from the first."""
    first = rows // 3
    lengths = [[0, first, 0, 0], [first, rows - first, 0, first]] if first else [[0, rows, 0, 0]] * bool(rows)
    spans_S4 = torch.tensor(lengths, dtype=torch.int64).view(-1, 4)
    turns = torch.polar(torch.ones(rows, 4), _random(rows, 4, seed=3))
    return _random(rows, 3, 16), _random(rows, 3, 8 + 32, seed=1), _random(rows, 8, seed=2), turns, spans_S4, 0.3


EXAMPLES = {
    **{
        f"{op} {bits}": make
        for bits in BITS
        for op, make in {
            "pack": lambda rows, dtype, bits=bits: _packing(bits, rows),
            "packed_linear": lambda rows, dtype, bits=bits: (_random(rows, 77), _packed(bits, 45, 77)),
            "packed_experts": lambda rows, dtype, bits=bits: _mixture(bits, rows, dtype),
        }.items()
    },
    **{
        f"{op} {kind}": make
        for kind in ("bf16", "fp8")
        for op, make in {
            "stored_linear": lambda rows, dtype, kind=kind: (_random(rows, 300), _stored(kind, 150, 300)),
            "stored_experts": lambda rows, dtype, kind=kind: _stored_mixture(kind, rows),
        }.items()
    },
    "learning_experts mixture": lambda rows, dtype: _learning(rows),
    "learning_experts mlp": lambda rows, dtype: (
        *(_random(rows, 48), (_random(80, 48, seed=1) / 7, _random(80, 48, seed=2) / 7)),
        *(_random(48, 80, seed=3) / 9, None, None),
    ),
    "causal_attention": lambda rows, dtype: _spans(rows),
    "decode": lambda rows, dtype: _decoding(rows),
    "log_likelihood": lambda rows, dtype: (
        3 * _random(rows, 77),
        torch.randint(0, 77, (rows,), generator=torch.Generator().manual_seed(6)),
        0.7,
    ),
    "panels_linear": lambda rows, dtype: (_random(rows, 77), Panels.of(_random(45, 77, seed=1))),
    "flash_attention": lambda rows, dtype: _texts(rows),
    "rms_norm": lambda rows, dtype: (_random(rows, 77, dtype=dtype), _random(77, seed=1, dtype=dtype), 1e-6),
    "add_rms_norm": lambda rows, dtype: (
        *(_random(rows, 77, seed=seed, dtype=dtype) for seed in (0, 2)),
        _random(77, seed=1, dtype=dtype),
        1e-6,
    ),
}
# fp32: other orders of the same sums; bf16: one unit in the last place where a sum falls on a boundary.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def fresh_choices():
    registry.choose.cache_clear()
    yield
    registry.choose.cache_clear()


def test_every_op_has_a_reference_and_an_example():
    ops = {one.op for one in registry.implementations()}
    assert ops == {example.split()[0] for example in EXAMPLES}
    for op in ops:
        assert [one.name for one in registry.implementations(op)].count("reference") == 1, op


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("example", "one"),
    [
        (example, one)
        for example in EXAMPLES
        for one in registry.implementations(example.split()[0])
        if one.name != "reference"
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_it_agrees_with_its_reference(example, one, rows, dtype):
    if one.missing:
        pytest.skip(f"{one.name}: {one.missing}")
    (plain,) = [other.function for other in registry.implementations(one.op) if other.name == "reference"]
    results = []
    for function in (one.function, plain):
        arguments = EXAMPLES[example](rows, dtype)
        with torch.no_grad():
            got = function(*arguments)
        if one.op == "pack":  # which writes into its arguments
            got = _packed_parts(*arguments[1:])
        results.append(got if isinstance(got, tuple) else (got,))
    for mine, other in zip(*results, strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        if one.op == "pack":
            # The steps of int4 are quotients of sums.
            assert (
                torch.allclose(mine, other, rtol=1e-6, atol=0) if mine.is_floating_point() else torch.equal(mine, other)
            )
        elif one.op == "flash_attention":
            # A share falls to either side of a boundary of bf16's.
            assert (mine - other).norm() <= 2e-3 * other.norm()
        elif one.op == "packed_experts":
            # The hidden state is rounded to int8: where it stands on a boundary a last bit moves it by a step.
            assert (mine - other).norm() <= 2e-3 * other.norm()
        else:
            atol = TOLERANCE[dtype] * (1 + float(other.abs().max()) if other.numel() else 1)
            assert torch.allclose(mine.float(), other.float(), atol=atol, rtol=TOLERANCE[dtype])


def test_the_choice_can_be_forced(monkeypatch):
    monkeypatch.setenv("LEANSEEK_KERNELS", "reference")
    assert {choice.implementation.name for choice in registry.report()} == {"reference"}
    assert registry.kernels_named() == "reference"
    if native.missing("generic"):
        pytest.skip(native.missing("generic"))
    for mode in ("generic", "native", "auto"):
        registry.choose.cache_clear()
        monkeypatch.setenv("LEANSEEK_KERNELS", mode)
        names = {choice.implementation.name for choice in registry.report()}
        assert names == ({"generic"} if mode == "generic" else {list(native.native().variants)[-1]})
        assert all(choice.reason for choice in registry.report())
        assert registry.kernels_named() == "+".join(names)


def test_what_is_not_to_be_had_is_said(monkeypatch, tmp_path):
    lacking = native.load(tmp_path / "libleanseek_kernels.so")
    monkeypatch.setattr(native, "native", lambda: lacking)
    assert registry.choose("rms_norm").implementation.name == "reference"
    assert "rms_norm" in registry.notice() and "make kernels" in registry.notice()
    for mode in ("native", "avx2"):
        registry.choose.cache_clear()
        monkeypatch.setenv("LEANSEEK_KERNELS", mode)
        with pytest.raises(ConfigError, match=f"LEANSEEK_KERNELS = {mode}.*not built"):
            registry.choose("rms_norm")
    monkeypatch.setenv("LEANSEEK_KERNELS", "reference")
    assert registry.notice() == ""
