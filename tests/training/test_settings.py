from __future__ import annotations

import pytest

from afire_monai.core.errors import AfireError
from afire_monai.training.settings import command_line, parse_value, refuse_unknown_keys, refuse_wrong_values

CONFIG = {"epochs": 50, "lr": 0.008, "cache": True, "resume": False, "structure": "a", "shift": 2, "health_images": 64}
CONFIG |= {"mask_ratio": 0.75, "crop_scale": 0.5, "local_views": 2, "head_dim": 16}


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
            ("epochs", "1" + 400 * "0"),
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
        ("lr", ".nan", "a number of at least 0"),
        ("lr", "1e999", "a number of at least 0"),
        ("mask_ratio", "2", "a number from 0 to 1"),
        ("mask_ratio", "-0.1", "a number from 0 to 1"),
        ("mask_ratio", "nan", "a number from 0 to 1"),
        ("crop_scale", "0", "a number from 0.01 to 1"),
        ("local_views", "-1", "a whole number of at least 0"),
        ("head_dim", "1", "a whole number of at least 2"),
        ("lr", "-1" + 400 * "0", "a number of at least 0"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_with_what_is_expected(key, text, expected):
    with pytest.raises(AfireError, match=f"--{key} {text}: .*{expected}"):
        refuse_wrong_values(CONFIG, {key: text})


@pytest.mark.parametrize(
    ("words", "files", "overrides"),
    [
        ("run --config_file a.yaml --epochs 3", ["a.yaml"], {"epochs": "3"}),
        ("run --config_file=['a.yaml','b.yaml'] --lr=0.1", ["a.yaml", "b.yaml"], {"lr": "0.1"}),
        ("run --run_id run --meta_file m.json --config_file a.yaml --train#x 1", ["a.yaml"], {"train#x": "1"}),
        ("run --config_file a.yaml --dataset_dir= --seed 1", ["a.yaml"], {"dataset_dir": "", "seed": "1"}),
        ("-q -x tests", [], {}),
    ],
)
def test_command_line_is_split_into_config_files_and_overrides(words, files, overrides):
    assert command_line(words.split()) == (files, overrides)


NESTED = {"epochs": 1, "encoder_preset": "a", "train": {"dataloader": {"num_workers": 0}, "handlers": [{"count": 1}]}}


@pytest.mark.parametrize(
    "key",
    ["epochs", "train#dataloader#num_workers", "train::dataloader::num_workers", "train#handlers#0#count", "+train"],
)
def test_keys_that_are_there_are_taken(key):
    refuse_unknown_keys(NESTED, [key])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("epoch", "'epoch' is not there; nearest: epochs"),
        ("encoder-preset", "nearest: encoder_preset"),
        ("train#dataloader#workers", "'workers' is not there; nearest: num_workers"),
        ("train#handlers#1#count", "'1' is not there"),
        ("zzz", "nearest: encoder_preset, epochs, train"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_that_exist(key, nearest):
    with pytest.raises(AfireError, match=f"unknown setting --{key}: .*{nearest}"):
        refuse_unknown_keys(NESTED, [key])


def test_cache_on_disk_is_taken_where_there_is_a_folder_for_it():
    refuse_wrong_values({**CONFIG, "cache_dir": "", "cache_dtype": "uint8"}, {"cache": "disk", "cache_dtype": "uint16"})
    with pytest.raises(AfireError, match="True or False expected"):
        refuse_wrong_values(CONFIG, {"cache": "disk"})
    with pytest.raises(AfireError, match="one of uint8, uint16"):
        refuse_wrong_values({**CONFIG, "cache_dtype": "uint8"}, {"cache_dtype": "float32"})
