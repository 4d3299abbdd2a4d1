"""Query, retrieve and store over DICOM's own protocol (DIMSE), for archives without DICOMweb."""
