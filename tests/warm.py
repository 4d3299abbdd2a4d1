"""Programs in processes of their own that need not import torch and MONAI first: six seconds of computing for each.

A process that has imported them and done nothing else, the server, forks for each program. A program is started as the
interpreter starts it: a module, a script or a string is ``__main__`` with words, a folder, an environment and a file
for what it prints of its own, and it can be killed. Where the import itself is tested (its time, what it changes, what
the environment does to it), start an interpreter.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pytest", "afire_monai", "monai.bundle", "afire_monai.training", "afire_monai.predictions.predict"]
)
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
#: what torchrun tells each of its processes
RANK = ("RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_", "MASTER_", "TORCH")


class Program:
    """A program that runs: what `subprocess.Popen` is for an interpreter.

    Args:
        words: as they follow ``python``: ``-m MODULE``, ``-c CODE`` or a script, and its arguments.
        folder: where it works; None for this process's.
        log: file to which it adds what it prints. Processes of torchrun leave their numbers beside it, in files such
            as ``LOG.0.pid``.
        environment: changes to the environment, which is this process's without a GPU and with one thread.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        log: Path,
        folder: Path | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.log = log
        log.touch()
        arguments = ([str(word) for word in words], str(folder or Path.cwd()), {**os.environ, **ALONE, **environment})
        self._process = SERVER.Process(target=run_program, args=(*arguments, str(log.absolute())))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            self.kill()
            raise subprocess.TimeoutExpired(str(self.log), timeout, self.output())
        return code

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        """What it has printed, errors included."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def run_program(words: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    """Be the program: the first function of the new process."""
    gc.freeze()  # its collections need not go through the libraries
    if "RANK" in os.environ:
        Path(f"{log}.{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    rank = {name: value for name, value in os.environ.items() if name.startswith(RANK)}
    os.environ.clear()
    os.environ.update({**rank, **environment})
    os.chdir(folder)
    os.umask(0o022)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # torchrun listens to these
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    multiprocessing.set_start_method(None, force=True)  # what a program starts itself is started as usual
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    try:
        if words[:2] == ["-m", "torch.distributed.run"]:
            launch(words[2:], environment, log)
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).absolute().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        # torchrun waits for the word of a process that has ended well
        if end.code:
            raise
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def launch(options: list[str], environment: dict[str, str], log: str) -> None:
    """Be torchrun, which forks its processes instead of starting an interpreter for each."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    arguments = parse_args(options)
    if arguments.standalone:
        arguments.rdzv_backend, arguments.rdzv_endpoint, arguments.rdzv_id = "c10d", "localhost:0", log
    config, _, words = config_from_args(arguments)
    config.start_method = "fork"
    elastic_launch(config, run_program)(words[1:], os.getcwd(), environment, log)


def run(
    words: Sequence[str | Path],
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
    timeout: float = 300,
) -> Program:
    """Run a program to its end, which has to be a good one (arguments of `Program`)."""
    program = Program(words, log, folder, environment)
    assert program.wait(timeout) == 0, program.output()[-4000:]
    return program
