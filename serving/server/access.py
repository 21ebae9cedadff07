"""Checks of a request before its body is read: token, address, framing and type of the body."""

import hmac
import ipaddress
from collections.abc import Mapping

from serving.server.limits import CLOSE, RefusedError

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/ping", "/health"})
"""Answered without a token: orchestrators, which restart servers, have none."""


def check_token(token: str | None, path: str, header: str | None) -> None:
    """Raise `RefusedError` unless the `Authorization` header holds the token, if the server has one.

    >>> check_token("correct horse", "/v2", "Bearer correct horse"), check_token("correct horse", "/ping", None)
    (None, None)
    """
    if token is None or path in OPEN_PATHS:
        return
    scheme, _, given = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        expected, headers = "expected `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
        found, remedy = "no valid token", "send the token"
        raise RefusedError(401, "unauthorised", expected, found=found, remedy=remedy, headers=headers)


def is_loopback(client: tuple[str, int] | None) -> bool:
    """True if a connection comes from this machine.

    >>> is_loopback(("127.0.0.1", 50000)), is_loopback(("10.0.0.9", 50000)), is_loopback(None)
    (True, False, False)
    """
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def check_framing(headers: Mapping[str, str], http_version: str) -> None:
    """Raise `RefusedError` for a request that gives its length twice, and end the connection.

    A proxy may have used the other length; the bytes that follow could then be another client's request (smuggling).

    >>> check_framing({"content-length": "4"}, "1.1")
    """
    if "transfer-encoding" in headers and ("content-length" in headers or http_version == "1.0"):
        found = "Transfer-Encoding too" if "content-length" in headers else "Transfer-Encoding in HTTP/1.0"
        expected = "expected Content-Length or Transfer-Encoding"
        raise RefusedError(400, "invalid", expected, found=found, remedy="send one of them", headers=CLOSE)


def check_content(headers: Mapping[str, str], *media_types: str) -> None:
    """Raise `RefusedError` for a body of another type or a compressed one; "" as a type allows a missing header."""
    given, _, parameters = headers.get("content-type", "").partition(";")
    given, charset = given.strip().lower(), parameters.lower().replace(" ", "").replace('"', "")
    is_json = "application/json" in media_types and given.startswith("application/") and given.endswith("+json")
    if given not in media_types and not is_json:
        expected, found = f"expected Content-Type: {media_types[0]}", repr(given[:80]) if given else "none"
        raise RefusedError(415, "invalid", expected, found=found, remedy="send that header")
    if "charset=" in charset and "charset=utf-8" not in charset:
        raise RefusedError(415, "invalid", "expected UTF-8", found=repr(parameters.strip()[:80]))
    encoding = headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        found, remedy = repr(encoding[:80]), "do not compress it: send no Content-Encoding"
        raise RefusedError(415, "invalid", "expected a plain body", found=found, remedy=remedy)
