"""Postfix → amavis → SendSwitch → Postfix: each scans or decides once, and nobody gets a copy too many."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage

from sendswitch.bench.peers import Node, free_port, public_folder
from tests.e2e.amavis import BehindAmavis, amavis
from tests.e2e.steps import QUICK, clean, said, until


def test_amavis_hands_its_mail_to_us(postfix_installed: None) -> None:
    with public_folder("amavis") as folder:
        back = free_port()
        node = Node(folder / "node", f"127.0.0.1:{back}", settings=QUICK)
        with (
            amavis(folder / "amavis", node.port) as port,
            BehindAmavis(folder / "postfix", port, back) as postfix,
            node,
        ):
            step = '[[step]]\nuse = "tag"\ntags = ["PROGRAM"]\nwhen = "header:X-Amavis-Alert=BANNED"\n'
            node.add_pipeline("joe@example.test", step)
            for name in ("report.pdf", "report.exe"):
                mail = EmailMessage()
                mail["From"], mail["To"], mail["Subject"] = "bill@example.net", "joe@example.test", name
                mail.set_content("See below.\n")
                mail.add_attachment(b"MZ" * 40, maintype="application", subtype="octet-stream", filename=name)
                with smtplib.SMTP("127.0.0.1", postfix.plain, local_hostname="client.example.org") as client:
                    client.send_message(mail, "bill@example.net", ["joe@example.test", "ann@example.test"])
            for_joe, for_ann = postfix.wait_for("joe", 2), postfix.wait_for("ann", 2)
            assert sorted(b"X-SendSwitch-Tags: PROGRAM" in one for one in for_joe) == [False, True]
            assert not any(b"X-SendSwitch-Tags" in one for one in for_ann)
            # amavis tells us who the client was, as Postfix told it.
            until(lambda: len(said(node, "message", "list", "helo:client.example.org")) == 4, node=node)
            clean(node)
            assert postfix.queue() == ""
            assert (len(postfix.messages("joe")), len(postfix.messages("ann"))) == (2, 2)
