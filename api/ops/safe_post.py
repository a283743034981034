"""Sends one POST to a user's server safely: only to a checked address, without redirects and proxies, in bounded time.

Reads only the status of the response.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

SOCKET_S = 10.0  # for each step
POST_S = 25.0  # for all steps after the DNS lookup, which takes the resolver's own time

_UNICAST = ipaddress.IPv6Network("2000::/3")  # all global unicast addresses that IANA has assigned
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address

# Not public, although Python's tables may say otherwise: some changed in later versions, one is a public address.
_RESERVED = (
    ipaddress.ip_network("168.63.129.16/32"),  # the host agent of Azure's virtual machines
    ipaddress.ip_network("192.0.0.0/24"),  # RFC 6890; its two public addresses receive no webhooks
    ipaddress.ip_network("3fff::/20"),  # RFC 9637, for documentation
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool) -> str | None:
    """None if the server answered 2xx, otherwise what went wrong. Network errors are returned, not raised."""
    try:
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        host = parts.hostname or ""
        port = parts.port or (443 if is_tls else 80)
        address = _address(host, port, allow_private=allow_private)
        if address is None:
            return f"{host} has a private address; set allow_private for this webhook if you trust it"
        connection = _Pinned(host, port, address, is_tls)
        given_up = threading.Timer(POST_S, connection.cut)
        given_up.start()
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, {"Content-Type": "application/json", **headers})
            status = connection.getresponse().status
        finally:
            given_up.cancel()
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"the request failed: {error}"
    return None if 200 <= status < 300 else f"the server answered {status}"


def is_public(address: IPAddress) -> bool:
    """Is the address public? An IPv4 address embedded in an IPv6 one is checked as itself."""
    inner = _inner(address) if isinstance(address, ipaddress.IPv6Address) else address
    if isinstance(inner, ipaddress.IPv6Address) and inner not in _UNICAST:
        return False
    if any(inner in network for network in _RESERVED):
        return False
    return inner.is_global and not inner.is_multicast


def _inner(address: ipaddress.IPv6Address) -> IPAddress:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _address(host: str, port: int, *, allow_private: bool) -> str | None:
    """The first address of the host; None if any of them is not public."""
    found = [str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not allow_private and not all(is_public(ipaddress.ip_address(item.partition("%")[0])) for item in found):
        return None
    return found[0]


class _Pinned(http.client.HTTPConnection):
    """Connects to the checked `address` while speaking to `host`, which prevents DNS rebinding."""

    def __init__(self, host: str, port: int, address: str, is_tls: bool) -> None:
        super().__init__(host, port, timeout=SOCKET_S)
        self._address = address
        self._is_tls = is_tls
        if is_tls:
            self.default_port = 443  # so that the Host header omits it

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), SOCKET_S)
        if self._is_tls:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

    def cut(self) -> None:
        """Call it from another thread: pending socket operations fail at once."""
        with suppress(OSError):
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)
