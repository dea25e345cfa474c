"""Bob's filter: newsletters get a tag, programs go into quarantine, everything else passes."""

from sendswitch.mail.message import Mail
from sendswitch.mail.verdict import Verdict
from sendswitch.processors.base import Context


async def process(mail: Mail, context: Context) -> Verdict | None:
    """Judge one message to Bob."""
    for attachment in mail.attachments:
        if attachment.name.lower().endswith((".exe", ".scr", ".js")):
            return Verdict.quarantine(f"the attachment {attachment.name} is a program")
    if mail.header("list-id"):
        return Verdict.tagged("NEWS", reason="it has a List-Id")
    return None
