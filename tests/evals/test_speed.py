"""Speed rows: counts and shares are consistent; how fast it was decides nothing."""

from __future__ import annotations

import pytest

from leanseek.checkpoint.packed import packed_bytes, random_packed
from leanseek.errors import EngineError
from leanseek.evals import speed
from leanseek.evals.speed import decode_row, kernel_rows, prefill_row, weight_bytes
from leanseek.kernels import native
from leanseek.kernels.limits import Limits, measure_limits

LIMITS = Limits("none", 1, 10.0, 100.0)


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    """Tiny weights larger than caches together would be hundreds of thousands."""
    monkeypatch.setattr(speed, "LARGER_THAN_CACHES", 1 << 16)


def test_kernel_rows_count_bytes_and_operations(tiny_config):
    rows = list(kernel_rows(tiny_config, "int4", LIMITS, rows=(1, 3), repeats=1))
    assert [row["work"].split(",")[0] for row in rows] == ["linear 32x20"] * 2 + ["experts 2 of 8"] * 2
    for row in rows:
        assert row["value"] > 0 and row["share_of_stream"] == row["gb_s"] / 10 and row["gops"] > 0
    # one row of a 20 x 32 weight in 2 panels: 2 * 20 * 32 operations on 2 * 336 bytes
    assert rows[0]["gops"] / rows[0]["gb_s"] == pytest.approx(2 * 20 * 32 / (2 * 336))


@pytest.mark.parametrize(("form", "size"), [("bf16", 2), ("fp8", 1)])
def test_kernels_of_weights_as_files_have_them_have_rows_too(tiny_config, form, size):
    rows = list(kernel_rows(tiny_config, form, LIMITS, rows=(2,), repeats=1))
    assert len(rows) == 2 and all(row["value"] > 0 for row in rows)
    scales = 4 if form == "fp8" else 0
    assert rows[0]["gops"] / rows[0]["gb_s"] == pytest.approx(2 * 2 * 20 * 32 / (20 * 32 * size + scales))


def test_decode_and_prefill_rows(tiny_config):
    model = random_packed(tiny_config, "int8")
    row = decode_row(model, batch=3, context=4, tokens=6, limits=LIMITS, repeats=2)
    assert len(row["samples"]) == 2 and row["value"] > 0
    assert row["share_of_stream"] == pytest.approx(row["gb_s"] / 10)
    row = prefill_row(model, tokens=20, limits=None, flops_per_token=1e6, repeats=1)
    assert row["gops"] == pytest.approx(row["value"] * 1e-3) and "share_of_peak" not in row
    with pytest.raises(EngineError, match="the model's context has 128"):
        prefill_row(model, tokens=128, limits=None, flops_per_token=1.0, repeats=1)


def test_the_bytes_of_a_step_grow_with_the_experts_used(tiny_config):
    model = random_packed(tiny_config, "int4")
    one, many = weight_bytes(model, 1), weight_bytes(model, 1000)
    assert one < many < packed_bytes(tiny_config, "int4")
    experts = sum(packed.nbytes for moe in model.moe_layers for packed in moe.experts.packed)
    assert many - one == pytest.approx(experts * (1 - 2 / 8), rel=1e-3)


def test_the_machines_limits_are_measured():
    if native.missing("generic"):
        pytest.skip(native.missing("generic"))
    limits = measure_limits(repeats=1, stream_bytes=8 << 20)
    assert limits.stream_gb_s > 0 and limits.peak_gops > 0 and limits.variant in native.VARIANTS
