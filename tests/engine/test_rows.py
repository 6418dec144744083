"""Rows: a table whose used part stays at the front, against a plain list."""

from __future__ import annotations

import random

import torch

from leanseek.engine.request import Request, SamplingParams
from leanseek.engine.rows import Rows
from leanseek.engine.scheduler import Sample


def make_rows(capacity: int = 6) -> Rows:
    return Rows(capacity, context_tokens=16, moe_layers=1, experts_per_token=2, device=torch.device("cpu"))


def make_sample(name: int, **params: object) -> Sample:
    return Sample(Request(f"r{name}", (1, 2), SamplingParams(**params)), 0, seed=name)


def state(rows: Rows) -> list[tuple[object, ...]]:
    return [
        (
            sample.request.request_id,
            int(rows.position[row]),
            int(rows.place[row]),
            int(rows.limit[row]),
            int(rows.seed[row]),
            rows.tokens[row, : int(rows.place[row])].tolist(),
            rows.experts[row, : int(rows.position[row])].flatten().tolist(),
        )
        for row, sample in enumerate(rows.samples)
    ]


def test_rows_keep_what_is_theirs_through_any_coming_and_going():
    rng, rows = random.Random(0), make_rows()
    expected: dict[str, tuple[object, ...]] = {}
    for name in range(200):
        if rows.free and rng.random() < 0.6:
            position, place = rng.randint(1, 9), rng.randint(1, 6)
            rows.append([make_sample(name)], [position], [place + 3])
            row = len(rows) - 1
            rows.place[row] = place
            rows.tokens[row, :place] = torch.arange(place) + name
            rows.experts[row, :position] = torch.arange(position * 2).view(position, 1, 2)
            expected[f"r{name}"] = state(rows)[row]
        elif len(rows):
            gone = rng.sample(range(len(rows)), rng.randint(1, len(rows)))
            for row in gone:
                del expected[rows.samples[row].request.request_id]
            moves = rows.remove(gone)
            assert all(target < len(rows) <= source for source, target in moves)
        assert len(rows) + rows.free == rows.capacity
        assert sorted(map(str, state(rows))) == sorted(map(str, expected.values()))
        positions = rows.position[: len(rows)].tolist()
        assert rows.longest == max(positions, default=0)
        assert rows.level == (len(set(positions)) <= 1)


def test_advancing_counts_every_rows_place_in_the_cache():
    rows = make_rows()
    rows.append([make_sample(0), make_sample(1)], [4, 2], [9, 9])
    rows.advance()
    assert rows.position[:3].tolist() == [5, 3, 0] and rows.longest == 5


def test_the_sampling_of_a_batch_knows_its_short_cuts():
    rows = make_rows()
    rows.append([make_sample(0, temperature=0), make_sample(1, temperature=0)], [2, 2], [9, 9])
    assert (rows.sampling().greedy, rows.sampling().plain, rows.sampling().unit) == (True, True, False)
    rows.append([make_sample(2), make_sample(3, top_p=0.5)], [2, 2], [9, 9])
    whole, newest = rows.sampling(), rows.sampling(2)
    assert (whole.greedy, whole.plain, whole.unit) == (False, False, False)
    assert (newest.greedy, newest.plain, newest.unit) == (False, False, True)
    rows.place[:4] += 1
    assert whole.place_S.tolist() == [1] * 4, "a view of the table, not a copy"
    rows.remove([3])
    assert rows.sampling().plain and len(rows.sampling().seed_S) == 3


def test_rows_with_their_own_stops_are_watched_where_they_stand():
    rows = make_rows()
    rows.append([make_sample(0), make_sample(1, stop=("x",)), make_sample(2, stop_token_ids=(3,))], [2] * 3, [9] * 3)
    assert rows.watched == [1, 2]
    rows.remove([0])
    assert [rows.samples[row].request.request_id for row in rows.watched] == ["r2", "r1"]


def test_a_temperature_next_to_zero_stays_one_that_can_be_divided_by():
    rows = make_rows()
    rows.append([make_sample(0, temperature=1e-300), make_sample(1, temperature=0)], [2, 2], [9, 9])
    assert float(rows.temperature[0]) >= 1e-6 and float(rows.temperature[1]) == 0


def test_a_sample_that_had_to_wait_goes_on_where_it_was():
    rows, again = make_rows(), make_sample(3)
    again.said, again.said_logprobs = [7, 8], [-1.0, -2.0]
    rows.append([make_sample(0), again], [2, 4], [9, 9])
    assert rows.place[:2].tolist() == [0, 2] and rows.tokens[1, :2].tolist() == [7, 8]
    assert rows.logprobs[1, :2].tolist() == [-1.0, -2.0] and again.said == []
