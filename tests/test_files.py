"""Files and folders that are whole or not there, also when several processes make them at once."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from surefoot.errors import InputError
from surefoot.files import make_folder, read_json, write_aside


def _interrupt(*_):
    raise KeyboardInterrupt


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file"
    for data in (b"first", b"second"):
        write_aside(path, data)
        assert path.read_bytes() == data and os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_file_that_is_cut_short_leaves_what_there_was(tmp_path, monkeypatch, where):
    write_aside(tmp_path / "file", b"before")
    monkeypatch.setattr(os, where, _interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_aside(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]


def test_two_write_one_file_at_once(tmp_path, monkeypatch):
    """Both have written theirs aside before either is renamed."""
    both, sync = threading.Barrier(2, timeout=10), os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (sync(f), both.wait()))
    data = [b"a" * 100_000, b"b" * 90_000]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda d: write_aside(tmp_path / "file", d), data))
    assert (tmp_path / "file").read_bytes() in data and os.listdir(tmp_path) == ["file"]


def test_a_folder_is_made_once(tmp_path):
    def fill(aside):
        (aside.parent / "scratch").write_text("thrown away")
        (aside / "inside").mkdir()
        (aside / "inside" / "file").write_text("kept")

    folder = make_folder(tmp_path / "new" / "folder", fill)
    assert (folder / "inside" / "file").read_text() == "kept" and os.listdir(folder.parent) == ["folder"]
    usual = tmp_path / "usual"
    usual.mkdir()
    assert folder.stat().st_mode == usual.stat().st_mode, "as open to others as any folder"
    assert make_folder(folder, _interrupt) == folder


def test_a_folder_that_is_cut_short_is_not_there(tmp_path):
    def fill(aside):
        (aside / "half").write_text("of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_folder(tmp_path / "folder", fill)
    assert not os.listdir(tmp_path)


def test_two_make_one_folder_at_once(tmp_path):
    """Both have filled theirs before either is renamed: one stays, both get it."""
    both = threading.Barrier(2, timeout=10)

    def fill_with(text):
        def fill(aside):
            for name in ("one", "two"):
                (aside / name).write_text(text)
            both.wait()

        return fill

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda t: make_folder(tmp_path / "folder", fill_with(t)), "ab"))
    assert made == [tmp_path / "folder"] * 2 and os.listdir(tmp_path) == ["folder"]
    assert (made[0] / "one").read_text() == (made[0] / "two").read_text()


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    def fill(aside):
        (tmp_path / "folder").write_text("no folder")

    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "folder", fill)
    assert os.listdir(tmp_path) == ["folder"]


def test_what_is_no_json_is_one_line(tmp_path):
    (tmp_path / "good").write_text('{"é": [1]}', encoding="utf-8")
    assert read_json(tmp_path / "good") == {"é": [1]}
    for data, complaint in ((b'{"a": 1,\n "b" 2}', "line 2 column 6: .*expected JSON"), (b"\xff", "not UTF-8")):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(InputError, match=complaint):
            read_json(tmp_path / "bad")
