"""`audit`: the proof that nothing was lost."""

from __future__ import annotations

from dataclasses import asdict

import typer

from sendswitch.cli.output import Session
from sendswitch.spool import audit as spool_audit
from sendswitch.spool import inspect


def audit(context: typer.Context) -> None:
    """Prove that every accepted recipient is in exactly one state and nothing that is needed is missing."""
    session: Session = context.obj
    data = session.config().node.data
    report = spool_audit.audit(inspect.open_files(data), data)
    if session.json:
        session.print_json(asdict(report))
    else:
        states = ", ".join(f"{count} {state}" for state, count in report.states.items()) or "nothing"
        print(f"{report.messages} messages, {report.deliveries} recipients: {states}")
        for finding in report.findings:
            print(f"  {finding.about}: {finding.text} (rule: {finding.rule})")
        print("every recipient is accounted for" if not report.findings else f"{len(report.findings)} findings")
    if report.findings:
        raise typer.Exit(1)
