"""What all groups of measurements need: where they work, how much they do, rounds, files, caches."""

import contextlib
import os
from pathlib import Path

from .mounts import PEERS
from .report import Report, progress
from .work import MIB, run_apart


class Sizes:
    """How much is measured: enough for steady figures, or just enough to see that all of it works."""

    def __init__(self, quick):
        self.read = (64 if quick else 512) * MIB
        self.hot = 48 * MIB  # less than any memory tier, so that all of it can be cached
        self.write = (32 if quick else 256) * MIB
        self.files = 200 if quick else 2000
        self.memory = (512 if quick else 4096) * MIB
        self.listing = [1000, 10_000] if quick else [1000, 10_000, 100_000]
        self.fio_seconds = 0.5 if quick else 2
        # On slow storage.
        self.stream = (16 if quick else 256) * MIB
        self.sparse = 1024 * MIB
        self.random = 20 if quick else 100
        self.tar = (4, 25) if quick else (20, 100)  # directories, files in each
        self.tree = (10, 10) if quick else (200, 25)
        self.tier = (32 if quick else 128) * MIB
        self.reopen = 100
        self.reopen_seconds = 0.2 if quick else 1
        self.many = (64, 2 * MIB if quick else 8 * MIB)
        self.film = (64 if quick else 256) * MIB
        self.limit = 3 if quick else 6
        self.git_limit = 15 if quick else 150
        # The mark is against the source itself; how long a slower peer takes beyond this says little more.
        self.peer_git_limit = 5 if quick else 40


class Base(Report):
    """One run: where it works, and what takes part."""

    def __init__(self, options, mounter):
        super().__init__()
        self.options = options
        self.mounter = mounter
        self.folder = mounter.folder
        self.source = mounter.source
        self.sizes = Sizes(options.quick)
        self.names = ["local disk", "warmfs", *PEERS]

    def mount(self, name, *extra, **how):
        return self.mounter.mount(name, *extra, **how)

    def settle(self):
        """Lets what was written before reach the disk, so that nobody pays for another's writes."""
        run_apart(["sync", "-f", self.source], 120)

    def drop_page_cache(self):
        """Only root can; without it the order of first reading shows in the figures, which a note then says."""
        self.settle()
        try:
            Path("/proc/sys/vm/drop_caches").write_text("1")
        except OSError:
            self.note(
                "page cache not dropped between figures (needs root): who was read first may be up to a tenth slower"
            )

    def make_file(self, name, size):
        path = self.source / name
        with open(path, "wb") as file:
            for _ in range(0, size, MIB):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
        return path, size

    def rounds(self, cases, measure, names=None):
        """Measures `measure(case, mount)` in interleaved rounds. Whoever failed is not asked again."""
        names = names or self.names
        with contextlib.ExitStack() as stack:
            mounts = {}
            for name in names:
                mount = self.attempt("mount", name, lambda: stack.enter_context(self.mount(name)))
                mounts[name] = mount
            for case in cases:
                for number in range(self.options.rounds):
                    turn = number % len(names)
                    for name in names[turn:] + names[:turn]:
                        values = self.results.setdefault(case, {}).setdefault(name, [])
                        before = self.failed(case, name)
                        mount = mounts[name]
                        if before or isinstance(mount, str):
                            values.append(before or mount)
                            continue
                        progress(f"{case}: round {number + 1}, {name}")
                        values.append(self.attempt(case, name, lambda: measure(case, mount)))
