"""Where Postfix maps addresses (aliases, BCC, canonical names) when a filter is between two of its services.

Each mail passes cleanup(8) twice, before the filter and after it. Where both map, whom an alias stands for gets two
copies; where none does, aliases are unknown users.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sendswitch.cli.postconf import Postconf, port_of
from sendswitch.config.model import Config

UNMAPPED = "no_address_mappings"


def mapping_trouble(config: Config, folder: Path | None = None) -> str:
    """Say what is wrong where addresses are mapped twice or never, and what to do; '' when all is well.

    `folder` is Postfix's configuration, None for the system's. '' too where there is no Postfix.
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
        if proxied and not maps[back[0]]:
            return f"addresses are mapped neither by {name} nor by {back[0]}: take {UNMAPPED} out of {back[0]}"
        if filtered and not proxied and maps[name] == maps[back[0]]:
            return _says(name, back[0], maps[name])
    return ""


def _says(name: str, back: str, twice: bool) -> str:
    if twice:
        return (
            f"addresses are mapped twice, by {name} and by {back}, so that members of an alias get two copies:"
            f" add {UNMAPPED} to receive_override_options of {back} (`sendswitch postfix print`)"
        )
    return f"addresses are mapped neither by {name} nor by {back}: take {UNMAPPED} out of {back}"
