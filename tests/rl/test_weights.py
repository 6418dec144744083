"""What changed in a model's weights, and no more, makes the old ones the new ones to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leanseek.errors import RunError
from leanseek.rl.weights import Sparse, update_of


def bits(tensor: torch.Tensor) -> list[int]:
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.reshape(-1).view(kinds[tensor.element_size()]).tolist()


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(1, 40),
    st.integers(0, 40),
    st.integers(0, 99),
)
def test_an_update_makes_the_known_weights_the_new_ones(dtype, rows, changes, seed):
    generator = torch.Generator().manual_seed(seed)
    now = {
        "a": torch.randn(rows, 3, generator=generator).to(dtype),
        "b": torch.randn(7, generator=generator).to(dtype),
        "empty": torch.empty(0, dtype=dtype),
    }
    known = {name: tensor.clone() for name, tensor in now.items()}
    for place in torch.randint(0, rows * 3, (changes,), generator=generator).tolist():
        now["a"].view(-1)[place] += 1
    expected = {name: bits(tensor) for name, tensor in now.items()}
    differ = sum(x != y for x, y in zip(bits(known["a"]), expected["a"], strict=True))
    update = update_of(known, now)
    now["a"].zero_()  # it shares no memory with what it was made of
    update.apply(known)
    assert {name: bits(tensor) for name, tensor in known.items()} == expected
    assert update.changed == differ and update.elements == 3 * rows + 7
    assert update.bytes <= sum(tensor.nbytes for tensor in known.values())
    assert "b" not in update.sparse and "b" not in update.dense


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 50), (torch.bfloat16, 34), (torch.float64, 67)])
def test_a_tensor_is_sent_whole_from_where_that_is_shorter(dtype, limit):
    for changed in (1, limit - 1, limit, 100):
        known = {"a": torch.zeros(100, dtype=dtype)}
        update = update_of(known, {"a": (torch.arange(100) < changed).to(dtype)})
        assert bool(update.dense) == (changed >= limit), changed
        assert bool(update.sparse) != bool(update.dense)
        assert update.bytes == min(changed * (4 + dtype.itemsize), 100 * dtype.itemsize)


def test_what_counts_are_bits_not_values():
    known = {"a": torch.tensor([0.0, float("nan"), 1.0, 2.0, 3.0])}
    update = update_of(known, {"a": torch.tensor([-0.0, float("nan"), 1.0, 2.0, 3.0])})
    assert update.changed == 1 and update.sparse["a"].places_X.tolist() == [0]
    update.apply(known)
    assert str(known["a"][0].item()) == "-0.0"
    nothing = update_of(known, {"a": known["a"].clone()})
    assert nothing.bytes == nothing.changed == 0


def test_tensors_that_are_not_contiguous_are_changed_too():
    known = torch.arange(12.0).view(3, 4).t()
    now = known.clone()
    now[1, 2] = 99.0
    update = update_of({"a": known}, {"a": now})
    assert isinstance(update.sparse["a"], Sparse)
    update.apply({"a": known})
    assert torch.equal(known, now)


def test_weights_of_another_model_are_refused():
    a = {"a": torch.zeros(3)}
    with pytest.raises(RunError, match="two different models"):
        update_of(a, {"b": torch.zeros(3)})
    with pytest.raises(RunError, match=r"a is torch.float32 of shape \(4,\), and was torch.float32 of shape \(3,\)"):
        update_of(a, {"a": torch.zeros(4)})
    with pytest.raises(RunError, match=r"torch\.bfloat16"):
        update_of(a, {"a": torch.zeros(3, dtype=torch.bfloat16)})
    with pytest.raises(RunError, match="this one has no tensor a"):
        update_of(a, {"a": torch.ones(3)}).apply({"b": torch.zeros(3)})
