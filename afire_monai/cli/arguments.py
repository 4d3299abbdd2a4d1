"""Parse the command line completely before anything runs."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from afire_monai.cli.fronts import Command
from afire_monai.core.errors import AfireError

CommandTree = dict[str, Any]
SWITCHES = ("true", "false")
"""Values of a switch, in any case; a switch alone is true."""


class UsageError(AfireError):
    """The command line cannot be understood."""


def parse(tree: CommandTree, arguments: Sequence[str]) -> Callable[[], int] | str:
    """Let Fire match the words of a command line to a command's parameters.

    On its own, Fire calls a command before it has checked all words, so that a misspelt option is noticed only after
    minutes of work. Here it only calls stand-ins, and the real call is returned.

    Args:
        tree: commands by name, each a `Command` or a function; a dictionary within is a group of commands.
        arguments: the words after the program's name.

    Returns:
        The call to make, or a text to show if help was asked for or a group was named without a command.

    Raises:
        UsageError: for an unknown command or option, or a missing or superfluous value.
    """
    import fire

    words, at = _named(tree, arguments)
    settings = at.signature.parameters.get("settings") if isinstance(at, Command) else None
    if settings is not None and settings.kind is settings.VAR_POSITIONAL:  # and not the option of `crossvalidate`
        arguments = [*words, *_with_settings(at, arguments[len(words) :])]
    if len(words) < len(arguments) and any(word in ("-h", "--help") for word in arguments):
        arguments = [*words, "--help"]
    elif len(words) == len(arguments) and isinstance(at, dict):
        arguments = [*arguments, "--help"]
    pending: list[Callable[[], int]] = []
    output = io.StringIO()
    # sources of commands that are neither called nor listed need not be read
    shown = {name: {} if isinstance(one, dict) else one for name, one in at.items()} if isinstance(at, dict) else at
    narrow = functools.reduce(lambda inner, word: {word: inner}, words[::-1], shown)
    try:
        with contextlib.redirect_stderr(output):
            fire.Fire(_stand_ins(narrow, pending), command=list(arguments), name="afire", serialize=lambda _: None)
    except fire.core.FireExit as stop:
        if stop.code == 0:
            return _tidy_help(output.getvalue())
        raise UsageError(_explain(stop.trace.elements[-1].ErrorAsStr(), at, words, arguments)) from None
    return pending[0]


def _named(tree: CommandTree, arguments: Sequence[str]) -> tuple[list[str], Any]:
    """Return the leading words that name a group or a command, and that group or command."""
    words: list[str] = []
    at: Any = tree
    for argument in arguments:
        if not isinstance(at, dict) or argument not in at:
            break
        at = at[argument]
        words.append(argument)
    return words, at if isinstance(at, dict | Command) else Command(at)


def _with_settings(command: Command, typed: Sequence[str]) -> list[str]:
    """Write ``--key value`` as ``key=value``, behind the other words, where the key is no option of the command.

    Settings are options of MONAI's bundle runner, so people and messages write them in that way.
    """
    own = [name for name in command.signature.parameters if name != "settings"]
    switches = _switches(command)
    others: list[str] = []
    settings: list[str] = []
    named = False
    waiting = list(typed)
    while waiting:
        word = waiting.pop(0)
        spelt, equals, value = word.lstrip("-").partition("=")
        key = spelt.replace("-", "_")
        meant = [name for name in own if word.startswith("-") and key in (name, name[0])]
        if not word.startswith("-"):
            (settings if named else others).append(word)
            named = True
        elif meant and not equals:
            # with its value at once, or it would take a setting behind it for one
            has_value = bool(waiting) and (
                waiting[0].lower() in SWITCHES if meant[0] in switches else not waiting[0].startswith("--")
            )
            others.append(f"--{meant[0]}={waiting.pop(0) if has_value else True}")
        elif meant or not word.startswith("--") or key == "help" or difflib.get_close_matches(key, own, 1, 0.8):
            others.append(word)
        elif equals or (waiting and not waiting[0].startswith("--")):
            settings.append(f"{key}={value if equals else waiting.pop(0)}")
        else:
            others.append(word)
    return [*others, *settings]


def _stand_ins(tree: CommandTree, pending: list[Callable[[], int]]) -> CommandTree:
    """Copy the tree with functions that note the call to make, and leave all values as they were typed."""
    import fire

    def stand_in(command: Command) -> Callable[..., None]:
        def note(*values: str, **options: str) -> None:
            pending.append(functools.partial(_call, command, values, options))

        # without annotations Fire's help does not repeat them in its own notation
        plain = [p.replace(annotation=p.empty) for p in command.signature.parameters.values()]
        note.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]  # what inspect looks for
        note.__doc__ = command.doc
        return fire.decorators.SetParseFn(str)(note)

    return {
        name: _stand_ins(one, pending)
        if isinstance(one, dict)
        else stand_in(one if isinstance(one, Command) else Command(one))
        for name, one in tree.items()
    }


def _call(command: Command, values: Sequence[str], options: dict[str, str]) -> int:
    given = command.signature.bind(*values, **options).arguments
    for name, text in given.items():
        if text is None:  # an optional word that was left out
            continue
        parameter = command.signature.parameters[name]
        several, kind = parameter.kind is parameter.VAR_POSITIONAL, parameter.annotation
        given[name] = [str(one) for one in text] if several else convert(name, text, kind)
    return command.call(given)


def convert(name: str, text: str, annotation: str) -> Any:
    """Turn the text of one option into a value of its type.

    Args:
        name: name of the parameter.
        text: the word that was typed; ``True`` for an option without a value.
        annotation: the parameter's type as written. ``int``, ``float`` and ``bool``, and sequences of these or of
            ``str``, are converted; every other type is a text. With ``None`` among them, ``none`` is None.

    Raises:
        UsageError: if the text is no such value.
    """
    kinds = annotation.split(" | ")
    option = "--" + name.replace("_", "-")
    if "None" in kinds and text.lower() == "none":
        return None
    if "bool" in kinds:
        if text.lower() not in SWITCHES:
            raise UsageError(f"{option} is a switch and takes no value but true or false, got {text!r}")
        return text.lower() == "true"
    if text == "True":
        raise UsageError(f"{option} needs a value")
    sequences = [match[1] for kind in kinds if (match := re.match(r"(?:Sequence|Collection|tuple)\[(\w+)", kind))]
    kind = sequences[0] if sequences else next((kind for kind in kinds if kind in _SCALARS), "str")
    scalar = _count if kind == "int" and not sequences else _SCALARS.get(kind, str)
    inside = re.sub(r"^[(\[]([^()\[\]]*)[)\]]$", r"\1", text.strip())  # of (1,2), but not the end of a name (b)
    try:
        return tuple(scalar(one) for one in inside.split(",")) if sequences else scalar(text)
    except ValueError:
        expected = _PLURALS[kind] if sequences else _SINGULARS[kind]
        raise UsageError(f"{option} must be {expected}, got {text!r}") from None


def _count(text: str) -> int:
    if (number := int(text)) < 0:  # no option of one number has a meaning below 0
        raise ValueError
    return number


_SCALARS: dict[str, Callable[[str], Any]] = {"int": int, "float": float}
_SINGULARS = {"int": "a whole number of at least 0", "float": "a number"}
_PLURALS = {"int": "whole numbers with commas between them", "float": "numbers with commas between them"}


def _tidy_help(text: str) -> str:
    """Remove Fire's own remarks from its help, and write options as people type them."""
    text = re.sub(r"^INFO: Showing help.*\n+", "", text)
    text = re.sub(r"\n+GROUPS\n.*\n+ +FIRE_METADATA\n", "\n", text)
    text = re.sub(r"\n+NOTES\n.*\n?", "\n", text)
    text = re.sub(r"^ +(Type: Optional\[\]|Default: None)\n", "", text, flags=re.M)
    text = re.sub(r"^( +(?:-\w, )?--)(\w+)=\w+", lambda m: m[1] + m[2].replace("_", "-"), text, flags=re.M)
    # "GROUP | COMMAND" is right for a group of commands; a command has no groups in it
    return re.sub(r"GROUP \| (?!COMMAND)", "", text)


def _explain(message: str, at: Any, words: Sequence[str], arguments: Sequence[str]) -> str:
    """Return one line that names what is unknown, with the nearest name that exists, or what is missing."""
    problem, _, culprit = message.rpartition(": ")
    if isinstance(at, dict):
        known, kind = list(at), "command"
    else:
        known = ["--" + name.replace("_", "-") for name in at.signature.parameters]
        kind = "option" if culprit.startswith("-") else "word"
    if "required" in problem.lower():
        flag = "--" if "flags" in problem.lower() else ""
        missing = [flag + name.replace("_", "-") for name in sorted(re.findall(r"\w+", culprit))]
        line = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        line += _taken_by_a_switch(at, arguments)
    else:
        near = difflib.get_close_matches(culprit.partition("=")[0].replace("_", "-"), known, 1)
        line = f"unknown {kind} {culprit}" + (f"; did you mean {near[0]}?" if near else "")
    return f"{line} (`{' '.join(['afire', *words])} --help` shows what there is)"


def _switches(command: Command) -> list[str]:
    return [name for name, p in command.signature.parameters.items() if "bool" in p.annotation.split(" | ")]


def _taken_by_a_switch(command: Command, arguments: Sequence[str]) -> str:
    """Return the hint that a switch stands before a word that was meant for something else; "" if none does."""
    switches = _switches(command)
    for option, word in itertools.pairwise(arguments):
        typed = option.lstrip("-").replace("-", "_")
        meant = [name for name in switches if typed in (name, name[0])]
        if option.startswith("-") and meant and not word.startswith("-") and word.lower() not in SWITCHES:
            return f": the switch {option} takes no value; write {word} before it"
    return ""
