"""The page to work in, in a real browser on a real server; run by scripts/label_test.sh."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import requests
import scipy.ndimage
from chromium import CHROMIUM, Browser, browsing
from hospital.orthanc import running_orthanc
from label_page import COLUMNS, ROWS, greys, layout, save, settled, show, shown_mask, start, states
from label_phantoms import SHAPE, phantom, pictures, write_dicoms, write_models, write_pngs
from label_server import Server, running
from PIL import Image

from afire_monai.hospital.dicomweb.client import DicomWeb, Query
from afire_monai.hospital.dicomweb.transfer import retrieve_series, send_folder

pytestmark = [
    pytest.mark.skipif(not os.environ.get("AFIRE_LABEL_TEST"), reason="scripts/label_test.sh runs these"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium"),
    pytest.mark.slow,
]
ODD = ["<img src=x onerror=alert(1)>", "a&b=c#?%41 \"é'+", "{{7*7}}${7*7}</script>".replace("/", "∕")]
"""Ids of images that would do harm, or be cut, if they were not taken as text."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("page") / "models")


@pytest.fixture(scope="module")
def site(tmp_path_factory, models) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("site")
    write_pngs(folder / "studies", 6)
    for number, name in enumerate(ODD):
        Image.fromarray(phantom(20 + number)[0]).save(folder / "studies" / f"{name}.png")
    with running(str(folder / "studies"), folder / "work", models, {}) as server:
        yield server


@pytest.fixture
def page(site, tmp_path) -> Iterator[Browser]:
    with browsing(tmp_path / "profile") as browser:
        start(browser, site)
        yield browser
        assert_quiet(browser, site)


def assert_quiet(browser: Browser, server: Server) -> None:
    """Nothing was complained of but that there is no training yet, and nobody else was asked."""
    assert [line for line in browser.problems if not line.endswith(f"(Not Found) {server.url}train/")] == []
    assert [url for url in browser.requests if not url.startswith(server.url)] == []


def disc_along(points: list[tuple[float, float]], diameter: float) -> np.ndarray:
    """Pixels whose centre is no farther than half the diameter from a line through points (column, row)."""
    columns, rows = np.meshgrid(np.arange(COLUMNS) + 0.5, np.arange(ROWS) + 0.5)
    found = np.zeros(SHAPE, bool)
    for start_, end in zip(points, points[1:] or points, strict=False):
        for share in np.linspace(0, 1, 2001):
            x, y = (a + share * (b - a) for a, b in zip(start_, end, strict=True))
            found |= (columns - x) ** 2 + (rows - y) ** 2 <= (diameter / 2) ** 2
    return found


def brush(browser: Browser) -> None:
    """Take the brush, and make it 20 pixels wide: at first it is 2, a fortieth of the rows."""
    browser.press("b")
    for _ in range(7):
        browser.press(".")
    browser.until("document.getElementById('message').textContent == 'Brush: 20 pixels'")


def saved_mask(server: Server, image: str, folder) -> np.ndarray:
    """What any client gets: the NIfTI file, read by nibabel alone."""
    (folder / "saved.nii.gz").write_bytes(server.get("datastore/label", label=image, tag="final").content)
    return np.asarray(nibabel.load(folder / "saved.nii.gz").dataobj)[:, :, 0].T


def test_nothing_of_the_page_is_given_without_the_token(site):
    with requests.Session() as stranger:
        stranger.trust_env = False
        for path in (
            "",
            "main.js",
            "api/setup",
            "api/case?image=chest00",
            "api/pixels?image=chest00",
            "api/mask?image=x",
        ):
            for wrong in ({}, {"Authorization": f"Bearer {site.token[:-1]}"}, {"Authorization": "Bearer "}):
                assert stranger.get(f"{site.url}work/{path}", timeout=60, headers=wrong).status_code == 401, path
            assert stranger.get(f"{site.url}token/x/work/{path}", timeout=60).status_code == 401, path
        body = {"task": "classification", "run": ""}
        assert stranger.post(f"{site.url}work/api/version", json=body, timeout=60).status_code == 401
    for path in (
        "../work_page.py",
        "..%2Fwork_page.py",
        "x.js",
        "api/pixels?image=../../etc/passwd",
        "api/pixels?image=/etc/passwd",
        "api/case?image=../../etc/passwd",
        "api/mask?image=..%2F..%2Fetc%2Fpasswd",
        "api/mask?image=chest00",
    ):
        answer = site.get(f"work/{path}")
        assert answer.status_code == 404, path
        assert str(site.work.parent) not in answer.text
    for body in ({}, {"task": "classification", "run": 1}, {"task": "classification", "run": "../x"}):
        answer = site.http.post(f"{site.url}work/api/version", json=body, timeout=60)
        assert answer.status_code in (400, 404)


def test_the_page_may_load_nothing_but_its_own_files_and_read_no_markup(page):
    policy = page.value("fetch('main.js').then((r) => r.headers.get('Content-Security-Policy'))")
    assert "unsafe" not in policy
    assert not {"http:", "https:", "*", "data:", "blob:"} & set(policy.replace(";", " ").split())
    for harm in ("document.body.innerHTML = '<b>x</b>'", "document.createElement('script').text = '1'"):
        with pytest.raises(RuntimeError, match="Trusted"):
            page.value(harm)
    page.problems.clear()  # which are these


def test_a_box_and_a_stroke_are_saved_and_shown_again_pixel_by_pixel(page, site, tmp_path):
    image = "chest01"
    show(page, image)
    left, top, scale = layout(page)

    def place(x: int, y: int) -> tuple[float, float]:
        return (x - left) / scale, (y - top) / scale

    corner, other = (round(left + 10.2 * scale), round(top + 20.7 * scale)), (
        round(left + 30.9 * scale), round(top + 41.3 * scale))  # fmt: skip
    stroke = [(round(left + c * scale), round(top + r * scale)) for c, r in ((50.3, 15.2), (61.8, 40.1), (44.4, 70.6))]
    page.press("x")
    page.drag(corner, (corner[0] + 5, corner[1] + 40), other)
    brush(page)
    page.drag(*stroke)
    (x0, y0), (x1, y1) = place(*corner), place(*other)
    columns, rows = np.meshgrid(np.arange(COLUMNS) + 0.5, np.arange(ROWS) + 0.5)
    box = (columns > x0) & (columns < x1) & (rows > y0) & (rows < y1)
    drawn = box | disc_along([place(*point) for point in stroke], 20)
    page.value("document.activeElement.blur()")
    page.press("w")  # without the brush's ring
    assert (shown_mask(page) == drawn).all()
    page.press("u")
    assert (shown_mask(page) == box).all()
    page.press("z", control=True, shift=True)
    assert (shown_mask(page) == drawn).all()
    save(page)
    assert (saved_mask(site, image, tmp_path) == drawn).all()
    show(page, image)
    assert (shown_mask(page) == drawn).all()
    page.press("d")
    assert not shown_mask(page).any()
    page.press("u")
    assert (shown_mask(page) == drawn).all()


def test_masks_of_other_clients_are_shown_and_the_models_can_be_taken_over(page, site, tmp_path):
    mask = phantom(2)[1]
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert site.save("chest02", tmp_path / "mask.png").status_code == 200
    show(page, "chest02")
    assert (shown_mask(page) == (mask == 1)).all()
    page.press("t")
    page.until("!document.getElementById('unsaved').hidden")
    assert (shown_mask(page) == (site.map("segmentation", "chest02", tmp_path) == 1)).all()


def test_what_is_being_drawn_is_saved_and_an_undone_or_empty_stroke_is_no_label(page, site, tmp_path):
    show(page, "chest05")
    brush(page)
    page.press("e")
    page.value("document.getElementById('canvas').focus()")
    page.press("Enter")
    page.press("Enter")  # the eraser on an empty mask
    assert page.value("document.getElementById('unsaved').hidden")
    page.press("b")
    page.press("Enter")
    page.press("Enter")
    assert not page.value("document.getElementById('unsaved').hidden")
    page.press("u")
    assert page.value("document.getElementById('unsaved').hidden")
    page.press("Enter")
    page.press("ArrowDown", shift=True)
    save(page)  # without the second Enter
    x, y = COLUMNS / 2, ROWS / 2
    assert (saved_mask(site, "chest05", tmp_path) == disc_along([(x, y), (x, y + 10)], 20)).all()
    page.press("u")
    assert not page.value("document.getElementById('unsaved').hidden")  # unlike what is saved
    page.press("z", control=True, shift=True)


def test_everything_can_be_done_by_keyboard_alone(page, site, tmp_path):
    show(page, "chest03")
    for _ in range(60):
        page.press("Tab")
        assert page.value("getComputedStyle(document.activeElement).outlineStyle != 'none'")
        if page.value("document.activeElement.id") == "canvas":
            break
    else:
        raise AssertionError("the radiograph is not reached by Tab")
    brush(page)
    page.press("ArrowLeft", shift=True)
    page.press("Enter")
    page.press("ArrowDown", shift=True)
    page.press("ArrowDown")
    page.press("Enter")
    save(page)
    x, y = COLUMNS / 2 - 10, ROWS / 2
    assert (saved_mask(site, "chest03", tmp_path) == disc_along([(x, y), (x, y + 11)], 20)).all()
    page.press("?")
    assert page.value("document.getElementById('help').open")
    page.press("Escape")
    before = page.value("document.getElementById('image').textContent")
    page.press("1")
    page.press("k")  # would lose what was entered
    page.until("document.getElementById('ask').open")
    page.press("Escape")
    page.until("!document.getElementById('ask').open")
    assert settled(page) == before
    page.press("u")
    page.press("k")
    assert settled(page, before) != before
    page.press("p")
    page.until(f"document.getElementById('image').textContent == {json.dumps(before)}")


def test_radiographs_are_upright_and_windowed_as_told(page):
    show(page, "chest04")
    truth = phantom(4)[0].astype(int)
    page.press("l")
    plain = greys(page)
    assert np.abs(plain[..., 0] - truth).mean() < 3  # between pixels the browser interpolates
    page.press("i")
    assert np.abs(greys(page) - (255 - plain)).max() <= 1
    page.press("c")
    assert (greys(page) == plain).all()
    left, top, scale = layout(page)
    middle = (round(left + 39 * scale), round(top + 48 * scale))
    page.drag(middle, (middle[0] - 200, middle[1]))  # half the width, so twice the contrast
    wanted = np.clip(2 * (truth - 127.5) + 127.5, 0, 255)
    assert np.abs(greys(page)[..., 0] - wanted).mean() < 6
    assert (plain[..., 0] == plain[..., 2]).all()


def test_the_heatmap_lies_on_the_radiograph_as_the_model_gave_it(page, site, tmp_path):
    show(page, "spot")
    grey = greys(page)
    page.press("h")
    page.until("document.getElementById('heat-note').textContent.startsWith('Heatmap: more unusual than')")
    heat = site.map("anomaly_heatmap", "spot", tmp_path, ".png", result_dtype="uint8")
    assert np.ptp(heat) > 100
    stops = (
        (0, 0, 4),
        (87, 16, 110),
        (188, 55, 84),
        (249, 142, 9),
        (252, 255, 164),
    )  # black, purple, red, orange, yellow
    colour = np.stack([np.interp(heat / 255 * 4, range(5), band) for band in zip(*stops, strict=True)], -1)
    floor = np.clip(np.median(heat), 64, 128)  # from one to three standard deviations
    share = 180 / 255 * np.clip((heat - floor) / (heat.max() - floor), 0, 1)[..., None] ** 2
    seen = greys(page)
    assert np.abs(seen - (share * colour + (1 - share) * grey)).mean() < 3
    inside = scipy.ndimage.maximum_filter(heat, 5) <= floor  # and no neighbour that the screen mixes in
    assert inside.mean() > 0.2
    assert (seen == grey)[inside].all()
    page.press("h")
    page.until("document.getElementById('heat-note').textContent == ''")
    assert (greys(page) == grey).all()


def asked(browser: Browser, path: str, image: str = "") -> int:
    """How often the page asked for something, of an image."""
    named = f"image={image}" if image else ""
    return sum(
        f"/{path}" in url and (named in url.partition("?")[2].split("&") or not named) for url in browser.requests
    )


def fetched_ahead(browser: Browser, *shown: str) -> str:
    """Wait for the picture and heatmap of another image than those shown; gives its id."""
    for _ in range(300):
        for url in reversed(browser.requests):
            image = url.partition("work/api/pixels?image=")[2]
            if image and image not in shown and asked(browser, "infer/anomaly_heatmap", image):
                return image
        time.sleep(0.1)
    raise AssertionError("no image was fetched ahead")


def test_the_next_image_is_fetched_with_its_heatmap_while_one_is_looked_at_and_not_again(models, tmp_path):
    write_pngs(tmp_path / "studies", 5)
    with running(str(tmp_path / "studies"), tmp_path / "work", models, {}) as server, browsing(tmp_path / "p") as page:
        shown = start(page, server)
        page.press("h")
        following = fetched_ahead(page, shown)
        assert asked(page, "activelearning") == 2
        assert page.value("document.getElementById('image').textContent") == shown
        page.press("0")
        page.press("n")
        assert settled(page, shown) == following
        third = fetched_ahead(page, shown, following)  # and what is asked for after that is of another one
        for path in ("work/api/pixels", "infer/anomaly_heatmap", "infer/classification"):
            assert asked(page, path, following) == 1, path
        assert asked(page, "activelearning") == 3
        page.press("p")  # going back keeps what was fetched
        settled(page, following)
        page.press("k")
        assert settled(page, shown) == third
        assert asked(page, "work/api/pixels", third) == 1
        # another strategy chooses for itself
        dropped = fetched_ahead(page, shown, following, third)
        page.value("document.getElementById('strategy').value = 'random'")
        page.press("k")
        assert settled(page, third) != dropped
        assert asked(page, "activelearning/random") >= 1
        assert_quiet(page, server)


def test_what_was_fetched_ahead_is_dropped_where_its_file_is_gone_or_a_model_changed(models, tmp_path):
    write_pngs(tmp_path / "studies", 5)
    with running(str(tmp_path / "studies"), tmp_path / "work", models, {}) as server, browsing(tmp_path / "p") as page:
        shown = start(page, server)
        page.press("h")
        gone = fetched_ahead(page, shown)
        (tmp_path / "studies" / f"{gone}.png").unlink()
        page.press("k")
        second = settled(page, shown)
        assert second != gone
        assert page.value("document.getElementById('message').textContent").endswith(f"cannot be used: {gone}")
        # another browser puts another model in use: this one hears of it when it saves
        dropped = fetched_ahead(page, shown, gone, second)
        page.value(
            "(before => { window.fetch = async (url, options) => { const answer = await before(url, options);"
            "if (!String(url).includes('/info/')) return answer; const body = await answer.json();"
            "body.models.anomaly_heatmap.model_version = 'another'; return new Response(JSON.stringify(body)); };"
            "})(window.fetch)"
        )
        page.press("0")
        page.press("s")
        end = time.monotonic() + 30
        while asked(page, "infer/anomaly_heatmap", second) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        page.press("k")
        assert settled(page, second) != dropped
        page.problems = [line for line in page.problems if gone not in line]
        assert_quiet(page, server)


@pytest.mark.parametrize("way", ["labelled", "skipped", "left by P after it was saved"])
def test_an_image_that_is_held_as_the_next_does_not_come_after_itself_or_once_it_is_labelled(way, models, tmp_path):
    write_pngs(tmp_path / "studies", 2)  # and the spotted picture
    with running(str(tmp_path / "studies"), tmp_path / "work", models, {}) as server, browsing(tmp_path / "p") as page:
        first = start(page, server)
        page.press("h")
        second = fetched_ahead(page, first)
        page.press("0")
        page.press("n")  # so that two are left
        assert settled(page, first) == second
        third = fetched_ahead(page, first, second)
        page.press("k")
        assert settled(page, second) == third
        end = time.monotonic() + 30
        while asked(page, "work/api/pixels", second) < 2:  # it is held, as the only one left
            assert time.monotonic() < end
            time.sleep(0.1)
        page.press("p")
        assert settled(page, third) == second
        if way != "skipped":
            page.press("0")
        if way == "left by P after it was saved":
            save(page)
            page.press("p")
            assert settled(page, second) == first
        before = page.value("document.getElementById('image').textContent")
        page.press("n" if way == "labelled" else "k")
        assert settled(page, before) == third
        assert_quiet(page, server)


def test_two_answers_that_overlap_are_each_compared_with_what_was_known_when_they_came(models, tmp_path):
    write_pngs(tmp_path / "studies", 2)
    with running(str(tmp_path / "studies"), tmp_path / "work", models, {}) as server, browsing(tmp_path / "p") as page:
        shown = start(page, server)
        page.press("h")
        fetched_ahead(page, shown)
        page.value(
            "(before => { window.held = new Promise((done) => { window.release = done; });"
            "window.fetch = async (url, options) => { const answer = await before(url, options);"
            "if (!String(url).includes('/info/')) return answer; const body = await answer.json();"
            "body.models.anomaly_heatmap.model_version = 'another'; await window.held;"
            "return new Response(JSON.stringify(body)); }; })(window.fetch)"
        )
        before = asked(page, "info/")
        for key in ("1", "2"):
            page.press(key)
            save(page)
        end = time.monotonic() + 30
        while asked(page, "info/") < before + 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        page.value("window.release()")
        while asked(page, "infer/anomaly_heatmap", shown) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(2)  # for what should not be asked
        assert asked(page, "infer/anomaly_heatmap", shown) == 2
        assert_quiet(page, server)


def test_epochs_can_be_typed_while_news_of_the_training_come(page):
    page.press("m")
    page.until("!!document.getElementById('epochs-classification')")
    page.value("document.getElementById('epochs-classification').focus()")
    page.value("document.getElementById('epochs-classification').select()")
    for key in "123":
        page.value("window.old = document.getElementById('train-classification')")
        page.value("document.getElementById('open-training').click()")  # asks anew, as the page does each second
        page.until("!old.isConnected")
        page.press(key)
    assert page.value("document.getElementById('epochs-classification').value") == "123"


@pytest.mark.parametrize("image", ODD)
def test_odd_ids_are_text_and_their_labels_their_own(page, site, image, tmp_path):
    show(page, image)
    assert page.value("document.querySelectorAll('img, b, aside script').length") == 0
    page.press("1")
    page.press("2", shift=True)
    left, top, scale = layout(page)
    page.press("x")
    page.drag((round(left + 8 * scale), round(top + 8 * scale)), (round(left + 20 * scale), round(top + 20 * scale)))
    save(page)
    assert site.get("datastore/label", label=image, tag="findings").json() == {"Effusion": 1, "Nodule": -1}
    assert saved_mask(site, image, tmp_path).sum() > 100
    show(page, image)
    assert states(page) == ["✓ present", "? uncertain"]
    assert shown_mask(page).sum() > 100


def test_masks_drawn_in_the_page_are_in_the_archive_and_come_back_from_it(models, tmp_path):
    files = write_dicoms(tmp_path / "outbox", 4)
    with running_orthanc(tmp_path / "orthanc") as web:
        archive = DicomWeb(web)
        assert send_folder(archive, tmp_path / "outbox").done == len(files)
        ids = {str(pydicom.dcmread(file).SeriesInstanceUID): name for name, file in files.items()}
        with running(web, tmp_path / "work", models, {}, web) as server, browsing(tmp_path / "profile") as page:
            image = start(page, server)
            picture = pictures(4)[ids[image]].astype(float)
            seen = greys(page)[..., 0]
            assert np.corrcoef(seen.ravel(), picture.ravel())[0, 1] > 0.99  # upright, also MONOCHROME1
            left, top, scale = layout(page)
            page.press("1")
            page.press("x")
            page.drag(*((round(left + c * scale), round(top + r * scale)) for c, r in ((10.2, 20.7), (30.9, 41.3))))
            page.value("document.activeElement.blur()")
            page.press("w")
            drawn = shown_mask(page)
            assert drawn.sum() > 300
            save(page)
            (new,) = archive.find_series(Query(("SEG",)))
            retrieve_series(archive, [new], tmp_path / "got")
            (file,) = (tmp_path / "got").glob("*.dcm")
            segmentation = highdicom.seg.segread(file)
            assert (np.squeeze(segmentation.pixel_array).astype(bool) == drawn).all()
            assert segmentation.get_source_image_uids()[0][1] == image
            show(page, image)
            page.press("w")
            assert (shown_mask(page) == drawn).all()
            assert states(page)[0] == "✓ present"
            page.press("n")
            assert settled(page, image) in ids
            assert_quiet(page, server)


def test_ten_images_from_the_first_to_a_trained_model_in_the_browser_alone(models, tmp_path):
    write_pngs(tmp_path / "studies", 9)  # and the spotted picture
    with (
        running(str(tmp_path / "studies"), tmp_path / "work", models, {}) as server,
        browsing(tmp_path / "profile") as browser,
    ):
        image, entered = start(browser, server), {}
        for number in range(10):
            present = image.startswith("chest") and int(image[5:]) % 3 == 0
            browser.press("1" if present else "0")
            browser.press("r")
            entered[image] = {"Effusion": int(present), "Nodule": 0}
            browser.press("n")
            if number < 9:
                image = settled(browser, image)
        browser.until("document.getElementById('message').textContent.startsWith('There is no image without')")
        browser.until("document.getElementById('count').textContent == '10 of 10 images labelled'")  # told afterwards
        saved = {i: server.get("datastore/label", label=i, tag="findings").json() for i in entered}
        assert len(saved) == 10
        assert saved == entered

        browser.press("m")
        browser.until("!!document.getElementById('epochs-classification')")
        browser.value("document.getElementById('epochs-classification').focus()")
        browser.value("document.getElementById('epochs-classification').select()")
        browser.press("1")
        assert browser.value("document.getElementById('epochs-classification').value") == "1"
        browser.value("document.getElementById('train-classification').focus()")
        browser.press("Enter")
        browser.until("document.getElementById('open-training').textContent.startsWith('Training')")
        browser.until("document.getElementById('message').textContent.startsWith('Training ended')", 120)
        stats = server.info()["train_stats"]["classification"]
        assert (stats["total_epochs"], stats["training"] + stats["validation"]) == (1, 10)
        shown = browser.value("document.getElementById('trainers').textContent")
        assert "too few" in shown
        assert f"{stats['validation']} held back" in shown
        assert stats["warnings"][0] in shown

        def use(run: str) -> list[str]:
            browser.value(f"document.getElementById('use-classification-{run}').focus()")
            browser.press("Enter")
            browser.until("document.getElementById('ask').open")
            browser.value("document.getElementById('yes').focus()")
            browser.press("Enter")
            browser.until(f"!document.getElementById('use-classification-{run}')")
            return [v["run"] for v in server.get("work/api/setup").json()["versions"]["classification"] if v["in_use"]]

        assert use("0001") == ["0001"]
        warnings = browser.until(
            "document.getElementById('warnings').textContent.includes('not judged') && warnings.textContent"
        )
        assert "Effusion: not judged, 20 held-back patients" in warnings
        assert "not calibrated: Effusion, Nodule" in warnings
        assert use("") == [""]
        assert_quiet(browser, server)
