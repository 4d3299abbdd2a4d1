from __future__ import annotations

import pytest

from afire_monai.engines.settings import parse_value, refuse_wrong_values
from afire_monai.errors import AfireError

CONFIG = {"epochs": 50, "lr": 0.008, "cache": True, "resume": False, "structure": "a", "shift": 2, "health_images": 64}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),  # a word in YAML, a number on the command line
        ("True", True),
        ("true", True),
        ("list.json", "list.json"),
        ("1,2", [1, 2]),
        ("", ""),
        ("a: [", "a: ["),
    ],
)
def test_values_are_read_as_the_bundle_reads_them(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *[("epochs", "1"), ("lr", "1e-3"), ("lr", "0"), ("cache", "False"), ("shift", "0"), ("seed", "word")],
        *[
            ("structure", "b"),
            ("resume", "old.pt"),
            ("epochs", "@shift"),
            ("lr", "$1 / 3"),
            ("train#sampler#seed", "x"),
        ],
    ],
)
def test_values_that_can_be_meant_are_taken(key, text):
    refuse_wrong_values(CONFIG, {key: text})


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("epochs", "0", "a whole number of at least 1 is expected"),
        ("epochs", "-1", "a whole number of at least 1"),
        ("epochs", "1.5", "a whole number"),
        ("epochs", "many", "a whole number"),
        ("epochs", "True", "a whole number"),
        ("lr", "-0.1", "a number of at least 0"),
        ("lr", "fast", "a number of at least 0"),
        ("health_images", "1", "at least 2"),
        ("cache", "maybe", "True or False expected"),
        ("cache", "true", "write --cache True"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_with_what_is_expected(key, text, expected):
    with pytest.raises(AfireError, match=f"--{key} {text}: .*{expected}"):
        refuse_wrong_values(CONFIG, {key: text})
