"""`audit`: the proof that nothing was lost."""

from __future__ import annotations

from dataclasses import asdict

import typer

from sendswitch.cli.output import Session
from sendswitch.config.processes import folders_in
from sendswitch.db.connect import open_database
from sendswitch.monitoring.auditor import audit_all
from sendswitch.spool.admin import open_files


def audit(context: typer.Context) -> None:
    """Prove that no accepted mail is missing. Each recipient must have one state in spool and journal."""
    session: Session = context.obj
    config = session.config()
    data = config.node.data
    open_files(data).close()  # who has no spool is told what to do
    engine = open_database(config.database_url, migrate=False) if config.journal.enabled else None
    report = audit_all(folders_in(data), engine)
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
