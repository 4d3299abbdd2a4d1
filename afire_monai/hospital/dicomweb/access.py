"""Who may talk to a DICOMweb server and how: the address, the credentials, the certificates."""

from __future__ import annotations

import ipaddress
import netrc
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from afire_monai.core.errors import AfireError

if TYPE_CHECKING:
    import requests

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
    """Give the parts of a DICOMweb address, or say what is wrong with it without repeating it.

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


def find_credentials(host: str, environment: Mapping[str, str] | None = None) -> Credentials:
    """Look for credentials in the environment, then for the host in the netrc file ($NETRC, else ~/.netrc).

    The netrc file's `default` entry is not used: it would tell any host a password meant for others.

    Args:
        host: name or address of the server.
        environment: None for that of this process.

    Raises:
        DicomWebError: half a pair, both kinds at once, or a netrc file that others can read or nobody can parse.
    """
    environment = os.environ if environment is None else environment
    user, password, token = (environment.get(name, "") for name in (USER, PASSWORD, TOKEN))
    if token and (user or password):
        raise DicomWebError(f"{TOKEN} and {USER} or {PASSWORD} are set; unset the ones that are not meant")
    if bool(user) != bool(password):
        missing = PASSWORD if user else USER
        raise DicomWebError(f"{missing} is not set; {USER} and {PASSWORD} go together")
    if ":" in user or any(c < " " for c in user + password + token):
        raise DicomWebError(f"{USER} must have no colon, and no credential a control character such as a line end")
    if user or token:
        return Credentials(user, password, token)
    named = environment.get("NETRC")
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
    session.auth = credentials
    session.verify = True if ca is None else str(ca)
    return session
