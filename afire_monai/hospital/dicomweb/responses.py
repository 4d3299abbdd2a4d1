"""What a DICOMweb server answers: whole or not, to be asked again or not, and failures in words without addresses."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from afire_monai.hospital.dicomweb.access import PASSWORD, TOKEN, USER, DicomWebError

if TYPE_CHECKING:
    import requests
    from pydicom import Dataset

T = TypeVar("T")
LONGEST_WAIT = 60.0
"""Seconds; more is not waited between two tries, whatever the server asks for."""
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
    """
    for attempt in range(retries + 1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they quote what the server sent
                return request()
        except Exception as error:
            problem, asked = _judge(error)
        if asked is None:
            break
        if attempt < retries:
            time.sleep(min(max(first_wait * 2**attempt, asked), LONGEST_WAIT))
    raise problem


def _judge(error: Exception) -> tuple[DicomWebError, float | None]:
    """Give what to say of an error, and the seconds to wait at least before trying again; None for never."""
    import requests

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
        return problem, float(asked) if asked.isdigit() else 0.0
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
    """Give the error for an answer that is something else, a page of text for example."""
    return AnswerError(
        "what the server answers is not DICOMweb; check the address (Orthanc: http://localhost:8042/dicom-web)"
    )


def entries_of(answer: Any) -> list[Mapping[str, Any]]:
    """Give the answer to a query as what it has to be, a list of DICOM JSON objects.

    Raises:
        AnswerError: it is not.
    """
    if not isinstance(answer, list) or not all(isinstance(entry, dict) for entry in answer):
        raise not_dicomweb()
    return answer


def see_that_it_is_whole(response: requests.Response, **_: Any) -> requests.Response:
    """See that an answer of several parts has its end, and name types as dicomweb-client looks for them.

    Raises:
        requests.ConnectionError: cut off; without a length in its head such an answer would look like a short one.
    """
    import requests

    kind = str(response.headers.get("Content-Type", ""))
    media = kind.partition(";")[0].strip().lower()
    if media in ("application/dicom+json", "application/json"):
        response.headers["Content-Type"] = media
    boundary = re.search(r"boundary=\"?([^\";]+)", kind)
    if response.ok and media == "multipart/related" and boundary:
        end = f"--{boundary[1].strip()}--".encode()
        if end not in response.content[-len(end) - 200 :]:
            raise requests.ConnectionError("cut off")
    return response


def refused_list(error: Exception) -> Dataset | None:
    """Give the list of failures that comes with status 409 when nothing could be stored; None if there is none."""
    import requests
    from pydicom import Dataset

    if not isinstance(error, requests.HTTPError) or error.response is None or error.response.status_code != 409:
        return None
    try:
        answer = Dataset.from_json(error.response.json())
    except Exception:  # no such list, whatever else it is
        return None
    return answer if "FailedSOPSequence" in answer else None
