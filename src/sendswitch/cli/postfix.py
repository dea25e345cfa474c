"""`postfix print|apply|remove|check`: the Postfix before and behind this node."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Annotated, Literal

import typer

from sendswitch.cli.mappings import UNMAPPED, mapping_trouble
from sendswitch.cli.output import Session, readable
from sendswitch.cli.postconf import Postconf, Service, Wanted, port_of
from sendswitch.config.model import Config
from sendswitch.config.processes import folders_in
from sendswitch.config.units import duration
from sendswitch.errors import NotFound, Refused
from sendswitch.monitoring import probe
from sendswitch.smtp.endpoint import Endpoint, parse_endpoint
from sendswitch.spool import admin
from sendswitch.spool.history import last_event

app = typer.Typer(help="The lines for a Postfix before and behind the node.", no_args_is_help=True)

Mode = Annotated[
    Literal["filter", "proxy", "pipe"], typer.Option("--mode", help="After-queue, before-queue or pipe(8) filter.")
]
Services = Annotated[list[str] | None, typer.Option("--service", help="master.cf services; by default smtp/inet.")]
Folder = Annotated[Path | None, typer.Option("--postfix-config", help="Postfix's config_directory.")]


@app.command("print")
def print_(context: typer.Context, mode: Mode = "filter", service: Services = None) -> None:
    """Print the Postfix settings for SendSwitch. Nothing is changed."""
    session: Session = context.obj
    text = as_text(wanted(session.config(), dict.fromkeys(service or SMTP, mode), session.config_file))
    session.done(text, mode=mode, master_cf=text)


@app.command("apply")
def apply(
    context: typer.Context,
    mode: Mode = "filter",
    service: Services = None,
    folder: Folder = None,
    reload: Annotated[bool, typer.Option("--reload/--no-reload", help="Make Postfix read it.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be run.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another filter.")] = False,
) -> None:
    """Put SendSwitch into Postfix with postconf. `remove` restores the former values.

    Repeat it for other services and modes: `proxy` for smtp/inet, `filter` for submission/inet.
    """
    session: Session = context.obj
    config = session.config()
    postconf = Postconf(folder, config.node.data)
    modes = _with(postconf.modes(), dict.fromkeys(service or SMTP, mode))
    changes = wanted(config, modes, session.config_file, postconf)
    commands = [" ".join(_quoted(word) for word in line) for line in postconf.commands(changes)]
    if not replace:
        refuse_another(postconf, modes, changes)
    if not dry_run:
        postconf.apply(changes, modes)
        if reload:
            postconf.reload()
    done = "nothing was run" if dry_run else "done; `sendswitch postfix check --to ADDRESS` sends a probe through it"
    session.done("\n".join([*commands, done]), applied=not dry_run, commands=commands)


@app.command("remove")
def remove(
    context: typer.Context,
    folder: Folder = None,
    reload: Annotated[bool, typer.Option("--reload/--no-reload", help="Make Postfix read it.")] = True,
) -> None:
    """Remove SendSwitch from Postfix; restore the old values."""
    session: Session = context.obj
    postconf = Postconf(folder, session.config().node.data)
    commands = [" ".join(_quoted(word) for word in line) for line in postconf.remove()]
    if reload:
        postconf.reload()
    hint = "mail that is here still goes on; `sendswitch queue list` shows it"
    session.done("\n".join([*commands, hint]), commands=commands)


@app.command("check")
def check(
    context: typer.Context,
    to: Annotated[str, typer.Option("--to", help="The probe's recipient; its pipeline runs.")],
    smtp: Annotated[str, typer.Option("--smtp", help="Postfix's SMTP address.")] = "127.0.0.1:25",
    sender: Annotated[str, typer.Option("--from", help="The probe's sender.")] = "postmaster",
    limit: Annotated[str, typer.Option("--limit", help="How long to wait.")] = "30s",
    folder: Folder = None,
) -> None:
    """Send a probe through Postfix; show its path.

    Exits with 1 if it does not arrive, or if addresses are mapped twice or never.
    """
    session: Session = context.obj
    config = session.config()
    end = time.monotonic() + duration(limit)
    spools = [admin.open_files(folder) for folder in folders_in(config.node.data)]
    endpoint, after = parse_endpoint(smtp), [last_event(spool) for spool in spools]
    sending = probe.send(endpoint, host=config.node.host, sender=sender, to=to, limit=duration(limit))
    sent, reply = asyncio.run(sending)
    stages = [probe.Stage(f"Postfix {endpoint}", str(reply), time.time() - sent.began)]
    state, trouble = "", ""
    if not reply.positive:
        trouble = f"{endpoint} did not take the probe; is Postfix there, and may it be sent to {to}?"
    else:
        while not probe.arrived(state) and time.monotonic() < end:
            time.sleep(0.05)
            trails = [probe.trail(*one) for one in zip(spools, repeat(sent), after, strict=False)]
            reached, state = next((one for one in trails if one[1]), trails[0])
        stages += reached
        trouble = _trouble(state, config) or mapping_trouble(config, folder)
    told = {"ok": not trouble, "trouble": trouble, "state": state, "stages": [asdict(stage) for stage in stages]}
    session.done(f"probe {sent.message_id}\n{readable_lines(probe.drawing(stages))}", **told)
    if trouble:
        if not session.json:
            sys.stderr.write(f"sendswitch: {trouble}\n")
        raise typer.Exit(1)


def _trouble(state: str, config: Config) -> str:
    """Return advice about a probe that did not arrive, '' when it did."""
    if not state:
        return (
            "Postfix has the probe and SendSwitch does not: look at `postqueue -p`, and whether the service that took"
            " it has our content_filter (`sendswitch postfix print`)"
        )
    if state == "deferred":
        return f"the next hop {config.next_hop.address} did not take it; is the re-injection service in master.cf?"
    return "" if probe.arrived(state) else f"it is {state} and goes no further; `sendswitch queue list` says why"


def readable_lines(text: str) -> str:
    """Return lines for a terminal, without anything it would act on."""
    return "\n".join(readable(line) for line in text.splitlines())


SMTP = ("smtp/inet",)


def wanted(
    config: Config, modes: Mapping[str, str], file: Path | None = None, postconf: Postconf | None = None
) -> Wanted:
    """Return the lines that master.cf needs, for the mode of each service.

    Raises NotFound when the configuration has no listener for a mode.

    Postfix maps addresses once: before the filter, so that the pipeline of the real recipient runs. Where mail is
    filtered before the queue Postfix has not mapped addresses yet, and maps them behind us, for all services.
    """
    if config.next_hop.address.startswith("maildir:"):
        raise NotFound("next_hop.address is a maildir; give it the address of Postfix's re-injection service")
    after = any(mode == "proxy" or _mapped_later(name, postconf) for name, mode in modes.items())
    back = parse_endpoint(config.next_hop.address)
    overrides = _REINJECT["receive_override_options"] + ("" if after else f",{UNMAPPED}")
    # A process for each of our connections, and two more for checks.
    rest = f"n - n - {config.next_hop.connections + 2} smtpd"
    services = [_service(str(back), "inet", rest, _REINJECT | {"receive_override_options": overrides})]
    parameters = {}
    for name, mode in modes.items():
        ours = _listener(config, mode)
        if mode == "proxy":
            parameters[name] = {"smtpd_proxy_filter": str(Endpoint(ours.host, ours.port)), **_BEFORE}
            continue
        target = "sendswitch:" if mode == "pipe" else f"sendswitch:[{ours.host}]:{ours.port}"
        parameters[name] = {"content_filter": target}
        if after:
            known = (postconf.effective(name, "receive_override_options") if postconf else "").replace(",", " ").split()
            parameters[name]["receive_override_options"] = ",".join(dict.fromkeys([*known, UNMAPPED]))
    if "pipe" in modes.values():
        where = f" --config {file}" if file else ""
        line = f"sendswitch unix - n n - 20 pipe {_PIPE.format(config=where)}"
        services.insert(0, Service("sendswitch/unix", line))
    elif "filter" in modes.values():
        services.insert(0, _service("sendswitch", "unix", "- - n - 20 smtp", _FILTER))
    return Wanted(tuple(services), parameters)


def _listener(config: Config, mode: str) -> Endpoint:
    for section in config.listener:
        if section.mode == ("filter" if mode == "pipe" else mode):
            return parse_endpoint(section.bind)
    raise NotFound(f'no listener has mode = "{mode}"; add one to the configuration first')


def _mapped_later(service: str, postconf: Postconf | None) -> bool:
    """Return whether a service leaves addresses unmapped, because a service behind the filter maps them.

    A service without a filter of its own takes mail back from another filter; the service that takes mail in first
    maps.
    """
    if postconf is None or postconf.before(service, "content_filter") == "":
        return False
    before = postconf.before(service, "receive_override_options")
    return UNMAPPED in (postconf.effective(service, "receive_override_options") if before is None else before)


def _with(before: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return the modes of all services. Raises Refused for a service that was changed before."""
    if again := sorted(set(before) & set(new)):
        raise Refused(f"SendSwitch filters {', '.join(again)} already; `sendswitch postfix remove` takes it out first")
    if "pipe" in {*before.values(), *new.values()} and "filter" in {*before.values(), *new.values()}:
        raise Refused("`filter` and `pipe` are two ways to do the same; use one of them for all services")
    return {**before, **new}


def refuse_another(postconf: Postconf, modes: Mapping[str, str], changes: Wanted) -> None:
    """Raise Refused with advice where another filter is configured, or another service has our port."""
    for name in set(modes) - set(postconf.modes()):
        for key in ("content_filter", "smtpd_proxy_filter"):
            there = postconf.effective(name, key)
            if there and not there.startswith("sendswitch:") and there != changes.parameters[name].get(key):
                raise Refused(_another_filter(postconf, name, key, there))
    ports = {port_of(service.name) for service in changes.services if service.name.endswith("/inet")}
    for name, line in postconf.listening().items():
        if port_of(name) in ports and not postconf.ours(name):
            raise Refused(
                f"master.cf has a service at port {port_of(name)} already: {line[:100]}\n"
                "Give next_hop.address another port, or replace that service with --replace."
            )


def _another_filter(postconf: Postconf, service: str, key: str, there: str) -> str:
    back = [
        name
        for name in postconf.listening()
        if postconf.parameter(name, "content_filter") == "" and not postconf.ours(name)
    ]
    behind = f"sendswitch postfix apply --service {back[0]}" if back else "sendswitch postfix apply --service NAME"
    return (
        f"Postfix filters the mail of {service} already: {key} = {there}\n"
        f"Behind it: `{behind}` takes what it hands back; next_hop.address needs a port of its own then.\n"
        "In its place: `sendswitch postfix apply --replace`; `sendswitch postfix remove` puts it back."
    )


def _service(name: str, kind: str, rest: str, parameters: Mapping[str, str]) -> Service:
    return Service(f"{name}/{kind}", f"{name} {kind} {rest}", dict(parameters))


def as_text(changes: Wanted) -> str:
    """Return the changes as lines for an editor."""
    lines = []
    for name, parameters in changes.parameters.items():
        service, _, kind = name.partition("/")
        lines.append("# master.cf: put the -o lines under the service that takes mail from outside.")
        lines.append(f"{service} {kind} n - n - - smtpd")
        lines += [f"  -o {key}={value}" for key, value in parameters.items()]
    for service_ in changes.services:
        lines += ["", "# master.cf: a service of our own.", service_.line]
        lines += [f"  -o {key}={value}" for key, value in service_.parameters.items()]
    return "\n".join([*lines, "", "# receive_override_options: addresses are mapped once (aliases, BCC)."])


def _quoted(word: str) -> str:
    return f"'{word}'" if any(c in word for c in " ${}*") or word.endswith("=") else word


_FILTER = {
    "smtp_send_xforward_command": "yes",
    "disable_mime_output_conversion": "yes",
    "smtp_generic_maps": "",
}
_BEFORE = {"smtpd_proxy_options": "speed_adjust", "smtpd_client_connection_count_limit": "10"}
# pipe(8) gives every recipient of one message in one call with ${recipient}; q quotes what a shell would not like.
_PIPE = (
    "flags=Rq user=sendswitch null_sender= argv=/usr/bin/sendswitch{config} pipe --queue-id ${{queue_id}}"
    " --client-address ${{client_address}} --client-name ${{client_hostname}} --helo ${{client_helo}}"
    " -f ${{sender}} -- ${{recipient}}"
)
# Reachable from this machine only, and not filtered again.
_REINJECT = {
    "content_filter": "",
    "smtpd_proxy_filter": "",
    "receive_override_options": "no_unknown_recipient_checks,no_header_body_checks,no_milters",
    "smtpd_tls_security_level": "none",
    "smtpd_sasl_auth_enable": "no",
    "smtpd_client_restrictions": "",
    "smtpd_helo_restrictions": "",
    "smtpd_sender_restrictions": "",
    "smtpd_relay_restrictions": "permit_mynetworks,reject",
    "smtpd_recipient_restrictions": "permit_mynetworks,reject",
    "smtpd_data_restrictions": "",
    "smtpd_end_of_data_restrictions": "",
    "smtpd_etrn_restrictions": "",
    "smtpd_command_filter": "",
    "smtpd_upstream_proxy_protocol": "",
    "smtpd_error_sleep_time": "0",
    "smtpd_soft_error_limit": "1001",
    "smtpd_hard_error_limit": "1000",
    "mynetworks": "127.0.0.0/8",
    "smtpd_authorized_xforward_hosts": "127.0.0.0/8",
    "smtpd_client_connection_count_limit": "0",
    "smtpd_client_connection_rate_limit": "0",
}
