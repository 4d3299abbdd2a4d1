"""From words on the command line to checked calls: nothing runs before every word has been understood."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from afire_monai.core.errors import AfireError
from afire_monai.core.errors import user_error as user_error

Command = Callable[..., int]
CommandTree = dict[str, Any]


class UsageError(AfireError):
    """The command line cannot be understood."""


def parse(tree: CommandTree, arguments: Sequence[str]) -> Callable[[], int] | str:
    """Let Fire match the words of a command line to a command's parameters.

    Fire by itself calls a command before it has looked at all words, so that a misspelt option is noticed after
    minutes of work. Here it only ever calls stand-ins, and the real call is handed back.

    Args:
        tree: commands by name; a dictionary within is a group of commands.
        arguments: the words after the program's name.

    Returns:
        The call to make, or a text to show if help was asked for or a group was named without a command.

    Raises:
        UsageError: for an unknown command or option, a missing or a superfluous value.
    """
    import fire

    words = _command_words(tree, arguments)
    if len(words) < len(arguments) and any(word in ("-h", "--help") for word in arguments):
        arguments = [*words, "--help"]
    elif len(words) == len(arguments) and isinstance(_look_up(tree, words), dict):
        arguments = [*arguments, "--help"]
    pending: list[Callable[[], int]] = []
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            fire.Fire(_stand_ins(tree, pending), command=list(arguments), name="afire", serialize=lambda _: None)
    except fire.core.FireExit as stop:
        if stop.code == 0:
            return _tidy_help(said.getvalue())
        raise UsageError(_explain(stop.trace.elements[-1].ErrorAsStr(), tree, words)) from None
    return pending[0]


def _stand_ins(tree: CommandTree, pending: list[Callable[[], int]]) -> CommandTree:
    """Copy the tree with functions that note what is to be called, and leave all values as they were typed."""
    import fire

    def stand_in(command: Command) -> Callable[..., None]:
        @functools.wraps(command)
        def note(*values: str, **options: str) -> None:
            pending.append(functools.partial(_call, command, values, options))

        # without annotations Fire's help does not repeat them in its own notation
        plain = [p.replace(annotation=p.empty) for p in inspect.signature(command).parameters.values()]
        note.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]  # what inspect looks for
        return fire.decorators.SetParseFn(str)(note)

    return {k: _stand_ins(v, pending) if isinstance(v, dict) else stand_in(v) for k, v in tree.items()}


def _call(command: Command, values: Sequence[str], options: dict[str, str]) -> int:
    signature = inspect.signature(command)
    bound = signature.bind(*values, **options)
    for name, text in bound.arguments.items():
        parameter = signature.parameters[name]
        several = parameter.kind is parameter.VAR_POSITIONAL
        kind = parameter.annotation
        bound.arguments[name] = [convert(name, t, kind) for t in text] if several else convert(name, text, kind)
    return command(*bound.args, **bound.kwargs)


def convert(name: str, text: str, annotation: str) -> Any:
    """Turn the text of one option into a value of its type.

    Args:
        name: of the parameter.
        text: what was typed; ``True`` for an option without a value.
        annotation: the parameter's type as written: ``str``, ``int``, ``float``, ``bool``, ``tuple[str, ...]``,
            ``tuple[int, ...]``, ``tuple[float, ...]``, each perhaps with ``| None``.

    Raises:
        UsageError: if the text is no such value.
    """
    kind, _, optional = annotation.partition(" | ")
    option = "--" + name.replace("_", "-")
    if optional and text.lower() == "none":
        return None
    if kind == "bool":
        if text not in ("True", "False"):
            raise UsageError(f"{option} is a switch and takes no value, got {text!r}")
        return text == "True"
    if text == "True":
        raise UsageError(f"{option} needs a value")
    try:
        return (
            _SCALARS[kind](text)
            if kind in _SCALARS
            else tuple(_SCALARS[kind[6:-6]](t) for t in text.strip("()[] ").split(","))
        )
    except ValueError:
        raise UsageError(f"{option} must be {_IN_WORDS[kind]}, got {text!r}") from None


_SCALARS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
_IN_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "tuple[int, ...]": "whole numbers with commas between them",
    "tuple[float, ...]": "numbers with commas between them",
}


def _tidy_help(text: str) -> str:
    """Take what is about Fire and not about the command out of its help, and write options as people type them."""
    text = re.sub(r"^INFO: Showing help.*\n+", "", text)
    text = re.sub(r"\n+GROUPS\n.*\n+ +FIRE_METADATA\n", "\n", text)
    text = re.sub(r"\n+NOTES\n.*\n?", "\n", text)
    text = re.sub(r"^ +(Type: Optional\[\]|Default: None)\n", "", text, flags=re.M)
    text = re.sub(r"^( +(?:-\w, )?--)(\w+)=\w+", lambda m: m[1] + m[2].replace("_", "-"), text, flags=re.M)
    # "GROUP | COMMAND" is right for a group of commands; a command has no groups in it
    return re.sub(r"GROUP \| (?!COMMAND)", "", text)


def _command_words(tree: CommandTree, arguments: Sequence[str]) -> list[str]:
    """Give the leading words that name a group or a command."""
    words: list[str] = []
    at: Any = tree
    for argument in arguments:
        if not isinstance(at, dict) or argument not in at:
            break
        at = at[argument]
        words.append(argument)
    return words


def _look_up(tree: CommandTree, words: Sequence[str]) -> Any:
    return functools.reduce(lambda at, word: at[word], words, tree)


def _explain(message: str, tree: CommandTree, words: Sequence[str]) -> str:
    """Say in one line what Fire did not understand, with the nearest name that exists."""
    at = _look_up(tree, words)
    what, _, culprit = message.rpartition(": ")
    if isinstance(at, dict):
        known, kind = list(at), "command"
    else:
        known = ["--" + name.replace("_", "-") for name in inspect.signature(at).parameters]
        kind = "option" if culprit.startswith("-") else "word"
    if "required" in what.lower():
        missing = culprit.strip("{}'\" ").replace("_", "-")
        problem = f"{missing} is missing" if "flags" not in what.lower() else f"--{missing.lstrip('-')} is missing"
    else:
        near = difflib.get_close_matches(culprit.partition("=")[0].replace("_", "-"), known, 1)
        problem = f"unknown {kind} {culprit}" + (f"; did you mean {near[0]}?" if near else "")
    return f"{problem} (`{' '.join(['afire', *words])} --help` shows what there is)"
