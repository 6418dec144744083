"""The project's own files, as its tests look at them."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDERS = (".ci", "bench", "docs", "leanseek", "records", "tests")
ENDINGS = ("", *".css .html .ini .js .json .jsonl .md .py .sh .svg .toml .txt .yaml .yml".split())


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's folder."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def text_files(root: Path) -> list[Path]:
    """Return every text file of the project; nothing installed, built or made by a run is among them."""
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    found += [path for path in root.iterdir() if path.name == ".gitignore" or not path.name.startswith(".")]
    files = [path for path in found if path.is_file() and path.suffix in ENDINGS and "__pycache__" not in path.parts]
    assert root / "leanseek" / "settings.py" in files and root / "Makefile" in files
    return sorted(files)


@pytest.fixture(scope="session")
def modules(root: Path) -> list[Path]:
    """Return every Python file of the package."""
    return sorted((root / "leanseek").rglob("*.py"))
