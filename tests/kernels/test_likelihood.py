"""Log-probabilities of given tokens and their gradient by native kernels: against autograd of the definition."""

from __future__ import annotations

import math

import pytest
import torch

from leanseek.errors import KernelError
from leanseek.kernels import registry
from leanseek.kernels.likelihood import log_likelihood, log_likelihood_reference
from tests.kernels.threads import assert_threads_change_no_bit

KERNELS = [one for one in registry.implementations("log_likelihood") if one.name != "reference"]


def inputs(rows, width, size=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = size * torch.randn(rows, width, generator=generator)
    return logits, torch.randint(0, width, (rows,), generator=generator)


def gradients(function, logits, targets, temperature):
    logits = logits.clone().requires_grad_()
    out = function(logits, targets, temperature)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return out.detach(), *torch.autograd.grad(out, logits, slope)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("rows", "width"), [(0, 5), (1, 1), (7, 5), (70, 512), (5, 20_001)])
@pytest.mark.parametrize("one", KERNELS, ids=lambda one: one.name)
def test_values_and_gradients_are_those_of_the_definition(one, rows, width, temperature):
    if one.missing:
        pytest.skip(one.missing)
    given = (*inputs(rows, width), temperature)
    for want, got in zip(gradients(log_likelihood_reference, *given), gradients(one.function, *given), strict=True):
        assert got.shape == want.shape and torch.allclose(got, want, atol=4e-6, rtol=2e-6)


@pytest.mark.parametrize("one", KERNELS, ids=lambda one: one.name)
def test_tokens_that_cannot_be_drawn_get_nothing(one):
    if one.missing:
        pytest.skip(one.missing)
    logits, targets = inputs(40, 33, size=200.0)
    hidden = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    hidden[torch.arange(40), targets] = False
    logits = logits.masked_fill(hidden, -math.inf)
    want, got = (gradients(f, logits, targets, 1.0) for f in (log_likelihood_reference, one.function))
    assert torch.allclose(got[0], want[0], atol=1e-4) and torch.allclose(got[1], want[1], atol=1e-4)
    assert float(got[1][hidden].abs().max()) == 0


@pytest.mark.parametrize("one", KERNELS, ids=lambda one: one.name)
def test_what_is_not_a_number_is_not_hidden(one):
    if one.missing:
        pytest.skip(one.missing)
    logits, targets = inputs(3, 40)
    logits[1, 20] = math.nan
    out = one.function(logits, targets, 1.0)
    assert torch.isnan(out).tolist() == [False, True, False]


def test_threads_change_no_bit():
    if registry.chosen("log_likelihood") is None:
        pytest.skip(registry.choose("log_likelihood").reason)
    given = (*inputs(300, 512), 1.0)
    assert_threads_change_no_bit(lambda: gradients(log_likelihood, *given))


@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_token_of_no_vocabulary_is_refused(wrong):
    with pytest.raises((KernelError, IndexError)):
        log_likelihood(torch.zeros(2, 5), torch.tensor([0, wrong]))


def test_other_types_go_through_torch():
    logits, targets = inputs(4, 6)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_likelihood(x, targets, 0.5), logits)
