"""The kernels' own C++ test: under sanitizers, and compiled for another processor and run by an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "leanseek" / "kernels" / "csrc"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def build(folder: Path, *options: str) -> Path:
    """Build library and test; return the test."""
    command = ["cmake", "-S", str(SOURCES), "-B", str(folder), "-DLEANSEEK_TESTS=ON", f"-DLEANSEEK_OUTPUT={folder}"]
    for step in ([*command, *options], ["cmake", "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(step, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "trial"


def passes(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_have_nothing_to_say(tmp_path, sanitizers):
    need("cmake", "g++")
    trial = build(tmp_path, f"-DLEANSEEK_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    # Nine rounds have every kind of weight with every other.
    assert "generic" in passes([str(trial), "9"], UBSAN_OPTIONS="print_stacktrace=1")


def test_arm_agrees_with_plain_c(tmp_path):
    need("cmake", "aarch64-linux-gnu-g++")
    trial = build(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    )
    emulator = next((name for name in ("qemu-aarch64", "qemu-aarch64-static") if shutil.which(name)), None)
    if emulator is None:
        pytest.skip("it was compiled; qemu-user, which would run it, is not installed")
    said = passes([emulator, "-L", "/usr/aarch64-linux-gnu", str(trial), "10"])
    assert "generic neon: 0 failures" in said
