"""Connect to a DICOMweb server: check the address, open a session, and interpret its answers."""

from __future__ import annotations

import errno
import ipaddress
import math
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from afire_monai.core.quiet import quiet
from afire_monai.hospital.dicomweb.credentials import PASSWORD, TOKEN, USER, Credentials, DicomWebError

if TYPE_CHECKING:
    import requests
    from pydicom import Dataset
    from requests.adapters import HTTPAdapter


def check_url(url: str) -> SplitResult:
    """Return the parts of a DICOMweb address, or refuse it in a message that does not repeat it.

    Raises:
        DicomWebError: if it is not http(s), has no host, or holds credentials, a query or a fragment.
    """
    way_out = "give it as https://HOST/PATH (Orthanc: http://localhost:8042/dicom-web)"
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise DicomWebError(f"the DICOMweb address cannot be understood; {way_out}") from None
    if "@" in parts.netloc:
        raise DicomWebError(
            "the DICOMweb address holds a user name or password, which others can see in process lists and shell "
            f"histories; set {USER} and {PASSWORD}, or {TOKEN}, and leave them out of the address"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise DicomWebError(f"the DICOMweb address must begin with https:// or http:// and name a host; {way_out}")
    if parts.query or parts.fragment:
        raise DicomWebError(f"the DICOMweb address must not have a ? or # part; {way_out}")
    return parts


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself, so that nothing sent to it crosses a network."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_session(
    parts: SplitResult,
    credentials: Credentials,
    ca: str | Path | None,
    insecure: bool,
    cert: str | Path | None = None,
    key: str | Path | None = None,
) -> requests.Session:
    """Make an HTTP session that checks certificates, follows no redirects and takes nothing from the environment.

    Proxies that the environment names are not used: pictures of patients go to the named host only.

    Args:
        parts: parts of the address.
        credentials: credentials for the server; may be empty.
        ca: PEM file of the authorities to trust instead of the built-in ones.
        insecure: allow credentials over plain http to another machine. Certificates are still checked.
        cert: PEM file of this client's certificate, for a server that asks for one.
        key: PEM file of its private key, without a password.

    Raises:
        DicomWebError: for credentials over plain http without `insecure`, certificates for plain http, or files that
            are missing or not of the expected kind.
    """
    import requests

    if credentials and parts.scheme == "http" and not is_loopback(parts.hostname or "") and not insecure:
        raise DicomWebError(
            "the credentials would cross the network unencrypted; use an https:// address, or --insecure if the "
            "network itself is protected"
        )
    _check_files(parts.scheme, ca, cert, key)
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    for scheme in ("http://", "https://"):
        session.mount(scheme, _bounded_adapter())
    session.auth = credentials
    session.verify = True if ca is None else str(ca)
    session.cert = None if cert is None else (str(cert), str(key))
    return session


def _check_files(scheme: str, ca: str | Path | None, cert: str | Path | None, key: str | Path | None) -> None:
    if ca is not None and not Path(ca).is_file():
        raise DicomWebError("--ca names a file that is not there; give the PEM file of your hospital's authority")
    if (cert is None) != (key is None):
        raise DicomWebError("--tls-cert and --tls-key go together; give both")
    if scheme == "http" and not (ca is None and cert is None):
        raise DicomWebError("--ca, --tls-cert and --tls-key are for https:// addresses, and this one begins with http")
    try:
        if ca is not None:
            ssl.create_default_context(cafile=ca)
        if cert is not None:
            ssl.create_default_context().load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError, ValueError):
        raise DicomWebError(
            "--ca, --tls-cert and --tls-key must be PEM files, and the key must match the certificate and have no "
            "password; at least one does not"
        ) from None


def _bounded_adapter() -> HTTPAdapter:
    """Make a session's reader of answers, all within limits: the whole body or, on request, piece by piece."""
    from requests.adapters import HTTPAdapter

    class Bounded(HTTPAdapter):
        def send(self, request: Any, stream: Any = False, timeout: Any = None, *rest: Any, **options: Any) -> Any:
            end = time.monotonic() + PATIENCE * timeout if timeout else math.inf
            response = super().send(request, True, timeout, *rest, **options)
            parts = _within_limits(response, LARGEST_OBJECT if stream else LARGEST_LIST, end, timeout)
            if stream and response.status_code == 200:
                vars(response)["iter_content"] = lambda *_, **__: parts
            else:
                vars(response).update(_content=b"".join(parts), _content_consumed=True)
            return response

    return Bounded()


def _within_limits(response: requests.Response, most: int, end: float, timeout: float) -> Iterator[bytes]:
    """Yield a body piece by piece, unpacked, until it is longer or takes longer than it may."""
    import requests
    from urllib3.exceptions import HTTPError

    length = 0
    try:
        while part := response.raw.read1(2**16, decode_content=True):
            length += len(part)
            if length > most:
                raise AnswerError(f"the answer is larger than {most >> 20} MiB and was rejected")
            if time.monotonic() > end:
                raise AnswerError(f"the answer is not complete after {PATIENCE * timeout:g} seconds; raise --timeout")
            yield part
    except HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
    except AnswerError:
        response.close()
        raise


T = TypeVar("T")
LARGEST_OBJECT, LARGEST_LIST = 2**28, 2**26
"""Largest size in bytes of an answer with an object, and of any other answer."""
PATIENCE = 10
"""The whole body of an answer may take this many times the timeout of its parts."""
LONGEST_WAIT = 60.0
"""Longest wait between two tries in seconds, even if the server asks for more."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)


class AnswerError(DicomWebError):
    """One request failed, and others may still succeed."""


class ConnectionLostError(DicomWebError):
    """The server did not answer, however often it was asked."""


def ask(request: Callable[[], T], retries: int, first_wait: float) -> T:
    """Make a request as often as it takes, and turn failures into messages without addresses.

    Args:
        request: function that makes the request.
        retries: how often to repeat it.
        first_wait: seconds before the first repetition; doubled each time, more if the server asks for more.

    Raises:
        AnswerError: if only this request failed.
        ConnectionLostError: if there is no answer after the last repetition.
        DicomWebError: if no other request can succeed either (certificate, credentials).
        OSError: if the answer cannot be written to disk.
    """
    for attempt in range(retries + 1):
        try:
            with quiet():
                return request()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                raise
            problem, asked = _judge(error)
        if asked is None:
            break
        if attempt < retries:
            time.sleep(min(max(first_wait * 2**attempt, asked), LONGEST_WAIT))
    raise problem


def _judge(error: Exception) -> tuple[DicomWebError, float | None]:
    """Return the error to raise, and the seconds to wait at least before another try; None for no other try."""
    import requests

    if isinstance(error, DicomWebError):
        return error, None
    if isinstance(error, requests.exceptions.SSLError):
        return DicomWebError(_tls_problem(str(error).upper().replace("_", " "))), None
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return DicomWebError("the server sends requests elsewhere; give the address that it really answers at"), None
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        if status not in _TRY_AGAIN:
            return _refusal(status), None
        asked = error.response.headers.get("Retry-After", "")
        problem = AnswerError(f"the server answers {status}, however often it is asked")
        return problem, float(asked) if asked.isascii() and asked.isdigit() else 0.0
    if isinstance(error, (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)):
        words = "the server cannot be reached or stops in the middle of an answer; what is done is kept: give the "
        return ConnectionLostError(words + "command again when it is back"), 0.0
    if isinstance(error, (requests.RequestException, ValueError, LookupError, TypeError, AttributeError, EOFError)):
        return not_dicomweb(), None
    # pydicom raises many unrelated types on damaged data
    return AnswerError(f"the answer cannot be read ({type(error).__name__})"), None


def _tls_problem(reason: str) -> str:
    """Return the advice for a failed handshake, from OpenSSL's words in capitals."""
    if "MISMATCH" in reason or "NOT VALID FOR" in reason:
        return "the server's certificate is for another name; use the name that it is for in the address"
    if "WRONG VERSION NUMBER" in reason or "RECORD LAYER FAILURE" in reason:
        return "the server speaks no https at this port; begin the address with http://, or give the port of its https"
    if "VERIFY FAILED" in reason:
        return "the server's certificate is not trusted; give the PEM file of the authority that signed it as --ca"
    return "the server refuses a secure connection; it may want a certificate of yours: --tls-cert and --tls-key"


def _refusal(status: int) -> DicomWebError:
    if status in (401, 403):
        return DicomWebError(
            f"the server answers {status}: it wants other credentials; set {USER} and {PASSWORD}, or {TOKEN}, or give "
            "its host a line in ~/.netrc"
        )
    if status == 404:
        return AnswerError("the server answers 404: it does not have this, or the address is not that of its DICOMweb")
    return AnswerError(f"the server answers {status}")


def not_dicomweb() -> AnswerError:
    """Return the error for an answer that is something else, a page of text for example."""
    return AnswerError(
        "what the server answers is not DICOMweb; check the address (Orthanc: http://localhost:8042/dicom-web)"
    )


def entries_of(answer: Any) -> list[Mapping[str, Any]]:
    """Return the answer to a query as a list of DICOM JSON objects; refuse any other answer.

    Raises:
        AnswerError: for any other answer.
    """
    if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
        raise not_dicomweb()
    return answer


def name_json(response: requests.Response, **_: Any) -> requests.Response:
    """Name the type of an answer as dicomweb-client looks for it."""
    media = str(response.headers.get("Content-Type", "")).partition(";")[0].strip().lower()
    if media in ("application/dicom+json", "application/json"):
        response.headers["Content-Type"] = media
    return response


def refused_list(error: Exception) -> Dataset | None:
    """Return the list of failures that comes with status 409 when nothing could be stored; None if there is none."""
    import requests
    from pydicom import Dataset

    if not isinstance(error, requests.HTTPError) or error.response is None or error.response.status_code != 409:
        return None
    try:
        answer = Dataset.from_json(error.response.json())
    except Exception:  # the body is not such a list
        return None
    return answer if "FailedSOPSequence" in answer else None
