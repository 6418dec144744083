"""Rows sum to the totals, whatever ended the work."""

from __future__ import annotations

import json

import pytest

from leanseek.cost.carbon import parse_grid
from leanseek.cost.ledger import LARGEST, SUMMED, Ledger, storage_bytes, sum_rows
from leanseek.errors import RunError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Meter:
    """A meter that draws 10 W by a clock."""

    def __init__(self, clock: Clock, meter: str = "measured:test") -> None:
        self.clock, self.meter, self.running = clock, meter, False

    def start(self) -> None:
        self.start_s, self.running = self.clock(), True

    def read_joules(self) -> float:
        return 10 * (self.clock() - self.start_s)

    def stop(self) -> None:
        self.running = False


def ledger(tmp_path, clock, meter=None) -> Ledger:
    return Ledger(
        tmp_path / "ledger.jsonl", 0.36, meter=meter or Meter(clock), clock=clock, now=lambda: 1_700_000_000.5
    )


def test_a_row_says_what_the_work_took(tmp_path):
    clock = Clock()
    account = ledger(tmp_path, clock)
    with account.charge("pretrain") as charge:
        charge.tokens += 100
        charge.flops += 1e9
        charge.device_peak_memory_bytes = 7
        charge.devices, charge.joules_elsewhere = 4, 30.0
        with charge.timed("learning"):
            pass
        clock.now += 20
    row = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert row.pop("peak_memory_bytes") > 1e6
    assert row.pop("hash") == account.check().head
    assert 0 <= row.pop("seconds_by_part")["learning"] < 1
    assert all(row.pop(f"storage_{kind}_bytes", 0) >= 0 for kind in ("read", "written"))
    assert row == {
        "time_s": 1_700_000_000.5,
        "stage": "pretrain",
        "tokens": 100,
        "flops": 1e9,
        "seconds": 20,
        "device_seconds": 80,
        "joules": 230,
        "meter": "measured:test",
        "usd": pytest.approx(0.002),
        "device_peak_memory_bytes": 7,
        "device": "cpu",
    }


def test_rows_sum_to_the_totals(tmp_path):
    clock = Clock()
    for number, stage in enumerate(("pretrain", "sft", "pretrain", "grpo", "sft"), 1):
        # A stage that was interrupted and resumed has a row of each process.
        account = ledger(tmp_path, clock)
        with account.charge(stage) as charge:
            charge.tokens += 10 * number
            charge.flops += 1e6 * number
            charge.device_peak_memory_bytes = number
            clock.now += 1.5 * number
    rows, totals = account.rows(), account.totals()
    assert list(totals) == ["pretrain", "sft", "grpo", "totals"]
    for key in SUMMED:
        assert totals["totals"][key] == pytest.approx(sum(row[key] for row in rows))
        assert totals["totals"][key] == pytest.approx(sum(totals[stage][key] for stage in ("pretrain", "sft", "grpo")))
    assert totals["pretrain"]["tokens"] == 10 + 30
    assert totals["pretrain"]["joules"] == pytest.approx(10 * (1.5 + 4.5))
    for key in LARGEST:
        assert totals["totals"][key] == max(row[key] for row in rows)
    assert totals["totals"]["meter"] == "measured:test"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_work_that_breaks_off_is_charged_too(tmp_path, error):
    clock = Clock()
    account = ledger(tmp_path, clock)
    with pytest.raises(error), account.charge("grpo") as charge:
        charge.tokens += 5
        clock.now += 3
        raise error
    assert [(row["tokens"], row["seconds"]) for row in account.rows()] == [(5, 3)]
    assert not account.meter.running
    with account.charge("grpo"):
        clock.now += 1
    assert account.totals()["grpo"]["seconds"] == 4


def test_no_second_is_charged_twice(tmp_path):
    clock = Clock()
    account = ledger(tmp_path, clock)
    with account.charge("grpo"):
        with pytest.raises(RunError, match="eval cannot be charged while grpo"), account.charge("eval"):
            pass
        clock.now += 2
    assert [row["stage"] for row in account.rows()] == ["grpo"]


def test_meters_that_differ_are_both_named(tmp_path):
    clock = Clock()
    for name in ("measured:rapl", "estimated:laptop-cpu", "measured:rapl"):
        with ledger(tmp_path, clock, Meter(clock, name)).charge("sft"):
            clock.now += 1
    assert ledger(tmp_path, clock).totals()["sft"]["meter"] == "measured:rapl, estimated:laptop-cpu"


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path):
    clock = Clock()
    account = ledger(tmp_path, clock)
    with account.charge("sft"):
        clock.now += 1
    with account.path.open("a") as file:
        file.write('{"stage": "sft", "seco')
    assert account.totals()["totals"]["seconds"] == 1


def test_without_rows_all_totals_are_nought(tmp_path):
    totals = sum_rows([])
    assert set(totals) == {"totals"}
    assert not any(totals["totals"].values())


def test_each_piece_of_work_has_its_own_peak(tmp_path):
    clock = Clock()
    account = ledger(tmp_path, clock)
    size = 200_000_000
    with account.charge("large"):
        block = bytearray(size)
        del block
    with account.charge("small"):
        clock.now += 1
    large, small = (row["peak_memory_bytes"] for row in account.rows())
    assert large > size
    # Where the kernel does not let the peak be forgotten it is the whole process's.
    assert small <= large


def test_shares_of_the_work_are_told_and_summed(tmp_path):
    clock = Clock()
    account = ledger(tmp_path, clock)
    for _ in range(2):
        with account.charge("pretrain") as charge:
            charge.add_flops(forward=10, backward=20, part="experts")
            charge.add_flops(forward=1, backward=2, recompute=1, part="attention")
            charge.flops += 5  # of which nobody said what it was
            clock.now += 1
    total = account.totals()["totals"]
    assert total["flops"] == 2 * 39 and total["forward_flops"] == 22 and total["backward_flops"] == 44
    assert total["recompute_flops"] == 2 and total["flops_by_part"] == {"experts": 60, "attention": 8}
    assert "carbon_g" not in total


def test_carbon_is_the_grids(tmp_path):
    clock = Clock()
    account = ledger(tmp_path, clock)
    account.grid = parse_grid("360")
    with account.charge("sft"):
        clock.now += 1000  # at 10 W: 10 kJ
    assert account.totals()["totals"]["carbon_g"] == pytest.approx(1.0)
    assert account.rows()[0]["grid"] == "given"


def test_storage_is_counted_where_the_kernel_does(tmp_path):
    counters = tmp_path / "io"
    assert storage_bytes(counters) is None
    counters.write_text("rchar: 5\nread_bytes: 4096\nwrite_bytes: 8192\n")
    assert storage_bytes(counters) == (4096, 8192)
    counters.write_text("rchar: 5\n")
    assert storage_bytes(counters) is None


def test_an_old_ledger_goes_on(tmp_path):
    clock = Clock()
    account = ledger(tmp_path, clock)
    account.path.write_text('{"stage": "sft", "seconds": 2, "joules": 3, "usd": 0, "tokens": 4, "flops": 5}\n')
    with account.charge("sft"):
        clock.now += 1
    assert account.totals()["sft"]["seconds"] == 3 and not account.check().broken
    account.path.write_text(account.path.read_text().replace('"seconds": 2', '"seconds": 1'))
    assert account.check().broken == [2]  # the first seal covers what was there before it
