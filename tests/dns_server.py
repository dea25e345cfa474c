"""A DNS server of our own: what it knows is a dict; it answers over UDP like any other, or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.resolver
import dns.rrset

from sendswitch.bench.peers import free_port


@contextmanager
def dns_server(records: Mapping[tuple[str, str], Sequence[str]], *, silent: str = "") -> Iterator[int]:
    """Records by name and type; names that end with `silent` get no answer. Gives its port."""
    port = free_port()
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.bind(("127.0.0.1", port))
    line.settimeout(0.1)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                data, peer = line.recvfrom(4096)
            except TimeoutError:
                continue
            query = dns.message.from_wire(data)
            question = query.question[0]
            name = question.name.to_text(omit_final_dot=True).lower()
            if silent and name.endswith(silent):
                continue
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.RA
            found = records.get((name, dns.rdatatype.to_text(question.rdtype)))
            if found:
                answer.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", question.rdtype, list(found)))
            elif not any(known == name for known, _ in records):
                answer.set_rcode(dns.rcode.NXDOMAIN)
            line.sendto(answer.to_wire(), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    before = dns.resolver.default_resolver
    ours = dns.resolver.Resolver(configure=False)
    ours.nameservers, ours.port, ours.timeout, ours.lifetime = ["127.0.0.1"], port, 0.5, 1.0
    dns.resolver.default_resolver = ours
    try:
        yield port
    finally:
        dns.resolver.default_resolver = before
        ended.set()
        thread.join()
        line.close()
