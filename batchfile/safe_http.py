"""Connections to servers that a user names: only to a checked address, which is also the one that is connected to.

For webhooks and for media. Knows no proxies and follows no redirects.
"""

import http.client
import ipaddress
import socket
import ssl
from contextlib import suppress
from urllib.parse import SplitResult, quote

SOCKET_S = 10.0  # for each step
_IN_TARGET = "!#$%&'()*+,/:;=?@[]~"  # and letters, digits and -._ (RFC 3986); % for what is encoded already

_UNICAST = ipaddress.IPv6Network("2000::/3")  # all global unicast addresses that IANA has assigned
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address

# Not public, although Python's tables may say otherwise: some changed in later versions, one is a public address.
_RESERVED = (
    ipaddress.ip_network("168.63.129.16/32"),  # the host agent of Azure's virtual machines
    ipaddress.ip_network("192.0.0.0/24"),  # RFC 6890; its two public addresses receive no webhooks
    ipaddress.ip_network("3fff::/20"),  # RFC 9637, for documentation
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


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


def address_of(host: str, port: int, *, allow_private: bool) -> str | None:
    """The first address of the host; None if any of them is not public."""
    found = [str(item[4][0]) for item in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not allow_private and not all(is_public(ipaddress.ip_address(item.partition("%")[0])) for item in found):
        return None
    return found[0]


def connect(parts: SplitResult, *, allow_private: bool) -> "Pinned | None":
    """A connection to the server of a URL, not opened yet; None if its address is private and may not be.

    Raises: OSError if the name is unknown; ValueError for an invalid port.
    """
    is_tls, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if is_tls else 80)
    address = address_of(host, port, allow_private=allow_private)
    return None if address is None else Pinned(host, port, address, is_tls)


def target_of(parts: SplitResult) -> str:
    """What a request line names: the path and the query, where spaces and other letters than ASCII are encoded."""
    return quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_IN_TARGET)


class Pinned(http.client.HTTPConnection):
    """Connects to the checked `address` while speaking to `host`, which prevents DNS rebinding."""

    def __init__(self, host: str, port: int, address: str, is_tls: bool) -> None:
        super().__init__(host, port, timeout=SOCKET_S)
        self._address = address
        self._is_tls = is_tls
        self._cuttable: socket.socket | None = None
        self._is_cut = False
        if is_tls:
            self.default_port = 443  # so that the Host header omits it

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), SOCKET_S)
        if self._is_tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self._cuttable = self.sock  # a response without a length clears `sock` as it begins
        if self._is_cut:
            raise TimeoutError("timed out")
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()

    def cut(self) -> None:
        """Call it from another thread: pending socket operations fail at once."""
        self._is_cut = True
        with suppress(OSError):
            if self._cuttable is not None:
                socket.socket.shutdown(self._cuttable, socket.SHUT_RDWR)  # SSLSocket's is for one thread
