"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest

from afire_monai.core.errors import AfireError
from afire_monai.core.files import close_to_others, read_object, whole_file, write_object, write_text


@pytest.mark.parametrize("options", [{}, {"private": True}, {"shared": True}, {"sync": True}])
def test_file_takes_its_name_at_the_end_and_nothing_else_is_left(tmp_path, options):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with whole_file(path, **options) as part:
        part.write_bytes(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_full_disk_is_said_with_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.csv'"), whole_file(tmp_path / "a.csv"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_object_with_a_file_name_of_any_bytes_is_read_as_it_was_written(tmp_path):
    content = {"ä": os.fsdecode(b"gr\xfc\xdfe.dcm")}
    write_object(tmp_path / "a.json", content)
    assert read_object(tmp_path / "a.json") == content


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_leaves_the_earlier_file_alone(tmp_path, error):
    path = tmp_path / "a.csv"
    path.write_text("old")

    def write() -> None:
        with whole_file(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_private_file_is_never_readable_by_others_even_after_a_killed_run(tmp_path):
    path, left = tmp_path / "key", tmp_path / ".key.part"
    left.write_text("half, of a killed run")
    left.chmod(0o644)
    with whole_file(path, private=True) as part:
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        part.write_text("secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == "secret"


def test_several_processes_write_to_names_of_their_own(tmp_path):
    with whole_file(tmp_path / "a.json", shared=True) as part:
        assert str(os.getpid()) in part.name
        part.touch()


def test_text_is_utf8_with_its_own_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "ä\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\r\nb\n".encode()


@pytest.mark.parametrize(
    ("umask_before", "wanted", "mode"),
    [(0o022, "", 0o640), (0o077, "", 0o600), (0o022, "002", 0o664), (0o002, "", 0o660)],
)
def test_files_are_closed_to_others_unless_it_is_asked_for(umask_before, wanted, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("AFIRE_UMASK", wanted)
    os.umask(umask_before)
    close_to_others()
    (tmp_path / "a").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


CRASH = """
import os, resource, signal, sys
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
from afire_monai.core.files import close_to_others
if sys.argv[1] == "closed":
    close_to_others()
os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_a_crash_leaves_no_core_dump_with_pictures_and_names(tmp_path, monkeypatch):
    monkeypatch.delenv("AFIRE_TRACEBACK", raising=False)
    dumped = {}
    for how in ("open", "closed"):
        done = subprocess.Popen([sys.executable, "-c", CRASH, how], cwd=tmp_path)
        _, status = os.waitpid(done.pid, 0)
        done.returncode = 0
        assert os.WTERMSIG(status) == signal.SIGSEGV
        dumped[how] = os.WCOREDUMP(status)
    if not dumped["open"]:
        pytest.skip("this system writes no core dumps at all")
    assert not dumped["closed"]


@pytest.mark.parametrize("wanted", ["rw", "8", "0o77", "01777", "-1"])
def test_a_mask_for_others_that_is_no_octal_number_is_refused(wanted, monkeypatch):
    monkeypatch.setenv("AFIRE_UMASK", wanted)
    with pytest.raises(AfireError, match=r"AFIRE_UMASK.*octal"):
        close_to_others()
    assert os.umask(0o022) == 0o022
