#!/usr/bin/env python3
"""Keeps the SHA-256 of each file that is written, without reading any of them back: usage: checksum-on-write.py SUMS

A plugin of warmfs, type "command", always running, with acknowledgement. See checksum-on-write.toml. SUMS is written in
the form of sha256sum(1), for `sha256sum --check`, whenever there is nothing else to do. A file that is not written from
its start to its end, or whose bytes did not all come along, is listed in a comment instead: its sum is not known here.
"""

import base64
import hashlib
import json
import os
import select
import sys


class Digest:
    """The sum of what was written so far, and where the next write must go on."""

    def __init__(self):
        self.sum = hashlib.sha256()
        self.end = 0
        self.is_whole = True

    def write(self, pos, size, data):
        if pos == 0 and self.end > 0:
            # Written anew from the start.
            self.__init__()
        if pos != self.end or data is None or len(data) != size:
            self.is_whole = False
            return
        self.sum.update(data)
        self.end += size


def take(files, event):
    path = event.get("path")
    match event["event"]:
        case "on_write":
            data = base64.b64decode(event["data"]) if "data" in event else None
            files.setdefault(path, Digest()).write(event["pos"], event["size"], data)
        case "on_create":
            files[path] = Digest()
        case "on_truncate":
            if event["size"] == 0:
                files[path] = Digest()
            elif path in files and event["size"] != files[path].end:
                files[path].is_whole = False
        case "on_rename":
            if path in files:
                files[event["to"]] = files.pop(path)
        case "on_remove":
            files.pop(path, None)
        case "gap":
            # Something is missing, and nobody knows of which file.
            for digest in files.values():
                digest.is_whole = False


def save(files, target):
    lines = []
    for path, digest in sorted(files.items()):
        known = digest.is_whole and not set(path) & set("\\\n\r\ufffd")
        lines.append(f"{digest.sum.hexdigest()}  {path}\n" if known else f"# not known: {json.dumps(path)}\n")
    with open(f"{target}.new", "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(f"{target}.new", target)


def main():
    target = sys.argv[1]
    files, pending, acked = {}, b"", 0
    while True:
        # Nothing comes for a moment: what is known so far goes to the disk, and only then it is acknowledged.
        if not select.select([0], [], [], 0.2)[0]:
            if acked:
                save(files, target)
                print(f"ack {acked}", flush=True)
                acked = 0
            select.select([0], [], [])
        chunk = os.read(0, 1 << 20)
        if not chunk:
            break
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            event = json.loads(line)
            take(files, event)
            acked = event["seq"]
    save(files, target)
    print(f"ack {acked}", flush=True)


main()
