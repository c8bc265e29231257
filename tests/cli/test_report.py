"""`surefoot report`."""

from surefoot.cli import main
from tests.report.folders import make_run


def test_report_prints_the_path_it_wrote(tmp_path, capsys):
    folder = make_run(tmp_path / "run", steps=5)
    assert main(["report", str(folder), "--figure", str(tmp_path / "picture")]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(folder / "report.html"), str(tmp_path / "picture.png"), str(tmp_path / "picture.svg")]
    assert all(open(path, "rb").read(1) for path in written)


def test_a_folder_that_is_no_run_ends_with_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "not a run folder" in err and err.count("\n") == 1
