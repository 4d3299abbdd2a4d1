"""How a DICOMweb server is reached: address, credentials, and what its answers mean."""

from __future__ import annotations

import errno
import ipaddress
import math
import netrc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from afire_monai.core.errors import AfireError
from afire_monai.core.quiet import quiet

if TYPE_CHECKING:
    import requests
    from pydicom import Dataset
    from requests.adapters import HTTPAdapter


USER, PASSWORD, TOKEN = "AFIRE_DICOMWEB_USER", "AFIRE_DICOMWEB_PASSWORD", "AFIRE_DICOMWEB_TOKEN"


class DicomWebError(AfireError):
    """A DICOMweb server cannot be used: address, credentials, certificate, connection, or what it answers."""


@dataclass(frozen=True)
class Credentials:
    """What proves to a server who asks; never shown, not even by `repr`.

    Attributes:
        user: with `password`, for HTTP Basic authentication; "" for none.
        password: see `user`.
        token: bearer token; "" for none.
    """

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.user or self.token)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the credentials into a request, as `requests` asks of an authentication."""
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        elif self.user:
            from requests.auth import HTTPBasicAuth

            # as bytes: requests would turn text into Latin-1, which not every password is
            return HTTPBasicAuth(self.user.encode(), self.password.encode())(request)
        return request


def check_url(url: str) -> SplitResult:
    """Return the parts of a DICOMweb address, or say what is wrong with it without repeating it.

    Raises:
        DicomWebError: not http(s), no host, credentials in it, a query or a fragment.
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
    """Whether a host is this machine itself, so that what is sent to it crosses no network."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_credentials(host: str) -> Credentials:
    """Look for credentials in the environment, then for the host in the netrc file ($NETRC, else ~/.netrc).

    The netrc file's `default` entry is not used: it would tell any host a password meant for others.

    Args:
        host: name or address of the server.

    Raises:
        DicomWebError: half a pair, both kinds at once, or a netrc file that others can read or nobody can parse.
    """
    user, password, token = (os.environ.get(name, "") for name in (USER, PASSWORD, TOKEN))
    if token and (user or password):
        raise DicomWebError(f"{TOKEN} and {USER} or {PASSWORD} are set; unset the ones that are not meant")
    if bool(user) != bool(password):
        missing = PASSWORD if user else USER
        raise DicomWebError(f"{missing} is not set; {USER} and {PASSWORD} go together")
    if ":" in user or any(c < " " for c in user + password + token):
        raise DicomWebError(f"{USER} must have no colon, and no credential a control character such as a line end")
    if user or token:
        return Credentials(user, password, token)
    named = os.environ.get("NETRC")
    path = Path(named) if named else Path.home() / ".netrc"
    return _from_netrc(path, host, bool(named))


def _from_netrc(path: Path, host: str, must_exist: bool) -> Credentials:
    if not path.is_file():
        if must_exist:
            raise DicomWebError("NETRC names a file that is not there; correct it or unset it")
        return Credentials()
    try:
        entries = netrc.netrc(str(path)).hosts
        mode = path.stat().st_mode
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        raise DicomWebError(
            "the netrc file (NETRC, else ~/.netrc) cannot be read; mend it, or set NETRC to another file"
        ) from None
    if host not in entries:
        return Credentials()
    if mode & 0o077:
        raise DicomWebError(
            f"the netrc file (NETRC, else ~/.netrc) has mode {mode & 0o777:04o}, so others can read its passwords; "
            "chmod 600 it"
        )
    login, account, password = entries[host]
    if not (login or account) or not password:
        raise DicomWebError("the netrc file has no login or no password for the DICOMweb host; give both")
    return Credentials(login or account or "", password)


def open_session(
    parts: SplitResult, credentials: Credentials, ca: str | Path | None, insecure: bool
) -> requests.Session:
    """Make an HTTP session that checks certificates, follows no redirects and takes nothing from the environment.

    Proxies that the environment names are not used: pictures of patients go to the named host only.

    Args:
        parts: of the address.
        credentials: may be empty.
        ca: PEM file of the authorities to trust instead of the built-in ones.
        insecure: allow credentials over plain http to another machine. Certificates are checked even so.

    Raises:
        DicomWebError: credentials over plain http without `insecure`, or no such file.
    """
    import requests

    if credentials and parts.scheme == "http" and not is_loopback(parts.hostname or "") and not insecure:
        raise DicomWebError(
            "the credentials would cross the network unencrypted; use an https:// address, or --insecure if the "
            "network itself is protected"
        )
    if ca is not None and not Path(ca).is_file():
        raise DicomWebError("--ca names a file that is not there; give the PEM file of your hospital's authority")
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    for scheme in ("http://", "https://"):
        session.mount(scheme, _bounded_adapter())
    session.auth = credentials
    session.verify = True if ca is None else str(ca)
    return session


def _bounded_adapter() -> HTTPAdapter:
    """Make what reads answers for a session: the whole body within limits, piece by piece where that is asked for."""
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
                raise AnswerError(f"the answer is larger than {most >> 20} MiB, so it is not taken")
            if time.monotonic() > end:
                raise AnswerError(f"the answer is not whole after {PATIENCE * timeout:g} seconds; raise --timeout")
            yield part
    except HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
    except AnswerError:
        response.close()
        raise


T = TypeVar("T")
LARGEST_OBJECT, LARGEST_LIST = 2**28, 2**26
"""Bytes of an answer with an object, and of any other."""
PATIENCE = 10
"""The whole body of an answer may take so many times the timeout of its parts."""
LONGEST_WAIT = 60.0
"""Seconds; more is not waited between two tries, whatever the server asks for."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)


class AnswerError(DicomWebError):
    """One request failed, and others may still succeed."""


class ConnectionLostError(DicomWebError):
    """The server did not answer, however often it was asked."""


def ask(request: Callable[[], T], retries: int, first_wait: float) -> T:
    """Make a request as often as it takes, and turn what goes wrong into words without addresses.

    Args:
        request: what to do.
        retries: how often to repeat it.
        first_wait: seconds before the first repetition; doubled each time, more if the server asks for more.

    Raises:
        AnswerError: for this request alone.
        ConnectionLostError: without an answer after the last repetition.
        DicomWebError: if no other request can succeed either (certificate, credentials).
        OSError: what was answered cannot be kept.
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
    """Return what to say of an error, and the seconds to wait at least before trying again; None for never."""
    import requests

    if isinstance(error, AnswerError):
        return error, None
    if isinstance(error, requests.exceptions.SSLError):
        words = "the server's certificate is not trusted; give the PEM file of the authority that signed it as --ca"
        return DicomWebError(words), None
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
    """Return the answer to a query as what it has to be, a list of DICOM JSON objects.

    Raises:
        AnswerError: it is not.
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
    except Exception:  # no such list, whatever else it is
        return None
    return answer if "FailedSOPSequence" in answer else None
