"""Base64 as lenient readers decode it (RFC 2045 section 6.8): characters outside the alphabet are skipped."""

from __future__ import annotations

import binascii

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_OTHERS = bytes(set(range(256)) - set(_ALPHABET))


def unpacked(piece: bytes) -> bytes:
    """Return the bytes of one run of Base64, without the byte that its last character only begins."""
    piece = piece.translate(None, _OTHERS)
    if odd := len(piece) % 4:
        piece = piece[:-1] if odd == 1 else piece + b"=" * (4 - odd)
    return binascii.a2b_base64(piece)
