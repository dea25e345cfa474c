"""`check`: check the configuration and show what is in it. Opens no socket and changes nothing."""

from __future__ import annotations

import typer

from sendswitch.bootstrap.parts import listener_options
from sendswitch.cli.output import Session
from sendswitch.errors import InvalidConfiguration, SendSwitchError


def check(context: typer.Context) -> None:
    """Check the configuration. Shows each error with file, line and the probable meaning."""
    session: Session = context.obj
    config = session.config()
    problems = []
    for section in config.listener:
        try:
            listener_options(section, config.node.host)
        except SendSwitchError as error:
            problems.append(str(error))
    if problems:
        raise InvalidConfiguration(problems)
    facts = {
        "listeners": [f"{s.protocol} {s.mode} {s.bind}" for s in config.listener],
        "next_hop": config.next_hop.address,
        "web": config.web.bind,
        "data": str(config.node.data),
    }
    where = session.config_file or "the defaults"
    session.done(
        f"{where}: fine. Listening on {', '.join(facts['listeners'])}; mail goes on to {facts['next_hop']}.",
        ok=True,
        **facts,
    )
