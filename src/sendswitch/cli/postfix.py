"""`postfix print`: the lines of master.cf and main.cf for each mode, for this configuration."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from sendswitch.cli.output import Session
from sendswitch.config.model import Config
from sendswitch.errors import NotFound
from sendswitch.smtp.address import parse_endpoint

app = typer.Typer(help="Postfix beside it.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Postfix beside it."""


@app.command("print")
def print_(
    context: typer.Context,
    mode: Annotated[Literal["filter", "proxy"], typer.Option("--mode", help="After or before the queue.")] = "filter",
) -> None:
    """Print the lines that put SendSwitch into Postfix; nothing is changed."""
    session: Session = context.obj
    lines = master_cf(session.config(), mode)
    session.done(lines, mode=mode, master_cf=lines)


def master_cf(config: Config, mode: str) -> str:
    """The lines. Raises NotFound when no listener has this mode."""
    listener = next((section for section in config.listener if section.mode == mode), None)
    if listener is None:
        raise NotFound(f'no listener has mode = "{mode}"; add one to the configuration first')
    if config.next_hop.address.startswith("maildir:"):
        raise NotFound("next_hop.address is a maildir; give it the address of Postfix's re-injection service")
    ours, back = parse_endpoint(listener.bind), parse_endpoint(config.next_hop.address)
    entry = _FILTER if mode == "filter" else _PROXY
    # As many processes as we may use connections, and two more for whoever looks.
    return entry.format(host=ours.host, port=ours.port) + _REINJECT.format(
        back=back, most=config.next_hop.connections + 2
    )


_FILTER = """\
# master.cf: mail from outside goes through SendSwitch after it is queued.
# Put the -o line under the service(s) that take mail, usually smtp.
smtp      inet  n       -       n       -       -       smtpd
  -o content_filter=sendswitch:[{host}]:{port}

sendswitch unix -       -       n       -       20      smtp
  -o smtp_send_xforward_command=yes
  -o disable_mime_output_conversion=yes
  -o smtp_generic_maps=
"""
_PROXY = """\
# master.cf: mail from outside goes through SendSwitch before it is queued.
# Put the -o lines under the service(s) that take mail, usually smtp.
smtp      inet  n       -       n       -       20      smtpd
  -o smtpd_proxy_filter={host}:{port}
  -o smtpd_proxy_options=speed_adjust
  -o smtpd_client_connection_count_limit=10
"""
_REINJECT = """
# master.cf: where SendSwitch hands mail back. Reachable from this machine only, and not filtered again.
{back} inet n    -       n       -       {most}      smtpd
  -o content_filter=
  -o smtpd_proxy_filter=
  -o receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters
  -o smtpd_tls_security_level=none
  -o smtpd_sasl_auth_enable=no
  -o smtpd_client_restrictions=
  -o smtpd_helo_restrictions=
  -o smtpd_sender_restrictions=
  -o smtpd_relay_restrictions=permit_mynetworks,reject
  -o smtpd_recipient_restrictions=permit_mynetworks,reject
  -o mynetworks=127.0.0.0/8
  -o smtpd_authorized_xforward_hosts=127.0.0.0/8
  -o smtpd_client_connection_count_limit=0
  -o smtpd_client_connection_rate_limit=0
"""
