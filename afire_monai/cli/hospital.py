"""Commands of a hospital: ``afire ingest``, ``forget``, ``dicom-results``, ``send`` and ``node``."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from afire_monai.cli.fronts import front
from afire_monai.cli.predictions import exception_lines, model_folders
from afire_monai.core.errors import AfireError, require


@front("afire_monai.hospital.ingest:ingest", "*inputs", hide=("seconds_per_file",))
def ingest(
    work: Callable[..., Any],
    *,
    inputs: Sequence[str] = (),
    out: str,
    dicomweb: str | None = None,
    modality: Sequence[str] = ("CR", "DX"),
    date: str | None = None,
    description: Sequence[str] = (),
    forget_originals: bool = False,
    server: Mapping[str, Any],
    dimse: Mapping[str, Any],
    move_to: str | None = None,
    progress: bool = True,
    **options: Any,
) -> int:
    """Make a data list of the frontal chest radiographs in DICOM folders, without names, numbers, dates and places.

    The source is only read. An interrupted run resumes where it stopped, and files that have not changed are not
    read again. OUT/private (key, index, state) stays with the hospital; everything else names nobody.

    Example: afire ingest archive --out chest

    Example: afire ingest archive --out chest --labels findings.csv --join accession --label-columns Effusion,Edema

    Example: afire ingest archive --out chest --allow age,sex,view --split-by date:2023-01-01,2024-01-01

    Example: afire ingest --dicomweb https://pacs.example/dicom-web --date 20230101-20231231 --out chest

    Example: afire ingest --pacs ARCHIVE@pacs.example:104 --date 20230101-20231231 --out chest

    Args:
        dicomweb: address of a server to fetch radiographs from, into OUT/private/dicom. Credentials come from the
            environment (AFIRE_DICOMWEB_USER and _PASSWORD, AFIRE_DICOMWEB_TOKEN or _TOKEN_FILE) or ~/.netrc.
        move_to: AET:PORT of your own listener, which the archive must know, to fetch by C-MOVE; C-GET unless given.
        modality: modalities of the series to fetch.
        date: dates of the studies to fetch, YYYYMMDD-YYYYMMDD; either end may be left out.
        description: words; the study's or the series' description must contain one of them, in upper or lower case.
        forget_originals: delete the fetched files at the end; DICOM results need these files.
    """
    fetched = None
    if dicomweb is not None or dimse.get("pacs"):
        from afire_monai.hospital.dicomweb.client import Query
        from afire_monai.hospital.dicomweb.transfer import fetch

        with _archive(dicomweb, server, {**dimse, "move_to": move_to}) as archive:
            fetched = fetch(archive, Query.of(modality, date, description), out, progress=progress)
        print("\n".join(fetched.lines()))
        inputs = [*inputs, str(fetched.folder)]
    elif date or description or forget_originals or server.get("ca") or server.get("insecure") or move_to:
        raise AfireError(
            "--date, --description, --forget-originals, --ca, --insecure and --move-to go with --dicomweb or --pacs"
        )
    done = work(inputs, out, progress=progress, **options)
    print("\n".join(done.lines()))
    if fetched and forget_originals:
        print(f"deleted:  {fetched.forget()} retrieved files")
    print(f"read now: {done.headers_read} headers, {done.images_read} images")
    print(f"written: {out}/datalist.json, datacard.html, left_out.csv (reasons); {out}/private stays with the hospital")
    print(f"next:    afire check {shlex.quote(f'{out}/datalist.json')}")
    return fetched.transfer.status if fetched else 0


@front("afire_monai.hospital.forget:forget", "patient")
def forget(work: Callable[..., Any], *, folder: str, **options: Any) -> int:
    """Erase one patient from the folder of an ingest for good, and keep them out of later ingests.

    Not erased: the source, your tables of labels, predictions, DICOM results, caches, models, copies and backups. A
    shell may keep a PatientID in its history; --hash names the patient by a pseudonym.

    Example: afire forget --hash 0123456789abcdef0123 --folder chest

    Example: afire forget 4711 --folder chest --model runs/classifier,runs/pretraining

    Args:
        folder: folder that `afire ingest` wrote.
        model: folders of trainings or models, with commas between them; those made with the patient are reported.
    """
    print("\n".join(work(folder=folder, **options).lines()))
    print(
        "kept:      source, label tables, predictions, results, caches, models, copies, backups: see to them yourself"
    )
    return 0


@front("afire_monai.hospital.dicomweb.transfer:send_folder", "folder", hide=("web",))
def send(
    work: Callable[..., Any],
    *,
    folder: str,
    dicomweb: str | None = None,
    server: Mapping[str, Any],
    dimse: Mapping[str, Any],
    commit: int | None = None,
    failures: str | None = None,
    **options: Any,
) -> int:
    """Store every DICOM file of a folder in an archive (DICOMweb STOW-RS or C-STORE), for example results in a PACS.

    Credentials for DICOMweb come from the environment, AFIRE_DICOMWEB_USER and AFIRE_DICOMWEB_PASSWORD,
    AFIRE_DICOMWEB_TOKEN or AFIRE_DICOMWEB_TOKEN_FILE; else from ~/.netrc (mode 0600). Objects that an archive accepted
    by C-STORE are not sent to it again.
    Exit status: 0 all are there, 1 some failed, 2 none is there or a wrong command.

    Example: afire send results_dicom --dicomweb https://pacs.example/dicom-web

    Example: afire send results_dicom --pacs ARCHIVE@pacs.example:104

    Args:
        dicomweb: address of the server, without user name and password.
        commit: ask the archive to confirm that it keeps the objects sent by C-STORE (storage commitment); the TCP port
            of your own listener for its reports, or 0 if it reports on the same connection.
        failures: CSV file for the list of failures; it names files, so only its owner can read it.
    """
    with _archive(dicomweb, server, {**dimse, "folder": folder, "commit": commit}) as archive:
        done = work(archive, folder, **options)
    print(f"stored:   {done.done}")
    if done.already:
        print(f"there:    {done.already} the server had already")
    if done.skipped:
        print(f"skipped:  {done.skipped} files that are not DICOM objects")
    if done.failed:
        print(f"failed:   {len(done.failed)}" + ("" if failures else "; --failures FILE says which"))
        for reason, count in done.reasons()[:5]:
            print(f"  {count} x {reason}")
    if failures:
        done.write_failures(Path(failures))
    return int(done.status)


def _archive(
    dicomweb: str | None, server: Mapping[str, Any], dimse: Mapping[str, Any]
) -> contextlib.AbstractContextManager[Any]:
    """Return the archive that was named: by its DICOMweb address or by its AE title."""
    address = dimse.get("pacs")
    files = {name: dimse.get(f"tls_{name}") for name in ("ca", "cert", "key")}
    if bool(dicomweb) == bool(address):
        raise AfireError("name one archive: --dicomweb ADDRESS or --pacs AET@HOST:PORT")
    if dicomweb is not None:
        from afire_monai.hospital.dicomweb.client import DicomWeb

        if files["ca"] or dimse.get("move_to") or dimse.get("commit") is not None:
            raise AfireError("--tls-ca, --move-to and --commit go with --pacs; DICOMweb takes --ca")
        return contextlib.nullcontext(DicomWeb(dicomweb, cert=files["cert"], key=files["key"], **server))
    from afire_monai.hospital.pacs.association import Tls
    from afire_monai.hospital.pacs.client import Pacs
    from afire_monai.hospital.pacs.sent import RememberingPacs

    if server.get("ca") or server.get("insecure"):
        raise AfireError("--ca and --insecure go with --dicomweb; --pacs takes --tls-ca")
    options = {name: server[name] for name in ("timeout", "retries") if name in server}
    options |= {name: dimse[name] for name in ("aet", "move_to") if name in dimse}
    if "folder" in dimse:
        return RememberingPacs(dimse["folder"], str(address), tls=Tls(**files), commit=dimse["commit"], **options)
    return Pacs(str(address), tls=Tls(**files), **options)


@front("afire_monai.dicom_results.folder:write_dicom_results", "predictions")
def dicom_results(work: Callable[..., Any], *, out: str, **options: Any) -> int:
    """Write predictions as DICOM: a structured report, the heatmap as a segmentation, a picture of both.

    The objects belong to the study of their radiograph and name its patient, which a PACS needs: keep them like the
    radiographs. Exit status: 0 all images written, 1 some left out (left_out.csv says why), 2 none or a wrong command.

    Example: afire dicom-results results --out results_dicom

    Example: afire dicom-results results --index ingested/private/index.csv --out results_dicom

    Args:
        index: table that names the file of each image: private/index.csv of afire ingest, or one with columns index and
            file; the predictions' own index.csv unless given.
        kinds: sr (report), seg (heatmap), sc (picture), gsps (outline and scores, drawn on the radiograph by the
            viewer), with commas between them; unless given, those of the first three that there is content for.
    """
    require("highdicom", extra="dicom")
    from afire_monai.dicom_results.folder import OBJECTS

    done = _logged_results(work, out, options)
    counts = ", ".join(f"{kind} {count}" for kind, count in done.objects.items())
    print(f"written:  {done.done} of {done.total} images" + (f" ({counts})" if counts else ""))
    for line in exception_lines(done.left_out, done.unfit):
        print(line)
    print(f"results:  {out} (they name patients; {OBJECTS} says which file is what)")
    if done.done:
        print(f"next:     afire send {shlex.quote(out)} --dicomweb ADDRESS (or --pacs AET@HOST:PORT)")
    return int(done.status)


def _logged_results(work: Callable[..., Any], out: str, options: Mapping[str, Any]) -> Any:
    """Write DICOM results, and note in the log of the ingest of which images they are, if there was one."""
    from afire_monai.dicom_results.folder import OBJECTS
    from afire_monai.hospital.audit import audit_of_index, audited, images_of_results, leave_pointer

    log = audit_of_index(options.get("index"))
    with audited(log, "dicom-results") as entry:
        done = work(out=out, **options)
        entry.what = f"{sum(done.objects.values())} objects of {done.done} images"
        if log is not None:
            images = images_of_results(Path(options["predictions"]), Path(out) / OBJECTS)
            entry.pseudonyms = sorted(set(images.values()))
            leave_pointer(Path(out), log, images)
    return done


@front("afire_monai.hospital.node.run:run_node", hide=("stop", "ready"))
def node(
    work: Callable[..., Any],
    *,
    state: str,
    model: Sequence[str] | None = None,
    population: str | None = None,
    status: bool = False,
    **options: Any,
) -> int:
    """Take radiographs that a PACS or a device routes here, predict them, and send the results to an archive.

    An object that was answered with success survives a kill, and each object is predicted once. The node listens on
    loopback unless --host says otherwise, which needs --allow. Research use only: not a medical device.

    Example: afire node --state node --send-to ARCHIVE@127.0.0.1:4242

    Example: afire node --state node --host 10.0.0.5 --allow ROUTER,CR1 --tls-cert node.pem --tls-key node.key

    Example: afire node --state node --status

    Args:
        model: model folder, or name of a model that comes with the package, or several with commas between them;
            chest-s16-1 unless given.
        population: normal radiographs that the package's model compares with: adults or children (1 to 5 years); adults
            unless given.
        status: print the state of the received objects, and end.
    """
    require("highdicom", "pynetdicom", extra="pacs")
    if status:
        from afire_monai.hospital.node.run import node_status

        print("\n".join(node_status(state).lines()))
        return 0
    work(
        state,
        model_folders(model, population),
        ready=lambda port: print(f"listening: port {port}; Ctrl-C ends it", flush=True),
        **options,
    )
    print("ended; waiting objects are kept; run the same command to continue")
    return 0
