"""Which addresses a server may call on behalf of a client: those of the public internet.

A name is looked up once and every address of it is checked; nothing else is connected to.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from ..errors import UsageError

Address = IPv4Address | IPv6Address
PORTS = {"http": 80, "https": 443}
SYSTEM_PORTS = 1024  # below it are mail, shells and the like
MAX_URL = 8192


def _networks(*written: str) -> tuple:
    return tuple(ip_network(network) for network in written)


# Written out, since what Python counts as global differs between its versions.
# https://www.iana.org/assignments/iana-ipv4-special-registry, and the same for IPv6
PRIVATE = _networks(
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",
    "::1/128", "fc00::/7",
)  # fmt: skip
SPECIAL = _networks(
    "0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)  # fmt: skip
UNICAST = ip_network("2000::/3")  # all of IPv6 that has been given out
TRANSLATED = ip_network("64:ff9b::/96")  # IPv4 as networks without it reach it
# Where clouds tell a machine its credentials; private, and never anybody's picture.
METADATA = frozenset(map(ip_address, ("100.100.100.200", "fd00:ec2::254", "fd20:ce::254")))


@dataclass(frozen=True)
class Target:
    """A URL that may be called: the addresses to connect to, and the host they were named by."""

    parts: SplitResult
    host: str
    port: int
    addresses: tuple[str, ...]

    @property
    def path(self) -> str:
        """What to ask the host for."""
        path = self.parts.path or "/"
        return f"{path}?{self.parts.query}" if self.parts.query else path


def check_url(url: str, allow_private: bool = False) -> Target:
    """Look up whom a URL names. Raises `UsageError` for who must not be called.

    allow_private: private and loopback addresses too; link-local ones never.
    """
    parts, host, port = _split(url)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UsageError(f"the URL's host {host[:80]!r} is not known") from None
    addresses = [ip_address(str(item[4][0]).partition("%")[0]) for item in found]
    if not addresses or not all(may_call(address, allow_private) for address in addresses):
        raise UsageError(f"the URL's host {host[:80]!r} is at an address that is not public")
    return Target(parts, host, port, tuple(dict.fromkeys(map(str, addresses))))


def may_call(address: Address, allow_private: bool = False) -> bool:
    """Whether an address is public, or private and that is allowed."""
    if address in METADATA:
        return False
    if address.version == 6 and address in TRANSLATED:
        return may_call(IPv4Address(int(address) & 0xFFFFFFFF))
    if _within(address, PRIVATE):
        return allow_private
    if _within(address, SPECIAL):
        return False
    return address.version == 4 or address in UNICAST


def _within(address: Address, networks: tuple) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _split(url: str) -> tuple[SplitResult, str, int]:
    if len(url) > MAX_URL:
        raise UsageError(f"the URL has {len(url):,} characters; {MAX_URL:,} at most")
    try:
        if not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
            raise ValueError("not plain ASCII")
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("the URL cannot be read") from None
    if parts.scheme not in PORTS or not host:
        raise UsageError("the URL must begin with http:// or https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise UsageError("the URL must not hold a name or a password")
    port = PORTS[parts.scheme] if port is None else port
    if port < SYSTEM_PORTS and port not in PORTS.values():
        raise UsageError(f"the URL's port is {port}; 80, 443 and those from {SYSTEM_PORTS} work")
    return parts, host, port
