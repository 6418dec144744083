"""The front door: the public names, loaded when used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import leanseek


def test_every_public_name_is_there_and_dir_shows_them():
    assert dir(leanseek) == leanseek.__all__ == sorted(leanseek.__all__)
    for name in leanseek.__all__:
        assert getattr(leanseek, name).__name__ == name


def test_another_name_is_refused_with_the_list():
    with pytest.raises(AttributeError, match="has no attribute 'modle'; it has Engine, "):
        _ = leanseek.modle


def test_importing_it_or_the_settings_does_not_load_torch():
    code = (
        "import sys, leanseek, leanseek.settings, leanseek.run, leanseek.log, leanseek.engine.request, "
        "leanseek.tokens.chat, leanseek.envs.environment, leanseek.model.config, leanseek.data.corpus\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
