"""Log-probabilities: in pieces as in one, in bounded memory, and among what could be drawn."""

from __future__ import annotations

import pytest
import torch

from leanseek.train.objectives.logprobs import Support, token_logprobs


@pytest.fixture
def work(make_model):
    """Return a model, hidden states that want a gradient, and targets."""
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 32, generator=generator, requires_grad=True)
    return model, hidden, torch.randint(0, 320, (23,), generator=generator)


def gradients(model, hidden, logprobs):
    weights = torch.linspace(-1, 1, len(logprobs))
    return torch.autograd.grad((logprobs * weights).sum(), (hidden, model.lm_head.weight))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("most", [1, 320, 3 * 320 + 5, 22 * 320, 10**9])
def test_pieces_are_the_whole_with_its_gradient(work, most, temperature):
    model, hidden, targets = work
    whole = token_logprobs(model, hidden, targets, temperature)
    assert torch.allclose(whole, torch.log_softmax(model.logits(hidden) / temperature, -1)[range(23), targets])
    parts = token_logprobs(model, hidden, targets, temperature, most_logits=most)
    assert torch.allclose(whole, parts, atol=1e-6)
    for one, other in zip(gradients(model, hidden, whole), gradients(model, hidden, parts), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def largest_kept(call) -> int:
    """Return the size of the largest tensor that is kept for the gradient."""
    sizes = [0]

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return max(sizes)


@pytest.mark.parametrize("vocabulary", [320, 4096])
def test_no_logits_are_kept_whatever_the_vocabulary(make_model, vocabulary):
    model = make_model(vocab_size=vocabulary)
    hidden = torch.randn(64, 32, requires_grad=True)
    targets = torch.zeros(64, dtype=torch.int64)
    assert largest_kept(lambda: token_logprobs(model, hidden, targets)) >= 64 * vocabulary
    head = model.lm_head.weight.numel()
    assert largest_kept(lambda: token_logprobs(model, hidden, targets, most_logits=8 * vocabulary)) <= head


@pytest.mark.parametrize("most", [None, 5 * 320])
def test_a_support_shares_the_probability_among_what_could_be_drawn(work, most):
    model, hidden, targets = work
    kept = [sorted({int(target), 3 + i, 40 + 2 * i})[: 1 + i % 3] for i, target in enumerate(targets)]
    kept = [tokens if int(target) in tokens else [int(target)] for tokens, target in zip(kept, targets, strict=True)]
    support = Support(torch.tensor([t for tokens in kept for t in tokens]), torch.tensor([len(k) for k in kept]))
    found = token_logprobs(model, hidden, targets, 0.8, most_logits=most, support=support)
    shares, got = torch.softmax(model.logits(hidden) / 0.8, -1).detach(), found.detach()
    for i, tokens in enumerate(kept):
        expected = shares[i, targets[i]] / shares[i, tokens].sum()
        assert float(got[i]) == pytest.approx(float(expected.log()), abs=1e-5)
    alone = [i for i, tokens in enumerate(kept) if len(tokens) == 1]
    assert alone and all(float(got[i]) == 0.0 for i in alone), "what had to be drawn teaches nothing"
    assert all(torch.isfinite(g).all() for g in gradients(model, hidden, found))
