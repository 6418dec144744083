from __future__ import annotations

from leanseek.cli.app import main


def test_a_card_is_written_checked_and_what_is_missing_is_named(make_run, capsys):
    run = make_run()
    assert main(["card", str(run.folder), "--check"]) != 0
    assert "has no MODEL_CARD.md" in capsys.readouterr().err
    assert main(["card", str(run.folder)]) == 0 and str(run.card_path) in capsys.readouterr().out
    assert main(["card", str(run.folder), "--check"]) != 0
    told = capsys.readouterr().err
    assert "does not say" in told and "contamination check (finish the run" in told and "licence" not in told
    run.card_path.write_bytes(b"\xff\xfe")
    assert main(["card", str(run.folder), "--check"]) != 0 and "cannot be read" in capsys.readouterr().err


def test_a_folder_of_something_else_is_told(tmp_path, capsys):
    assert main(["card", str(tmp_path)]) != 0
    assert capsys.readouterr().err
