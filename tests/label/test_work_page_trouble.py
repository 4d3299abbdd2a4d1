"""What goes wrong while somebody works in the page: nothing is lost without a word; run by scripts/label_test.sh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from chromium import CHROMIUM, Browser, browsing
from label_page import DRAWN, enter, layout, message, save, settled, start, states
from label_phantoms import SHAPE, phantom, write_models, write_pngs
from label_server import Server, running
from PIL import Image

pytestmark = [
    pytest.mark.skipif(not os.environ.get("AFIRE_LABEL_TEST"), reason="scripts/label_test.sh runs these"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium"),
    pytest.mark.slow,
]
MANY = [f"Finding {number}" for number in range(1, 13)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("trouble")
    write_pngs(folder / "studies", 6)
    with running(str(folder / "studies"), folder / "work", write_models(folder / "models"), {}) as server:
        yield server


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Iterator[Server]:
    """No model at all, and of three files one that can be used."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "studies").mkdir()
    Image.fromarray(np.array([[50, 200], [90, 30]], np.uint8)).save(folder / "studies" / "tiny.png")
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(folder / "studies" / "flat.png")
    (folder / "studies" / "broken.png").write_bytes((folder / "studies" / "flat.png").read_bytes()[:50])
    named = {"findings": ",".join(MANY), "classes": "lung"}
    with running(str(folder / "studies"), folder / "work", "", {}, **named) as server:
        yield server


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    with browsing(tmp_path / "profile") as browser:
        yield browser


def draw_a_box(page: Browser) -> None:
    left, top, scale = layout(page)
    page.press("x")
    page.drag((round(left + 8 * scale), round(top + 8 * scale)), (round(left + 20 * scale), round(top + 20 * scale)))
    page.until("!document.getElementById('unsaved').hidden")


def test_labels_that_another_browser_saved_are_replaced_on_purpose_only(site, browser, tmp_path):
    enter(browser, site, "chest01")
    (tmp_path / "theirs.json").write_text('{"Nodule": 1}')
    assert site.save("chest01", tmp_path / "theirs.json", "findings").status_code == 200
    browser.press("1")
    browser.press("s")
    browser.until("document.getElementById('ask').open")
    browser.press("Escape")
    browser.until("document.getElementById('message').textContent.startsWith('Not saved')")
    assert site.get("datastore/label", label="chest01", tag="findings").json() == {"Nodule": 1}
    browser.press("s")
    browser.until("document.getElementById('ask').open")
    browser.value("document.getElementById('yes').click()")
    browser.until("document.getElementById('message').textContent == 'Saved.'")
    assert site.get("datastore/label", label="chest01", tag="findings").json() == {"Effusion": 1, "Nodule": None}
    browser.press("2")
    save(browser)  # of one's own labels nobody is asked
    assert "a label was saved; 1 images are labelled" in site.log()


def test_a_mask_that_could_not_be_sent_is_not_lost_with_the_next_image(site, browser):
    enter(browser, site, "chest02")
    draw_a_box(browser)
    browser.value(
        "window.real = fetch, window.fetch = (url, options) => String(url).includes('tag=final')"
        " ? new Promise((_, refuse) => { window.fail = () => refuse(new TypeError('gone')); }) : real(url, options)"
    )
    browser.press("s")
    browser.until("!!window.fail")
    browser.press("k")  # skips while the mask is on its way
    browser.value("fail()")
    browser.until("document.getElementById('ask').open")
    browser.press("Escape")
    assert settled(browser) == "chest02"
    assert not browser.value("document.getElementById('unsaved').hidden")
    browser.value("window.fetch = real")
    save(browser)
    assert browser.value("document.getElementById('unsaved').hidden")
    mask = np.frombuffer(site.get("work/api/mask", image="chest02").content, np.uint8)
    assert 100 < mask.sum() < 200


def test_while_the_server_does_not_answer_nothing_is_lost(site, browser):
    enter(browser, site, "chest03")
    browser.press("1")
    draw_a_box(browser)
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.call("Network.emulateNetworkConditions", offline=True, **offline)
    browser.press("n")
    browser.until("document.getElementById('message').textContent.startsWith('The server does not answer')")
    assert settled(browser) == "chest03"
    browser.call("Network.emulateNetworkConditions", offline=False, **offline)
    browser.press("n")
    assert settled(browser, "chest03") != "chest03"
    assert site.get("work/api/case", image="chest03").json()["findings"] == {"Effusion": 1, "Nodule": None}
    assert np.frombuffer(site.get("work/api/mask", image="chest03").content, np.uint8).sum() > 100


def test_damaged_labels_are_named_and_can_be_replaced(site, browser, tmp_path):
    Image.fromarray(phantom(4)[1]).save(tmp_path / "mask.png")
    (tmp_path / "f.json").write_text('{"Nodule": 1}')
    assert site.save("chest04", tmp_path / "mask.png").status_code == 200
    assert site.save("chest04", tmp_path / "f.json", "findings").status_code == 200
    labels = site.work.parent / "studies" / "labels"
    Image.fromarray(np.ones((5, 5), np.uint8)).save(labels / "final" / "chest04.png")
    (labels / "findings" / "chest04.json").write_text("{")
    enter(browser, site, "chest04")
    assert "The saved findings cannot be shown" in message(browser)
    assert "The saved mask cannot be shown: the label has 5 rows" in message(browser)
    browser.press("0")
    draw_a_box(browser)
    save(browser)
    assert site.get("work/api/case", image="chest04").json()["problems"] == []
    assert len(site.get("work/api/mask", image="chest04").content) == SHAPE[0] * SHAPE[1]


def test_a_label_is_whole_whenever_it_is_read(site, tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 2, SHAPE, np.uint8) for _ in range(2)]
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / f"{number}.png")
    wanted = {mask.tobytes() for mask in masks}
    assert site.save("chest05", tmp_path / "0.png").status_code == 200
    with ThreadPoolExecutor(3) as pool:
        saves = [pool.submit(site.save, "chest05", tmp_path / f"{n % 2}.png") for n in range(60)]
        while not all(done.done() for done in saves):
            answer = site.get("work/api/mask", image="chest05")
            assert answer.status_code == 200, answer.text
            assert answer.content in wanted
    assert {done.result().status_code for done in saves} == {200}
    assert [p.name for p in (site.work.parent / "studies" / "labels" / "final").glob("*.part")] == []


def test_images_that_cannot_be_used_are_left_out_and_named(bare, browser):
    found = []
    start(browser, bare)
    for _ in range(2):
        found.append(message(browser))
        browser.value("document.getElementById('message').textContent = ''")
        browser.press("k")
        browser.until("document.getElementById('message').textContent.startsWith('Left out')")
        assert settled(browser) == "tiny"
    found.append(message(browser))
    assert {name for text in found for name in ("broken", "flat") if name in text} == {"broken", "flat"}


def test_findings_can_be_labelled_without_a_model_and_more_than_nine_by_keyboard(bare, browser):
    enter(browser, bare, "tiny")
    assert len(states(browser)) == 12
    browser.press("ArrowUp")
    browser.press("Enter")
    browser.press("ArrowUp")
    browser.press("Enter", shift=True)
    browser.press("ArrowDown")
    browser.press("ArrowDown")
    browser.press("ArrowDown", shift=True)
    browser.press("Enter")
    assert states(browser)[-2:] == ["? uncertain", "✓ present"]
    assert states(browser)[:2] == ["not said", "✓ present"]
    browser.press("h")
    assert message(browser) == "No model here gives a heatmap."
    save(browser)
    browser.press("n")
    browser.until("document.getElementById('message').textContent.startsWith('There is no image left')")
    kept = bare.get("work/api/case", image="tiny").json()["findings"]
    assert {name: value for name, value in kept.items() if value is not None} == {MANY[1]: 1, MANY[10]: -1, MANY[11]: 1}


def test_keys_work_from_a_list_of_choices_and_once_while_they_are_held(site, browser):
    enter(browser, site, "chest00")
    browser.value("document.getElementById('strategy').focus()")
    chosen = browser.value("document.getElementById('strategy').value")
    browser.press("1")
    browser.press("r")
    assert states(browser) == ["✓ present", "– absent"]
    assert browser.value("document.getElementById('strategy').value") == chosen
    held = "new KeyboardEvent('keydown', {key: '1', code: 'Digit1', repeat: true, bubbles: true, cancelable: true})"
    browser.value(f"document.body.dispatchEvent({held})")
    assert states(browser) == ["✓ present", "– absent"]


def test_a_picture_of_four_pixels_gets_larger(bare, browser):
    enter(browser, bare, "tiny")
    wide, high = browser.value("[canvas.width, canvas.height]")
    browser.press("+")
    browser.value(DRAWN)
    edge = f"[...canvas.getContext('2d').getImageData({wide // 2 - 300}, {high // 2 - 300}, 1, 1).data].slice(0, 3)"
    assert browser.value(edge) != [0, 0, 0]


def test_outlines_are_the_borders_between_pixels(site, browser):
    start(browser, site)
    values = np.random.default_rng(0).integers(0, 3, (12, 9))
    seen = browser.value(f"""(async () => {{
        const {{ outline }} = await import('./mask.js'), real = window.Path2D, edges = [];
        window.Path2D = class {{
          moveTo(x, y) {{ this.from = [x, y]; }}
          lineTo(x, y) {{ edges.push([...this.from, x, y]); }}
        }};
        outline(Uint8Array.from({values.ravel().tolist()}), 9, 2);
        window.Path2D = real;
        return edges;
    }})()""")
    short = set()
    for x, y, to_x, to_y in seen:
        across, down = int(to_x > x), int(to_y > y)
        pieces = {(x + across * n, y + down * n, across) for n in range(to_x - x + to_y - y)}
        assert not pieces & short
        short |= pieces
    inside = np.pad(values == 2, 1)
    wanted = {(c, r, 1) for r in range(13) for c in range(9) if inside[r, c + 1] != inside[r + 1, c + 1]}
    wanted |= {(c, r, 0) for r in range(12) for c in range(10) if inside[r + 1, c] != inside[r + 1, c + 1]}
    assert short == wanted


def test_labels_saved_while_a_training_starts_are_kept_and_do_not_disturb_it(site, tmp_path):
    for value in (0, 1):
        (tmp_path / f"{value}.json").write_text(f'{{"Effusion": {value}, "Nodule": {1 - value}}}')
    images = [f"chest{number:02d}" for number in range(6)]

    def save_all(turn: int) -> set[int]:
        answers = [
            site.save(image, tmp_path / f"{(turn + place) % 2}.json", "findings") for place, image in enumerate(images)
        ]
        return {answer.status_code for answer in answers}

    assert save_all(0) == {200}
    with ThreadPoolExecutor(2) as pool:
        training = pool.submit(site.train, "classification", True, max_epochs=1)
        turn = 0
        while not training.done() or turn < 2:
            turn += 1
            assert save_all(turn) == {200}
    assert training.result().status_code == 200, training.result().text
    assert site.info()["train_stats"]["classification"].get("failed") is None
    kept = [site.get("work/api/case", image=image).json()["findings"]["Effusion"] for image in images]
    assert kept == [(turn + place) % 2 for place in range(6)]
