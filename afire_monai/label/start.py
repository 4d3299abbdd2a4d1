"""Starts MONAI Label's server as its own command does, without its list of paths and settings on the console."""

from __future__ import annotations

import logging


def main() -> None:
    """Take the arguments of ``python -m monailabel.main``."""
    from monailabel.main import Main

    Main(loglevel=logging.ERROR).run()


if __name__ == "__main__":
    main()
