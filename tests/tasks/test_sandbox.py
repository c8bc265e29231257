"""The sandbox: each limit, by a program that meets it."""

import os
import sys

import pytest

from surefoot.tasks.sandbox import Limits, run, run_all

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
LIMITS = Limits(seconds=3.0, memory_mb=256, file_mb=1, scratch_mb=4)
FILL = "i = 0\nwhile True:\n  i += 1; open(str(i), 'wb').write(bytes({size}))"
REFUSED = {
    "memory": ("x = bytearray(10**9)", "MemoryError"),
    "a process by fork": ("import os; os.fork()", "PermissionError"),
    "a process by subprocess": ("import subprocess; subprocess.run(['/bin/true'])", "PermissionError"),
    "a process by multiprocessing": ("import multiprocessing as m; m.Process(target=print).start()", "PermissionError"),
    "another program": ("import os; os.execv('/bin/true', ['true'])", "PermissionError"),
    "network": ("import socket; socket.socket()", "PermissionError"),
    "a socket to a file": ("import socket; socket.socket(socket.AF_UNIX)", "PermissionError"),
    "a large file": ("open('a', 'wb').write(b'x' * (2 << 20))", "File too large"),
    "a large output": ("print('x' * (2 << 20), flush=True)", "File too large"),
    "many files": (FILL.format(size=1 << 20), "larger than 4 MB together"),
    "many small files": (FILL.format(size=0), "larger than 4 MB together"),
    "folders": ("import os; os.mkdir('a')", "Permission denied"),
    "a file of the system": ("open('/etc/passwd').read()", "Permission denied"),
    "our files": (f"open({__file__!r}).read()", "Permission denied"),
    "writing elsewhere": ("open('/tmp/surefoot-evil', 'w')", "Permission denied"),
    "our modules": ("import surefoot", "No module named 'surefoot'"),
    "our modules by path": (f"import sys; sys.path.insert(0, {os.getcwd()!r}); import surefoot", "No module named"),
    "installed packages": ("import numpy", "No module named 'numpy'"),
    "other limits": ("import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1 << 40, 1 << 40))", "Error"),
    "signals": (f"import os; os.kill({os.getpid()}, 0)", "PermissionError"),
    "modes of files": ("import os; os.chmod('/tmp', 0o777)", "PermissionError"),
    "mistakes": ("1 / 0", "ZeroDivisionError"),
    "syntax": ("print(", "SyntaxError"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    code, error = REFUSED[what]
    ran = run(code, LIMITS)
    assert not ran.ok and not ran.timed_out and error in ran.error, ran
    assert "_jail" not in ran.error, "only the program's own frames are shown"


def test_below_the_system_library_there_is_nothing_either():
    """The same calls by number, past Python's own modules."""
    code = "import ctypes; c = ctypes.CDLL(None); print(c.fork(), c.socket(2, 1, 0), c.ptrace(0, 0, 0, 0))"
    assert run(code, LIMITS).output.split() == ["-1", "-1", "-1"]


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
def test_time(code):
    ran = run(code, Limits(seconds=0.5))
    assert ran.timed_out and not ran.ok


def test_what_is_allowed():
    ran = run("import math, json, fractions, threading\nprint(math.comb(10, 3), fractions.Fraction(2, 6))", LIMITS)
    assert ran.ok and ran.output == "120 1/3\n"
    assert run("open('f', 'w').write('hi'); print(open('f').read())", LIMITS).output == "hi\n"
    thread = "import threading as t; a = t.Thread(target=print, args=('there',)); a.start(); a.join()"
    assert run(thread, LIMITS).output == "there\n"


def test_a_program_finds_an_empty_folder_and_may_clear_it():
    ran = run("import os; print(os.listdir('.')); [os.remove(n) for n in os.listdir('.')]", LIMITS)
    assert ran.ok and ran.output == "[]\n"


def test_programs_share_nothing(monkeypatch):
    monkeypatch.setenv("SECRET", "42")
    ran = run_all(["open('f', 'w'); import os; print(os.listdir('.'))", "import os; print('SECRET' in os.environ)"])
    assert "'f'" in ran[0].output and ran[1].output == "False\n"
    assert "'f'" not in run("import os; print(os.listdir('.'))").output


def test_files_that_were_removed_do_not_count_and_those_that_are_left_do():
    """The check at the end sees what a program wrote between two looks."""
    one = "open(str(i), 'wb').write(bytes(1 << 20))"
    assert run(f"import os\nfor i in range(12):\n  {one}; os.remove(str(i))", LIMITS).ok
    assert "larger than 4 MB" in run(f"for i in range(5):\n  {one}", LIMITS).error


def test_a_program_of_many_pages_arrives_whole():
    assert run("#" * 300_000 + "\nprint(7)", LIMITS).output == "7\n", "more than a pipe holds"
    assert run("print(input())", LIMITS).error.endswith("EOFError: EOF when reading a line\n")


def test_output_is_cut():
    ran = run("import sys\nprint('a' * 9999)\nprint('b' * 9999, 'end', file=sys.stderr)", Limits(output=100))
    assert ran.output == "a" * 100 and len(ran.error) == 100 and ran.error.endswith("end\n")
