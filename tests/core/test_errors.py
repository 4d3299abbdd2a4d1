"""Errors that a user can act on."""

from __future__ import annotations

import itertools

import pytest

from afire_monai.core.errors import RadiographError, causes, user_error


@pytest.mark.parametrize("name", ["a", "1", "/disc/IM/1", "SMITH^JOHN.dcm", "/x/(1)", "/x/.a", "in/röntgen 7"])
def test_a_reason_names_no_file_and_keeps_its_words_whatever_the_name(name):
    error = RadiographError("", name, "bad size", f"{name}: 1024 x 11 pixels, see '{name}' and /other/{name}.part")
    said = error.reason(f"/tmp/{name}").replace("/other/", "")
    assert said == "bad size: the file: 1024 x 11 pixels, see 'the file' and the file.part"


def test_errors_that_were_raised_from_one_another_are_gone_through_once():
    error, other = ValueError("one"), KeyError("other")
    error.__cause__, other.__context__ = other, error
    assert list(itertools.islice(causes(error), 3)) == [error, other]
    assert user_error(error) is None


def test_a_name_that_may_tell_who_it_is_goes_wherever_it_stands():
    assert RadiographError("no_SMITH_1: not read", "/in/SMITH").reason() == "refused: no_the file_1: not read"
