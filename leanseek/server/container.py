"""Container: how much memory the limits of a container or a service leave (Linux control groups), if they set any."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Of version 2 and of version 1: limit, use, what of the use is files that can be dropped, and where it lies.
_FILES = (
    ("memory.max", "memory.current", "inactive_file", ""),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory"),
)


def left_bytes(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return how many bytes this process may still take before a limit ends it; None: none is set.

    Args:
        groups: where the groups are mounted.
        own: file that names this process's groups.
    """
    left = [one for folder, files in _folders(groups, own) if (one := _left(folder, files)) is not None]
    return min(left, default=None)


def _folders(groups: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str, str]]]:
    """Yield this process's groups and those that they lie in: each of them may have a limit."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files = _FILES[bool(controllers)]
        inside = PurePosixPath(path.lstrip("/"))
        for one in (inside, *inside.parents):
            yield groups / files[3] / one, files


def _left(folder: Path, files: tuple[str, str, str, str]) -> int | None:
    limit_name, used_name, droppable, _ = files
    try:
        limit = (folder / limit_name).read_text(encoding="ascii").strip()
        used = int((folder / used_name).read_text(encoding="ascii"))
        fields = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return None if limit == "max" else max(int(limit) - used + int(fields.get(droppable, 0)), 0)
    except (OSError, ValueError):  # no such group here, or a form that is not known
        return None
