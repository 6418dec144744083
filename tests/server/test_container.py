"""Limits of containers, as Linux writes them down."""

from __future__ import annotations

import pytest

from leanseek.server.container import left_bytes

MIB = 1 << 20


@pytest.fixture
def groups(tmp_path):
    """Return a function that makes a group with a limit, its use and files that can be dropped."""

    def make(folder, limit, used, files=0, *, old=False):
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
        for name, value in zip(names, (limit, used), strict=True):
            (place / name).write_text(f"{value}\n")
        prefix = "total_" if old else ""
        (place / "memory.stat").write_text(f"anon 7\n{prefix}inactive_file {files}\n")

    return make


def left(tmp_path, lines):
    (tmp_path / "own").write_text(lines)
    return left_bytes(tmp_path, tmp_path / "own")


def test_a_container_sees_its_own_limit(groups, tmp_path):
    groups("", 400 * MIB, 300 * MIB, 50 * MIB)
    assert left(tmp_path, "0::/\n") == 150 * MIB


def test_the_narrowest_group_counts(groups, tmp_path):
    groups("system.slice/leanseek.service", 400 * MIB, 100 * MIB)
    groups("system.slice", 500 * MIB, 450 * MIB)
    assert left(tmp_path, "0::/system.slice/leanseek.service\n") == 50 * MIB
    groups("system.slice", "max", 450 * MIB)
    assert left(tmp_path, "0::/system.slice/leanseek.service\n") == 300 * MIB


def test_the_older_form(groups, tmp_path):
    groups("memory", 400 * MIB, 410 * MIB, 30 * MIB, old=True)  # the group is the container's, its path the machine's
    assert left(tmp_path, "9:name=systemd:/\n4:cpu,memory:/docker/12ab\n0::/\n") == 20 * MIB
    groups("memory", 400 * MIB, 410 * MIB, old=True)
    assert left(tmp_path, "4:memory:/docker/12ab\n") == 0


def test_no_limit(groups, tmp_path):
    assert left(tmp_path, "0::/\n1:cpu:/\n") is None
    groups("", "max", 1)
    assert left(tmp_path, "0::/\n") is None
    groups("", "many", 1)
    assert left(tmp_path, "0::/\n") is None
    assert left_bytes(tmp_path, tmp_path / "nothing") is None
