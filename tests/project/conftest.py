"""The project's own files, as its tests look at them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDERS = (".ci", "bench", "docs", "leanseek", "records", "tests")
ENDINGS = ("", *".css .html .ini .js .json .jsonl .md .py .sh .svg .toml .txt .yaml .yml".split())


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's folder."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def generate(root: Path) -> ModuleType:
    """Return docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("leanseek_docs_generate", root / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def text_files(root: Path, generate: ModuleType) -> list[Path]:
    """Return every text file of the project; nothing installed, built or made by a run is among them."""
    found = [path for folder in FOLDERS for path in generate.own_files(root, folder)]
    found += [path for path in root.iterdir() if path.name == ".gitignore" or not path.name.startswith(".")]
    files = [path for path in found if path.is_file() and path.suffix in ENDINGS and "__pycache__" not in path.parts]
    assert root / "leanseek" / "settings.py" in files and root / "Makefile" in files
    return sorted(files)


@pytest.fixture(scope="session")
def modules(root: Path) -> list[Path]:
    """Return every Python file of the package."""
    return sorted((root / "leanseek").rglob("*.py"))
