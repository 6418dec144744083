"""Sampling: the generator, the distribution drawn from, the cuts, and the log-probabilities told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import leanseek.engine.sampler as module
from leanseek.engine.sampler import SamplingRows, _cut, sample, uniform

SHARES = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.15, 0.05])
DRAWS = 20_000
# A fair draw exceeds this once in 10,000 sets of seeds; the seeds are fixed. By degrees of freedom.
CHI_SQUARE = {1: 15.1, 2: 18.4, 3: 21.1, 5: 25.7, 15: 44.3}


def rows(count: int, **asked: float) -> SamplingRows:
    """Return `count` rows that ask for the same and have the seeds 0, 1, 2 ..."""

    def column(name: str, default: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((count,), asked.get(name, default), dtype=dtype)

    temperature = column("temperature", 1.0)
    return SamplingRows(
        temperature,
        column("top_p", 1.0),
        column("min_p", 0.0),
        column("top_k", 0, torch.int64),
        torch.arange(count),
        column("place", 0, torch.int64),
        greedy=bool((temperature == 0).all()),
        plain=not {"top_p", "min_p", "top_k"} & asked.keys(),
        unit=bool((temperature == 1).all()),
    )


def chi_square(tokens: Tensor, shares: Tensor) -> float:
    """Return the statistic over the tokens that may come; any other makes it infinite."""
    counts = torch.bincount(tokens, minlength=len(shares)).double()
    if float(counts[shares == 0].sum()):
        return float("inf")
    expected = shares[shares > 0].double() / shares.sum() * len(tokens)
    return float(((counts[shares > 0] - expected) ** 2 / expected).sum())


def draw(**asked: float) -> Tensor:
    return sample(SHARES.log().expand(DRAWS, -1), rows(DRAWS, **asked))[0]


@pytest.mark.parametrize("place", [0, 1, 37])
def test_tokens_come_as_often_as_their_share(place):
    assert chi_square(draw(place=place), SHARES) < CHI_SQUARE[5]


def test_one_seeds_places_are_a_fair_sequence_too():
    one = rows(DRAWS)
    places = SamplingRows(**{**one.__dict__, "seed_S": torch.full((DRAWS,), 11), "place_S": torch.arange(DRAWS)})
    assert chi_square(sample(SHARES.log().expand(DRAWS, -1), places)[0], SHARES) < CHI_SQUARE[5]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_is_a_power_of_the_shares(temperature):
    assert chi_square(draw(temperature=temperature), SHARES ** (1 / temperature)) < CHI_SQUARE[5]


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 6}, {0, 1, 2, 3, 4, 5}),
        ({"top_k": 50}, {0, 1, 2, 3, 4, 5}),
        ({"top_p": 0.3}, {1}),  # the first token alone reaches it
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.7}, {1, 3, 4}),
        ({"top_p": 0.85}, {1, 2, 3, 4}),
        ({"top_p": 1e-6}, {1}),
        ({"min_p": 0.3}, {1, 3, 4}),  # at least 0.3 * 0.4 = 0.12
        ({"min_p": 0.5}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.5}, {1, 3}),
    ],
)
def test_cuts_keep_the_right_tokens_at_their_relative_shares(asked, kept):
    expected = torch.tensor([float(share) if i in kept else 0.0 for i, share in enumerate(SHARES)])
    tokens = draw(**asked)
    assert set(tokens.tolist()) == kept
    if len(kept) > 1:
        assert chi_square(tokens, expected) < CHI_SQUARE[len(kept) - 1]


def test_cuts_are_taken_after_the_temperature():
    # At temperature 0.5 the shares are 0.4^2 : 0.25^2 : ..., so the first holds 0.6 of them.
    assert set(draw(temperature=0.5, top_p=0.59).tolist()) == {1}
    assert set(draw(temperature=1.0, top_p=0.59).tolist()) == {1, 3}


def test_greedy_takes_the_most_likely_token():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = sample(logits, rows(50, temperature=0.0))
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.allclose(logprobs, torch.log_softmax(logits, -1).max(-1).values)


@pytest.mark.parametrize("asked", [{}, {"temperature": 0.7}, {"top_p": 0.5}, {"temperature": 1.3, "top_k": 2}])
def test_logprobs_are_of_the_tempered_distribution_before_any_cut(asked):
    logits = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = sample(logits, rows(200, **asked))
    expected = torch.log_softmax(logits / asked.get("temperature", 1.0), -1).gather(1, tokens[:, None]).squeeze(1)
    assert torch.allclose(logprobs, expected, atol=1e-5)


def test_a_row_draws_the_same_whatever_stands_beside_it():
    """Greedy rows, hot rows and cut rows in one call; each alone takes another path through the code."""
    count = 60
    logits = 3 * torch.randn(count, 500, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def choose(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype)[torch.randint(len(values), (count,), generator=generator)]

    columns = {
        "temperature_S": choose(0.0, 1.0, 1.0, 0.6),
        "top_p_S": choose(1.0, 1.0, 0.8),
        "min_p_S": choose(0.0, 0.0, 0.05),
        "top_k_S": choose(0, 0, 7, dtype=torch.int64),
        "seed_S": torch.arange(count),
        "place_S": choose(0, 3, dtype=torch.int64),
    }

    def call(part: slice) -> tuple[Tensor, Tensor]:
        c = {name: column[part] for name, column in columns.items()}
        plain = bool(((c["top_p_S"] == 1) & (c["min_p_S"] == 0) & (c["top_k_S"] == 0)).all())
        cold, unit = bool((c["temperature_S"] == 0).all()), bool((c["temperature_S"] == 1).all())
        return sample(logits[part], SamplingRows(**c, greedy=cold, plain=plain, unit=unit))

    tokens, logprobs = call(slice(None))
    for row in range(count):
        token, logprob = call(slice(row, row + 1))
        assert int(token) == int(tokens[row]), row
        assert float(logprob) == float(logprobs[row]), "to the bit"


def test_a_row_without_a_cut_keeps_its_whole_tail_beside_rows_with_one():
    """Rounding may bring the running sum of shares to 1 before the last token: it must still be in reach."""
    width = 4096
    logits = torch.zeros(2, width)
    mixed = SamplingRows(
        torch.ones(2),
        torch.tensor([1.0, 0.5]),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        greedy=False,
        plain=False,
        unit=True,
    )
    # Shares that sum to a little more than 1, as rounding can make them.
    shares = torch.softmax(logits, -1) * 1.001
    assert int((_cut(shares, mixed)[0] > 0).sum()) == width


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (1 - 2**-24, 4)])
def test_the_ends_of_the_range_do_not_reach_tokens_that_were_cut(monkeypatch, number, token):
    """The first and the last token of the vocabulary are left out; not even a draw of 0 may give them."""
    monkeypatch.setattr(module, "uniform", lambda seed_S, _: torch.full(seed_S.shape, number))
    assert draw(min_p=0.3)[0] == token


def test_low_precision_logits_are_sampled_in_fp32():
    logits = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    low, wide = sample(logits, rows(30)), sample(logits.float(), rows(30))
    assert torch.equal(low[0], wide[0]) and low[1].dtype == torch.float32


def test_broken_logits_give_a_token_of_the_vocabulary_and_a_logprob_that_is_not_finite():
    logits = torch.full((2, 8), float("nan"))
    for asked in ({}, {"temperature": 0.0}, {"top_p": 0.5}):
        tokens, logprobs = sample(logits, rows(2, **asked))
        assert bool(((tokens >= 0) & (tokens < 8)).all()) and not bool(torch.isfinite(logprobs).any())


def test_uniform_is_splitmix64():
    def by_hand(seed: int, place: int) -> float:
        mask = (1 << 64) - 1
        z = (seed * 0x9E3779B97F4A7C15 + (place + 1) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) >> 40) / (1 << 24)

    pairs = [(0, 0), (0, 1), (1, 0), (-7, 3), ((1 << 62) + 5, 1000), (123456789, 12)]
    got = uniform(torch.tensor([seed for seed, _ in pairs]), torch.tensor([place for _, place in pairs]))
    assert got.tolist() == [by_hand(*pair) for pair in pairs]


def test_uniform_is_uniform_over_seeds_and_places():
    seeds, places = torch.meshgrid(torch.arange(200), torch.arange(100), indexing="ij")
    drawn = uniform(seeds.reshape(-1), places.reshape(-1))
    assert float(drawn.min()) >= 0 and float(drawn.max()) < 1
    assert chi_square((drawn * 16).long(), torch.ones(16)) < CHI_SQUARE[15]
    # Neighbouring seeds at one place, and neighbouring places of one seed, know nothing of each other.
    table = drawn.view(200, 100)
    for first, second in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):
        assert abs(float(torch.corrcoef(torch.stack((first.reshape(-1), second.reshape(-1))))[0, 1])) < 0.03
