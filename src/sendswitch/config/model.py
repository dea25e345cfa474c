"""Every setting of the system: type, default, one line of help. An empty file works."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from sendswitch.config.units import Duration, Secret, Size


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _endpoint(value: str) -> str:
    if value.startswith("unix:/"):
        return value
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{value!r} is no address; write host:port, [ipv6]:port or unix:/path")
    return value


def _next_hop(value: str) -> str:
    if value.startswith("maildir:"):
        if not value[8:].startswith("/"):
            raise ValueError(f"{value!r}: write maildir:/absolute/path")
        return value
    return _endpoint(value)


def _network(value: str) -> str:
    ipaddress.ip_network(value, strict=False)
    return value


def _on_this_machine(endpoint: str) -> bool:
    return endpoint.startswith(("unix:", "127.", "[::1]:", "localhost:"))


Endpoint = Annotated[str, AfterValidator(_endpoint)]
Network = Annotated[str, AfterValidator(_network)]


class NodeSection(Section):
    """This node."""

    data: Path = Field(
        Path("/var/lib/sendswitch"),
        description="Folder of the spool and the embedded database, beside this file or absolute.",
    )
    host: str = Field(
        default_factory=socket.getfqdn,
        pattern=r"^[A-Za-z0-9.-]{1,255}$",
        description="Hostname in greetings and trace fields; default: this machine's.",
    )
    lifetime: Duration = Field(
        432000.0, description="How long delivery is tried before a bounce (Postfix maximal_queue_lifetime is 5d)."
    )
    keep: Duration = Field(604800.0, description="How long final deliveries and their events stay in the spool.")
    min_free: Size = Field(
        52_428_800, description="Minimum free space to accept mail, else 452; queued mail is still delivered."
    )
    max_memory: Size = Field(
        1_073_741_824, description="Maximum memory for accepting mail, else 421 until it falls; 0: no limit."
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Nodes on this machine, each a process: they share the ports of listeners and all limits, each has"
        " a spool of its own and the next port behind `web.bind`.",
    )
    max_hops: int = Field(50, ge=5, le=1000, description="Maximum Received fields; more mean a mail loop.")


class ListenerSection(Section):
    """One SMTP or LMTP port."""

    mode: Literal["filter", "proxy"] = Field(
        "filter", description="filter: after the queue (content_filter); proxy: before it (smtpd_proxy_filter)."
    )
    bind: Endpoint = Field("127.0.0.1:8025", description="Address to listen on: host:port or unix:/path.")
    protocol: Literal["smtp", "lmtp"] = Field("smtp", description="lmtp sends one reply per recipient.")
    message_size: Size = Field(52_428_800, description="Largest message taken, in bytes.")
    recipients: int = Field(1000, ge=100, description="Most recipients of one message (RFC 5321 asks for 100).")
    errors: int = Field(20, ge=1, description="Bad commands before the connection is closed with 421.")
    connections: int = Field(5000, ge=1, description="Most connections in all.")
    connections_per_address: int = Field(5000, ge=1, description="Most connections from one address.")
    idle_timeout: Duration = Field(300.0, description="Time without a byte from the client before 421.")
    transaction_timeout: Duration = Field(3600.0, description="Time from MAIL to the end of data before 421.")
    xforward_from: tuple[Network, ...] = Field(
        ("127.0.0.0/8", "::1/128"), description="Networks allowed to use XFORWARD."
    )
    xclient_from: tuple[Network, ...] = Field((), description="Networks that are allowed to use XCLIENT.")
    haproxy_from: tuple[Network, ...] = Field(
        (), description="Networks that must send a PROXY header, version 1 or 2; others must not send it."
    )
    budget: Duration = Field(
        20.0, description="proxy: time limit for verdicts during the session (Postfix smtpd_proxy_timeout: 100s)."
    )
    tls_certificate: Path | None = Field(None, description="PEM file with certificate and chain; offers STARTTLS.")
    tls_key: Path | None = Field(None, description="PEM file with the private key.")
    auth: Literal["off", "may", "require"] = Field(
        "off",
        description="AUTH PLAIN and LOGIN with the passwords of `sendswitch user password`: `off`, `may`, or `require`"
        " before MAIL. Without TLS it is offered to clients on this machine only.",
    )

    @model_validator(mode="after")
    def _key_with_certificate(self) -> ListenerSection:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are needed together")
        if self.protocol == "lmtp" and self.mode == "proxy":
            raise ValueError('mode = "proxy" speaks smtp only; Postfix has no LMTP before the queue')
        if self.auth != "off" and self.tls_certificate is None and not _on_this_machine(self.bind):
            raise ValueError(f'auth = "{self.auth}" needs tls_certificate and tls_key, or nobody could log in')
        return self


class NextHopSection(Section):
    """The next hop for mail."""

    address: Annotated[str, AfterValidator(_next_hop)] = Field(
        "127.0.0.1:10025", description="host:port, unix:/path, or maildir:/folder."
    )
    protocol: Literal["smtp", "lmtp"] = Field("smtp", description="Protocol of the next hop.")
    connections: int = Field(
        10, ge=1, le=1000, description="Most connections; no more than maxproc of Postfix's re-injection service."
    )
    idle: Duration = Field(2.0, description="Time before an idle connection is closed.")
    recipients: int = Field(50, ge=1, description="Most recipients in one transaction.")
    connect_timeout: Duration = Field(30.0, description="Time to connect.")
    command_timeout: Duration = Field(300.0, description="Time for a reply.")
    content_timeout: Duration = Field(600.0, description="Time to send a message and get the reply.")
    tls: Literal["off", "may", "require"] = Field("off", description="STARTTLS: never, if offered, or always.")
    first_retry: Duration = Field(30.0, description="Delay after the first failed attempt; it doubles.")
    last_retry: Duration = Field(4000.0, description="Longest delay between attempts.")


class WebSection(Section):
    """The web port: health, metrics."""

    bind: Endpoint = Field("127.0.0.1:60666", description="Address to listen on.")


def _database(value: SecretStr) -> SecretStr:
    # Never shown: there is a password in it.
    kind, separator, _ = value.get_secret_value().partition("://")
    if value.get_secret_value() and (not separator or kind not in DATABASES):
        raise ValueError(f"this is no URL of a database we know; it begins with one of {'://, '.join(DATABASES)}://")
    return value


DATABASES = ("sqlite", "postgresql+psycopg", "mysql+pymysql", "mariadb+pymysql")


class DatabaseSection(Section):
    """Users, pipelines and the journal."""

    url: Annotated[Secret, AfterValidator(_database)] = Field(
        SecretStr(""),
        description="SQLAlchemy URL, such as postgresql+psycopg://user:password@host/name or mysql+pymysql://…;"
        ' empty: SQLite in node.data. May be {file = "/path"} or {env = "NAME"}.',
    )


class JournalSection(Section):
    """The history of mail, in the database."""

    enabled: bool = Field(True, description="Keep a journal; else the spool keeps history, for node.keep.")
    keep: Duration = Field(7_776_000.0, gt=0, description="How long final messages stay in the journal.")
    most: int = Field(10_000_000, ge=1000, description="Maximum messages; the oldest are deleted first.")
    subject: bool = Field(True, description="Keep each message's Subject, so that people can find their mail by it.")


class RecordingSection(Section):
    """The content of final mail, kept in the spool for `try`, `replay` and `message requeue`."""

    mail: Literal["filtered", "all", "none"] = Field(
        "filtered", description="Mail whose content is kept for node.keep: filtered by a pipeline, all, or none."
    )
    most: Size = Field(1_000_000_000, description="Maximum bytes; deletes the oldest first.")


class RoutingSection(Section):
    """The routes from recipients to pipelines."""

    recipient_delimiter: str = Field("+", max_length=8, description="Characters that begin an address extension.")
    origin: str = Field(
        "", max_length=255, description="Domain added to recipients without one (Postfix myorigin); empty: reject."
    )


class PipelinesSection(Section):
    """The settings for pipelines that do not set their own."""

    deadline: Duration = Field(60.0, gt=0, description="Time that a worker may take for a verdict.")
    on_timeout: Literal["defer", "pass", "deny", "hold", "quarantine"] = Field(
        "defer", description="Action after the deadline; `defer` tries again later, `pass` delivers without filtering."
    )
    deny: Literal["bounce", "discard", "quarantine"] = Field(
        "bounce", description="Action for DENY after the queue; `bounce` only where it is safe."
    )
    limit: Duration = Field(10.0, gt=0, description="Time for one step.")
    sandbox: Literal["none", "bwrap"] = Field(
        "none",
        description="`bwrap` runs all user code (steps `python` and `exec`, and those of packages) in a sandbox of"
        " bubblewrap, or not at all.",
    )


class ForwardSection(Section):
    """Mail that pipelines forward."""

    srs_domain: str = Field(
        "",
        pattern=r"^([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+)?$",
        description="Domain for the SRS (Sender Rewriting Scheme) envelope senders of mail forwarded to other domains;"
        " Postfix must route it to SendSwitch. Empty: the sender is not rewritten.",
    )


class HoldSection(Section):
    """Held mail, which waits for a later verdict (PENDING)."""

    expires: Duration = Field(604800.0, gt=0, description="How long it waits.")
    then: Literal["pass", "deny", "quarantine"] = Field(
        "quarantine", description="Action on expiry; `pass` delivers mail without a decision."
    )


class QuarantineSection(Section):
    """Mail in quarantine."""

    expires: Duration = Field(2_592_000.0, gt=0, description="How long it is kept before it is deleted.")


class TagsSection(Section):
    """The effects of tags on messages."""

    subject: dict[str, str] = Field(
        default_factory=dict, description='Text put before the Subject by tag, such as SPAM = "***SPAM*** ".'
    )


class WebhooksSection(Section):
    """HTTP requests from pipelines to URLs that users choose."""

    allow: tuple[str, ...] = Field(
        (),
        description="Non-public hosts, addresses and networks to which requests are allowed, "
        "such as 10.1.2.0/24 or hooks.example.internal.",
    )
    keep: Duration = Field(604800.0, gt=0, description="How long delivered and failed events are kept.")


class CanarySection(Section):
    """A test message, sent through Postfix and back at intervals, to check that the chain works."""

    to: str = Field("", description="Who gets it; empty: none is sent.")
    sender: str = Field("", description="Its envelope sender; empty: the null sender.")
    smtp: Endpoint = Field("127.0.0.1:25", description="Postfix's SMTP address.")
    interval: Duration = Field(300.0, ge=1, description="Sending interval.")
    limit: Duration = Field(60.0, ge=1, description="Time limit for its arrival.")


class WorkerSection(Section):
    """The workers that run pipelines."""

    processes: int = Field(0, ge=0, le=1000, description="Worker processes that `run` starts; 0: one for each core.")
    concurrency: int = Field(100, ge=1, le=10000, description="Messages in pipelines at once, in each worker.")
    offline_after: Duration = Field(
        60.0, gt=0, description="Time without any worker after which `when_offline` of a route counts."
    )
    memory: Size = Field(
        1_000_000_000, ge=100_000_000, description="Resident memory above which a worker process is replaced."
    )


def _rabbitmq(url: SecretStr) -> SecretStr:
    """Check the URL of a RabbitMQ. Raises ValueError without its password."""
    text = url.get_secret_value()
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("amqp", "amqps") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in text.partition("@")[2] or text.count("@") != parts.netloc.count("@") or parts.fragment:
        raise ValueError(
            "it is no URL such as amqps://user:password@host/vhost; in user and password write / as %2F, ? as %3F,"
            " # as %23 and @ as %40"
        )
    return url


def _rabbitmq_place(text: str) -> str:
    """Check the place of a RabbitMQ. Raises ValueError."""
    if text and urlsplit(_rabbitmq(SecretStr(text)).get_secret_value()).username:
        raise ValueError("it has a name or password in it; each user has an account of their own")
    return text


def _management(url: SecretStr) -> SecretStr:
    """Check the URL of a management plugin. Raises ValueError without its password."""
    if not url.get_secret_value():
        return url
    try:
        parts = urlsplit(url.get_secret_value())
        good = parts.scheme in ("http", "https") and bool(parts.hostname and parts.username) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise ValueError("it is no URL such as https://user:password@host:15671")
    return url


def _of_the_site(url: SecretStr) -> SecretStr:
    """Check that an account is none of a user. Raises ValueError."""
    if "@" in unquote(urlsplit(url.get_secret_value()).username or ""):
        raise ValueError("accounts with an @ in their names are those of users; give the site another one")
    return url


class BrokerSection(Section):
    """The broker between nodes and workers on other machines. Without one, workers are on this machine."""

    urls: list[Annotated[Secret, AfterValidator(_rabbitmq), AfterValidator(_of_the_site)]] = Field(
        default_factory=list,
        description='RabbitMQ hosts, such as "amqps://user:password@mq1.example/sendswitch"; or {file = "/path"}.',
    )
    queue_type: Literal["classic", "quorum"] = Field(
        "classic",
        description="The type of the queues for tasks. In a cluster `quorum` keeps each queue on several hosts, so that"
        " one may be away; `classic` keeps it on one, and is faster.",
    )
    public: Annotated[str, AfterValidator(_rabbitmq_place)] = Field(
        "",
        description="RabbitMQ as users' own workers reach it, such as amqps://mq.example/sendswitch; empty: like the"
        " first of `urls`.",
    )
    management: Annotated[Secret, AfterValidator(_management)] = Field(
        SecretStr(""),
        description="RabbitMQ's management plugin, by which `route install` makes accounts, with an administrator of"
        ' RabbitMQ: "https://user:password@mq1.example:15671"; or {file = "/path"}.',
    )


class LogSection(Section):
    """Events on standard error."""

    format: Literal["json", "text"] = Field("json", description="One JSON object a line, or lines for people.")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level to log.")


class TracingSection(Section):
    """Traces for an OpenTelemetry collector, made from the journal's events. Needs `sendswitch[otel]`."""

    endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Where OTLP over HTTP goes, such as http://127.0.0.1:4318/v1/traces; empty: none are made.",
    )
    sample: float = Field(1.0, ge=0, le=1, description="Share of messages that are traced.")
    header: dict[str, Secret] = Field(
        default_factory=dict,
        description='HTTP headers to send, such as Authorization = "Bearer …"; a value may be {file = "/path"}.',
    )


class Config(Section):
    """All settings."""

    node: NodeSection = NodeSection()
    listener: tuple[ListenerSection, ...] = (ListenerSection(),)
    next_hop: NextHopSection = NextHopSection()
    web: WebSection = WebSection()
    database: DatabaseSection = DatabaseSection()
    journal: JournalSection = JournalSection()
    recording: RecordingSection = RecordingSection()
    routing: RoutingSection = RoutingSection()
    pipelines: PipelinesSection = PipelinesSection()
    forward: ForwardSection = ForwardSection()
    hold: HoldSection = HoldSection()
    quarantine: QuarantineSection = QuarantineSection()
    tags: TagsSection = TagsSection()
    webhooks: WebhooksSection = WebhooksSection()
    canary: CanarySection = CanarySection()
    worker: WorkerSection = WorkerSection()
    broker: BrokerSection = BrokerSection()
    tracing: TracingSection = TracingSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _one_address_each(self) -> Config:
        binds = [listener.bind for listener in self.listener] + [self.web.bind]
        for bind in binds:
            if binds.count(bind) > 1 and not bind.endswith(":0"):
                raise ValueError(f"{bind} is bound twice; each listener and the web port need an address of their own")
        if self.next_hop.address in binds:
            raise ValueError(f"next_hop.address {self.next_hop.address} is our own listener: mail would loop")
        if self.node.processes > 1:
            self._can_be_shared()
        if self.tracing.endpoint and not self.journal.enabled:
            raise ValueError("tracing.endpoint needs journal.enabled: traces are made from the journal's events")
        return self

    def _can_be_shared(self) -> None:
        """Raise ValueError for addresses that several nodes cannot have."""
        for bind in [listener.bind for listener in self.listener] + [self.web.bind]:
            if bind.startswith("unix:") or bind.endswith(":0"):
                raise ValueError(
                    f"{bind} cannot be shared by {self.node.processes} nodes (node.processes); name a port"
                )
        host, _, port = self.web.bind.rpartition(":")
        webs = [f"{host}:{int(port) + n}" for n in range(self.node.processes)]
        if taken := sorted({listener.bind for listener in self.listener} & set(webs)):
            raise ValueError(
                f"{taken[0]} is the web port of one of {self.node.processes} nodes: they begin at web.bind"
            )
        if int(port) + self.node.processes > 65_536:
            raise ValueError(f"web.bind {self.web.bind}: there are not {self.node.processes} ports from there on")

    @property
    def broker_urls(self) -> list[str]:
        """Return the URLs of RabbitMQ, with their passwords; none where workers are on this machine."""
        return [url.get_secret_value() for url in self.broker.urls]

    @property
    def database_url(self) -> str:
        """Return the database's URL, with its password; the embedded one when none is configured."""
        given = self.database.url.get_secret_value()
        return given or f"sqlite:///{self.node.data / 'sendswitch.db'}"
