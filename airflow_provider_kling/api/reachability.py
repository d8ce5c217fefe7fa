"""Tells addresses apart that a service on the internet can never fetch from. Nothing is looked up."""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from urllib.parse import unquote, urlsplit

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_LOCAL_DOMAINS = ("localhost", "localdomain", "local", "internal", "home.arpa")
"""Domains that only a machine or a network of its own gives names in (RFC 6761, 6762, 8375; ICANN for ``internal``)."""
_NUMBERS = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}", re.IGNORECASE)


def why_unreachable(url: str) -> str | None:
    """
    Tell why a service on the internet cannot fetch from a URL, judged by its host alone.

    Odd spellings of an address count as that address: ``127.1``, ``0x7f.1``, ``2130706433``,
    ``[::ffff:127.0.0.1]``, full-width digits, a dot at the end.

    :param url: an ``http`` or ``https`` URL.
    :return: such as ``127.1 is the loopback address 127.0.0.1``; None where nothing speaks against it.
    """
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return None
    name = unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").rstrip(".").lower()
    address = _address_of(name)
    if address is not None:
        kind = _kind_of(address)
        told = host if host == str(address) else f"{host} is {address}, which"
        return f"{told} is {kind}" if kind else None
    if any(name == domain or name.endswith(f".{domain}") for domain in _LOCAL_DOMAINS):
        return f"{host} is a name of this machine or of a private network"
    if name and "." not in name:
        return f"{host} is a name without a domain, as only a private network has"
    return None


def _address_of(name: str) -> _Address | None:
    try:
        if ":" in name:
            return _inner(ipaddress.IPv6Address(name))
        if _NUMBERS.fullmatch(name):
            # It reads the old spellings that browsers and HTTP libraries read; ipaddress refuses them.
            return ipaddress.IPv4Address(socket.inet_aton(name))
    except (OSError, ValueError):
        pass
    return None


def _inner(address: ipaddress.IPv6Address) -> _Address:
    """Return the IPv4 address that an IPv6 address carries, or itself."""
    return address.ipv4_mapped or address.sixtofour or address


def _kind_of(address: _Address) -> str | None:
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if not address.is_global or address.is_reserved:
        return "an address of a private network"
    return None
