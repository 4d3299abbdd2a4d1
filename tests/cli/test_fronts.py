"""Commands take options and help from the functions that do the work."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from afire_monai.cli.check import _classes
from afire_monai.cli.fronts import EXPANDED, Command, reader_arguments
from afire_monai.cli.main import COMMANDS
from afire_monai.core.errors import AfireError


def fronts(tree=COMMANDS):
    for name, one in tree.items():
        if isinstance(one, dict):
            yield from fronts(one)
        elif isinstance(one, Command) and one.work:
            yield pytest.param(one, id=name)


@pytest.mark.parametrize("command", fronts())
def test_options_and_defaults_are_those_of_the_function_that_is_called(command):
    module, _, name = command.work.partition(":")
    work = inspect.signature(getattr(import_module(module), name)).parameters
    own = inspect.signature(command.run).parameters
    assert command.hide <= set(work)
    assert {word.lstrip("*") for word in command.words} <= set(work)
    for option, parameter in command.signature.parameters.items():
        if option in work and option not in own and option != "out" and option not in command.words:
            assert parameter.default == work[option].default, option
    expected = set(work) - set(command.hide) - set(EXPANDED)
    assert expected <= set(command.signature.parameters)


@pytest.mark.parametrize("command", fronts())
def test_every_option_has_a_line_of_help(command):
    missing = [name for name in command.signature.parameters if f"\n    {name}: " not in command.doc]
    assert missing == []


def test_digits_that_are_no_number_are_refused_in_words():
    with pytest.raises(AfireError, match="png16_max is '²'"):
        reader_arguments("²")
    with pytest.raises(AfireError, match="NAME=VALUE"):
        _classes("lung=²")
