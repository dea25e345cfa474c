"""What every table of ours is made with."""

from __future__ import annotations

from typing import Any

# On MySQL and MariaDB, whatever the server's default: all of Unicode, compared as the other databases do.
TABLE: dict[str, Any] = {
    f"{kind}_{key}": value
    for kind in ("mysql", "mariadb")
    for key, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
