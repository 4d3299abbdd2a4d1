"""Run the shipped MONAI bundle from Python, as ``python -m monai.bundle run`` does."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import afire_monai
from afire_monai.core.errors import AfireError, user_error

CONFIGS = ("pretrain.yaml", "method_afire.yaml")


def bundle_root() -> Path:
    """Find the bundle's folder: in the installed package, or beside it in a source checkout.

    Raises AfireError if it is in neither place.
    """
    package = Path(afire_monai.__file__).parent
    for folder in (package / "bundle", package.parent / "bundle"):
        if (folder / "configs" / CONFIGS[0]).is_file():
            return folder
    raise AfireError(f"the bundle's configs are not beside the package in {package.parent}; reinstall the package")


def run_configs(settings: dict[str, Any], configs: tuple[str, ...] = CONFIGS) -> None:
    """Train through the bundle in this process: pre-training unless other configs are named.

    Args:
        settings: overrides of the configs, as after ``--`` on the bundle's command line; ``output_dir`` is needed.
        configs: config files, later ones override earlier ones.

    Raises:
        AfireError: the original error, without those that MONAI wraps around it.
    """
    from monai.bundle import ConfigWorkflow

    from afire_monai.training import run_folder, startup

    files = [str(bundle_root() / "configs" / name) for name in configs]
    # text that could be read as another type is quoted
    shown = {k: repr(v) if isinstance(v, str) and _changes(v) else str(v) for k, v in settings.items()}
    words = [word for key, value in shown.items() for word in (f"--{key}", value)]
    startup.prepare_run(settings["output_dir"], ["run", "--config_file", str(files), *words])
    _calm_logging()
    with warnings.catch_warnings():
        # MONAI warns that a config is code; these configs came with the package
        warnings.filterwarnings("ignore", message="parsing config_file")
        warnings.filterwarnings("ignore", category=FutureWarning)
        # warnings of an optional decoder that is not needed here
        warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
        meta = str(bundle_root() / "configs" / "metadata.json")
        try:
            workflow = ConfigWorkflow(config_file=files, meta_file=meta, logging_file=False, **settings)
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except Exception as error:
            cause = user_error(error)
            if cause is None:
                raise
            raise cause from error
        finally:
            run_folder.release(Path(settings["output_dir"]))


def _changes(text: str) -> bool:
    import fire.parser

    return bool(fire.parser.DefaultParseValue(text) != text)


def _calm_logging() -> None:
    """Show this package's messages, and only the warnings of others."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("afire_monai").setLevel(logging.INFO)
    # they say that there is no logging file (on purpose), an optional decoder is absent, or a database is set up
    for name in ("monai.bundle.workflows", "monai.data.nvimgcodec_pydicom_plugin", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it says that an error ends the run; the code that catches the error says this better
    logging.getLogger("ignite.engine.engine.PretrainTrainer").setLevel(logging.CRITICAL)
