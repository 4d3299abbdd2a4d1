"""Results as DICOM objects for the study that they belong to: structured report, segmentation, secondary capture."""

from afire_monai.export.dicom.capture import write_capture
from afire_monai.export.dicom.heatmap import write_heatmap
from afire_monai.export.dicom.masks import write_masks
from afire_monai.export.dicom.prediction import ImagePrediction
from afire_monai.export.dicom.report import write_report
from afire_monai.export.dicom.results import KINDS, write_results

__all__ = ["KINDS", "ImagePrediction", "write_capture", "write_heatmap", "write_masks", "write_report", "write_results"]
