from __future__ import annotations

import json

import pytest
import torch
from helpers import PATCH, full_afire, smooth_images, tiny_afire

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.folder import export_encoder
from afire_monai.models.restorer import AnomalyNetwork, box_mean
from afire_monai.networks import AnomalyRestorationDecoder, ViTEncoder, build_encoder
from afire_monai.predictions.anomaly.build_reference import build_reference
from afire_monai.predictions.anomaly.detector import AnomalyDetector, enlarge_cells, heat_of, load_detector
from afire_monai.predictions.anomaly.reference import NormalReference
from afire_monai.training.finish import export_detector, export_restorer


def detector_of(shift: int) -> AnomalyDetector:
    method = tiny_afire(shift)
    torch.manual_seed(5)
    method.prototypes.prototypes.normal_()
    student = method.student.eval()
    restorer = AnomalyNetwork(student.encoder, student.decoder)
    return AnomalyDetector(student.encoder, shift, restorer, student.head, method.prototypes.assignment()).eval()


@pytest.mark.parametrize("shift", [0, 1, 2, 5])
@torch.no_grad()
def test_each_canvas_cell_is_the_mean_over_the_crops_that_show_it(shift):
    """Against a loop over crops, tokens and cells."""
    detector = detector_of(shift)
    side = 4 + shift
    images = smooth_images(2, (side * PATCH, side * PATCH))
    found = detector.features(images)
    tokens, distances = torch.zeros(2, side, side, 32), torch.zeros(2, side, side)
    pixels = torch.zeros(2, 1, side * PATCH, side * PATCH)
    count = torch.zeros(side, side)
    for row, column in detector.offsets():
        top, left = row * PATCH, column * PATCH
        crop = images[:, :, top : top + 32, left : left + 32]
        seen = detector.encoder(crop)
        logs = torch.log_softmax(detector.head(seen[:, 1:]) / 0.1, -1)
        picture = detector.restorer.restore(crop)
        for i in range(4):
            for j in range(4):
                r, c = row + i, column + j
                count[r, c] += 1
                tokens[:, r, c] += seen[:, 1 + 4 * i + j]
                distances[:, r, c] -= logs[:, 4 * i + j] @ detector.assignment[r * side + c]
                cell = (slice(None), slice(None), slice(r * PATCH, (r + 1) * PATCH), slice(c * PATCH, (c + 1) * PATCH))
                pixels[cell] += picture[:, :, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH]
    assert count.min() >= 1
    torch.testing.assert_close(found.tokens, (tokens / count[..., None]).flatten(1, 2))
    torch.testing.assert_close(found.cells["prototypes"], (distances / count).flatten(1), atol=1e-4, rtol=1e-4)
    pixels /= count.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    torch.testing.assert_close(found.restored, pixels)
    by_cell = (images - pixels).view(2, side, PATCH, side, PATCH)
    torch.testing.assert_close(found.cells["residual"], by_cell.mean((2, 4)).flatten(1))
    torch.testing.assert_close(found.cells["difference"], by_cell.abs().mean((2, 4)).flatten(1))


@torch.no_grad()
def test_tokens_of_earlier_blocks_are_standardised_and_averaged_over_crops():
    """The last block, counted from either end, and the first; against the encoder's own hidden states."""
    detector = detector_of(1)
    images = smooth_images(2, (40, 40))
    found = detector.features(images, ("tokens",), layers=(0, 1, -1))
    states = [
        detector.encoder.hidden_states(images[:, :, 8 * r : 8 * r + 32, 8 * c : 8 * c + 32])
        for r, c in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert detector.offsets() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for block in (0, 1):
        x = torch.stack([state[block + 1][:, 1:] for state in states])
        unit = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
        # cell (0, 0) is in the first crop alone, cell (0, 1) is the second of the first crop and the first of another
        torch.testing.assert_close(found.layers[block][:, 0], unit[0, :, 0], atol=1e-3, rtol=1e-3)
        both = (unit[0, :, 1] + unit[1, :, 0]) / 2
        torch.testing.assert_close(found.layers[block][:, 1], both, atol=1e-3, rtol=1e-3)
    assert torch.equal(found.layers[-1], found.layers[1])
    classes = torch.stack([detector.encoder.norm(state[-1])[:, 0] for state in states])
    torch.testing.assert_close(found.class_token, classes.mean(0))


@torch.no_grad()
def test_maps_of_a_residual_network_are_averaged_over_cells():
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", image_size=64, patch_size=32).eval()
    layers = AnomalyDetector(encoder).features(smooth_images(2, (64, 64)), ("tokens",), layers=(0, 7)).layers
    assert layers[0].shape == (2, 4, 64)
    assert layers[7].shape == (2, 4, 512)


def test_places_look_at_the_tokens_after_half_of_the_blocks():
    detector, images = detector_of(2), smooth_images(2, (48, 48))
    half = detector.encoder.depth // 2 - 1
    found = detector.features(images, ("tokens", "places"), layers=(half,))
    assert torch.equal(found.middle, found.layers[half])
    alone = detector.features(images, ("tokens", "places"))
    assert torch.equal(alone.middle, found.middle)
    assert alone.layers == {}
    assert detector.features(images, ("tokens",)).middle is None


def test_unknown_blocks_are_refused():
    with pytest.raises(AfireError, match=r"block must be in -2…1, got 2"):
        detector_of(0).features(smooth_images(1, (32, 32)), ("tokens",), layers=(2,))


def test_detector_refuses_pictures_of_another_size_and_parts_that_it_lacks():
    method = tiny_afire(2)
    detector = AnomalyDetector(method.student.encoder, 2)
    assert detector.parts == ("tokens", "neighbours", "density", "class_density", "places")
    with pytest.raises(AfireError, match="must be 48 x 48 pixels, got 32 x 32"):
        detector.features(smooth_images(1, (32, 32)))
    with pytest.raises(
        AfireError, match="has no residual, prototypes; it has tokens, neighbours, density, class_density, places"
    ):
        detector.features(smooth_images(1, (48, 48)), ("residual", "prototypes"))
    with pytest.raises(AfireError, match="36 prototypes do not fit a canvas of 16 cells"):
        AnomalyDetector(method.student.encoder, 0, None, method.student.head, torch.zeros(36, 16))


@torch.no_grad()
def test_exported_detector_sees_what_the_method_sees(tmp_path):
    method = tiny_afire(2)
    method.prototypes.prototypes.normal_()
    export_restorer(method, tmp_path)
    export_detector(method, tmp_path)
    images = smooth_images(2, (48, 48))
    student = method.student.eval()
    restorer = AnomalyNetwork(student.encoder, student.decoder)
    assignment = method.prototypes.assignment()
    expected = AnomalyDetector(student.encoder, 2, restorer, student.head, assignment).features(images)
    loaded = load_detector(tmp_path)
    found = loaded.features(images)
    assert {"tokens", "neighbours", "residual", "difference", "prototypes", "density"} < {*loaded.parts}
    assert torch.equal(found.tokens, expected.tokens)
    for name, values in expected.cells.items():
        assert torch.equal(found.cells[name], values)


@torch.no_grad()
def test_lesions_are_the_logits_of_the_lesion_terms_head_averaged_over_crops(tmp_path):
    method = full_afire(2)
    export_restorer(method, tmp_path)
    export_detector(method, tmp_path)
    detector = load_detector(tmp_path)
    images = smooth_images(24, (48, 48))
    found = detector.features(images[:2], ("lesions", "class_lesion"))
    student = method.student.eval()
    cells, count, whole = torch.zeros(2, 6, 6), torch.zeros(6, 6), torch.zeros(2, 1)
    for row, column in detector.offsets():
        crop = images[:2, :, row * PATCH : row * PATCH + 32, column * PATCH : column * PATCH + 32]
        logits = student.lesion_head(student.encoder(crop))[..., 0]
        cells[:, row : row + 4, column : column + 4] += logits[:, 1:].view(2, 4, 4)
        count[row : row + 4, column : column + 4] += 1
        whole += logits[:, :1] / len(detector.offsets())
    torch.testing.assert_close(found.cells["lesions"], (cells / count).flatten(1))
    torch.testing.assert_close(found.cells["class_lesion"], whole)
    parts = ("lesions", "class_lesion")
    reference = build_reference(detector, [images], [str(k) for k in range(24)], parts)
    reference.save(tmp_path)
    judged = NormalReference.load(tmp_path).judge(detector.features(images, parts), (48, 48))
    # against each of the two by itself, standardised by the same images
    every = detector.features(images, parts).cells
    expected = [(every[name] - every[name].mean(0)) / every[name].std(0) for name in parts]
    torch.testing.assert_close(judged.parts["lesions"], expected[0].mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(judged.parts["class_lesion"], expected[1][:, 0], atol=1e-4, rtol=1e-4)
    export_detector(tiny_afire(2), tmp_path)
    with pytest.raises(AfireError, match="has no lesions"):
        load_detector(tmp_path).features(images, ("lesions",))


def test_restorer_of_an_earlier_version_is_taken_without_shift(tmp_path):
    export_restorer(tiny_afire(2), tmp_path)
    path = tmp_path / "restorer.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    del description["shift"]
    path.write_text(json.dumps(description), encoding="utf-8")
    assert load_detector(tmp_path).canvas_size == (32, 32)


def test_an_encoder_alone_gives_tokens_and_an_empty_folder_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="neither restorer"):
        load_detector(tmp_path)
    export_encoder(tiny_afire().student.encoder, tmp_path)
    assert "residual" not in load_detector(tmp_path).parts


def test_damaged_detector_file_is_told(tmp_path):
    method = tiny_afire(2)
    export_restorer(method, tmp_path)
    path = export_detector(method, tmp_path).with_suffix(".json")
    description = json.loads(path.read_text(encoding="utf-8"))
    for key, value in (("out_dim", 5), ("cells", {}), ("cells", 16)):
        changed = {**description, "head": {**description["head"], key: value}}
        path.write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(CheckpointError, match="do not fit their description"):
            load_detector(tmp_path)


def test_prototypes_of_another_canvas_are_refused_with_the_file(tmp_path):
    method = tiny_afire(2)
    path = export_restorer(method, tmp_path).with_suffix(".json")
    export_detector(method, tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "shift": 7}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"restorer.safetensors: 36 prototypes do not fit a canvas of 121 cells"):
        load_detector(tmp_path)


@pytest.mark.parametrize("shift", [10**6, -1, 1.5, "2", None])
def test_shift_that_no_training_has_is_refused_before_a_picture_is_asked_for(shift, tmp_path):
    path = export_restorer(tiny_afire(2), tmp_path).with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "shift": shift}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"restorer.safetensors: .*shift is .*from 0 to 64 is expected"):
        load_detector(tmp_path)


@torch.no_grad()
def test_planted_bright_blob_is_the_most_abnormal_in_its_own_cell():
    """On the canvas, off the diagonal, so that a map that is flipped or transposed would point elsewhere."""
    detector = detector_of(2)
    normal = 0.5 * smooth_images(24, (48, 48))
    patients = [str(i) for i in range(24)]
    for parts in (None, ("tokens",), ("residual",), ("neighbours",), ("tokens", "neighbours")):
        reference = build_reference(detector, normal.split(8), patients, parts)
        image = 0.5 * smooth_images(1, (48, 48), seed=99)
        image[..., 8:16, 32:40] += 0.5
        found = reference.judge(detector.features(image, reference.parts), (48, 48))
        assert divmod(found.cells["combined"][0].argmax().item(), 6) == (1, 4)
        row, column = divmod(found.heat[0].argmax().item(), 48)
        assert 8 <= row < 16
        assert 32 <= column < 40
        assert found.percentile.item() > 90


# restoration ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_cell_is_restored_while_its_half_of_the_checkerboard_is_masked():
    student = tiny_afire().student.eval()
    images = smooth_images(2, (32, 32))
    found = AnomalyNetwork(student.encoder, student.decoder).restore(images)
    tokens = student.encoder(images)
    for row in range(4):
        for column in range(4):
            masked = torch.tensor([[(r + c - row - column) % 2 == 0 for c in range(4)] for r in range(4)])
            picture = student.encoder.denormalise(student.decoder(tokens, masked.flatten().expand(2, -1))).clamp(0, 1)
            cell = (..., slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH))
            torch.testing.assert_close(found[cell], picture[cell])


def test_box_mean_is_the_mean_of_what_there_is_of_the_window():
    image = torch.rand(1, 1, 6, 9)
    found = box_mean(image, 5)[0, 0]
    for row in range(6):
        for column in range(9):
            window = image[0, 0, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
            assert found[row, column].item() == pytest.approx(window.mean().item(), abs=1e-6)


def test_heat_is_a_half_at_three_deviations_and_keeps_the_order():
    torch.testing.assert_close(heat_of(torch.tensor([-2.0, 0.0, 3.0, 9.0])), torch.tensor([0.0, 0.0, 0.5, 0.75]))


def test_cells_are_drawn_where_they_are():
    picture = enlarge_cells(torch.arange(6.0)[None], (2, 3), (22, 33))
    assert picture.shape == (1, 22, 33)
    # the middle of a cell has the cell's value, halfway between two cells their mean
    assert picture[0, 5, 16].item() == pytest.approx(1)
    assert picture[0, 16, 27].item() == pytest.approx(5)
    assert picture[0, 10:12, 16].mean().item() == pytest.approx(2.5)


@torch.no_grad()
def test_a_three_channel_encoder_sees_a_grey_picture_thrice():
    torch.manual_seed(0)
    encoder = ViTEncoder(32, PATCH, in_channels=3, embed_dim=32, depth=1, num_heads=2).eval()
    decoder = AnomalyRestorationDecoder(32, encoder.grid, PATCH, channels=3, dim=32, depth=1, num_heads=2).eval()
    detector = AnomalyDetector(encoder, 0, AnomalyNetwork(encoder, decoder))
    grey = smooth_images(2, (32, 32))
    found, expected = detector.features(grey), detector.features(grey.expand(-1, 3, -1, -1))
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.cells["residual"], expected.cells["residual"])
    assert found.restored.shape == (2, 3, 32, 32)
