"""The mapping of addresses by Postfix (aliases, BCC, canonical names) when a filter is between two of its services.

Each mail passes cleanup(8) twice, before the filter and after it. If both map addresses, the recipients behind an alias
get two copies; if none does, aliases are unknown users.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sendswitch.cli.postconf import Postconf, port_of
from sendswitch.config.model import Config

UNMAPPED = "no_address_mappings"


def mapping_trouble(config: Config, folder: Path | None = None) -> str:
    """Return a sentence about addresses that are mapped twice or never, with what to do.

    `folder` is Postfix's configuration, None for the system's. Return '' when all is well, or where no Postfix is.
    """
    if shutil.which("postconf") is None:
        return ""
    postconf = Postconf(folder, config.node.data)
    ports = tuple(f":{section.bind.rpartition(':')[2]}" for section in config.listener)
    port = config.next_hop.address.rpartition(":")[2]
    services = list(postconf.listening())
    back = [name for name in services if port_of(name) == port]
    if not back:
        return ""
    maps = {name: UNMAPPED not in postconf.effective(name, "receive_override_options") for name in services}
    for name in services:
        if name in back:
            continue
        target = postconf.effective(name, "content_filter")
        filtered = target == "sendswitch:" or target.endswith(ports)
        proxied = postconf.effective(name, "smtpd_proxy_filter").endswith(ports)
        # Before the queue nothing is mapped yet, whatever the service says.
        before, behind = maps[name] and not proxied, maps[back[0]]
        if not (filtered or proxied) or before != behind:
            continue
        if before:
            return (
                f"addresses are mapped twice, by {name} and by {back[0]}, so that members of an alias get two copies:"
                f" add {UNMAPPED} to receive_override_options of {back[0]} (`sendswitch postfix print`)"
            )
        return f"addresses are mapped neither by {name} nor by {back[0]}: take {UNMAPPED} out of {back[0]}"
    return ""
