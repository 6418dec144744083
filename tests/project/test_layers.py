"""Who may import whom: import-linter's contracts in pyproject.toml."""

from __future__ import annotations

import sys

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_every_import_contract_is_kept(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the linter adds to it
    status = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out
    assert "0 broken" in capsys.readouterr().out


def test_only_one_module_reads_the_environment(root, modules):
    for path in modules:
        if path != root / "leanseek" / "variables.py":
            text = path.read_text(encoding="utf-8")
            assert "os.environ" not in text and "getenv" not in text, f"{path}: only variables.py reads the environment"
