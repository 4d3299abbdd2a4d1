"""``afire datalist nih`` and its like: data lists of public data sets from their files as published."""

from __future__ import annotations

from afire_monai.cli.check import reader_arguments
from afire_monai.cli.datalist import print_made


def nih(
    folder: str,
    *,
    out: str,
    validation: float = 0.1,
    seed: int = 0,
    train_list: str = "train_val_list.txt",
    test_list: str = "test_list.txt",
) -> int:
    """NIH ChestX-ray14: 14 findings from reports, boxes, official test images.

    Example: afire datalist nih NIH --out lists/nih.json

    Args:
        folder: that holds Data_Entry_2017*.csv, the two lists and the images.
        out: JSON file to write.
        validation: share of the training images for validation, by patient.
        seed: of that choice.
        train_list: names of training and validation images.
        test_list: names of test images.
    """
    from afire_monai.datalists.public import datalist_from_nih

    return print_made(datalist_from_nih(folder, out, validation, seed, train_list, test_list), out)


def chexpert(
    folder: str,
    *,
    out: str,
    labels: str = "chexpert14",
    unmentioned: str = "negative",
    lateral: bool = False,
    validation: float = 0.02,
    seed: int = 0,
) -> int:
    """CheXpert: 14 or 5 findings with uncertain ones, valid.csv as test images.

    Example: afire datalist chexpert CheXpert-v1.0-small --out lists/chexpert.json --labels chexpert5

    Args:
        folder: that holds train.csv, valid.csv, train and valid.
        out: JSON file to write.
        labels: chexpert14, or chexpert5 for the five of the competition.
        unmentioned: what a blank cell means: negative or missing.
        lateral: take lateral views too.
        validation: share of the training images for validation, by patient.
        seed: of that choice.
    """
    from afire_monai.datalists.public.chexpert import datalist_from_chexpert

    made = datalist_from_chexpert(folder, out, labels, unmentioned, lateral, validation, seed)  # type: ignore[arg-type]
    return print_made(made, out)


def mimic(
    folder: str,
    *,
    out: str,
    labels: str = "chexpert14",
    unmentioned: str = "negative",
    views: tuple[str, ...] = ("PA", "AP"),
) -> int:
    """MIMIC-CXR-JPG: labels of CheXpert's labeller, official split.

    Example: afire datalist mimic mimic-cxr-jpg-2.0.0 --out lists/mimic.json

    Args:
        folder: that holds mimic-cxr-2.0.0-chexpert.csv.gz, -metadata, -split and files.
        out: JSON file to write.
        labels: chexpert14, or chexpert5 for the five of CheXpert's competition.
        unmentioned: what a blank cell means: negative or missing.
        views: values of ViewPosition to take.
    """
    from afire_monai.datalists.public.mimic import datalist_from_mimic

    return print_made(datalist_from_mimic(folder, out, labels, unmentioned, views), out)  # type: ignore[arg-type]


def siim(
    folder: str,
    *,
    out: str,
    masks: str | None = None,
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2),
    seed: int = 0,
    read_headers: bool = False,
) -> int:
    """SIIM-ACR pneumothorax: masks from run lengths, random split.

    Example: afire datalist siim siim --out lists/siim.json --read-headers

    Args:
        folder: that holds train-rle.csv and the DICOM files.
        out: JSON file to write.
        masks: folder to write the masks into; beside the list unless given.
        fractions: shares of training, validation and test.
        seed: of the split.
        read_headers: take sex, age and view from the DICOM headers.
    """
    from afire_monai.datalists.public import datalist_from_siim

    return print_made(datalist_from_siim(folder, out, masks, fractions, seed, read_headers), out)


def rsna(
    folder: str,
    *,
    out: str,
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2),
    seed: int = 0,
    read_headers: bool = False,
) -> int:
    """RSNA pneumonia: three classes, boxes of opacity, random split.

    Example: afire datalist rsna rsna-pneumonia-detection-challenge --out lists/rsna.json

    Args:
        folder: that holds stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images.
        out: JSON file to write.
        fractions: shares of training, validation and test.
        seed: of the split.
        read_headers: take sex, age and view from the DICOM headers.
    """
    from afire_monai.datalists.public import datalist_from_rsna

    return print_made(datalist_from_rsna(folder, out, fractions, seed, read_headers), out)


def kermany(folder: str, *, out: str, validation: float = 0.1, seed: int = 0) -> int:
    """Children's chest radiographs of Kermany and others: pneumonia or normal, published test images.

    Example: afire datalist kermany chest_xray --out lists/kermany.json

    Args:
        folder: that holds train and test, each with NORMAL and PNEUMONIA.
        out: JSON file to write.
        validation: share of the training images for validation, by patient.
        seed: of that choice.
    """
    from afire_monai.datalists.public import datalist_from_kermany

    return print_made(datalist_from_kermany(folder, out, validation, seed), out)


def vindr(folder: str, *, out: str, validation: float = 0.1, seed: int = 0, read_headers: bool = False) -> int:
    """VinDr-CXR: 28 findings (majority of three readers), boxes, published test images.

    Example: afire datalist vindr vindr-cxr-1.0.0 --out lists/vindr.json

    Args:
        folder: that holds annotations, train and test.
        out: JSON file to write.
        validation: share of the training images for validation.
        seed: of that choice.
        read_headers: take sex, age and view from the DICOM headers.
    """
    from afire_monai.datalists.public import datalist_from_vindr

    return print_made(datalist_from_vindr(folder, out, validation, seed, read_headers), out)


def jsrt(
    folder: str,
    *,
    out: str,
    masks: str | None = None,
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> int:
    """JSRT with SCR outlines: nodule boxes, lung masks, random split.

    Example: afire datalist jsrt JSRT --out lists/jsrt.json

    Args:
        folder: that holds the pictures as PNG, CLNDAT_EN.txt, CNNDAT_EN.txt and the SCR masks.
        out: JSON file to write.
        masks: folder to write the lung masks into; beside the list unless given.
        fractions: shares of training, validation and test.
        seed: of the split.
    """
    from afire_monai.datalists.public import datalist_from_jsrt

    return print_made(datalist_from_jsrt(folder, out, masks, fractions, seed), out)


def shenzhen(folder: str, *, out: str, fractions: tuple[float, ...] = (0.7, 0.1, 0.2), seed: int = 0) -> int:
    """Shenzhen tuberculosis set: tuberculosis or normal, lung masks, random split.

    Example: afire datalist shenzhen ChinaSet_AllFiles --out lists/shenzhen.json

    Args:
        folder: that holds CXR_png, ClinicalReadings and perhaps mask.
        out: JSON file to write.
        fractions: shares of training, validation and test.
        seed: of the split.
    """
    from afire_monai.datalists.public import datalist_from_shenzhen

    return print_made(datalist_from_shenzhen(folder, out, fractions, seed), out)


def montgomery(
    folder: str,
    *,
    out: str,
    masks: str | None = None,
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> int:
    """Montgomery tuberculosis set: tuberculosis or normal, lung masks, random split.

    Example: afire datalist montgomery MontgomerySet --out lists/montgomery.json

    Args:
        folder: that holds CXR_png, ClinicalReadings and ManualMask.
        out: JSON file to write.
        masks: folder to write the joined masks into; beside the list unless given.
        fractions: shares of training, validation and test.
        seed: of the split.
    """
    from afire_monai.datalists.public import datalist_from_montgomery

    return print_made(datalist_from_montgomery(folder, out, masks, fractions, seed), out)


def medmnist(file: str, *, out: str, images: str | None = None) -> int:
    """PneumoniaMNIST or ChestMNIST of MedMNIST, any size: pictures are written as PNG, published split.

    Example: afire datalist medmnist pneumoniamnist_224.npz --out lists/pneumoniamnist.json

    Args:
        file: pneumoniamnist.npz, chestmnist.npz, or one of the larger sizes such as chestmnist_224.npz.
        out: JSON file to write.
        images: folder to write the pictures into; beside the list unless given.
    """
    from afire_monai.datalists.public import datalist_from_medmnist

    return print_made(datalist_from_medmnist(file, out, images), out)


def bmad(folder: str, *, out: str) -> int:
    """Chest radiographs of the anomaly benchmark BMAD, or a set laid out alike: normal or abnormal, published split.

    Example: afire datalist bmad Chest --out lists/bmad.json

    Args:
        folder: that holds train/good, and valid and test, each with good and Ungood.
        out: JSON file to write.
    """
    from afire_monai.datalists.public import datalist_from_bmad

    return print_made(datalist_from_bmad(folder, out), out)


def padchest(
    folder: str,
    *,
    out: str,
    at_least: int = 50,
    physicians_only: bool = False,
    views: tuple[str, ...] = ("PA", "AP", "AP_horizontal"),
    fractions: tuple[float, ...] = (0.7, 0.1, 0.2),
    seed: int = 0,
    png16_max: str | None = None,
) -> int:
    """PadChest: findings that are frequent enough, random split by patient.

    Example: afire datalist padchest PadChest --out lists/padchest.json --physicians-only

    Args:
        folder: that holds the table PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv and the unpacked images.
        out: JSON file to write.
        at_least: number of images that a finding needs to become a label.
        physicians_only: leave out labels that a network read from the reports.
        views: projections to take, with commas between them.
        fractions: shares of training, validation and test.
        seed: of the split.
        png16_max: what is white in the 16-bit PNG: a number such as 4095, dtype (65535) or image; kept in the list.
    """
    from afire_monai.datalists.public import datalist_from_padchest

    reader = reader_arguments(png16_max, None, None)
    return print_made(datalist_from_padchest(folder, out, at_least, physicians_only, views, fractions, seed, **reader),
                      out)  # fmt: skip


PUBLIC_DATASETS = {
    "bmad": bmad,
    "chexpert": chexpert,
    "jsrt": jsrt,
    "kermany": kermany,
    "medmnist": medmnist,
    "mimic": mimic,
    "montgomery": montgomery,
    "nih": nih,
    "padchest": padchest,
    "rsna": rsna,
    "shenzhen": shenzhen,
    "siim": siim,
    "vindr": vindr,
}
"""Commands of ``afire datalist`` by the name of the data set."""
