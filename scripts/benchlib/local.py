"""The groups on a local directory: what the page cache answers, what the daemon answers, writes, small files, memory,
listings."""

import contextlib
import os
import shutil

from .base import Base
from .report import faster_time, progress
from .work import MIB, fio, work

PEERS_IN_MEMORY = ["warmfs", "bindfs", "mergerfs"]

# What warmfs has to reach: figure, peer, times as fast. The page cache is measured by the fastest peer that keeps it;
# O_DIRECT by the one that serves it; what changes files by both.
MARKS = [
    ("read 1 MiB", "mergerfs", 1.0),
    ("random 4 KiB", "mergerfs", 1.0),
    ("random 4 KiB, 4 jobs", "mergerfs", 1.0),
    ("O_DIRECT 4 KiB", "bindfs", 1.2),
    ("O_DIRECT 4 KiB, 4 jobs", "bindfs", 1.2),
    ("write 1 MiB", "bindfs", 2.0),
    ("write 1 MiB", "mergerfs", 1.0),
    ("write 128 KiB", "bindfs", 2.0),
    ("write 128 KiB", "mergerfs", 1.0),
    ("write 1 MiB, fsync", "mergerfs", 1.0),
    ("write 128 KiB, fsync", "mergerfs", 1.0),
    ("create", "bindfs", 1.0),
    ("create", "mergerfs", 1.0),
    ("stat", "mergerfs", 1.0),
    ("unlink", "bindfs", 1.0),
    ("unlink", "mergerfs", 1.0),
]
# Resident memory may exceed the memory tier by this much: code, stacks, buffers of requests, the index.
MEMORY_TIER_MIB = 64
MEMORY_REST_MIB = 48
# A listing is linear when an entry of a directory ten times as large costs no more than this many times as much.
LINEAR = 1.5


class LocalGroups(Base):
    """Measured on the source itself and on mounts of it."""

    def local_table(self, title, cases, **how):
        self.table(title, cases, marks=MARKS, **how)

    def group_pagecache(self):
        """Reads that the page cache answers."""
        path, size = self.make_file("read", self.sizes.read)
        cases = {"read 1 MiB": None, "random 4 KiB": 1, "random 4 KiB, 4 jobs": 4}

        def measure(case, mount):
            # From an empty page cache: whose pages come first in a run gets the worse memory for the rest of it, and
            # was a tenth slower here, whoever it was. And right before the figure: an idle page cache does not stay
            # on every machine.
            self.drop_page_cache()
            there = str(mount.path / path.name)
            rate = work("read", there, size, MIB, 5)
            if cases[case] is None:
                return rate / 1e6
            return fio(there, size, cases[case], self.sizes.fio_seconds, direct=False) / 1e3

        self.rounds(self.with_fio(cases), measure)
        path.unlink()
        self.local_table("Reads through the page cache", {case: "MB/s" if n is None else "1000/s" for case, n in cases.items()})

    def group_direct(self):
        """Reads that go past the page cache, to the daemon. On the local disk they go to the disk."""
        path, size = self.make_file("hot", self.sizes.hot)
        cases = {"O_DIRECT 4 KiB": 1, "O_DIRECT 4 KiB, 4 jobs": 4}

        def measure(case, mount):
            there = str(mount.path / path.name)
            work("read", there, size, MIB, 1)
            fio(there, size, 1, 0.3, direct=True)
            return fio(there, size, cases[case], self.sizes.fio_seconds, direct=True) / 1e3

        self.rounds(self.with_fio(cases), measure)
        path.unlink()
        self.local_table(f"O_DIRECT reads of {size // MIB} MiB that the daemon has cached", dict.fromkeys(cases, "1000/s"))

    def group_write(self):
        """A new file, sequentially. rclone answers from its own disk cache and uploads later."""
        cases = {
            "write 1 MiB": (MIB, False),
            "write 128 KiB": (128 << 10, False),
            "write 1 MiB, fsync": (MIB, True),
            "write 128 KiB, fsync": (128 << 10, True),
        }

        def measure(case, mount):
            self.settle()
            there = str(mount.path / f"write-{mount.name.replace(' ', '-')}")
            return work("write", there, self.sizes.write, *cases[case]) / 1e6

        self.rounds(cases, measure)
        self.local_table(f"Writes of a new file of {self.sizes.write // MIB} MiB", dict.fromkeys(cases, "MB/s"))

    def group_files(self):
        """Small files: created and written with os.open, os.write, os.close, then os.stat, then os.unlink."""
        cases = ["create", "stat", "unlink"]
        with contextlib.ExitStack() as stack:
            mounts = {name: self.attempt("mount", name, lambda: stack.enter_context(self.mount(name))) for name in self.names}
            for number in range(self.options.rounds):
                turn = number % len(self.names)
                for name in self.names[turn:] + self.names[:turn]:
                    rates = mounts[name]
                    if not isinstance(rates, str):
                        progress(f"small files: round {number + 1}, {name}")
                        self.settle()
                        folder = str(rates.path / f"files-{name.replace(' ', '-')}-{number}")
                        rates = self.attempt("files", name, lambda: work("files", folder, self.sizes.files))
                    rates = [rates] * 3 if isinstance(rates, str) else [rate / 1e3 for rate in rates]
                    for case, rate in zip(cases, rates):
                        self.results.setdefault(case, {}).setdefault(name, []).append(rate)
        self.local_table(f"{self.sizes.files} small files", dict.fromkeys(cases, "1000/s"))

    def group_memory(self):
        """What the daemon needs to read a file that is many times its memory tier."""
        path = self.source / "sparse"
        with open(path, "wb") as file:
            file.truncate(self.sizes.memory)
        peak, after = "peak RSS", "final RSS"
        for name in PEERS_IN_MEMORY:
            progress(f"memory: {name}")
            extra = ["--memory", f"{MEMORY_TIER_MIB}M"] if name == "warmfs" else []

            def measure():
                with self.mount(name, *extra) as mount:
                    work("read_once", str(mount.path / path.name), self.sizes.memory, MIB)
                    return mount.memory()

            values = self.attempt("memory", name, measure)
            for case, value in zip([peak, after], [values] * 2 if isinstance(values, str) else values):
                self.results.setdefault(case, {})[name] = [value]
        path.unlink()
        title = f"Memory after reading {self.sizes.memory // MIB} MiB, warmfs with --memory {MEMORY_TIER_MIB}M"
        self.local_table(title, dict.fromkeys([peak, after], "MiB"), compared=[])
        value, limit = self.results[peak]["warmfs"][0], MEMORY_TIER_MIB + MEMORY_REST_MIB
        if not isinstance(value, str):
            self.mark(f"peak RSS < {limit} MiB", value, value < limit, f"{value:.0f}")

    def group_listing(self):
        """Directories of growing size, listed. Cold is a new mount; the source itself is in the page cache. In small
        directories the start of the two programs weighs most: linear is judged by the two largest."""
        for count in self.sizes.listing:
            folder = self.source / f"list-{count}"
            folder.mkdir()
            progress(f"listing: making {count} files")
            for number in range(count):
                os.close(os.open(folder / f"file-{number:06}", os.O_CREAT | os.O_WRONLY, 0o644))
        cases = {}
        for flag in ["-f", "-l"]:
            for count in self.sizes.listing:
                cases[f"ls {flag}, {count // 1000}k"] = (flag, count)
        names = self.names
        for number in range(min(self.options.rounds, 3)):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                for case, (flag, count) in cases.items():
                    both = [f"{case}, cold", f"{case}, warm"]
                    earlier = self.results.get(both[0], {}).get(name, [0])[-1]
                    progress(f"{case}: round {number + 1}, {name}")

                    def measure():
                        with self.mount(name) as mount:
                            folder = str(mount.path / f"list-{count}")
                            return [work("list", folder, flag, count) / count * 1e9 for _ in both]

                    values = earlier if isinstance(earlier, str) else self.attempt(case, name, measure)
                    for one, value in zip(both, [values] * 2 if isinstance(values, str) else values):
                        self.results.setdefault(one, {}).setdefault(name, []).append(value)
        for flag in ["-f", "-l"]:
            for state in ["cold", "warm"]:
                chosen = {f"ls {flag}, {count // 1000}k, {state}": "ns" for count in self.sizes.listing}
                self.local_table(f"ls {flag} | wc -l, {state}: per entry", chosen, faster=faster_time)
                if len(chosen) > 1:
                    small, large = [self.median(case, "warmfs") for case in list(chosen)[-2:]]
                    if small and large:
                        text = f"ls {flag}, {state}: entry of a directory ten times as large <= {LINEAR} x"
                        self.mark(text, large / small, large / small <= LINEAR)
        for count in self.sizes.listing:
            shutil.rmtree(self.source / f"list-{count}")

    def with_fio(self, cases):
        """The cases that can be measured here."""
        if shutil.which("fio"):
            return list(cases)
        self.note("fio is not installed: no random reads")
        return [case for case in cases if cases[case] is None]
