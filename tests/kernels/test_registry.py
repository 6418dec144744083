"""The registry: every implementation agrees with its reference, and the choice among them is said and kept."""

from __future__ import annotations

import pytest
import torch

from leanseek.errors import ConfigError
from leanseek.kernels import native, norm, registry

# Kernels are registered when their file is imported; `norm` is one of these.
assert norm

ROWS = (0, 1, 7, 32, 129)
# Each op's examples: (T, dtype) -> arguments. Sizes on purpose no multiples of a register.


def _random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


EXAMPLES = {
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
    assert ops == set(EXAMPLES)
    for op in ops:
        assert [one.name for one in registry.implementations(op)].count("reference") == 1, op


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    "one",
    [one for one in registry.implementations() if one.name != "reference"],
    ids=lambda one: f"{one.op}-{one.name}",
)
def test_it_agrees_with_its_reference(one, rows, dtype):
    if one.missing:
        pytest.skip(f"{one.name}: {one.missing}")
    arguments = EXAMPLES[one.op](rows, dtype)
    (plain,) = [other.function for other in registry.implementations(one.op) if other.name == "reference"]
    ours, theirs = one.function(*arguments), plain(*arguments)
    for mine, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, theirs)), strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        assert torch.allclose(mine.float(), other.float(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_the_choice_can_be_forced(monkeypatch):
    monkeypatch.setenv("LEANSEEK_KERNELS", "reference")
    assert {choice.implementation.name for choice in registry.report()} == {"reference"}
    if native.missing("generic"):
        pytest.skip(native.missing("generic"))
    for mode in ("generic", "native", "auto"):
        registry.choose.cache_clear()
        monkeypatch.setenv("LEANSEEK_KERNELS", mode)
        names = {choice.implementation.name for choice in registry.report()}
        assert names == ({"generic"} if mode == "generic" else {list(native.native().variants)[-1]})
        assert all(choice.reason for choice in registry.report())


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


def test_gradients_go_through_the_reference():
    x, weight = _random(3, 16).requires_grad_(), torch.ones(16)
    norm.rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
