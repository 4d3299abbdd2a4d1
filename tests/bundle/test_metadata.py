from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import afire_monai

ROOT = Path(__file__).resolve().parents[2]
METADATA = ROOT / "bundle/configs/metadata.json"
SCHEMA = ROOT / "bundle/configs/metadata_schema.json"


@pytest.fixture
def metadata():
    return json.loads(METADATA.read_text(encoding="utf-8"))


@pytest.fixture
def verify(tmp_path, monkeypatch):
    """Verify a dictionary the way `python -m monai.bundle verify_metadata` does, with the network cut off."""
    from monai.bundle import verify_metadata

    def refuse(*args, **kwargs):
        raise AssertionError("verification went to the network")

    monkeypatch.setattr("socket.socket.connect", refuse)

    def run(content):
        path = tmp_path / "metadata.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        verify_metadata(meta_file=str(path), filepath=str(SCHEMA))

    return run


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = dict(re.fullmatch(r"([\w-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {name: exact[name] for name in (re.match(r"[\w-]+", item)[0] for item in project["dependencies"])}


def test_the_exact_versions_lie_in_the_ranges():
    exact = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in project["dependencies"] + extras["dicom"] + extras["export"] + extras["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(exact[requirement.name]), text


def test_the_bundle_metadata_is_verified_offline(verify, metadata):
    verify(metadata)


@pytest.mark.parametrize(
    "key", ["version", "monai_version", "required_packages_version", "task", "network_data_format"]
)
def test_metadata_without_a_required_key_is_refused(verify, metadata, key):
    del metadata[key]
    with pytest.raises(ValueError, match="Failed validating"):
        verify(metadata)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_channels", "1"),
        ("spatial_shape", [12.5]),
        ("spatial_shape", "128"),
        ("value_range", ["0", "1"]),
        ("dtype", 32),
        ("is_patch_data", "false"),
        ("channel_def", ["radiograph"]),
    ],
)
def test_a_wrong_tensor_description_is_refused(verify, metadata, key, value):
    wrong = copy.deepcopy(metadata)
    wrong["network_data_format"]["inputs"]["image"][key] = value
    with pytest.raises(ValueError, match="Failed validating"):
        verify(wrong)


def test_every_channel_is_described(metadata):
    for tensors in metadata["network_data_format"].values():
        for tensor in tensors.values():
            assert sorted(tensor["channel_def"]) == [str(i) for i in range(tensor["num_channels"])]


def test_metadata_names_the_versions_that_the_package_is_pinned_to(metadata):
    pinned = pins()
    assert metadata["version"] == afire_monai.__version__
    assert metadata["monai_version"] == pinned["monai"]
    assert metadata["pytorch_version"] == pinned["torch"]
    assert metadata["numpy_version"] == pinned["numpy"]
    required = dict(metadata["required_packages_version"])
    assert required.pop("afire-monai") == afire_monai.__version__
    assert required == {name: pinned[name] for name in required}


def test_monai_reads_the_required_packages_as_they_stand(metadata):
    # where there are optional_packages_version, MONAI 1.6 takes them for the required ones, which are lost
    from monai.bundle import ConfigParser

    parser = ConfigParser({})
    parser.read_meta(METADATA)
    assert parser["_meta_"]["required_packages_version"] == metadata["required_packages_version"]
    assert "afire-monai" in parser["_meta_"]["required_packages_version"]


def test_what_the_specification_leaves_open_is_not_refused(verify, metadata):
    image = metadata["network_data_format"]["inputs"]["image"]
    del image["modality"], metadata["intended_use"]
    image |= {"spatial_shape": ["2**n*m", "*"], "dtype": "bfloat16", "value_range": [], "note": "resampled"}
    image |= {"channel_def": {"any": "radiograph"}, "type": "MetaTensor"}
    metadata["network_data_format"]["inputs"]["temperature"] = 0.5
    metadata |= {"own_key": [1, 2], "pytorch_version": "2.1.0a0+fe05266"}
    verify(metadata)


def test_the_changelog_covers_this_version(metadata):
    assert metadata["version"] in metadata["changelog"]
