"""Query, retrieve and store over DICOMweb."""
