"""Messages and archives for the tests of the MIME reader."""

from __future__ import annotations

import io
import tarfile
import zipfile
from base64 import encodebytes


def part(data: bytes, name: str = "", kind: str = "application/octet-stream", *, encoded: bool = True) -> bytes:
    head = f"Content-Type: {kind}\r\n"
    if name:
        head += f'Content-Disposition: attachment; filename="{name}"\r\n'
    if encoded:
        head += "Content-Transfer-Encoding: base64\r\n"
        data = encodebytes(data).replace(b"\n", b"\r\n")
    return head.encode() + b"\r\n" + data


def multipart(*inner: bytes, boundary: str = "b1") -> bytes:
    between = b"".join(b"--" + boundary.encode() + b"\r\n" + one + b"\r\n" for one in inner)
    end = b"--" + boundary.encode() + b"--\r\n"
    return f'Content-Type: multipart/mixed; boundary="{boundary}"\r\n\r\npreamble\r\n'.encode() + between + end


HEAD = b"From: a@example.org\r\nSubject: hi\r\nMIME-Version: 1.0\r\n"
TEXT = part(b"hello\r\n", kind="text/plain", encoded=False)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def v7(files: dict[str, bytes]) -> bytes:
    """A tar from before there was a magic."""
    data = bytearray(tarred(files, tarfile.USTAR_FORMAT))
    data[257:265] = b"\0" * 8
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def tarred(files: dict[str, bytes], form: int = tarfile.DEFAULT_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def locked(data: bytes) -> bytes:
    """A zip whose directory says that a password is needed."""
    at = data.rindex(b"PK\x01\x02")
    return data[: at + 8] + bytes([data[at + 8] | 1]) + data[at + 9 :]
