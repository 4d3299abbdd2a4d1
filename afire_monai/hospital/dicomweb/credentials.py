"""Credentials for a DICOMweb server: from the environment, a token file, or the netrc file."""

from __future__ import annotations

import netrc
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from afire_monai.core.errors import AfireError

if TYPE_CHECKING:
    import requests


USER, PASSWORD, TOKEN = "AFIRE_DICOMWEB_USER", "AFIRE_DICOMWEB_PASSWORD", "AFIRE_DICOMWEB_TOKEN"
TOKEN_FILE = "AFIRE_DICOMWEB_TOKEN_FILE"


class DicomWebError(AfireError):
    """A DICOMweb server cannot be used: address, credentials, certificate, connection, or its answers."""


@dataclass(frozen=True)
class Credentials:
    """Credentials for a server; never shown, not even by `repr`.

    Attributes:
        user: user name for HTTP Basic authentication, with `password`; "" for none.
        password: see `user`.
        token: bearer token; "" for none.
        token_file: file that holds the token, read for each request, as another program may renew it; "" for none.
    """

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    token_file: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.user or self.token or self.token_file)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the credentials into a request, as `requests` asks of an authentication."""
        token = _read_token(self.token_file) if self.token_file else self.token
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        elif self.user:
            from requests.auth import HTTPBasicAuth

            # as bytes: requests would encode text as Latin-1, which does not suit every password
            return HTTPBasicAuth(self.user.encode(), self.password.encode())(request)
        return request


def find_credentials(host: str) -> Credentials:
    """Look for credentials in the environment, then for the host in the netrc file ($NETRC, else ~/.netrc).

    The netrc file's `default` entry is not used: it would send any host a password that is meant for others.

    Args:
        host: name or address of the server.

    Raises:
        DicomWebError: if only one of user and password is set, several kinds of credentials are set, or the netrc file
            can be read by others or cannot be parsed.
    """
    user, password, token, file = (os.environ.get(name, "") for name in (USER, PASSWORD, TOKEN, TOKEN_FILE))
    if bool(token) + bool(file) + bool(user or password) > 1:
        words = f"of {TOKEN}, {TOKEN_FILE}, and {USER} or {PASSWORD} more than one is set"
        raise DicomWebError(f"{words}; unset those that you do not want to use")
    if bool(user) != bool(password):
        missing = PASSWORD if user else USER
        raise DicomWebError(f"{missing} is not set; {USER} and {PASSWORD} go together")
    if ":" in user or any(c < " " for c in user + password + token) or not token.isascii():
        words = "no credential may contain a control character such as a line end, and a token must be ASCII"
        raise DicomWebError(f"{USER} must not contain a colon, {words}")
    if file:
        _read_token(file)
        return Credentials(token_file=os.path.abspath(file))
    if user or token:
        return Credentials(user, password, token)
    named = os.environ.get("NETRC")
    path = Path(named or os.path.expanduser("~/.netrc"))  # `Path.home` fails for a user without a home
    return _from_netrc(path, host, bool(named))


def _read_token(file: str) -> str:
    try:
        mode, token = os.stat(file).st_mode, Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise DicomWebError(f"{TOKEN_FILE} names a file that cannot be read; correct it or unset it") from None
    if mode & 0o007:
        raise DicomWebError(f"the file that {TOKEN_FILE} names has mode {mode & 0o777:04o}, so others can read it")
    if not token or not all("!" <= c <= "~" for c in token):
        raise DicomWebError(f"the file that {TOKEN_FILE} names must contain only the token, in ASCII characters")
    return token


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
            "the netrc file (NETRC, else ~/.netrc) cannot be read; correct it, or set NETRC to another file"
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
