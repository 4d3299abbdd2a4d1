"""Locks on files, and that nothing but them needs a POSIX system to be imported and to train."""

import subprocess
import sys
import textwrap

import pytest

from afire_monai.core.files import lock_file


def test_a_locked_file_is_refused_to_others_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        lock_file(first)
        with pytest.raises(BlockingIOError):
            lock_file(second, wait=False)
        first.close()
        lock_file(second.fileno(), wait=False)


def test_every_module_but_the_label_servers_is_imported_without_posix_modules_and_signals():
    code = """
        import importlib, pkgutil, signal, sys

        import afire_monai.core.files, torch, monai.bundle  # this system's own libraries may use them

        for name in ("fcntl", "resource", "pwd", "grp", "termios"):
            sys.modules[name] = None
        for name in ("SIGUSR1", "SIGUSR2", "sigwaitinfo", "pthread_sigmask"):
            delattr(signal, name)
        import afire_monai

        names = [m.name for m in pkgutil.walk_packages(afire_monai.__path__, "afire_monai.")]
        for name in names:
            if not name.startswith(("afire_monai.label", "afire_monai.__main__")):
                importlib.import_module(name)
        print(len(names))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 150
