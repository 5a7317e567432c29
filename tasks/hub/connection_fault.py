"""What is wrong where no answer came: the setting to mend, as far as that is known."""

import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

from tasks.hub.endpoint import Endpoint

_UNKNOWN_NAME: Final = (socket.EAI_NONAME, socket.EAI_NODATA)
_UNKNOWN_ISSUER: Final = range(18, 22)
"""OpenSSL's verify codes of a certificate whose issuer is not among those that it trusts."""


def fault_of(error: Exception, endpoint: Endpoint, *, has_answered: bool) -> str:
    """Tell why a request got no answer; not free of secrets.

    Args:
        error: what httpcore raised.
        endpoint: where the request was to go.
        has_answered: whether a request got an answer there before.
    """
    what = str(error) or type(error).__name__
    if endpoint.proxy is not None:
        return f"{what} ({endpoint.address}, by a proxy)"
    cause = error.__context__  # httpcore's pool raises it anew, without a `__cause__`
    return _fault_of_setting(cause, endpoint, has_answered=has_answered) or (
        f"{what} ({endpoint.address})"
    )


def _fault_of_setting(
    cause: BaseException | None, endpoint: Endpoint, *, has_answered: bool
) -> str | None:
    host = endpoint.url.host.decode("ascii")
    match cause:
        case ssl.SSLCertVerificationError():
            hint = _hint_of(cause)
            return f"{endpoint.variable}: the certificate of {host} is refused, {hint}"
        case socket.gaierror() if cause.errno in _UNKNOWN_NAME:
            return f"{endpoint.variable}: the name {host} is unknown"
        case ConnectionRefusedError() if not has_answered:
            netloc = urlsplit(endpoint.address).netloc
            return f"{endpoint.variable}: nothing listens at {netloc}"
    return None


def _hint_of(fault: ssl.SSLCertVerificationError) -> str:
    is_of_unknown_issuer = fault.verify_code in _UNKNOWN_ISSUER
    ca = ": SSL_CERT_FILE may name the file of a private CA" if is_of_unknown_issuer else ""
    return f"{fault.verify_message}{ca}"
