#!/usr/bin/env python3
"""Writes an image of one layer as an OCI archive, from files of this machine; `ctr images import` loads it."""
import argparse
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import tarfile

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
TEXTS = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nistio-proxy:x:1337:1337::/:/bin/sh\n",
    "etc/group": "root:x:0:\nistio-proxy:x:1337:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


class Layer:
    def __init__(self):
        self.bytes = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.bytes, mode="w")
        self.seen = set()

    def entry(self, name, kind, mode, size=0, link=""):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.size, entry.linkname = kind, mode, size, link
        return entry

    def folder(self, name, mode=0o755):
        """A folder, and those above it."""
        name = name.strip("/")
        if name and name not in self.seen:
            self.folder(os.path.dirname(name))
            self.seen.add(name)
            self.tar.addfile(self.entry(name, tarfile.DIRTYPE, mode))

    def text(self, name, text):
        self.folder(os.path.dirname(name))
        data = text.encode()
        self.tar.addfile(self.entry(name, tarfile.REGTYPE, 0o644, len(data)), io.BytesIO(data))

    def file(self, source, target):
        name = target.strip("/")
        if name in self.seen:
            return
        self.folder(os.path.dirname(name))
        self.seen.add(name)
        source = os.path.realpath(source)
        with open(source, "rb") as content:
            mode = os.stat(source).st_mode & 0o777
            self.tar.addfile(self.entry(name, tarfile.REGTYPE, mode, os.path.getsize(source)), content)

    def program(self, path):
        """A program with the libraries that its loader asks for."""
        self.file(path, path)
        needs = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(0x", needs):
            self.file(library, library)

    def busybox(self):
        path = next(p for p in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(p))
        self.file(path, "/bin/busybox")
        for applet in subprocess.check_output([path, "--list"], text=True).split():
            if applet != "busybox":
                self.tar.addfile(self.entry("bin/" + applet, tarfile.SYMTYPE, 0o777, link="busybox"))


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("archive")
    arguments.add_argument("name", nargs="+", help="the image's names")
    arguments.add_argument("--file", action="append", default=[], metavar="FROM:TO")
    arguments.add_argument("--program", action="append", default=[], metavar="PATH")
    arguments.add_argument("--busybox", action="store_true")
    arguments.add_argument("--entrypoint")
    arguments.add_argument("--user", default="")
    given = arguments.parse_intermixed_args()

    layer = Layer()
    for folder in ("dev", "etc", "proc", "run", "sys", "var"):
        layer.folder(folder)
    layer.folder("tmp", 0o1777)
    for name, text in TEXTS.items():
        layer.text(name, text)
    if given.busybox:
        layer.busybox()
    for path in given.program:
        layer.program(path)
    for pair in given.file:
        layer.file(*pair.rsplit(":", 1))
    layer.tar.close()

    blobs = {}

    def blob(kind, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + digest, "size": len(data)}

    content = blob("layer.v1.tar", layer.bytes.getvalue())
    machine = MACHINES.get(platform.machine(), platform.machine())
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {"Env": ["PATH=" + path], "Entrypoint": [given.entrypoint], "User": given.user, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [content["digest"]]},
    }
    config = blob("config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "config": config, "layers": [content]}
    manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
    manifest = blob("manifest.v1+json", json.dumps(manifest).encode())
    named = [dict(manifest, annotations={"io.containerd.image.name": name}) for name in given.name]
    files = {"blobs/sha256/" + digest: data for digest, data in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": named}).encode()
    with tarfile.open(given.archive + ".new", "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    os.rename(given.archive + ".new", given.archive)


main()
