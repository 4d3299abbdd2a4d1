"""``afire send``: DICOM files to a DICOMweb server."""

from __future__ import annotations

from pathlib import Path


def send(
    folder: str,
    *,
    dicomweb: str,
    ca: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    insecure: bool = False,
    failures: str | None = None,
    quiet: bool = False,
) -> int:
    """Store every DICOM file of a folder on a DICOMweb server (STOW-RS), for example results in a PACS.

    Credentials come from the environment, AFIRE_DICOMWEB_USER and AFIRE_DICOMWEB_PASSWORD, or AFIRE_DICOMWEB_TOKEN;
    else from ~/.netrc (mode 0600). Exit status: 0 all are there, 1 some failed, 2 none is there or a wrong command.

    Example: afire send results_dicom --dicomweb https://pacs.example/dicom-web

    Args:
        folder: searched with its subfolders; files that are not DICOM are passed over. One file is possible too.
        dicomweb: address of the server, without user name and password.
        ca: PEM file of the authorities to trust instead of the built-in ones.
        timeout: seconds to wait for a connection or a part of an answer.
        retries: how often to repeat a request that got no answer.
        insecure: allow credentials over plain http to another machine.
        failures: CSV file to write what failed into; it names files, so only its owner can read it.
        quiet: no progress bar.
    """
    from afire_monai.hospital.dicomweb.client import DicomWeb
    from afire_monai.hospital.dicomweb.transfer import send_folder

    web = DicomWeb(dicomweb, timeout, retries, ca, insecure)
    done = send_folder(web, folder, progress=not quiet)
    print(f"stored:   {done.done}")
    if done.already:
        print(f"there:    {done.already} the server had already")
    if done.skipped:
        print(f"skipped:  {done.skipped} files that are no DICOM objects")
    if done.failed:
        print(f"failed:   {len(done.failed)}" + ("" if failures else "; --failures FILE says which"))
        for reason, count in done.reasons()[:5]:
            print(f"  {count} x {reason}")
    if failures:
        done.write_failures(Path(failures))
    return done.status
