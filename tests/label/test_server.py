"""A real MONAI Label server on loopback, started as users start it; run by scripts/label_test.sh."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from asked_hosts import asked_for, recording
from hospital.certificates import asking_for_a_certificate, make_certificates
from hospital.fake_dicomweb import fake_dicomweb
from hospital.orthanc import free_port, running_orthanc
from hospital_files import PLANTED, radiograph
from label_phantoms import LABELS, SHAPE, SPOT, phantom, pictures, write_dicoms, write_models, write_pngs
from label_server import ROOT, Server, running
from PIL import Image

from afire_monai.hospital.dicomweb.client import DicomWeb, Query
from afire_monai.hospital.dicomweb.transfer import retrieve_series, send_folder
from afire_monai.label.images import Grid, read_label, write_map

pytestmark = [
    pytest.mark.skipif(not os.environ.get("AFIRE_LABEL_TEST"), reason="scripts/label_test.sh runs these"),
    pytest.mark.slow,
]
IMAGES = 20
TASKS = {"anomaly_heatmap", "anomaly_regions", "restoration", "classification", "segmentation"}
STRATEGIES = {"most_anomalous", "most_uncertain", "most_different", "random"}
FORMATS = (".nii.gz", ".nii", ".png", ".bin")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("label") / "models")


@pytest.fixture(scope="module")
def of_pngs(tmp_path_factory, models) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pngs")
    write_pngs(folder / "studies", IMAGES)
    shutil.copy(folder / "studies" / "chest00.png", folder / "studies" / "chest00.PNG")  # one id for both
    names = {name: name for name in pictures(IMAGES)}
    with running(str(folder / "studies"), folder / "work", models, names) as server:
        yield server


@pytest.fixture(scope="module")
def of_dicoms(tmp_path_factory, models) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("dicoms")
    files = write_dicoms(folder / "studies", IMAGES)
    shutil.move(files["chest07"], folder / "studies" / "chest07")  # archives name files without suffix
    with running(str(folder / "studies"), folder / "work", models, {name: name for name in files}) as server:
        yield server


@pytest.fixture(scope="module")
def of_archive(tmp_path_factory, models) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("archive")
    files = write_dicoms(folder / "outbox", IMAGES)
    with running_orthanc(folder / "orthanc") as web:
        assert send_folder(DicomWeb(web), folder / "outbox").done == len(files)
        ids = {name: str(pydicom.dcmread(file).SeriesInstanceUID) for name, file in files.items()}
        with running(web, folder / "work", models, ids, web) as server:
            yield server


@pytest.fixture(params=["of_pngs", "of_dicoms", "of_archive"])
def server(request) -> Server:
    return request.getfixturevalue(request.param)


def test_the_server_asks_for_no_host(models, tmp_path, monkeypatch):
    home = os.environ["HOME"]
    for name in set(os.environ) - set(recording(tmp_path)):
        monkeypatch.delenv(name)
    for name, value in recording(tmp_path, str(ROOT)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", home)  # where its environment is
    write_pngs(tmp_path / "studies", 3)
    with running(str(tmp_path / "studies"), tmp_path / "work", models, {}) as server:
        assert server.infer("classification", "chest00").status_code == 200
        process = (server.work / "server.pid").read_text().strip()
        assert f"ASKED_FOR={tmp_path}" in Path(f"/proc/{process}/environ").read_text()  # it is recorded
    assert asked_for(tmp_path) == []


def test_nobody_is_let_in_without_the_token_and_a_browser_with_it(server):
    with requests.Session() as browser:
        browser.trust_env = False
        for path in ("", "info/", "ohif/", "docs", "openapi.json", "static/favicon.ico", "proxy/dicom/qido/studies"):
            assert browser.get(server.url + path, timeout=60).status_code == 401, path
        assert browser.put(f"{server.url}datastore/label?image=x", timeout=60).status_code == 401
        assert browser.get(f"{server.url}info/?token={server.token}", timeout=60).status_code == 200
        assert browser.get(f"{server.url}info/", timeout=60).json()["name"] == "AFiRe radiographs"  # by the cookie
        browser.cookies.clear()
        assert browser.get(f"{server.url}token/{server.token}/info/", timeout=60).status_code == 200
    assert server.token not in server.log()
    assert server.token not in (server.work / "console.log").read_text()


def test_connections_that_say_nothing_half_of_it_or_no_token_do_not_stop_others(of_pngs):
    where = ("127.0.0.1", int(of_pngs.url.rpartition(":")[2].strip("/")))
    with contextlib.ExitStack() as stack:
        begun = b"POST /infer/anomaly_heatmap?image=chest00 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
        for words in (b"", b"GET /inf", begun, begun + b"\r\nabc"):
            for _ in range(8):
                stack.enter_context(socket.create_connection(where)).sendall(words)
        assert of_pngs.info()["name"]
        assert of_pngs.infer("anomaly_heatmap", "chest00").status_code == 200
        assert of_pngs.get("work/api/pixels", image="chest00").status_code == 200


def test_info_names_tasks_strategies_trainers_and_images(server):
    info = server.info()
    assert set(info["models"]) == TASKS
    assert set(info["strategies"]) == STRATEGIES
    assert set(info["trainers"]) == {"segmentation", "classification"}
    assert info["models"]["segmentation"]["labels"] == {"right_lung": 1}
    assert info["models"]["classification"]["labels"] == LABELS
    assert info["datastore"]["total"] == IMAGES + 1


def test_every_task_answers_for_every_modality(server, tmp_path):
    for name in ("chest00", "chest01"):  # CR and DX where they are DICOM
        for task in sorted(TASKS):
            answer = server.infer(task, server.ids[name])
            assert answer.status_code == 200, answer.text
            said = answer.json()
            assert set(said["latencies"]) == {"pre", "infer", "post", "write", "total"}
            assert re.fullmatch("[0-9a-f]{12}", said["model_version"])
            if task == "classification":
                assert set(said["labels"]) == set(LABELS)
            else:
                assert server.map(task, server.ids[name], tmp_path).shape == SHAPE
        assert server.map("classification", server.ids[name], tmp_path, heatmap=True).shape == SHAPE
    assert re.search(
        r"anomaly_heatmap: pre \d+ ms, infer \d+ ms, post \d+ ms, write \d+ ms, total \d+ ms", server.log()
    )


def test_heatmap_and_regions_lie_where_the_spot_is(server, tmp_path):
    for suffix in (".nii.gz", ".png"):
        heat = server.map("anomaly_heatmap", server.ids["spot"], tmp_path, suffix)
        row, column = np.unravel_index(heat.argmax(), SHAPE)
        assert SPOT[0].start <= row < SPOT[0].stop
        assert SPOT[1].start <= column < SPOT[1].stop


def test_nrrd_for_slicer_and_ohif_lies_like_nifti(server, tmp_path):
    wanted = server.map("anomaly_regions", server.ids["spot"], tmp_path, threshold=0.3)
    answer = server.infer("anomaly_regions", server.ids["spot"], "image", result_extension=".nrrd", threshold=0.3)
    header, _, values = answer.content.partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in header.decode().splitlines() if ": " in line)
    assert fields["sizes"] == f"{SHAPE[1]} {SHAPE[0]} 1"
    assert (fields["encoding"], fields["space"]) == ("raw", "left-posterior-superior")
    column, row, _ = (np.array(v.strip("()").split(","), float) for v in fields["space directions"].split())
    assert column[1:].tolist() == [0, 0]
    assert row[[0, 2]].tolist() == [0, 0]
    assert min(column[0], row[1]) > 0
    assert (np.frombuffer(values, np.uint8).reshape(SHAPE) == wanted).all()
    assert wanted.any()


def test_the_page_gets_radiographs_upright_at_their_own_size_and_masks_of_any_format(server, tmp_path):
    for name in ("chest00", "chest01"):  # MONOCHROME1 and MONOCHROME2 where they are DICOM
        answer = server.get("work/api/pixels", image=server.ids[name])
        assert (answer.headers["X-Rows"], answer.headers["X-Columns"]) == tuple(map(str, SHAPE))
        assert answer.headers["Cache-Control"] == "no-store"
        seen = np.frombuffer(answer.content, "<u2").reshape(SHAPE) / 65535
        truth = pictures(1 + int(name[-2:]))[name].astype(float)
        # without a window the values of a DICOM file fill 0…1
        low, high = (0, 255) if server.work.parent.name.startswith("pngs") else (truth.min(), truth.max())
        assert np.abs(seen - (truth - low) / (high - low)).max() < 1e-4
    image, mask = server.ids["chest19"], phantom(19)[1]
    assert server.get("work/api/mask", image=image).status_code == 404
    for suffix in FORMATS:
        path = tmp_path / f"label{suffix}"
        mask.tofile(path) if suffix == ".bin" else write_map(path, mask, Grid(SHAPE, (0.4, 0.5)))
        assert server.save(image, path).status_code == 200
        assert (np.frombuffer(server.get("work/api/mask", image=image).content, np.uint8).reshape(SHAPE) == mask).all()
    saved = server.get("work/api/case", image=image).json()
    assert (saved["findings"], saved["mask"], saved["problems"]) == (None, True, [])


def test_every_strategy_gives_an_image_without_label(server):
    scores = {i: server.infer("anomaly_heatmap", i).json()["anomaly"]["score"] for i in server.ids.values()}
    found = {}
    for strategy in sorted(STRATEGIES):
        answer = server.next(strategy)
        assert answer.status_code == 200, answer.text
        found[strategy] = answer.json()["id"]
        assert found[strategy] in server.ids.values()
    assert found["most_anomalous"] == max(scores, key=scores.__getitem__)
    assert "next sample by" in server.log()


def test_bad_requests_are_answered_in_words_and_the_server_lives_on(server, tmp_path):
    wrong_size = tmp_path / "wrong.png"
    Image.fromarray(np.zeros(SHAPE[::-1], np.uint8)).save(wrong_size)
    wrong_class = tmp_path / "class.png"
    Image.fromarray(np.full(SHAPE, 9, np.uint8)).save(wrong_class)
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    (tmp_path / "findings.json").write_text('{"Plague": 1}')
    chest = server.ids["chest02"]
    for answer, status, words in (
        (server.infer("segmentation", "1.2.3.4"), 404, "no"),
        (server.infer("segmentation", "/etc/passwd"), 404, "id"),
        (server.infer("segmentation", ""), 400, "no image"),
        (server.http.post(f"{server.url}infer/segmentation?image={wrong_size}&session_id=none"), 404, "id"),
        (server.infer("nonsense", chest), 404, "there are"),
        (server.infer("classification", chest, "image"), 400, "heatmap"),
        (server.infer("classification", chest, "image", heatmap="false"), 400, "heatmap"),
        (server.infer("classification", chest, heatmap="perhaps"), 400, "true or false"),
        (server.infer("anomaly_regions", chest, threshold=7), 400, "threshold"),
        (server.infer("anomaly_heatmap", chest, "image", result_extension=".exe"), 400, ".nii.gz"),
        (server.next("nonsense"), 404, "most_anomalous"),
        (server.save(chest, wrong_size), 400, f"{SHAPE[1]} rows and {SHAPE[0]} columns"),
        (server.save(chest, wrong_class), 400, "1 right_lung"),
        (server.save(chest, tmp_path / "broken.nii.gz"), 400, "not a readable"),
        (server.save(chest, tmp_path / "findings.json"), 400, "Plague"),
        (server.save(chest, wrong_class, tag="../../out"), 400, "tag"),
        (server.save("nobody", wrong_class), 404, "id"),
        (server.train("segmentation"), 400, "at least 4"),
        (server.train("segmentation", sync=True), 400, "at least 4"),
        (server.train("nonsense"), 404, "segmentation"),
        (server.http.delete(f"{server.url}datastore/image", params={"id": chest}, timeout=60), 400, "not deleted"),
        (server.http.delete(f"{server.url}model/segmentation", timeout=60), 400, "only read"),
        (server.http.put(f"{server.url}model/segmentation", files={"file": b"x"}, timeout=60), 400, "only read"),
        (server.http.get(f"{server.url}info/", headers={"Origin": "http://evil.example"}, timeout=60), 403, "pages"),
        (server.http.post(f"{server.url}infer/segmentation?image={chest}", files={"params": (None, "{")}), 400, "JSON"),
    ):
        assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
        assert str(tmp_path) not in answer.text
    assert server.infer("segmentation", chest).status_code == 200
    assert server.http.get(f"{server.url}info/", headers={"Host": "evil.example"}, timeout=60).status_code == 400


def test_uploads_that_are_refused_are_not_left_behind(models, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    write_pngs(tmp_path / "studies", 1)
    with running(str(tmp_path / "studies"), tmp_path / "work", models, {}) as server:
        before = set((tmp_path / "tmp").iterdir())
        assert server.save("chest00", tmp_path / "broken.png").status_code == 400
        upload = {"file": ("broken.png", b"nothing")}
        assert server.http.post(f"{server.url}infer/segmentation", files=upload, timeout=60).status_code == 400
        assert server.infer("segmentation", "chest00", "dicom_seg").status_code == 400  # of a PNG
        assert set((tmp_path / "tmp").iterdir()) == before


def test_images_of_one_id_are_told(of_pngs):
    assert "1 images are left out, as others differ in the suffix alone" in of_pngs.log()


def test_a_class_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "studies").mkdir()
    words = ["--classes", "heart,lung,heart", "--work", str(tmp_path / "work"), "--port", str(free_port())]
    command = ["bash", str(ROOT / "scripts" / "label_server.sh"), "start", str(tmp_path / "studies"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "--conf classes: heart is named more than once; name each once" in done.stderr + done.stdout


def test_findings_and_mask_under_one_tag_do_not_replace_each_other(of_pngs, tmp_path):
    (tmp_path / "f.json").write_text('{"Effusion": 1}')
    for file in (write_map(tmp_path / "m.png", phantom(1)[1], Grid(SHAPE)), tmp_path / "f.json"):
        assert of_pngs.save("chest01", file).status_code == 200
    case = of_pngs.get("work/api/case", image="chest01").json()
    assert (case["findings"], case["mask"]) == ({"Effusion": 1}, True)
    for tag in ("final", "findings"):
        query = {"id": "chest01", "tag": tag}
        assert of_pngs.http.delete(f"{of_pngs.url}datastore/label", params=query, timeout=60).status_code == 200


def test_labels_train_a_better_model_that_answers_upright(server, tmp_path):
    """Masks in every format that a viewer sends teach where the right lung is; any that was turned would spoil it."""
    before = server.infer("segmentation", server.ids["chest00"]).json()["model_version"]
    for number in range(IMAGES):
        image = server.ids[f"chest{number:02d}"]
        mask, suffix = phantom(number)[1], FORMATS[number % len(FORMATS)]
        path = tmp_path / f"label{suffix}"
        mask.tofile(path) if suffix == ".bin" else write_map(path, mask, Grid(SHAPE, (0.4, 0.5)))
        answer = server.save(image, path, label_info=[{"name": "right_lung"}])
        assert answer.status_code == 200, answer.text
        kept = server.get("datastore/label", label=image, tag="final")
        stored = tmp_path / f"kept{'.nii.gz' if suffix == '.bin' else suffix}"
        stored.write_bytes(kept.content)
        assert suffix == ".bin" or kept.content == path.read_bytes()
        assert (read_label(stored, Grid(SHAPE, (0.4, 0.5))) == mask).all()
    assert server.info()["datastore"]["completed"] == IMAGES
    score = server.http.post(f"{server.url}scoring/dice?run_sync=true", timeout=120).json()
    refused = server.train("segmentation", gpus=1)  # MONAI Label could not start it, and it would hold up the others
    assert (refused.status_code, "device numbers" in refused.json()["detail"]) == (400, True), refused.text
    with ThreadPoolExecutor(2) as clicks:  # at once, as by a double click: one is trained, one refused
        started = list(clicks.map(lambda _: server.train("segmentation", max_epochs=40, lr=1.0), range(2)))
    assert sorted(answer.status_code for answer in started) == [200, 429], [answer.text for answer in started]
    assert server.infer("classification", server.ids["spot"]).status_code == 200  # while it trains
    stats = finished(server)
    assert stats["best_metric"] > stats["validation_before"]
    assert stats["model"] == "replaced"
    after = server.infer("segmentation", server.ids["chest00"]).json()["model_version"]
    assert before != after == stats["model_version"]
    better = server.http.post(f"{server.url}scoring/dice?run_sync=true", timeout=120).json()
    assert better["dice"] > max(0.6, score["dice"])
    drawn = server.map("segmentation", server.ids["chest00"], tmp_path) == 1
    truth = phantom(0)[1] == 1
    for turned in (truth[::-1], truth[:, ::-1]):
        assert dice(drawn, truth) > dice(drawn, turned) + 0.1
    assert "trained segmentation" in server.log()


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def finished(server: Server) -> dict[str, Any]:
    seen = set()
    for _ in range(600):
        status = server.get("train/").json()
        seen.add(server.info()["train_stats"]["segmentation"].get("epoch"))
        if status["status"] not in ("SUBMITTED", "RUNNING"):
            break
        time.sleep(0.3)
    assert status["status"] == "DONE", status["details"]
    assert len(seen) > 1  # progress was reported on the way
    return server.info()["train_stats"]["segmentation"]


def test_findings_train_the_classifier(of_pngs, tmp_path):
    for number in range(IMAGES):
        path = tmp_path / "findings.json"
        path.write_text(json.dumps({"Effusion": int(number % 3 == 0), "Nodule": 0}))
        assert of_pngs.save(f"chest{number:02d}", path, tag="findings").status_code == 200
    answer = of_pngs.train("classification", sync=True, max_epochs=1)
    assert answer.status_code == 200, answer.text
    assert answer.json()["training"] + answer.json()["validation"] == IMAGES
    score = of_pngs.http.post(f"{of_pngs.url}scoring/auroc?run_sync=true", timeout=120).json()
    assert score["images"] == IMAGES


def test_outlines_and_heatmaps_come_as_dicom_segmentations(of_archive, tmp_path):
    import highdicom

    spot = of_archive.ids["spot"]
    for task, kind in (("anomaly_heatmap", "FRACTIONAL"), ("anomaly_regions", "BINARY")):
        answer = of_archive.infer(task, spot, "dicom_seg", threshold=0.3)
        assert answer.status_code == 200, answer.text
        seg = highdicom.seg.segread(io.BytesIO(answer.content))
        assert seg.SegmentationType == kind
        frame = np.squeeze(seg.pixel_array)
        assert frame.shape == SHAPE
        wanted = of_archive.map(task, spot, tmp_path, threshold=0.3)
        assert (
            np.abs(frame / frame.max() - (wanted if kind == "BINARY" else np.round(wanted * 255) / frame.max())).max()
            < 0.01
        )
    refused = of_archive.infer("classification", spot, "dicom_seg")
    assert refused.status_code == 400


def test_saved_masks_are_in_the_archive_as_segmentations_of_their_study(of_archive, tmp_path):
    import highdicom

    image, mask = of_archive.ids["chest03"], phantom(3)[1]
    header = f"""NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: {SHAPE[1]} {SHAPE[0]} 1
space directions: (0.5,0,0) (0,0.4,0) (0,0,1)\nkinds: domain domain domain\nencoding: raw\nspace origin: (0,0,0)\n\n"""
    (tmp_path / "m.nrrd").write_bytes(header.encode() + mask.tobytes())
    web = DicomWeb(of_archive.web)
    before = set(web.find_series(Query(("SEG",))))
    assert of_archive.save(image, tmp_path / "m.nrrd").status_code == 200
    (new,) = set(web.find_series(Query(("SEG",)))) - before
    retrieve_series(web, [new], tmp_path / "got")
    (file,) = (tmp_path / "got").glob("*.dcm")
    seg = highdicom.seg.segread(file)
    assert (np.squeeze(seg.pixel_array) == mask).all()
    assert [d.SegmentLabel for d in seg.SegmentSequence] == ["right_lung"]
    ((study, series, _),) = seg.get_source_image_uids()
    assert (study, series) == (new.study, image)


def test_a_browser_reads_the_chosen_modalities_of_the_archive_and_changes_nothing(of_archive):
    image = of_archive.ids["chest04"]
    (study,) = {r.study for r in DicomWeb(of_archive.web).find_series(Query()) if r.series == image}
    hidden = radiograph(99, Modality="CT", StudyInstanceUID=study)
    DicomWeb(of_archive.web).store(hidden)
    proxy = "proxy/dicom/wado/studies"
    studies = of_archive.get("proxy/dicom/qido/studies", limit=101, offset=0, includefield="all").json()
    assert study in {entry["0020000D"]["Value"][0] for entry in studies}
    assert len(studies) == IMAGES + 1
    assert {m for entry in studies for m in entry["00080061"]["Value"]} == {"CR", "DX"}
    for path in (f"proxy/dicom/qido/studies/{study}/series", f"proxy/dicom/qido/studies/{study}/instances"):
        assert {entry["0020000E"]["Value"][0] for entry in of_archive.get(path).json()} == {image}
    (entry,) = of_archive.get(f"{proxy}/{study}/series/{image}/metadata").json()
    frame = f"{proxy}/{study}/series/{image}/instances/{entry['00080018']['Value'][0]}/frames/1"
    assert of_archive.get(frame).headers["Content-Type"].startswith("multipart/related")
    answer = of_archive.get(f"{proxy}/{study}/series/{hidden.SeriesInstanceUID}/metadata")
    assert (answer.status_code, "only series of CR, DX" in answer.text) == (404, True)
    for method in ("POST", "PUT", "DELETE"):
        for path in ("proxy/dicom/stow/studies", "proxy/dicom/studies", f"{proxy}/{study}"):
            answer = of_archive.http.request(method, of_archive.url + path, data=b"x", timeout=60)
            assert (answer.status_code, "only read" in answer.text) == (405, True), path


def test_an_archive_that_hangs_is_a_502_and_others_are_answered_meanwhile(models, tmp_path):
    awake = threading.Event()

    def hang(handler: Any) -> bool:
        awake.wait(60)
        handler.close_connection = True
        return True

    with fake_dicomweb() as archive:
        archive.hold(radiograph(1))
        with running(archive.url, tmp_path / "work", models, {}) as server:
            archive.tricks += [hang] * 100
            with ThreadPoolExecutor(12) as browsers:
                try:
                    waiting = [browsers.submit(server.get, "proxy/dicom/qido/studies") for _ in range(10)]
                    image = browsers.submit(server.get, "datastore/image", image=radiograph(1).SeriesInstanceUID)
                    time.sleep(1)
                    assert server.get("static/favicon.ico").status_code == 200
                    assert server.infer("segmentation", "").status_code == 400
                    assert not any(browser.done() for browser in (*waiting, image))
                    for done in as_completed(waiting, 40):
                        assert (done.result().status_code, "cannot be reached" in done.result().text) == (502, True)
                finally:
                    awake.set()


@pytest.mark.parametrize("way", ["password", "token file"])
def test_an_archive_with_its_own_authority_certificates_and_credentials_is_reached_from_store_and_browser(
    way, models, tmp_path, monkeypatch
):
    """The store lists and fetches, saves a mask into the archive, and OHIF's proxy reads, all as the same client."""
    files = make_certificates(tmp_path, "server", "client")
    if way == "password":
        monkeypatch.setenv("AFIRE_DICOMWEB_USER", "anna")
        monkeypatch.setenv("AFIRE_DICOMWEB_PASSWORD", "hünter:2 €")
        expected = "Basic " + base64.b64encode("anna:hünter:2 €".encode()).decode()
    else:
        (tmp_path / "token").write_text("abc.def\n")
        (tmp_path / "token").chmod(0o600)
        monkeypatch.setenv("AFIRE_DICOMWEB_TOKEN_FILE", os.path.relpath(tmp_path / "token"))
        expected = "Bearer abc.def"
    source = radiograph(1, Modality="DX" if way == "password" else "OT")
    options = {
        "modalities": "DX,OT",
        "ca": str(files / "server.pem"),
        "tls_cert": str(files / "client.pem"),
        "tls_key": str(files / "client.key"),
    }
    with fake_dicomweb(asking_for_a_certificate(files)) as archive:
        archive.hold(source)
        with running(archive.url, tmp_path / "work", models, {}, **options) as server:
            image = server.get("datastore/image", image=source.SeriesInstanceUID)
            assert image.status_code == 200, image.text
            archive.authorizations.clear()
            frame = f"studies/{source.StudyInstanceUID}/series/{source.SeriesInstanceUID}/instances"
            assert server.get(f"proxy/dicom/wado/{frame}/{source.SOPInstanceUID}").status_code == 200
            assert archive.authorizations
            Image.fromarray(np.ones(source.pixel_array.shape, np.uint8)).save(tmp_path / "mask.png")
            saved = server.save(str(source.SeriesInstanceUID), tmp_path / "mask.png")
            assert saved.status_code == 200, saved.text
            assert [d.Modality for d in archive.held.values()].count("SEG") == 1
            assert set(archive.authorizations) == {expected}
            assert "hünter" not in server.log() + (tmp_path / "work" / "console.log").read_text(encoding="utf-8")


def test_in_the_foreground_the_script_stays_and_ends_with_its_server(models, tmp_path):
    (tmp_path / "studies").mkdir()
    Image.fromarray(phantom(0)[0]).save(tmp_path / "studies" / "a.png")
    words = ["--model", str(models), "--work", str(tmp_path / "work"), "--port", str(free_port()), "--foreground"]
    command = ["bash", str(ROOT / "scripts" / "label_server.sh"), "start", str(tmp_path / "studies"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as script:
        address = script.stdout.readline().strip()
        assert requests.get(address, timeout=60).status_code == 200
        group = int((tmp_path / "work" / "server.pid").read_text())
        assert script.poll() is None
        script.terminate()
        assert script.wait(30) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_nothing_that_is_written_tells_who_the_patients_are(of_archive, of_dicoms):
    """In the log, the labels' list, settings and models; the cache of the archive's pictures is theirs alone."""
    for server in (of_archive, of_dicoms):
        assert server.work.stat().st_mode & 0o077 == 0
        cache = server.work / "cache"
        files = [p for p in server.work.rglob("*") if p.is_file() and p.suffix not in (".dcm", ".safetensors")]
        assert len(files) > 5
        for path in files:
            content = path.read_bytes()
            assert [word for word in PLANTED if word.encode() in content] == [], path
        log = server.log()
        assert not re.search(r"\d+(\.\d+){5,}", log)
        assert str(cache) not in log
        assert not re.search(r"(?<![\w(])/\w+/", log)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (root is needed)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_destroys_no_label(small_disk, models, tmp_path):
    write_pngs(small_disk / "studies", 5)
    with running(str(small_disk / "studies"), small_disk / "work", models, {}) as server:
        for number in range(4):
            Image.fromarray(phantom(number)[1]).save(tmp_path / "m.png")
            assert server.save(f"chest{number:02d}", tmp_path / "m.png").status_code == 200
        kept = server.get("datastore/label", label="chest00", tag="final").content
        fill(small_disk / "filler")
        large = write_map(tmp_path / "m.nii", np.zeros(SHAPE, np.uint8), Grid(SHAPE))
        answer = server.save("chest00", large)
        assert (answer.status_code, "disk is full" in answer.text) == (507, True), answer.text
        assert server.get("datastore/label", label="chest00", tag="final").content == kept
        answer = server.train("segmentation", sync=True, max_epochs=1)
        assert (answer.status_code, "disk is full" in answer.text) == (507, True), answer.text
        assert server.info()["datastore"]["completed"] == 4
        (small_disk / "filler").unlink()
        assert server.save("chest00", large).status_code == 200
    listed = json.loads((small_disk / "studies" / "datastore_v2.json").read_text(encoding="utf-8"))
    assert sum("final" in entry["labels"] for entry in listed["objects"].values()) == 4


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
