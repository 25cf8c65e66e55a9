"""Which addresses are this machine's alone. Pure."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Is this a name or an address of the loopback interface?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
