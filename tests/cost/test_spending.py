"""What a person is told while it runs: use of the peak since the first look, energy and money of the whole run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leanseek.cost.energy import usable_cores
from leanseek.cost.hardware import hardware, this_cpu
from leanseek.cost.spending import Spending, peak_flops

from .test_ledger import Clock, ledger


def test_utilisation_energy_and_money_so_far(tmp_path):
    clock = Clock()
    account = ledger(tmp_path, clock)
    with account.charge("tokenizer"):
        clock.now += 10
    assert account.so_far() == (100.0, pytest.approx(0.001))
    with account.charge("pretrain") as charge:
        told = Spending(account, charge, peak=1e9, clock=clock)
        charge.flops += 5e9  # what was done before the first look is not of its time
        assert told() == "100 J, $0.0010"
        clock.now += 5
        charge.add_flops(forward=1e9, backward=1e9, recompute=1e9)
        assert told() == "MFU 40.0%, 150 J, $0.0015", "what is computed anew is no use of the peak"
        charge.tokens += 100
        clock.now += 0.5
        assert told() == "MFU 40.0%, 150 J, $0.0015", "once a second at most"
        clock.now += 4.5
        assert told() == "MFU 20.0%, 1 J a token, 200 J, $0.0020"
    assert account.so_far() == (200.0, pytest.approx(0.002)), "and a run that goes on begins from there"


def test_the_peak_is_the_machines(monkeypatch):
    monkeypatch.setattr("leanseek.cost.spending.load_this", lambda: None)
    assert peak_flops(2, "float32") == 2 * this_cpu().fp32_flops
    assert peak_flops(8, "bfloat16", gpu_name="NVIDIA A100-SXM4-80GB") == 8 * 312e12
    monkeypatch.setattr("leanseek.cost.spending.load_this", lambda: hardware("laptop-cpu"))
    assert peak_flops(2, "bfloat16") == 2 * hardware("laptop-cpu").bf16_flops
    assert peak_flops(1, "bfloat16", "h100") == hardware("h100").bf16_flops
    whole = replace(hardware("laptop-cpu"), name="this")
    monkeypatch.setattr("leanseek.cost.spending.load_this", lambda: whole)
    assert peak_flops(usable_cores(), "float32") == pytest.approx(whole.fp32_flops), "measured on all cores together"
