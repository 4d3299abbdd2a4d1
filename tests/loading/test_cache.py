from __future__ import annotations

import copy
import errno
import io
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from PIL import Image
from torch.utils.data import DataLoader

from afire_monai.core.errors import DataListError
from afire_monai.datalists.paths import ImagePaths
from afire_monai.loading import cache_build
from afire_monai.loading.cache import PIXELS, READY, ROW, CacheIndex, DiskCache, path_hashes
from afire_monai.loading.cache_build import build_cache
from afire_monai.loading.dataset import RadiographDataset, grey_levels
from afire_monai.radiographs.resize import area_average
from afire_monai.training import startup

SIZE = (16, 12)


def pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, SIZE, dtype=np.uint8)


def pictures(folder: Path, count: int = 6) -> ImagePaths:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(pixels(i)).save(folder / f"p{i}.png")
    return ImagePaths(str(folder / f"p{i}.png") for i in range(count))


def build(paths: ImagePaths, folder: Path, **options: Any) -> int:
    return build_cache(paths, folder, SIZE, **{"workers": 0, **options})


def index_of(folder: Path) -> CacheIndex:
    index = CacheIndex.load(folder)
    assert index is not None
    return index


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    seen: list[str] = []
    real = cache_build.read_picture
    monkeypatch.setattr(cache_build, "read_picture", lambda p, **o: (seen.append(Path(p).name), real(p, **o))[1])
    return seen


@pytest.mark.parametrize("shape", [(64, 48), (37, 53), (16, 12), (5, 7), (100, 12)])
def test_area_average_is_that_of_adaptive_pooling(shape):
    picture = np.random.default_rng(0).random(shape, dtype=np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(picture)[None], SIZE)[0]
    np.testing.assert_allclose(area_average(picture, SIZE), expected.numpy(), atol=1e-6)


def test_bytes_at_their_own_size_come_back_as_they_were(tmp_path):
    paths = pictures(tmp_path / "in")
    assert build(paths, tmp_path / "c") == 6
    cache = DiskCache(tmp_path / "c", paths)
    order = [5, 0, 4, 4, 1]  # one picture twice
    assert np.array_equal(cache.stored(order), np.stack([pixels(i) for i in order]))
    expected = np.stack([pixels(i) for i in order]).astype(np.float32) / np.float32(255)
    assert np.array_equal(cache.gather(order), expected)
    out = np.zeros((5, *SIZE), np.uint8)
    assert cache.stored(order, out=out) is out
    assert np.array_equal(out, cache.stored(order))


@pytest.mark.parametrize(("dtype", "step"), [("uint8", 1 / 255), ("uint16", 1 / 65535)])
def test_reduced_pictures_are_those_of_the_reading_to_half_a_grey_level(tmp_path, dtype, step):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        large = np.random.default_rng(i).integers(0, 65536, (50, 70), dtype=np.uint16)
        Image.fromarray(large).save(folder / f"{i}.png")
    items = [{"image": str(folder / f"{i}.png")} for i in range(3)]
    read = startup.reading(SIZE)
    build(ImagePaths.of(items), tmp_path / "c", dtype=dtype)
    cache = DiskCache(tmp_path / "c", ImagePaths.of(items))
    expected = np.stack([read(item)["image"][0].numpy() for item in items])
    np.testing.assert_allclose(cache.gather([0, 1, 2]), expected, atol=step / 2 + 1e-6)


def test_pixels_are_pictures_one_after_the_other(tmp_path):
    paths = pictures(tmp_path / "in")
    build(paths, tmp_path / "c")
    stored = np.fromfile(tmp_path / "c" / PIXELS, np.uint8).reshape(-1, *SIZE)
    assert np.array_equal(stored, np.stack([pixels(i) for i in range(6)]))


def test_what_is_there_is_not_decoded_again_and_new_files_are_added(tmp_path, monkeypatch):
    more = pictures(tmp_path / "in", 5)
    build(more.take(slice(3)), tmp_path / "c")
    seen = decodings(monkeypatch)
    assert build(more, tmp_path / "c") == 2
    assert sorted(seen) == ["p3.png", "p4.png"]
    assert build(more, tmp_path / "c") == 0
    assert np.array_equal(DiskCache(tmp_path / "c", more).stored([4, 0]), np.stack([pixels(4), pixels(0)]))


def test_list_in_another_order_finds_its_pictures(tmp_path):
    paths = pictures(tmp_path / "in")
    build(paths, tmp_path / "c")
    some = paths.take(np.array([4, 1]))
    assert build(some, tmp_path / "c") == 0
    assert np.array_equal(DiskCache(tmp_path / "c", some).stored([0, 1]), np.stack([pixels(4), pixels(1)]))


def test_changed_file_is_read_again_and_its_old_picture_left_to_those_who_read_it(tmp_path):
    paths = pictures(tmp_path / "in", 3)
    build(paths, tmp_path / "c")
    earlier = DiskCache(tmp_path / "c", paths)
    Image.fromarray(pixels(99)).save(tmp_path / "in" / "p1.png")
    os.utime(tmp_path / "in" / "p1.png", ns=(1, 1))
    assert build(paths, tmp_path / "c") == 1
    assert np.array_equal(DiskCache(tmp_path / "c", paths).stored([1]), pixels(99)[None])
    assert np.array_equal(earlier.stored([1]), pixels(1)[None])
    assert build(paths, tmp_path / "c") == 0


def interrupted(paths: ImagePaths, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Build a cache and press Ctrl-C after some files, each of which was written to the index."""
    read: list[str] = []
    real = cache_build.read_picture

    def stop(path: str, **options: Any) -> Any:
        if len(read) == after:
            raise KeyboardInterrupt
        read.append(path)
        return real(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cache_build, "read_picture", stop)
        patch.setattr(cache_build, "FLUSH_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            build(paths, folder)


@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupted_build_forgets_no_picture_and_no_file_that_changed(tmp_path, monkeypatch, after):
    paths = pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "p3.png").write_bytes(b"no picture")
    build(paths, tmp_path / "c")
    Image.fromarray(pixels(3)).save(tmp_path / "in" / "p3.png")
    for i in range(4):
        os.utime(tmp_path / "in" / f"p{i}.png", ns=(1, 1))
    interrupted(paths, tmp_path / "c", monkeypatch, after)
    assert DiskCache(tmp_path / "c", paths).usable.tolist() == [0, 1, 2]
    assert build(paths, tmp_path / "c") == 4 - after
    assert np.array_equal(DiskCache(tmp_path / "c", paths).stored(range(4)), np.stack([pixels(i) for i in range(4)]))
    assert len(index_of(tmp_path / "c").rows) == 7  # three pictures are of files that have changed since


def test_rows_that_an_interrupted_build_left_free_are_used(tmp_path, monkeypatch):
    paths = pictures(tmp_path / "in", 4)
    interrupted(paths, tmp_path / "c", monkeypatch, 2)
    assert build(paths, tmp_path / "c") == 2
    assert len(index_of(tmp_path / "c").rows) == 4


def test_a_changed_file_that_cannot_be_read_now_keeps_its_picture_and_is_counted(tmp_path, monkeypatch, caplog):
    paths = pictures(tmp_path / "in", 3)
    build(paths, tmp_path / "c")
    os.utime(tmp_path / "in" / "p1.png", ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(cache_build, "read_picture", lambda path, **options: Path("/nowhere/at/all").read_bytes())
        assert build(paths, tmp_path / "c") == 1
    assert "1 files changed and could not be read" in caplog.text
    assert np.array_equal(DiskCache(tmp_path / "c", paths).stored([1]), pixels(1)[None])
    assert build(paths, tmp_path / "c") == 1


def test_room_that_changed_files_left_behind_is_told(tmp_path, caplog):
    paths = pictures(tmp_path / "in", 3)
    build(paths, tmp_path / "c")
    assert "have changed since" not in caplog.text
    for i in range(3):
        os.utime(tmp_path / "in" / f"p{i}.png", ns=(1, 1))
    build(paths, tmp_path / "c")
    assert "3 of its 6 pictures are of files that have changed since" in caplog.text


class Brightest:
    """Something that is found in pictures."""

    kind, name, values = "brightest", "brightest1", 2

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        return np.array([picture.max(), picture.min()], np.float32)


def test_what_was_found_in_pictures_of_other_lists_stays(tmp_path):
    paths, found = pictures(tmp_path / "in", 5), Brightest()
    few = paths.take(np.arange(2))
    cache_build.open_cache(few, tmp_path / "c", SIZE)
    cache_build.open_cache(paths, tmp_path / "c", SIZE, annotate=found)
    long = (tmp_path / "c" / "brightest1.npy").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Brightest, "__call__", lambda *_: pytest.fail("it is known"))
        cache_build.open_cache(few, tmp_path / "c", SIZE, annotate=found)
    assert (tmp_path / "c" / "brightest1.npy").read_bytes() == long
    six = pictures(tmp_path / "in", 6)
    last = six.take(np.array([5]))
    cache_build.open_cache(last, tmp_path / "c", SIZE, annotate=found)
    expected = np.array([[pixels(i).max(), pixels(i).min()] for i in range(6)]) / 255
    assert np.allclose(DiskCache(tmp_path / "c", six).annotations(found, range(6)), expected, atol=1e-3)


def test_pictures_in_which_nothing_was_looked_for_are_refused(tmp_path):
    paths, found = pictures(tmp_path / "in", 4), Brightest()
    cache_build.open_cache(paths.take(np.arange(2)), tmp_path / "c", SIZE, annotate=found)
    build(paths, tmp_path / "c")
    with pytest.raises(DataListError, match=r"brightest1\.npy lacks 2 pictures"):
        DiskCache(tmp_path / "c", paths).annotations(found, [0])


def test_one_process_at_a_time_looks_into_pictures(tmp_path, monkeypatch):
    paths, found, seen = pictures(tmp_path / "in", 2), Brightest(), []
    real = cache_build._one_writer
    monkeypatch.setattr(cache_build, "_one_writer", lambda folder: (seen.append(folder), real(folder))[1])
    cache_build.open_cache(paths, tmp_path / "c", SIZE, annotate=found)
    assert len(seen) == 2  # for the pictures, then for what is found in them
    cache_build.open_cache(paths, tmp_path / "c", SIZE, annotate=found)
    assert len(seen) == 2


def test_a_cache_of_an_earlier_format_is_refused(tmp_path):
    (tmp_path / "cache.json").write_text("{}")
    with pytest.raises(DataListError, match="earlier format; delete the folder"):
        build(pictures(tmp_path / "in", 1), tmp_path)


def test_an_index_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    paths = pictures(tmp_path / "in", 1)
    build(paths, tmp_path / "c")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(DataListError, match=r"cannot be read now \(Permission denied\); try again") as caught:
        build(paths, tmp_path / "c")
    assert "delete" not in str(caught.value)


def test_copies_can_be_copied_before_they_are_read(tmp_path):
    paths = pictures(tmp_path / "in", 2)
    build(paths, tmp_path / "c")
    again = copy.deepcopy(copy.deepcopy(DiskCache(tmp_path / "c", paths)))
    assert np.array_equal(again.stored([1]), pixels(1)[None])


def test_file_that_is_gone_keeps_its_picture(tmp_path):
    paths = pictures(tmp_path / "in", 3)
    build(paths, tmp_path / "c")
    (tmp_path / "in" / "p1.png").unlink()
    assert build(paths, tmp_path / "c") == 0
    assert len(DiskCache(tmp_path / "c", paths)) == 3


def test_refused_files_are_left_out_with_their_reason_and_tried_again_once_they_change(tmp_path):
    paths = pictures(tmp_path / "DOE^JOHN", 4)
    (tmp_path / "DOE^JOHN" / "p1.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    (tmp_path / "DOE^JOHN" / "p3.png").unlink()
    assert build(paths, tmp_path / "c") == 4
    cache = DiskCache(tmp_path / "c", paths)
    assert cache.usable.tolist() == [0, 2]
    assert cache.reasons == {1: "broken or truncated", 3: "not readable (tried again next time)"}
    assert build(paths, tmp_path / "c") == 1  # what was missing may be there by now
    assert len(index_of(tmp_path / "c").rows) == 4
    Image.fromarray(pixels(1)).save(tmp_path / "DOE^JOHN" / "p1.png")
    build(paths, tmp_path / "c")
    assert DiskCache(tmp_path / "c", paths).usable.tolist() == [0, 1, 2]
    for path in (tmp_path / "c").iterdir():
        assert b"DOE" not in path.read_bytes()


def test_list_that_names_a_file_twice_has_it_twice(tmp_path):
    paths = pictures(tmp_path / "in", 2)
    twice = paths.take(np.array([1, 0, 1]))
    assert build(twice, tmp_path / "c") == 2
    assert np.array_equal(DiskCache(tmp_path / "c", twice).stored([0, 2]), np.stack([pixels(1)] * 2))


def test_cache_made_otherwise_is_refused_with_what_differs(tmp_path):
    paths = pictures(tmp_path / "in", 2)
    build(paths, tmp_path / "c")
    with pytest.raises(DataListError, match="built with dtype uint8, but uint16 is requested"):
        build(paths, tmp_path / "c", dtype="uint16")
    with pytest.raises(DataListError, match=r"built with size \[16, 12\], but \[8, 8\]"):
        build_cache(paths, tmp_path / "c", (8, 8), workers=0)
    with pytest.raises(DataListError, match="cache_dtype 'float32': uint8 or uint16"):
        build(paths, tmp_path / "d", dtype="float32")
    with pytest.raises(DataListError, match=r"built with options \{\}, but \{'window_index': 1\} is requested"):
        build(paths, tmp_path / "c", reader={"window_index": 1})


def archive(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"\x93NUMPY\x01\x00\x76\x00{'descr': (\n",
        archive(rows=np.zeros(2)),
        archive(about='[{"format": 2}, []]', rows=np.zeros(2)),
        archive(about='[{"format": 1}, []]', rows=np.zeros(2, ROW)),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path, content):
    paths = pictures(tmp_path / "in", 2)
    build(paths, tmp_path / "c")
    (tmp_path / "c" / "index.npz").write_bytes(content)
    with pytest.raises(DataListError, match=r"index.npz cannot be read .*; delete the folder"):
        build(paths, tmp_path / "c")


def test_a_damaged_index_is_refused_wherever_the_damage_is(tmp_path):
    paths = pictures(tmp_path / "in", 2)
    build(paths, tmp_path / "c")
    file = tmp_path / "c" / "index.npz"
    sound, expected = file.read_bytes(), index_of(tmp_path / "c")
    for at in range(len(sound)):
        file.write_bytes(sound[:at] + bytes([sound[at] ^ 8]) + sound[at + 1 :])
        try:
            index = index_of(tmp_path / "c")
        except DataListError:
            continue
        assert index.settings == expected.settings  # a date or a flag that nothing rests on
        assert index.rows.tobytes() == expected.rows.tobytes()


@pytest.mark.parametrize("at", [0, 16 * 12 - 1])
def test_a_damaged_picture_is_named_and_no_other_is_refused(tmp_path, at):
    paths = pictures(tmp_path / "in", 6)
    build(paths, tmp_path / "c")
    file = tmp_path / "c" / PIXELS
    data = bytearray(file.read_bytes())
    data[5 * 16 * 12 + at] ^= 4
    file.write_bytes(data)
    cache = DiskCache(tmp_path / "c", paths)
    assert len(cache.stored([0, 1, 2, 3, 4])) == 5
    with pytest.raises(DataListError, match=r"image 5 of the list is damaged \(pixels\.bin\).* delete its folder"):
        cache.stored([4, 5])


def test_no_pictures_are_none_of_the_cache(tmp_path):
    paths = pictures(tmp_path / "in", 2)
    build(paths, tmp_path / "c")
    assert DiskCache(tmp_path / "c", paths).gather([]).shape == (0, *SIZE)


@pytest.mark.parametrize("damage", ["short", "gone"])
def test_pixels_that_were_copied_in_part_are_refused_before_they_are_read(tmp_path, damage):
    paths = pictures(tmp_path / "in", 2)
    build(paths, tmp_path / "c")
    file = tmp_path / "c" / PIXELS
    file.unlink() if damage == "gone" else os.truncate(file, 300)
    with pytest.raises(DataListError, match=r"pixels.bin does not hold 2 pictures of uint8 \(16, 12\)"):
        DiskCache(tmp_path / "c", paths)


def test_full_disk_is_told_in_words_and_what_is_stored_stays(tmp_path, monkeypatch):
    class Full(io.FileIO):
        room = 3

        def write(self, data: Any) -> int:
            Full.room -= 1
            if Full.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    paths = pictures(tmp_path / "in")
    monkeypatch.setattr(
        cache_build, "open", lambda path, mode, **o: (Full if path.name == PIXELS else open)(path, mode), raising=False
    )
    with pytest.raises(DataListError, match="No space left on device; what is stored stays usable"):
        build(paths, tmp_path / "c")
    monkeypatch.undo()
    cache = DiskCache(tmp_path / "c", paths)
    assert cache.usable.tolist() == [0, 1, 2]
    assert np.array_equal(cache.stored([2]), pixels(2)[None])
    assert build(paths, tmp_path / "c") == 3


def test_rows_whose_pixels_may_be_lost_do_not_count(tmp_path, monkeypatch):
    paths = pictures(tmp_path / "in", 3)
    real, calls = os.fsync, []

    def fails_once(number: int) -> None:
        if os.readlink(f"/proc/self/fd/{number}").endswith(PIXELS) and not calls:
            calls.append(number)
            raise OSError(errno.EIO, "Input/output error")
        real(number)

    monkeypatch.setattr(os, "fsync", fails_once)
    monkeypatch.setattr(cache_build, "FLUSH_SECONDS", -1.0)
    with pytest.raises(DataListError, match="Input/output error"):
        build(paths, tmp_path / "c")
    assert not (index_of(tmp_path / "c").rows["outcome"] == READY).any()


def test_complete_cache_may_be_read_only_and_one_that_is_not_says_so(tmp_path, monkeypatch):
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    paths = pictures(tmp_path / "in", 2)
    build(paths, tmp_path / "c")
    monkeypatch.setattr(cache_build, "_one_writer", refuse)
    assert build(paths, tmp_path / "c") == 0
    with pytest.raises(DataListError, match=r"Permission denied; .* give a writable cache_dir"):
        build(pictures(tmp_path / "in", 3), tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataListError, match=r"Not a directory.*give another cache_dir"):
        build(paths, tmp_path / "file" / "c")


def test_second_builder_waits_for_the_first(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    paths = pictures(tmp_path / "in", 2)
    build(paths.take(slice(1)), tmp_path / "c")
    with open(tmp_path / "c" / ".writer", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.5, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        start = time.monotonic()
        assert build(paths, tmp_path / "c") == 1
    assert time.monotonic() - start > 0.4


KILLED = """
import sys, time
from pathlib import Path
from afire_monai.loading import cache_build
from afire_monai.datalists.paths import ImagePaths
cache_build.FLUSH_SECONDS, cache_build.FLUSH_SHARE = 0.0, 0  # after each picture
folder = Path(sys.argv[1])
real = cache_build.read_picture
def slow(path, *rest):
    if Path(path).name == "p4.png":
        (folder / "four").touch()
        time.sleep(100)
    return real(path, *rest)
cache_build.read_picture = slow
cache_build.build_cache(ImagePaths(sys.argv[2:]), folder / "c", (16, 12), workers=0)
"""


def test_killed_build_goes_on_where_it_was(tmp_path, monkeypatch):
    paths = pictures(tmp_path / "in", 7)
    names = [os.fsdecode(path) for path in paths.raw_paths()]
    process = warm.Program(["-c", KILLED, tmp_path, *names], tmp_path / "log.txt")
    until = time.monotonic() + 100
    while not (tmp_path / "four").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.wait()
    (tmp_path / "c" / ".index.npz.part").write_bytes(b"half")  # as a kill a moment earlier leaves
    assert DiskCache(tmp_path / "c", paths).usable.tolist() == [0, 1, 2, 3]
    seen = decodings(monkeypatch)
    assert build(paths, tmp_path / "c") == 3
    assert sorted(seen) == ["p4.png", "p5.png", "p6.png"]
    assert list((tmp_path / "c").glob(".*.part")) == []
    assert np.array_equal(DiskCache(tmp_path / "c", paths).stored(range(7)), np.stack([pixels(i) for i in range(7)]))


def test_several_processes_decode_to_the_same_pictures(tmp_path):
    paths = pictures(tmp_path / "in", 5)
    assert build(paths, tmp_path / "c", workers=2) == 5
    assert np.array_equal(DiskCache(tmp_path / "c", paths).stored([3, 1]), np.stack([pixels(3), pixels(1)]))


def test_index_holds_hashes_alone(tmp_path):
    paths = pictures(tmp_path / "in", 2)
    build(paths, tmp_path / "c")
    index = index_of(tmp_path / "c")
    assert np.array_equal(index.rows["path"], path_hashes(paths))
    assert set(index.settings) == {"size", "dtype", "modalities", "format", "options"}
    assert index.outcomes == ["not decoded yet", "ready"]


def on_disk(folder: Path, **options: Any) -> RadiographDataset:
    items = pictures(folder / "in", 9)
    (folder / "in" / "p2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return RadiographDataset(items, startup.reading(SIZE), cache="disk", cache_dir=folder / "c", **options)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no processes: one takes a second."""
    monkeypatch.setattr(cache_build, "_workers", lambda workers, files: 0)


@pytest.mark.usefixtures("in_this_process")
def test_dataset_leaves_refused_files_out_and_numbers_the_others(tmp_path, caplog):
    dataset = on_disk(tmp_path)
    assert len(dataset) == 8
    assert dataset.left_out == ["image 2: broken or truncated"]
    assert "1 of 9 images cannot be used and are left out: broken or truncated 1" in caplog.text
    assert [Path(dataset.file_of(i)).name for i in (1, 2)] == ["p1.png", "p3.png"]
    item = dataset[2]
    assert item["index"] == 2
    assert item["image"].shape == (1, *SIZE)
    assert torch.equal(item["image"][0], torch.from_numpy(pixels(3)) / 255)
    with pytest.raises(IndexError):
        dataset[8]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("gathered", [True, False])
def test_batches_are_the_same_whatever_loads_them(tmp_path, workers, gathered):
    dataset = on_disk(tmp_path)
    expected = torch.stack([dataset[i]["image"] for i in range(8)])
    collate = dataset.collate if gathered else None
    batches = list(DataLoader(dataset, 3, num_workers=workers, collate_fn=collate))
    assert {batch["image"].dtype for batch in batches} == {torch.uint8 if gathered else torch.float32}
    assert torch.equal(torch.cat([grey_levels(batch["image"]) for batch in batches]), expected)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(8))


@pytest.mark.usefixtures("in_this_process")
def test_disk_cache_of_other_readings_or_extras_is_refused(tmp_path):
    items = pictures(tmp_path / "in", 2)
    with pytest.raises(DataListError, match=r"read by startup\.reading"):
        RadiographDataset(items, lambda item: dict(item), cache="disk", cache_dir=tmp_path / "c")
    with pytest.raises(DataListError, match="pictures alone"):
        RadiographDataset(items, startup.reading(SIZE), cache="disk", cache_dir=tmp_path / "c", extras=("mask",))
    with pytest.raises(DataListError, match="cache: 'dsik'"):
        RadiographDataset(items, startup.reading(SIZE), cache="dsik")


def test_cache_lies_beside_the_list_unless_told_otherwise(tmp_path):
    assert startup.cache_folder(tmp_path / "list.json", "", "run") == tmp_path / "list.cache"
    assert startup.cache_folder(tmp_path / "list.json", "other", "run") == Path("other")
    assert startup.cache_folder(tmp_path / "absent" / "list.json", "", "run") == Path("run/cache")


def test_image_paths_are_items_that_are_made_when_asked_for():
    names = ["/a/ü.png", "b", "", "/c/d.dcm"]
    paths = ImagePaths(names)
    assert [item["image"] for item in paths] == names
    assert paths[-1] == {"image": "/c/d.dcm"}
    assert [item["image"] for item in paths[1:3]] == ["b", ""]
    assert [item["image"] for item in paths.take(np.array([3, 0]))] == ["/c/d.dcm", "/a/ü.png"]
    assert len(ImagePaths([])) == 0
    with pytest.raises(IndexError):
        paths[4]


@pytest.mark.parametrize("seconds", [2**33, 15_000_000_000, -(2**31)])
def test_files_from_another_century_are_read_once(tmp_path, seconds, monkeypatch):
    paths = pictures(tmp_path / "in", 2)
    file = tmp_path / "in" / "p0.png"
    os.utime(file, (seconds, seconds))
    assert build(paths, tmp_path / "c") == 2
    assert build(paths, tmp_path / "c") == 0
    Image.fromarray(pixels(7)).save(file)
    os.utime(file, (seconds + 1, seconds + 1))
    assert build(paths, tmp_path / "c") == 1
    assert np.array_equal(DiskCache(tmp_path / "c", paths).stored([0])[0], pixels(7))
