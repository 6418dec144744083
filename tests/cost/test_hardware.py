"""Every figure has a source with a year; names are found, misspelt ones are told the nearest."""

from __future__ import annotations

import re

import pytest

from leanseek.cost.hardware import all_hardware, gpu_named, hardware, this_cpu
from leanseek.errors import ConfigError

FIGURES = (
    "bf16_flops",
    "fp8_flops",
    "fp32_flops",
    "link_bytes_per_s",
    "network_bytes_per_s",
    "memory_bytes",
    "memory_bytes_per_s",
    "watts",
    "idle_watts",
    "usd_per_hour",
)


@pytest.mark.parametrize("row", all_hardware().values(), ids=lambda row: row.name)
def test_every_figure_has_a_source_and_a_date(row):
    stated = {name for name in FIGURES if getattr(row, name) and getattr(row, name) > 0}
    assert stated <= set(row.sources)
    for source in row.sources.values():
        assert re.search(r"\b20[12][0-9]\b", source), source
    assert row.kind in ("cpu", "gpu")
    assert bool(row.match) == (row.kind == "gpu")


def test_figures_are_dense_bf16_and_in_plain_units():
    row = hardware("h800")
    # DeepSeek reports 432 TFLOP/s as 43.73% of the peak.
    assert 432e12 / row.bf16_flops == pytest.approx(0.4373, abs=0.001)
    assert row.usd_per_hour == 2.0
    assert all(1e10 < row.bf16_flops < 1e16 and 1 < row.watts < 2000 for row in all_hardware().values())


def test_a_misspelt_name_is_told_the_nearest():
    with pytest.raises(ConfigError, match="did you mean h100"):
        hardware("h1000")


def test_virtual_cores_are_told_from_a_laptop(tmp_path):
    information = tmp_path / "cpuinfo"
    information.write_text("processor: 0\nflags\t\t: fpu avx2 hypervisor\n")
    assert this_cpu(information).name == "virtual-cpu"
    information.write_text("processor: 0\nflags\t\t: fpu avx2\nbugs: hypervisor\n")
    assert this_cpu(information).name == "laptop-cpu"
    assert this_cpu(tmp_path / "missing").name == "laptop-cpu"


def test_a_gpu_is_found_by_its_drivers_name():
    assert gpu_named("NVIDIA H100 80GB HBM3").name == "h100"
    assert gpu_named("NVIDIA GeForce RTX 4090").name == "rtx-4090"
    unknown = gpu_named("Something new")
    assert unknown.watts == max(row.watts for row in all_hardware().values())
