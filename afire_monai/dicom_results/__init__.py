"""Results as DICOM objects for the study that they belong to: report, segmentation, capture, presentation state."""

from afire_monai.dicom_results.capture import write_capture
from afire_monai.dicom_results.folder import KINDS, write_results
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.presentation import write_presentation
from afire_monai.dicom_results.report import write_report
from afire_monai.dicom_results.segmentation import write_heatmap, write_masks

__all__ = [
    "KINDS",
    "ImagePrediction",
    "write_capture",
    "write_heatmap",
    "write_masks",
    "write_presentation",
    "write_report",
    "write_results",
]
