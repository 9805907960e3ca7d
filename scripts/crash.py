#!/usr/bin/env python3
"""The two sides of scripts/crash: a writer, and the check of what it was promised.

crash.py write DIR LOG SEED   writes records to files in DIR until an operation fails or SIGTERM comes
crash.py check DIR LOG        compares DIR with what LOG says must be there

The log lies on another file system. A line `begin` goes there before an operation, a line `done` once the fsync, msync
or close that covers it has returned. So what is on disk is known exactly: the last operation that is done, or, where
something had begun after it, also that. Contents follow from (seed, number), so the log need not hold them.
"""

import json
import mmap
import os
import random
import signal
import sys

SLOTS = 48
SLOT_BYTES = 5000  # no multiple of a page or a sector: a slot shares pages with its neighbours
APPENDED_BYTES_MAX = 40_000
FILES = 4


def content(seed, number, size):
    return random.Random(seed * 1_000_003 + number).randbytes(size)


class Writer:
    def __init__(self, directory, log_path, seed):
        self.dir = directory
        self.seed = seed
        self.random = random.Random(seed)
        self.number = 0
        self.sizes = {}  # append files
        self.log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.log(kind="seed", seed=seed)

    def log(self, **fields):
        # One write each: a line is there wholly, even if this process is killed by SIGBUS in a map.
        os.write(self.log_fd, (json.dumps(fields) + "\n").encode())

    def run(self):
        for n in range(FILES):
            fd = os.open(self.path("slots", n), os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(fd, SLOTS * SLOT_BYTES)
            os.fsync(fd)
            os.close(fd)
        self.log(kind="ready")
        operations = [self.append, self.append, self.overwrite, self.overwrite, self.mapped, self.replace, self.remove]
        while True:
            self.random.choice(operations)(self.random.randrange(FILES))

    def path(self, kind, n):
        return os.path.join(self.dir, f"{kind}-{n}")

    def begin(self, **operation):
        self.number += 1
        self.log(kind="begin", number=self.number, **operation)
        return self.number

    def append(self, n):
        path = self.path("append", n)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        numbers = []
        # Several records, one fsync: all of them are covered by it.
        for _ in range(self.random.randint(1, 4)):
            size = self.random.randint(1, APPENDED_BYTES_MAX)
            pos = self.sizes.get(path, 0)
            numbers.append(self.begin(op="append", file=os.path.basename(path), pos=pos, size=size))
            write_all(fd, content(self.seed, self.number, size))
            self.sizes[path] = pos + size
        self.settle(fd)
        self.done(numbers)

    def overwrite(self, n):
        fd = os.open(self.path("slots", n), os.O_RDWR)
        numbers = []
        for _ in range(self.random.randint(1, 4)):
            slot = self.random.randrange(SLOTS)
            numbers.append(self.begin(op="slot", file=f"slots-{n}", slot=slot))
            os.lseek(fd, slot * SLOT_BYTES, os.SEEK_SET)
            write_all(fd, content(self.seed, self.number, SLOT_BYTES))
            # Read back in between, so that the cache and the kernel hold what is overwritten next.
            if read_all(fd, SLOT_BYTES, slot * SLOT_BYTES) != content(self.seed, self.number, SLOT_BYTES):
                self.wrong(f"slots-{n} slot {slot}: read back something else than was written")
        self.settle(fd)
        self.done(numbers)

    def mapped(self, n):
        fd = os.open(self.path("slots", n), os.O_RDWR)
        slot = self.random.randrange(SLOTS)
        number = self.begin(op="slot", file=f"slots-{n}", slot=slot)
        with mmap.mmap(fd, SLOTS * SLOT_BYTES) as view:
            view[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES] = content(self.seed, number, SLOT_BYTES)
            view.flush()
        os.close(fd)
        self.done([number])

    def replace(self, n):
        size = self.random.randint(0, APPENDED_BYTES_MAX)
        temporary, path = self.path("temporary", n), self.path("replaced", n)
        number = self.begin(op="replace", file=os.path.basename(path), size=size)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        write_all(fd, content(self.seed, number, size))
        os.fsync(fd)
        os.close(fd)
        os.rename(temporary, path)
        self.done([number])

    def remove(self, n):
        path = self.path("replaced", n)
        if self.random.random() < 0.3 and os.path.exists(path):
            number = self.begin(op="remove", file=os.path.basename(path))
            os.unlink(path)
            self.done([number])

    def settle(self, fd):
        if self.random.random() < 0.5:
            os.fsync(fd)
        os.close(fd)

    def done(self, numbers):
        for number in numbers:
            self.log(kind="done", number=number)

    def wrong(self, text):
        self.log(kind="wrong", text=text)
        sys.exit(4)


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data) :]


def read_all(fd, size, pos):
    data = b""
    # A read that the kill cuts short returns what it has, and only the next one fails.
    while len(data) < size:
        more = os.pread(fd, size - len(data), pos + len(data))
        if not more:
            break
        data += more
    return data


def write(directory, log_path, seed):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    writer = Writer(directory, log_path, seed)
    try:
        writer.run()
    except OSError as error:
        # The daemon is gone: ENOTCONN, ECONNABORTED or EIO. The script knows whether it should be.
        writer.log(kind="stopped", errno=error.errno, text=str(error))
        sys.exit(3)


def check(directory, log_path):
    seed, begun, done, faults = None, {}, set(), []
    with open(log_path, encoding="utf-8") as log:
        for line in log:
            entry = json.loads(line)
            if entry["kind"] == "seed":
                seed = entry["seed"]
            elif entry["kind"] == "begin":
                begun[entry["number"]] = entry
            elif entry["kind"] == "done":
                done.add(entry["number"])
            elif entry["kind"] == "wrong":
                faults.append(entry["text"])

    # Per place, in order: what is done last, and all that began after it.
    slots, replaced, appended = {}, {}, {}
    for number, entry in sorted(begun.items()):
        if entry["op"] == "append":
            appended.setdefault(entry["file"], []).append(entry)
            continue
        places = slots if entry["op"] == "slot" else replaced
        key = (entry["file"], entry.get("slot"))
        if number in done:
            places[key] = [entry]
        else:
            places.setdefault(key, [None]).append(entry)

    def read(name):
        try:
            with open(os.path.join(directory, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    for name, entries in appended.items():
        data = read(name)
        for entry in entries:
            expected = content(seed, entry["number"], entry["size"])
            found = (data or b"")[entry["pos"] : entry["pos"] + entry["size"]]
            if entry["number"] in done:
                if found != expected:
                    faults.append(f"{name}: record {entry['number']} at {entry['pos']} {describe(found, expected)}")
            elif not expected.startswith(found):
                # Unfinished: some prefix may be there, something else may not.
                faults.append(f"{name}: unfinished record {entry['number']} {describe(found, expected)}")

    for (name, slot), entries in slots.items():
        data = read(name)
        found = (data or b"")[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
        candidates = [bytes(SLOT_BYTES) if entry is None else content(seed, entry["number"], SLOT_BYTES) for entry in entries]
        # A write that was under way may be there in part: every byte must come from one of the candidates.
        if len(found) != SLOT_BYTES or not all(any(c[i] == b for c in candidates) for i, b in enumerate(found)):
            faults.append(f"{name}: slot {slot}, record {entries[0] and entries[0]['number']} {describe(found, candidates[0])}")

    for (name, _), entries in replaced.items():
        data = read(name)
        candidates = [
            None if entry is None or entry["op"] == "remove" else content(seed, entry["number"], entry["size"])
            for entry in entries
        ]
        # A rename happens wholly or not at all.
        if data not in candidates:
            faults.append(f"{name}: is {None if data is None else len(data)} bytes and none of the {len(candidates)} versions it may be")

    for fault in faults[:10]:
        print(f"    {directory}/{fault}")
    print(f"{len(done)} {len(begun) - len(done)} {len(faults)}")
    sys.exit(1 if faults else 0)


def describe(found, expected):
    if not found:
        return "is missing"
    if len(found) < len(expected):
        return f"ends after {len(found)} of {len(expected)} bytes"
    first = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), len(expected))
    return f"differs from byte {first} of {len(expected)}"


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "write":
        write(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif len(sys.argv) == 4 and sys.argv[1] == "check":
        check(sys.argv[2], sys.argv[3])
    else:
        sys.exit(__doc__)
