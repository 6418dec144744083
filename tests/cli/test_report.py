from __future__ import annotations

from leanseek.cli.app import main
from leanseek.run import Run
from leanseek.settings import load_recipe


def test_a_page_is_written_for_a_run_that_has_only_begun(tmp_path, capsys):
    run = Run.create(tmp_path / "run", load_recipe("laptop"))
    assert main(["report", str(run.folder)]) == 0
    assert capsys.readouterr().out.strip() == str(run.report_path)
    assert "<html" in run.report_path.read_text()
