"""Joules from made-up counters and clocks: the label always says where they are from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from leanseek.cost.energy import Battery, EnergyMeter, Rapl, describe_meter, usable_cores
from leanseek.cost.hardware import hardware
from leanseek.errors import ConfigError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def zone(powercap: Path, folder: str, name: str, energy_uj: int, range_uj: int = 1_000_000_000) -> Path:
    path = powercap / folder
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


def fake_nvml(millijoules: list[int]) -> SimpleNamespace:
    class NVMLError(Exception):
        pass

    def energy(handle: str) -> int:
        if not millijoules:
            raise NVMLError
        return millijoules[0]

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: "first",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )


def test_the_estimate_is_busy_and_idle_cores(tmp_path):
    clock, cpu_clock = Clock(), Clock()
    meter = EnergyMeter(row="virtual-cpu", powercap=tmp_path, clock=clock, cpu_clock=cpu_clock)
    meter.start()
    assert meter.read_joules() == 0
    busy_s = 4.0
    cpu_clock.now += busy_s
    clock.now += 10.0
    row = hardware("virtual-cpu")
    idle_s = max(usable_cores() * 10.0 - busy_s, 0)
    assert meter.read_joules() == pytest.approx(busy_s * row.watts + idle_s * row.idle_watts)
    assert meter.meter == "estimated:virtual-cpu"


def test_the_estimate_is_never_below_that_of_the_busy_cores(tmp_path):
    # More CPU-seconds than cores x seconds: clocks differ in resolution.
    clock, cpu_clock = Clock(), Clock()
    meter = EnergyMeter(row="virtual-cpu", powercap=tmp_path, clock=clock, cpu_clock=cpu_clock)
    meter.start()
    cpu_clock.now += 1000.0
    assert meter.read_joules() == pytest.approx(1000.0 * hardware("virtual-cpu").watts)


def test_of_several_processes_one_counts_what_they_share(tmp_path):
    clock, cpu_clock = Clock(), Clock()
    given = {"row": "virtual-cpu", "powercap": tmp_path, "batteries": tmp_path, "clock": clock, "cpu_clock": cpu_clock}
    meter = EnergyMeter(**given, beside=True)
    meter.start()
    clock.now += 100
    cpu_clock.now += 10
    assert meter.read_joules() == pytest.approx(10 * hardware("virtual-cpu").watts), "idle cores are the first one's"
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = EnergyMeter(**given, beside=True)
    meter.start()
    assert meter.read_joules() == 0 and meter.meter == "", "the first one's counter has all of it"
    meter.stop()


def test_rapl_adds_packages_and_memory_and_survives_a_turn_of_the_counter(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 7_000_000)
    zone(tmp_path, "intel-rapl:1", "psys", 7_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 7_000_000)
    meter = EnergyMeter(powercap=tmp_path)
    assert meter.meter == "measured:rapl"
    meter.start()
    (package / "energy_uj").write_text("2000000")
    (memory / "energy_uj").write_text("6500000")
    assert meter.read_joules() == pytest.approx(3.0 + 1.5)
    (package / "energy_uj").write_text("4000000")
    assert meter.read_joules() == pytest.approx(5.0 + 1.5)
    meter.stop()
    meter.start()
    assert meter.read_joules() == 0
    meter.stop()


def test_counters_that_say_nothing_are_not_taken_for_a_measurement(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    assert EnergyMeter(powercap=tmp_path).meter.startswith("estimated:")
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number")
    assert Rapl.open(tmp_path) is None
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert Rapl.open(tmp_path) is None
    assert Rapl.open(tmp_path / "missing") is None


def test_nvml_is_read_and_the_processor_beside_it_counts_too(tmp_path):
    clock, cpu_clock, counter = Clock(), Clock(), [1_000_000]
    meter = EnergyMeter(
        "cuda", "virtual-cpu", powercap=tmp_path, nvml=fake_nvml(counter), clock=clock, cpu_clock=cpu_clock
    )
    meter.start()
    counter[0] += 7_000
    cpu_clock.now += 2.0
    assert meter.read_joules() == pytest.approx(7.0 + 2.0 * hardware("virtual-cpu").watts)
    assert meter.meter == "measured:nvml+estimated:virtual-cpu"


def test_a_gpu_without_a_counter_is_estimated_by_its_power_limit(tmp_path):
    clock = Clock()
    meter = EnergyMeter(
        "cuda",
        gpu_name="NVIDIA H100 80GB HBM3",
        powercap=tmp_path,
        nvml=fake_nvml([]),
        clock=clock,
        cpu_clock=Clock(),
    )
    meter.start()
    clock.now += 2.0
    assert meter.meter.startswith("estimated:h100+estimated:")
    assert 1400 <= meter.read_joules() <= 1400 + 2 * 4 * usable_cores()


def test_an_unknown_row_is_refused():
    with pytest.raises(ConfigError, match="virtual-cpu"):
        EnergyMeter(row="virtual_cpu")


def battery(folder, **values) -> None:
    folder.mkdir(exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n", encoding="ascii")


def test_a_laptop_on_its_battery_counts_what_leaves_it(tmp_path):
    battery(tmp_path / "AC", online=0)
    battery(tmp_path / "BAT0", status="Discharging", power_now=10_000_000)
    clock = Clock()
    meter = EnergyMeter(powercap=tmp_path / "none", batteries=tmp_path, clock=clock)
    assert meter.meter == "measured:battery" and "the whole machine" in describe_meter(meter.meter)
    meter.start()
    clock.now += 10
    assert meter.read_joules() == pytest.approx(100)
    battery(tmp_path / "BAT0", power_now=20_000_000)
    clock.now += 10
    assert meter.read_joules() == pytest.approx(100 + 150)
    # Plugged in: what the battery takes is not what the machine draws.
    battery(tmp_path / "BAT0", status="Charging", power_now=60_000_000)
    clock.now += 10
    assert meter.read_joules() == pytest.approx(250 + 200)
    meter.start()
    assert meter.read_joules() == 0
    meter.stop()


def test_current_times_voltage_is_power_too(tmp_path):
    battery(tmp_path / "BAT1", status="Discharging", current_now=-2_000_000, voltage_now=12_000_000)
    found = Battery.open(tmp_path, Clock())
    assert found is not None and found._watts() == pytest.approx(24)


@pytest.mark.parametrize(
    "values",
    [
        {"status": "Charging", "power_now": 9},
        {"status": "Full", "power_now": 0},
        {"status": "Discharging", "power_now": 0},
        {"status": "Discharging", "power_now": "much"},
        {"status": "Discharging"},
        {},
    ],
)
def test_a_battery_that_says_nothing_is_none(tmp_path, values):
    battery(tmp_path / "BAT0", **values)
    assert Battery.open(tmp_path, Clock()) is None
    assert EnergyMeter(powercap=tmp_path, batteries=tmp_path).meter.startswith("estimated:")
