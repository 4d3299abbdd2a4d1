"""Commands that take their options from the function that does the work, without importing it."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any

import afire_monai

EXPANDED: dict[str, dict[str, tuple[str, Any, str]]] = {
    "progress": {"quiet": ("bool", False, "no progress bar.")},
    "reader": {
        "png16_max": (
            "str | None",
            None,
            "white level of 16-bit PNG: a number such as 4095, dtype (65535) or image (its largest value).",
        ),
        "modalities": ("Sequence[str] | None", None, "DICOM modalities to read, separated by commas; any for all."),
        "window_index": ("int | None", None, "which DICOM window or VOI LUT to use if a file has several."),
    },
    "server": {
        "ca": ("str | None", None, "PEM file of the authorities to trust instead of the built-in ones."),
        "timeout": ("float", 60.0, "seconds to wait for a connection or a part of an answer."),
        "retries": ("int", 4, "how often to repeat a request that got no answer."),
        "insecure": ("bool", False, "allow credentials over plain http to another machine."),
    },
    "dimse": {
        "pacs": (
            "str | None",
            None,
            "archive without DICOMweb, as AET@HOST:PORT; needs pip install 'afire-monai[pacs]'.",
        ),
        "aet": ("str", "AFIRE", "AE title of this program, as the archive knows it."),
        "tls_ca": ("str | None", None, "PEM file of the authorities to trust; the connection then uses TLS."),
        "tls_cert": (
            "str | None",
            None,
            "PEM file of your certificate, for an archive (also DICOMweb) that asks for one.",
        ),
        "tls_key": ("str | None", None, "PEM file of its private key."),
    },
}
"""Parameters of functions, and the options that a command has in their place."""
USUAL = {
    "out": "JSON file to write.",
    "masks": "folder to write masks into; <list>_masks beside out unless given.",
    "fractions": "shares of training, validation and test.",
    "seed": "seed of the split.",
    "read_headers": "take sex, age and view from the DICOM headers (reads every file once).",
}
"""Meaning of options for functions that build a data list, unless their docstrings say otherwise."""


class Command:
    """A command: its options, its help, and how it is run.

    Args:
        run: function that is called and returns the exit status. With ``work`` it is called as
            ``run(work, **options)``; its own named parameters and lines of its docstring's Args come before those of
            ``work``.
        work: ``module:function`` that does the work; imported when ``run`` calls it, so that ``run`` can refuse wrong
            paths before anything heavy is loaded. Without it, all options are those of ``run``.
        words: parameters that are given without an option, in order; with a star, the last takes all words that follow.
        hide: parameters of ``work`` for Python callers only.
    """

    def __init__(
        self, run: Callable[..., int], work: str = "", words: Sequence[str] = (), hide: Collection[str] = ()
    ) -> None:
        self.run, self.work, self.words, self.hide = run, work, tuple(words), frozenset(hide)
        self.example = ""

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """Options with their defaults; annotations are texts."""
        own = dict(inspect.signature(self.run).parameters)
        if self.work:
            del own[next(iter(own))]
            own = {name: p for name, p in own.items() if p.kind is not Parameter.VAR_KEYWORD}
            own = {**_parameters(self.work), **own}
        found: list[Parameter] = []
        for name, parameter in own.items():
            if name in EXPANDED:
                options = EXPANDED[name].items()
                found += [Parameter(k, Parameter.KEYWORD_ONLY, default=d, annotation=a) for k, (a, d, _) in options]
            elif name not in self.hide:
                found.append(self._as_option(parameter) if self.work else parameter)
        order = {word.lstrip("*"): place for place, word in enumerate(self.words)}
        return inspect.Signature(sorted(found, key=lambda p: (p.kind, order.get(p.name, 0))))

    def _as_option(self, parameter: Parameter) -> Parameter:
        name = parameter.name
        if f"*{name}" in self.words:
            return parameter.replace(kind=Parameter.VAR_POSITIONAL, default=Parameter.empty)
        if name in self.words:
            return parameter.replace(kind=Parameter.POSITIONAL_OR_KEYWORD)
        # files are only written to a place that was named
        default = Parameter.empty if name == "out" else parameter.default
        return parameter.replace(kind=Parameter.KEYWORD_ONLY, default=default)

    @property
    def doc(self) -> str:
        """Summary, examples and a line for each option."""
        head, lines = _sections(inspect.getdoc(self.run) or "")
        if self.work:
            other, documented = _sections(_source(self.work)[1])
            head, lines = head or f"{other}\n\nExample: {self.example}", {**USUAL, **documented, **lines}
        for options in EXPANDED.values():
            lines = {**{name: line for name, (_, _, line) in options.items()}, **lines}
        entries = [f"    {name}: {lines[name]}" for name in self.signature.parameters if name in lines]
        return "\n".join([head, *(["", "Args:"] if entries else []), *entries]).replace("``", "")

    def call(self, given: dict[str, Any]) -> int:
        """Run the command with the given options; other options keep the defaults of the function."""
        for name, options in EXPANDED.items():
            if set(options) <= set(self.signature.parameters):
                some = {key: given.pop(key) for key in options if key in given}
                given[name] = reader_arguments(**some) if name == "reader" else some
        if "progress" in given:
            given["progress"] = not given["progress"].get("quiet", False)
        if self.work:
            return self.run(functools.partial(_do, self.work), **given)
        order = inspect.signature(self.run)
        bound = inspect.BoundArguments(order, {name: given[name] for name in order.parameters if name in given})
        return self.run(*bound.args, **bound.kwargs)


def front(work: str, *words: str, hide: Collection[str] = ()) -> Callable[[Callable[..., int]], Command]:
    """Decorate the front of a function that does the work; see `Command`."""
    return lambda run: Command(run, work, words, hide)


def reader_arguments(
    png16_max: str | None = None, modalities: Sequence[str] | None = None, window_index: int | None = None
) -> dict[str, Any]:
    """Return the arguments of the reader that were given on a command line.

    Raises RadiographError if an argument has an invalid value.
    """
    from afire_monai.radiographs.decode import checked_options

    given: dict[str, Any] = {}
    if png16_max is not None:
        given["png16_max"] = int(png16_max) if png16_max.isdecimal() else png16_max
    if modalities is not None:
        names = [name.strip() for name in modalities]
        given["modalities"] = None if [name.lower() for name in names] == ["any"] else names
    if window_index is not None:
        given["window_index"] = window_index
    return checked_options(given, "command line")


def _do(work: str, *values: Any, **options: Any) -> Any:
    module, _, name = work.partition(":")
    return getattr(import_module(module), name)(*values, **options)


@functools.cache
def _source(work: str) -> tuple[ast.FunctionDef, str]:
    """Return a function's definition and docstring from its file, without running the imports there."""
    module, _, name = work.partition(":")
    path = Path(afire_monai.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    function = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
    return function, ast.get_docstring(function) or ""


def _parameters(work: str) -> dict[str, Parameter]:
    arguments = _source(work)[0].args
    both = [*arguments.args, *arguments.kwonlyargs]
    missing = [None] * (len(arguments.args) - len(arguments.defaults))
    defaults = [*missing, *arguments.defaults, *arguments.kw_defaults]
    return {
        argument.arg: Parameter(
            argument.arg,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if default is None else _value(default, work),
            annotation=ast.unparse(argument.annotation) if argument.annotation else "str",
        )
        for argument, default in zip(both, defaults, strict=True)
    }


def _value(default: ast.expr, work: str) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError:  # the name of a constant
        return getattr(import_module(work.partition(":")[0]), ast.unparse(default))


def _sections(doc: str) -> tuple[str, dict[str, str]]:
    """Divide a docstring into the text before its sections and the descriptions of its arguments."""
    head = re.split(r"^(?:Args|Returns|Raises|Yields):\n", doc, maxsplit=1, flags=re.M)[0].rstrip()
    section = re.search(r"^Args:\n((?:(?: .*)?\n)*(?: .*)?)", doc, flags=re.M)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", flags=re.M)
    # on one line each: Fire would take a word and a colon at the start of a further line for another parameter
    return head, {name: " ".join(line.split()) for name, line in entries}
