"""Names of Maildirs."""

from __future__ import annotations

import pytest

from sendswitch.delivery.maildir import folder_name


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("Joe@A.example", "joe@a.example"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("..", "%2E."),
        ('"a/b"@c', "a%2Fb@c"),
    ],
)
def test_no_address_leaves_the_maildir(address: str, folder: str) -> None:
    assert folder_name(address) == folder
    assert "/" not in folder_name(address)
