from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import dataset_of
from PIL import Image
from torch.utils.data import DataLoader

from afire_monai.core.errors import DataListError
from afire_monai.loading.dataset import RadiographDataset, image_statistics
from afire_monai.training import startup

READ = startup.reading((16, 16))


def pictures(folder: Path, count: int = 5, broken: tuple[int, ...] = ()) -> list[dict[str, str]]:
    """PNG files of one grey each, 40 per place in the list, and files that only pretend to be PNG."""
    folder.mkdir(exist_ok=True)
    items = []
    for i in range(count):
        path = folder / f"p{i}.png"
        if i in broken:
            path.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
        else:
            pixels = np.full((20, 24), 40 * i, dtype=np.uint8)
            pixels[:10] += 15  # a picture of a single grey would be refused
            Image.fromarray(pixels).save(path)
        items.append({"image": str(path)})
    return items


def test_an_item_is_the_picture_at_its_size_and_its_place_in_the_list(tmp_path):
    item = RadiographDataset(pictures(tmp_path), READ)[2]
    assert item["index"] == 2
    assert item["image"].dtype == torch.float32
    assert item["image"].shape == (1, 16, 16)
    torch.testing.assert_close(item["image"][0, 0], torch.full((16,), 95 / 255))
    torch.testing.assert_close(item["image"][0, -1], torch.full((16,), 80 / 255))


@pytest.mark.parametrize("options", [{"cache": True}, {"skip": True}], ids=["cached", "tried first"])
def test_bad_files_are_left_out_and_counted_and_the_others_come_once_each(tmp_path, caplog, options):
    dataset = RadiographDataset(pictures(tmp_path, broken=(0, 3)), READ, **options)
    assert len(dataset) == 3
    assert len(dataset.left_out) == 2
    assert "2 of 5 images cannot be used and are left out" in caplog.text
    assert [Path(dataset.file_of(i)).name for i in range(3)] == ["p1.png", "p2.png", "p4.png"]
    bottom = [dataset[i]["image"][0, -1, 0].item() for i in range(3)]
    assert bottom == pytest.approx([40 / 255, 80 / 255, 160 / 255], abs=1e-3)


def test_a_file_found_bad_on_the_way_is_replaced_by_the_next_usable_one_and_said_once(tmp_path, caplog):
    dataset = RadiographDataset(pictures(tmp_path, broken=(2, 3, 4)), READ)
    assert len(dataset) == 5
    for _ in range(2):
        assert [dataset[i]["index"] for i in range(5)] == [0, 1, 0, 0, 0]
    assert sorted(dataset.refused) == [2, 3, 4]
    assert [r.getMessage()[:19] for r in caplog.records].count("image 2 of the list") == 1


def test_a_file_that_vanishes_during_a_run_does_not_stop_it(tmp_path):
    items = pictures(tmp_path)
    loader = DataLoader(RadiographDataset(items, READ), 5)
    Path(items[1]["image"]).unlink()
    (batch,) = loader
    assert batch["index"].tolist() == [0, 2, 2, 3, 4]


@pytest.mark.parametrize("options", [{}, {"cache": True}, {"skip": True}])
def test_a_list_without_any_usable_file_is_refused_with_the_first_reason_and_no_name(tmp_path, options):
    items = pictures(tmp_path, 2, broken=(0, 1))
    with pytest.raises(DataListError, match=r"none of 2 images can be used; the first: image 0: broken") as caught:
        RadiographDataset(items, READ, **options)[0]
    assert "p0.png" not in str(caught.value)


def test_an_empty_list_is_refused():
    with pytest.raises(DataListError, match="no image here"):
        RadiographDataset([], READ)


def test_cached_pictures_equal_read_ones_to_half_precision(tmp_path):
    items = pictures(tmp_path)
    cached, read = RadiographDataset(items, READ, cache=True), RadiographDataset(items, READ)
    for a, b in zip(cached, read, strict=False):
        assert a["index"] == b["index"]
        assert a["image"].dtype == torch.float32
        torch.testing.assert_close(a["image"], b["image"], atol=2**-11, rtol=0)  # half a step of float16 below 1
    assert cached.cached is not None
    assert cached.cached.dtype == torch.float16
    assert cached.cached.is_shared()


def test_cached_pictures_of_several_shapes_are_refused():
    items = [{"image": f"{side}.png", "tensor": torch.zeros(1, side, side)} for side in (8, 1)]
    with pytest.raises(DataListError, match=r"image is \(1, 8, 8\) for some images and \(1, 1, 1\) for others"):
        RadiographDataset(items, lambda item: {"image": item["tensor"]}, cache=True)


def test_workers_read_the_cache_of_the_parent(tmp_path):
    dataset = RadiographDataset(pictures(tmp_path), READ, cache=True)
    batches = list(DataLoader(dataset, 2, num_workers=1))
    assert torch.cat([b["index"] for b in batches]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("spelling", ["{}/{}", "{}//{}", "{}/./{}"])
@pytest.mark.parametrize("options", [{}, {"cache": True}, {"skip": True}])
def test_path_of_a_dicom_file_stays_out_of_the_log(tmp_path, caplog, options, spelling):
    folder = tmp_path / "DOE^JOHN"
    items = pictures(folder, 2)
    (folder / "DOE_19480101.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00garbage")
    items.insert(0, {"image": spelling.format(folder, "DOE_19480101.dcm")})
    with caplog.at_level(logging.DEBUG):
        dataset = RadiographDataset(items, READ, **options)
        assert dataset[0]["image"].shape == (1, 16, 16)
    assert "image 0 of the list is left out" in caplog.text
    assert "DOE" not in caplog.text


def test_statistics_equal_those_of_all_pixels():
    images = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.6
    mean, std = image_statistics(dataset_of(images))
    assert mean == pytest.approx(images.mean().item(), abs=1e-4)
    assert std == pytest.approx(images.std(correction=0).item(), abs=1e-4)


def test_statistics_of_a_large_set_take_evenly_spaced_pictures():
    images = (torch.arange(20.0) / 20).view(20, 1, 1, 1).expand(20, 1, 2, 2)
    mean, _ = image_statistics(dataset_of(images), samples=5)
    assert mean == pytest.approx(sum((0, 4, 8, 12, 16)) / 5 / 20)


def test_statistics_of_black_pictures_do_not_divide_by_zero():
    assert image_statistics(dataset_of(torch.zeros(4, 1, 2, 2))) == (0.0, 0.001)
