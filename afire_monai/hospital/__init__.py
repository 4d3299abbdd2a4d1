"""The path through a hospital: DICOM in, de-identified data lists, results back as DICOM."""
