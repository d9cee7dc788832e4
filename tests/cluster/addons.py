#!/usr/bin/env python3
"""What a cloud would bring: names of Services, and addresses of those of type LoadBalancer.

addons.py ADDRESS PREFIX answers DNS at ADDRESS:53 and gives out PREFIX.1 and up. It reads by `kubectl get --watch`.
"""
import json
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time

A, AAAA = 1, 28
services, slices = {}, {}
given = {}


def watch(kind, take):
    """Hands every event to `take`, for ever."""
    while True:
        command = ["kubectl", "get", kind, "-A", "--watch", "--output-watch-events", "-o", "json"]
        kubectl = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        text, reader = "", json.JSONDecoder()
        for line in kubectl.stdout:
            text += line
            try:
                event, _ = reader.raw_decode(text)
            except ValueError:
                continue
            text = ""
            take(event["type"], event["object"])
        time.sleep(1)


def service(event, found):
    key = (found["metadata"]["namespace"], found["metadata"]["name"])
    if event == "DELETED":
        services.pop(key, None)
        return
    services[key] = found["spec"].get("clusterIPs", [])
    if found["spec"].get("type") == "LoadBalancer" and not found["status"].get("loadBalancer", {}).get("ingress"):
        address = given.setdefault(key, f"{sys.argv[2]}.{len(given) + 1}")
        status = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}})
        patch = ["patch", "service", key[1], "--subresource=status", "--type=merge", "-p", status]
        subprocess.run(["kubectl", "-n", key[0], *patch], check=False)


def endpoint_slice(event, found):
    metadata = found["metadata"]
    owner = (metadata["namespace"], metadata.get("labels", {}).get("kubernetes.io/service-name"))
    own = slices.setdefault(owner, {})
    own.pop(metadata["name"], None)
    if event != "DELETED":
        ready = [e for e in found.get("endpoints") or [] if e.get("conditions", {}).get("ready", True)]
        own[metadata["name"]] = [address for e in ready for address in e["addresses"]]


def lookup(name):
    """The addresses of a Service's full name; None for a name that does not exist."""
    labels = name.lower().rstrip(".").split(".")
    if labels[2:] != ["svc", "cluster", "local"] or (labels[1], labels[0]) not in services:
        return None
    key = (labels[1], labels[0])
    if services[key] in ([], ["None"]):
        return [address for of_slice in slices.get(key, {}).values() for address in of_slice]
    return services[key]


def answer(query):
    """RFC 1035, section 4.1: one question, all its answers."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("latin1"))
        at += query[at] + 1
    question, (kind,) = query[12 : at + 5], struct.unpack("!H", query[at + 1 : at + 3])
    found, records = lookup(".".join(labels)), []
    for address in found or []:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if kind == (AAAA if family == socket.AF_INET6 else A):
            data = socket.inet_pton(family, address)
            records.append(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 5, len(data)) + data)
    flags = 0x8580 | (3 if found is None else 0)
    return query[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0) + question + b"".join(records)


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        query, sock = self.request
        sock.sendto(answer(query), self.client_address)


class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        while len(length := self.rfile.read(2)) == 2:
            reply = answer(self.rfile.read(struct.unpack("!H", length)[0]))
            self.wfile.write(struct.pack("!H", len(reply)) + reply)


def main():
    socketserver.TCPServer.allow_reuse_address = True
    udp = socketserver.ThreadingUDPServer((sys.argv[1], 53), Datagram)
    tcp = socketserver.ThreadingTCPServer((sys.argv[1], 53), Stream)
    for work in (udp.serve_forever, tcp.serve_forever, lambda: watch("endpointslices", endpoint_slice)):
        threading.Thread(target=work, daemon=True).start()
    watch("services", service)


main()
