"""Commands take options and help from the functions that do the work."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from afire_monai.cli.fronts import EXPANDED, Command
from afire_monai.cli.main import COMMANDS


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
