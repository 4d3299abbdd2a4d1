"""The console script ``afire``; heavy imports wait until the command line is known to be valid."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from afire_monai import __version__
from afire_monai.cli.arguments import CommandTree, parse
from afire_monai.cli.cache import cache
from afire_monai.cli.check import check
from afire_monai.cli.crossvalidate import crossvalidate
from afire_monai.cli.datalist import PUBLIC_DATASETS, from_csv, from_folder, merge, phantom, validate
from afire_monai.cli.demo import demo
from afire_monai.cli.hospital import dicom_results, forget, ingest, node, send
from afire_monai.cli.planning import plan
from afire_monai.cli.predictions import evaluate, export, figures, predict, reference
from afire_monai.cli.runs import check_bundle, copy, finetune, path, pretrain, segment
from afire_monai.cli.training import import_release, probe, report, ui, worth
from afire_monai.core.errors import user_error
from afire_monai.core.files import close_to_others
from afire_monai.core.quiet import show_any_text

COMMANDS: CommandTree = {
    "demo": demo,
    "datalist": {
        "from-csv": from_csv,
        "from-folder": from_folder,
        "merge": merge,
        "phantom": phantom,
        "validate": validate,
        **PUBLIC_DATASETS,
    },
    "bundle": {"check": check_bundle, "copy": copy, "path": path},
    "cache": cache,
    "check": check,
    "crossvalidate": crossvalidate,
    "dicom-results": dicom_results,
    "evaluate": evaluate,
    "export": export,
    "figures": figures,
    "finetune": finetune,
    "forget": forget,
    "import-release": import_release,
    "ingest": ingest,
    "node": node,
    "plan": plan,
    "pretrain": pretrain,
    "predict": predict,
    "probe": probe,
    "reference": reference,
    "report": report,
    "segment": segment,
    "send": send,
    "ui": ui,
    "worth": worth,
}
ABOUT = """
Building and checking data lists: afire datalist --help
Pre-training: afire pretrain mine.json --out runs/mine
The same by MONAI's bundle runner: afire bundle copy FOLDER"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit status.

    0: done; 1: done, and problems were found (``check``, ``validate``); 2: the command line or its input is wrong;
    130: interrupted.

    Args:
        arguments: the words after the program's name; None for those of this process.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit status (see :func:`main`)."""
    show_any_text()
    if list(arguments) == ["--version"]:
        print(f"afire-monai {__version__}")
        return 0
    try:
        close_to_others()
        call = parse(COMMANDS, arguments)
        if isinstance(call, str):
            print(call.rstrip())
            if not any(word in COMMANDS for word in arguments):
                print(ABOUT)
            return 0
        return call()
    except KeyboardInterrupt:
        print("\nafire: interrupted; every file that was finished is whole, none is half written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of a pipe went away (`afire check … | head`): Python's own last flush must not complain about it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        cause = user_error(error)
        if cause is None or os.environ.get("AFIRE_TRACEBACK"):
            raise
        print(f"afire: {cause}", file=sys.stderr)
        return 2
