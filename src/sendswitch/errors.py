"""The errors of SendSwitch: one root, split into Temporary and Permanent, each with the reply a peer may see.

Rule: an error nobody classified is temporary. `classify` is the only place that says so; the peer reads a
generic sentence, the log gets the cause.
"""

from __future__ import annotations

import errno
from typing import TypeVar

from sendswitch.reply import Reply

Raised = TypeVar("Raised", bound=BaseException)

LOCAL_ERROR = Reply(451, "4.3.0", "Error: the message could not be taken now, please try again later")


class SendSwitchError(Exception):
    """Something went wrong in the mail switch; try again later and look at its log for the cause."""

    reply = LOCAL_ERROR

    def __init__(self, message: str | None = None, *, reply: Reply | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        if reply is not None:
            self.reply = reply


class Temporary(SendSwitchError):
    """The operation failed now and may succeed later; the mail stays where it is and is tried again."""


class AddressTaken(Temporary):
    """This process cannot listen on an address."""


class Permanent(SendSwitchError):
    """The operation will fail the same way each time; change the message or the configuration."""

    reply = Reply(554, "5.3.0", "Error: the message cannot be handled")


class SpoolUnavailable(Temporary):
    """The spool cannot be written; check free space, permissions and the log, then mail is taken again."""

    reply = Reply(451, "4.3.1", "Error: insufficient system storage, please try again later")


class ContentDamaged(Temporary):
    """The content in the spool differs from what was stored, and its mail is held. Check the disk, and restore a
    backup.
    """


class HeaderTooLarge(Permanent):
    """The header section is larger than 1 MiB, so that no filter could see all of it; send less."""

    reply = Reply(552, "5.3.4", "Error: header section is too large")


class MailLoop(Permanent):
    """The message has passed too many hosts, or this one too often; look for a forwarding loop."""

    reply = Reply(554, "5.4.6", "Error: too many hops")


class NotFound(SendSwitchError):
    """No object has that name or id; list the objects first."""


class Refused(SendSwitchError):
    """The state of the object does not allow this; list it to see its state."""


class InvalidSearch(SendSwitchError):
    """The search has an unknown word; the message says which, and the known ones."""


class InvalidConfiguration(SendSwitchError):
    """The configuration has errors; each is listed with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def classify(error: BaseException) -> SendSwitchError:
    """Return an error of ours as it is, and any other as Temporary with its type and text for the log."""
    if isinstance(error, SendSwitchError):
        return error
    return Temporary(f"{type(error).__name__}: {error}")


# The kinds of errors by their names, for JSON. The first that fits counts.
_KINDS: dict[str, type[Exception]] = {
    "not_found": NotFound,
    "refused": Refused,
    "invalid_search": InvalidSearch,
    "invalid_configuration": InvalidConfiguration,
    "temporary": Temporary,
    "permanent": Permanent,
    "failed": SendSwitchError,
    "invalid_value": ValueError,
}


def caused_by(cause: BaseException, error: Raised) -> Raised:
    """Return an error with its cause, which compiled code does not keep: raise caused_by(error, New()) from error."""
    error.__cause__ = cause
    return error


def kind_of(error: Exception) -> str:
    """Return the name of an error's kind."""
    return next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "failed")


def error_of(kind: str, errors: list[str]) -> Exception:
    """Return an error of a kind with its sentences."""
    found = _KINDS.get(kind, SendSwitchError)
    return InvalidConfiguration(errors) if found is InvalidConfiguration else found("\n".join(errors))


# Sentences for SQLite's result codes (sqlite.org/rescode.html). An extended code begins with its primary one.
_SQLITE = {
    "SQLITE_READONLY": "this user cannot write the file; run the command as the service's user, or chown the file",
    "SQLITE_CANTOPEN": "this user cannot open the file or its folder; check owner and permissions",
    "SQLITE_PERM": "this user cannot open the file; check owner and permissions",
    "SQLITE_AUTH": "this user cannot open the file; check owner and permissions",
    "SQLITE_FULL": "the disk is full; make room",
    "SQLITE_IOERR": "the disk could not be read or written; is it full? See the system's log",
    "SQLITE_BUSY": "another process holds it locked; try again",
    "SQLITE_LOCKED": "another process holds it locked; try again",
    "SQLITE_CORRUPT": "the file is damaged; restore a backup",
    "SQLITE_NOTADB": "the file is no database, or it is damaged; restore a backup",
}
_SYSTEM = {
    errno.EACCES: "permission denied; check owner and permissions, or run the command as the service's user",
    errno.EPERM: "permission denied; check owner and permissions, or run the command as the service's user",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.ENOENT: "there is no such file or folder",
    errno.EADDRINUSE: "another program listens there already",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.ECONNREFUSED: "nothing listens there",
    errno.EMFILE: "too many open files; raise LimitNOFILE of the service",
    errno.ENAMETOOLONG: "the name is too long",
}


def in_words(error: BaseException) -> str:
    """Return an error of the system or of a library as a sentence: no class name, no SQL, no link.

    The text of our own errors stays as it is. The name of a file is not part of it.
    """
    if isinstance(error, SendSwitchError):
        return str(error)
    cause = getattr(error, "orig", None) or error  # SQLAlchemy's errors carry the driver's
    name = getattr(cause, "sqlite_errorname", "")
    for code, sentence in _SQLITE.items():
        if name.startswith(code):
            return sentence
    of_openssl = type(cause).__module__ == "ssl"  # an OSError whose numbers are OpenSSL's
    if isinstance(cause, OSError) and cause.errno is not None and not of_openssl:
        return _SYSTEM.get(cause.errno) or str(cause.strerror).lower()
    match cause.args:
        case (int(), str(text)):  # pymysql
            return text
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
