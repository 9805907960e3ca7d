"""The groups on slow storage: a source that takes a time for every request (at most 128 KiB each, any number side by
side), and sshfs over a line that takes its time.

Cold means: everything mounted anew, the kernel's caches dropped (as root), the disk below read, so that the delay is all
that is slow. What takes long is stopped after a limit; such a figure is marked with ~. Where a figure would still take
minutes it is taken once and counts for every round, and a note says so.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

from .base import Base
from .mounts import PEERS, REQUEST
from .report import faster_rate, faster_time, progress
from .work import KIB, MIB, Failed, git, work

# Work that has a limit, and is not back this long after it, is given up.
PATIENCE = 20
# More rounds say no more of what waits for a delay; such figures repeat within a tenth.
ROUNDS_MAX, ROUNDS_QUICK = 3, 1
# What took longer than this is not measured again in later rounds.
ONCE_SECONDS = 12
# For what is measured warm: longer than any of it takes.
TTL_LONG = 600
# For what is measured when it has passed.
TTL_SHORT = 1
# A pause of the player: longer than the default ttl.
PAUSE_SECONDS = 1.5
# Bytes per second of a film: 8 Mbit/s, high definition.
FILM_RATE = 1_000_000
# Processes' memory beside the memory tier: code, stacks, buffers of requests, the index.
MANY_MEMORY_MIB = 256
MANY_REST_MIB = 64
# What git asks of its own directory, beside the working tree.
GIT_REQUESTS = 100
# What one stat costs at the slow source, which lets nothing be kept: the lookup, the attributes of the directory (its
# permission to be searched) and those of the file.
STAT_REQUESTS = 3
# Processes that make a tree known before a measurement.
LEARNERS = 32
# Requests side by side that make a sweep parallel.
SWEEP_PEAK = 8

# What warmfs has to reach at 20 ms: group, times the source itself.
TIMES_DIRECT = {"seq": 20, "tar": 8, "find": 10, "git": 8}
MARKED_DELAY = 20
FIRST_TIMES = 1.3
RANDOM_BYTES_TIMES = 4
RANDOM_LATENCY_TIMES = 1.1
WARM_GIT_TIMES = 1.5
WARM_WALK_TIMES = 1.3
TIER_TIMES = 1.5
MANY_TIMES = 0.9
# Of one request: a read that takes longer has waited for the source.
STALL = 0.5


def milliseconds(seconds):
    return seconds * 1e3


class SlowGroups(Base):
    """Each group is a method `slow_NAME(kind, delay)`: the kind of storage, the milliseconds of a request."""

    # Tools of the groups ---------------------------------------------------------------------------------------------

    def participants(self, kind):
        return ["sshfs", "warmfs"] if kind == "sshfs" else ["direct", "warmfs", *PEERS]

    def at(self, kind, delay):
        return f"{delay:g} ms" if kind == "slow" else f"sshfs, {delay:g} ms"

    def is_marked(self, kind, delay):
        return kind == "slow" and delay == MARKED_DELAY

    def drop_caches(self, *needed):
        """Empties the kernel's caches, then reads what is named from the disk below again."""
        try:
            self.settle()
            Path("/proc/sys/vm/drop_caches").write_text("3")
        except OSError:
            self.note("the kernel's caches were not dropped (needs root); everything cold was mounted anew all the same")
        for name in needed:
            # Attributes and contents.
            subprocess.run(["sh", "-c", 'tar -C "$1" -cf - "$2" | cat >/dev/null', "sh", self.source, name], check=True)

    @contextlib.contextmanager
    def cold(self, kind, delay, name, needed, *extra, **how):
        """A mount on slow storage that nobody has read yet, and the storage."""
        self.drop_caches(*needed)
        with self.mounter.place(kind, delay) as place, self.mount(name, *extra, source=place.path, **how) as mount:
            if place.stats() is not None:
                place.ask("reset")
            yield mount, place

    def slow_rounds(self, cases, measure, names, rounds=None, once=True):
        """Interleaved rounds of `measure(name, round)`, which gives a value, or a value and whether it is of a part,
        for each case. Whoever failed is not asked again, and whoever took long."""
        settled = {}
        for number in range(min(rounds or self.options.rounds, ROUNDS_QUICK if self.options.quick else ROUNDS_MAX)):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if name not in settled:
                    progress(f"{next(iter(cases))}: round {number + 1}, {name}")
                    start = time.monotonic()
                    values = self.attempt(next(iter(cases)), name, lambda: measure(name, number))
                    if isinstance(values, str):
                        values = settled[name] = dict.fromkeys(cases, values)
                    elif once and number == 0 and time.monotonic() - start > ONCE_SECONDS and name != "warmfs":
                        settled[name] = values
                        self.note(f"{next(iter(cases)).partition(':')[0]}, {name}: measured once, for it takes long")
                else:
                    values = settled[name]
                for case in cases:
                    if (value := values.get(case)) is not None:
                        self.add(case, name, *(value if isinstance(value, tuple) else (value,)))

    def requests_of(self, case, place):
        """The columns on what reached the source."""
        stats = place.stats()
        if stats is None:
            return {}
        return {
            f"{case}: requests": stats["requests"],
            f"{case}: MiB fetched": stats["bytes_read"] / MIB,
            f"{case}: at once": stats["peak"],
        }

    def rate_group(self, group, kind, delay, title, unit, needed, measure, rounds=None, limit=None):
        """Work with a rate, cold, and what reached the source."""
        case = f"{group}, {self.at(kind, delay)}"
        rate = f"{case}: rate"
        columns = {rate: unit}
        if kind == "slow":
            columns |= {f"{case}: requests": "", f"{case}: MiB fetched": "MiB", f"{case}: at once": ""}

        def one(name, _number):
            with self.cold(kind, delay, name, needed) as (mount, place):
                outcome = measure(mount)
                value = self.rate_of(outcome)
                return {rate: (value, outcome["partial"]), **self.requests_of(case, place)}

        self.slow_rounds(columns, one, self.participants(kind), rounds)
        self.table(f"{title}, {self.at(kind, delay)} per request", columns, compared=[rate])
        self.say_partial(columns, limit)
        if self.is_marked(kind, delay) and group in TIMES_DIRECT:
            self.mark_times(group, rate, faster_rate)
        return rate

    def rate_of(self, outcome):
        """Per second, of as much as was done."""
        if outcome["done"] == 0:
            raise Failed(f"> {outcome['seconds']:.0f} s")
        return outcome["done"] / outcome["seconds"]

    def say_partial(self, columns, limit=None):
        if any((case, name) in self.partial for case in columns for name in self.results.get(case, {})):
            print(f"  ~ stopped after {limit or self.sizes.limit} s: of what was done by then")

    def mark_times(self, group, case, faster):
        value = self.ratio(case, "direct", faster)
        if value is not None:
            wanted = TIMES_DIRECT[group]
            self.mark(f"{group}, cold >= {wanted} x the source directly", value, value >= wanted, f"{value:.1f}")

    def make_tree(self, name, folders, files, size):
        """Directories of files with the same content in every run, old enough that no time stamp is in doubt."""
        top = self.source / name
        top.mkdir(parents=True)
        old = time.time() - 3600
        for folder in range(folders):
            (top / f"d{folder:03}").mkdir()
            for file in range(files):
                path = top / f"d{folder:03}" / f"f{file:04}"
                path.write_bytes(f"{folder} {file}\n".encode().ljust(size, b"."))
                os.utime(path, (old, old))
            os.utime(top / f"d{folder:03}", (old, old))
        self.age(top)
        return top

    def age(self, path):
        """Waits until the last change of a file or directory is two seconds ago: time stamps are coarse."""
        while time.time() < os.stat(path).st_ctime + 2:
            time.sleep(0.1)

    def sparse(self, name, size):
        path = self.source / name
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    # The groups ------------------------------------------------------------------------------------------------------

    def prepare_seq(self):
        self.make_file("stream", self.sizes.stream)

    def slow_seq(self, kind, delay, rounds=None):
        """A file, from start to end, in reads of 128 KiB."""
        size, limit = self.sizes.stream, self.sizes.limit

        def measure(mount):
            outcome = work("stream", str(mount.path / "stream"), size, 128 * KIB, limit, timeout=limit + PATIENCE)
            return {**outcome, "done": outcome["done"] / 1e6}

        title = f"Cold sequential read of {size // MIB} MiB"
        rate = self.rate_group("seq", kind, delay, title, "MB/s", ["stream"], measure, rounds)
        if self.is_marked(kind, delay):
            ratios = [self.ratio(rate, peer, faster_rate) for peer in PEERS]
            if any(ratios):
                least = min(ratio for ratio in ratios if ratio)
                self.mark("seq, cold > every peer", least, least > 1, f"{least:.1f}")

    def prepare_first(self):
        self.sparse("large", self.sizes.sparse)

    prepare_random = prepare_first

    def slow_first(self, kind, delay):
        """The first bytes of a large file that nobody has read."""
        case = f"first, {self.at(kind, delay)}"
        columns = {f"{case}: read": "ms", f"{case}: open + read": "ms"}
        if kind == "slow":
            columns |= {f"{case}: requests": "", f"{case}: MiB fetched": "MiB"}

        def one(name, _number):
            with self.cold(kind, delay, name, []) as (mount, place):
                opened, read = work("first", str(mount.path / "large"))
                own = {f"{case}: read": milliseconds(read), f"{case}: open + read": milliseconds(opened + read)}
                return own | self.requests_of(case, place)

        self.slow_rounds(columns, one, self.participants(kind))
        title = f"First 4 KiB of a cold file of {self.sizes.sparse >> 30} GiB, {self.at(kind, delay)} per request"
        compared = list(columns)[:2]
        self.table(title, columns, faster_time, compared)
        value = self.median(f"{case}: read", "warmfs")
        if self.is_marked(kind, delay) and value is not None:
            text = f"first read <= {FIRST_TIMES} x a request"
            self.mark(text, value / delay, value / delay <= FIRST_TIMES)

    def slow_random(self, kind, delay):
        """Reads of 4 KiB at places that nothing foretells, the same for all."""
        case = f"random, {self.at(kind, delay)}"
        latency, times = f"{case}: mean read", f"{case}: fetched / asked"
        columns = {latency: "ms"}
        if kind == "slow":
            columns |= {times: "", f"{case}: requests": "", f"{case}: MiB fetched": "MiB"}

        def one(name, number):
            with self.cold(kind, delay, name, []) as (mount, place):
                there = str(mount.path / "large")
                limit = self.sizes.limit
                arguments = [there, self.sizes.sparse, self.sizes.random, number, limit]
                outcome = work("random", *arguments, timeout=limit + PATIENCE)
                values = {latency: milliseconds(outcome["seconds"] / max(outcome["done"], 1))}
                requests = self.requests_of(case, place)
                if requests:
                    fetched = requests[f"{case}: MiB fetched"] * MIB
                    values[times] = fetched / max(outcome["done"], 1) / (4 * KIB)
                return values | requests

        self.slow_rounds(columns, one, self.participants(kind))
        title = f"{self.sizes.random} cold random reads of 4 KiB in 1 GiB, {self.at(kind, delay)} per request"
        self.table(title, columns, faster_time, [latency])
        own, direct = self.median(latency, "warmfs"), self.median(latency, "direct")
        if self.is_marked(kind, delay) and own and direct:
            asked = self.median(times, "warmfs")
            self.mark(f"random: bytes fetched <= {RANDOM_BYTES_TIMES} x asked", asked, asked <= RANDOM_BYTES_TIMES)
            text = f"random: latency <= {RANDOM_LATENCY_TIMES} x the source"
            self.mark(text, own / direct, own / direct <= RANDOM_LATENCY_TIMES)

    def prepare_tar(self):
        self.make_tree("files", *self.sizes.tar, 4 * KIB)

    def slow_tar(self, kind, delay):
        """Many small files, read by a program that takes one after the other."""
        folders, files = self.sizes.tar
        folder = self.source / "files"
        size = len(subprocess.run(["tar", "-C", folder, "-cf", "-", "."], stdout=subprocess.PIPE, check=True).stdout)

        def measure(mount):
            # tar writes ten KiB at a time, two files: more of them make a fraction.
            outcome = work("tar", str(mount.path / "files"), size, 2 * self.sizes.limit)
            return {**outcome, "done": outcome["done"] / size * folders * files}

        title = f"Cold tar of {folders * files} files of 4 KiB in {folders} directories"
        self.rate_group("tar", kind, delay, title, "files/s", ["files"], measure, limit=2 * self.sizes.limit)

    def prepare_find(self):
        """The tree of `find`, and at the same time the working tree of `git`."""
        top = self.make_tree("repository", *self.sizes.tree, 100)
        own = self.source / "repository.git"
        git("-C", top, "-c", "init.defaultBranch=main", "init", "-q", f"--separate-git-dir={own}")
        # So that it is found beside the tree under every mount, and `find` sees nothing of it.
        (top / ".git").write_text(f"gitdir: ../{own.name}\n")
        git("-C", top, "add", ".")
        git("-C", top, "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "files")
        self.age(own / "index")

    prepare_walk = prepare_git = prepare_find

    @property
    def entries(self):
        """Lines of `find` for the tree: itself, the file that leads to the repository, directories, files."""
        folders, files = self.sizes.tree
        return 2 + folders + folders * files

    def tree_text(self):
        folders, files = self.sizes.tree
        return f"{folders * files} files in {folders} directories"

    def slow_find(self, kind, delay, rounds=None):
        """A tree, listed with attributes."""

        def measure(mount):
            return work("find", str(mount.path / "repository"), self.entries, self.sizes.limit)

        title = f"Cold find -ls of {self.tree_text()}"
        self.rate_group("find", kind, delay, title, "entries/s", ["repository"], measure, rounds)

    def slow_git(self, kind, delay):
        """`git status` of a clean working tree: cold, and again when it is known."""
        case = f"git, {self.at(kind, delay)}"
        cold, warm = f"{case}: cold", f"{case}: warm"
        columns = {cold: "s", warm: "s"}
        if kind == "slow":
            columns |= {f"{case}: requests": "", f"{case}: at once": "", f"{case}: requests, warm": ""}

        def one(name, _number):
            if name == "local disk":
                times = [work("git", str(self.source / "repository"), self.sizes.git_limit) for _ in range(2)]
                return {warm: times[1]["seconds"]}
            with self.cold(kind, delay, name, ["repository", "repository.git"], ttl=TTL_LONG) as (mount, place):
                folder = str(mount.path / "repository")
                is_judged = name in ("direct", "warmfs")
                outcome = work("git", folder, self.sizes.git_limit if is_judged else self.sizes.peer_git_limit)
                values = {cold: (outcome["seconds"], outcome["partial"]), **self.requests_of(case, place)}
                if name != "direct" and not outcome["partial"]:
                    if kind == "slow":
                        place.ask("reset")
                    outcome = work("git", folder, self.sizes.git_limit)
                    values[warm] = outcome["seconds"]
                    if kind == "slow":
                        values[f"{case}: requests, warm"] = place.stats()["requests"]
                return values

        self.slow_rounds(columns, one, ["local disk", *self.participants(kind)])
        self.table(f"git status, {self.tree_text()}, {self.at(kind, delay)} per request", columns, faster_time, [cold, warm])
        if any((cold, name) in self.partial for name in self.results[cold]):
            limits = f"{self.sizes.peer_git_limit} s ({self.sizes.git_limit} s: direct, warmfs)"
            print(f"  ~ not done after {limits}, and stopped: what it really takes is more")
        if self.is_marked(kind, delay):
            self.mark_times("git", cold, faster_time)
            if ratio := self.ratio(warm, "local disk", faster_time):
                self.mark(f"git, warm <= {WARM_GIT_TIMES} x the local disk", 1 / ratio, 1 / ratio <= WARM_GIT_TIMES)
        if kind == "slow":
            self.after_ttl("git", delay, lambda mount: work("git", str(mount.path / "repository"), self.sizes.git_limit))

    def slow_walk(self, kind, delay):
        """A tree listed again: within the ttl, and when it has passed."""
        case = f"walk, {self.at(kind, delay)}"
        warm, asked = f"{case}: warm", f"{case}: requests, warm"

        def walk(path):
            return work("find", str(path), self.entries, 10 * self.sizes.git_limit)

        def one(name, _number):
            if name == "local disk":
                return {warm: [walk(self.source / "repository") for _ in range(2)][1]["seconds"]}
            with self.cold(kind, delay, name, ["repository", "repository.git"], ttl=TTL_LONG) as (mount, place):
                path = mount.path / "repository"
                with place.without_delay():
                    walk(path)
                place.ask("reset")
                return {warm: walk(path)["seconds"], asked: place.stats()["requests"]}

        columns = {warm: "s", asked: ""}
        self.slow_rounds(columns, one, ["local disk", "warmfs", "mergerfs"])
        self.table(f"find -ls again, {self.tree_text()}, {self.at(kind, delay)} per request", columns, faster_time, [warm])
        if self.is_marked(kind, delay) and (ratio := self.ratio(warm, "local disk", faster_time)):
            self.mark(f"walk, warm <= {WARM_WALK_TIMES} x the local disk", 1 / ratio, 1 / ratio <= WARM_WALK_TIMES)
        self.after_ttl("walk", delay, lambda mount: walk(mount.path / "repository"))

    def after_ttl(self, group, delay, measure):
        """What was known, asked when the ttl has passed: how long it takes, and what reaches the source."""
        case = f"{group} after the ttl, {delay:g} ms"
        columns = {f"{case}: time": "s", f"{case}: requests": "", f"{case}: at once": ""}
        kinds = {f"{case}: {kind}": "/directory" for kind in ("opendir", "readdir", "lookup", "getattr")}
        directories = self.sizes.tree[0] + 1

        def one(_name, _number):
            with self.cold("slow", delay, "warmfs", [], ttl=TTL_SHORT) as (mount, place):
                # With the delay: warmfs waits for a source as long as it usually takes, and it must not learn that
                # this one is quick.
                for name in ("repository.git", "repository"):
                    work("learn", str(mount.path / name), LEARNERS)
                place.stats()
                passed = time.monotonic() + TTL_SHORT + 0.1
                while time.monotonic() < passed:
                    time.sleep(0.05)
                place.ask("reset")
                outcome = measure(mount)
                stats = place.stats()
                values = {
                    f"{case}: time": (outcome["seconds"], outcome["partial"]),
                    f"{case}: requests": stats["requests"],
                    f"{case}: at once": stats["peak"],
                }
                return values | {kind: stats["kinds"].get(kind.rpartition(": ")[2], 0) / directories for kind in kinds}

        self.slow_rounds(columns | kinds, one, ["warmfs"])
        self.table(f"{group} when the ttl of {TTL_SHORT} s has passed, {delay:g} ms per request", columns | kinds, compared=[])
        counts = [self.median(kind, "warmfs") for kind in kinds]
        if self.is_marked("slow", delay) and None not in counts:
            # A sweep of a directory: opened and listed once, and each entry asked for once.
            opened, _listed, lookups, getattrs = counts
            per_entry = (lookups + getattrs) * directories / self.entries
            spare = GIT_REQUESTS if group == "git" else 0
            asked = per_entry * self.entries - STAT_REQUESTS * (self.entries + directories)
            once = opened * directories <= directories + spare and asked <= spare
            text = f"{group} after the ttl: at most one sweep per directory"
            self.mark(text, opened, once, f"{opened:.2f} times opened, {per_entry:.2f} requests an entry")
            # Fewer requests than entries are no merit: then some were believed for longer than the ttl.
            self.mark(f"{group} after the ttl: every entry is asked for", per_entry, per_entry >= 1)
            peak = self.median(f"{case}: at once", "warmfs")
            if group == "walk":
                self.mark("walk after the ttl: the sweep is parallel", peak, peak >= SWEEP_PEAK, f"{peak:.0f} at once")

    def prepare_tier(self):
        self.make_file("warm", self.sizes.tier)

    def slow_tier(self, kind, delay):
        """What the daemon holds in memory, against a daemon that reads a disk's page cache. The kernel's own cache of
        the mount is empty for both."""
        case = f"tier, {self.at(kind, delay)}"
        columns = {f"{case}: read": "MB/s", f"{case}: requests": ""}
        size = self.sizes.tier

        def timed(path):
            # The kernel's caches go, the file's pages on the disk's side come back.
            self.drop_caches("warm")
            self.forget_pages(path)
            return size / work("read_once", str(path), size, MIB) / 1e6

        def one(name, _number):
            if name == "bindfs":
                with self.mount(name) as mount:
                    work("read_once", str(mount.path / "warm"), size, MIB)
                    return {f"{case}: read": timed(mount.path / "warm")}
            with self.cold(kind, delay, name, ["warm"], ttl=TTL_LONG) as (mount, place):
                with place.without_delay():
                    work("read_once", str(mount.path / "warm"), size, MIB)
                place.stats()
                place.ask("reset")
                rate = timed(mount.path / "warm")
                return {f"{case}: read": rate, f"{case}: requests": place.stats()["requests"]}

        self.slow_rounds(columns, one, ["warmfs", "bindfs"])
        title = f"Second read of {size // MIB} MiB, nothing in the kernel: warmfs on the slow source, bindfs on the disk"
        self.table(title, columns, faster_rate, [f"{case}: read"])
        if self.is_marked(kind, delay) and (ratio := self.ratio(f"{case}: read", "bindfs", faster_rate)):
            self.mark(f"tier >= {TIER_TIMES} x bindfs", ratio, ratio >= TIER_TIMES)
            self.mark_none("tier", f"{case}: requests")

    def forget_pages(self, path):
        """Takes a file's pages from the kernel's cache of its mount; also without root."""
        work("forget", str(path))

    def mark_none(self, group, case):
        asked = max(self.values(case, "warmfs"))
        self.mark(f"{group}: no request reaches the source", asked, asked == 0, f"{asked}")

    def prepare_reopen(self):
        self.make_tree("again", 1, self.sizes.reopen, 4 * KIB)

    def slow_reopen(self, kind, delay):
        """Files opened, read and closed that were read before; the peers are on the disk itself."""
        case = f"reopen, {self.at(kind, delay)}"
        took, asked = f"{case}: each", f"{case}: requests"
        columns = {took: "us", asked: ""}

        def again(mount, seconds):
            return work("reopen", str(mount.path / "again" / "d000"), self.sizes.reopen, seconds) * 1e6

        def one(name, _number):
            if name != "warmfs":
                with self.mount(name, ttl=TTL_LONG) as mount:
                    return {took: again(mount, self.sizes.reopen_seconds)}
            with self.cold(kind, delay, name, [], ttl=TTL_LONG) as (mount, place):
                with place.without_delay():
                    again(mount, 0)
                place.stats()
                place.ask("reset")
                return {took: again(mount, self.sizes.reopen_seconds), asked: place.stats()["requests"]}

        self.slow_rounds(columns, one, ["local disk", "warmfs", "bindfs", "mergerfs"])
        title = "Second open, read of 4 KiB and close: warmfs on the slow source, the others on the disk"
        self.table(title, columns, faster_time, [took])
        if self.is_marked(kind, delay) and (ratio := self.ratio(took, "bindfs", faster_time)):
            self.mark("reopen <= bindfs", 1 / ratio, ratio >= 1)
            self.mark_none("reopen", asked)

    def prepare_many(self):
        count, size = self.sizes.many
        for number in range(count):
            self.sparse(f"many/{number:03}", size)

    def slow_many(self, kind, delay):
        """As many readers as requests that a source of 20 ms serves well, each with a file of its own."""
        count, size = self.sizes.many
        case = f"many, {self.at(kind, delay)}"
        rate, memory = f"{case}: rate", f"{case}: peak RSS"
        columns = {rate: "MB/s", memory: "MiB", f"{case}: requests": "", f"{case}: at once": ""}

        def one(name, _number):
            extra = ["--memory", f"{MANY_MEMORY_MIB}M"] if name == "warmfs" else []
            with self.cold(kind, delay, name, [], *extra) as (mount, place):
                limit = 2 * self.sizes.limit
                outcome = work("many", str(mount.path / "many"), size, 128 * KIB, limit, timeout=limit + PATIENCE)
                values = {rate: (self.rate_of(outcome) / 1e6, outcome["partial"])}
                if (held := mount.memory()) is not None:
                    values[memory] = held[0]
                return values | self.requests_of(case, place)

        self.slow_rounds(columns, one, self.participants(kind))
        allowed = count * REQUEST / (delay / 1e3) / 1e6
        title = f"{count} processes, {count} cold files of {size // MIB} MiB, {delay:g} ms per request; {count} in flight allow"
        self.table(f"{title} {allowed:.0f} MB/s", columns, faster_rate, [rate])
        self.say_partial(columns, 2 * self.sizes.limit)
        own, direct = self.median(rate, "warmfs"), self.median(rate, "direct")
        if self.is_marked(kind, delay) and own and direct:
            # What 64 in flight allow is what 64 readers get of the source directly: on a small machine that
            # is less than the sum says.
            self.mark(f"many >= {MANY_TIMES} x {count} readers of the source", own / direct, own / direct >= MANY_TIMES)
            held, limit = self.median(memory, "warmfs"), MANY_MEMORY_MIB + MANY_REST_MIB
            self.mark(f"many: peak RSS <= --memory + {MANY_REST_MIB} MiB", held, held <= limit, f"{held:.0f}")

    def prepare_player(self):
        self.sparse("film", self.sizes.film)

    def slow_player(self, kind, delay):
        """What a media player does to a film."""
        case = f"player, {self.at(kind, delay)}"
        parts = {f"{case}: {part}": "ms" for part in ("start", "jump", "rewind", "play on", "after a pause")}
        twice = f"{case}: MiB twice"
        columns = {**parts, f"{case}: MiB fetched": "MiB", twice: "MiB"}

        def one(name, _number):
            with self.cold(kind, delay, name, []) as (mount, place):
                outcome = work("player", str(mount.path / "film"), self.sizes.film, FILM_RATE, PAUSE_SECONDS)
                values = {part: milliseconds(outcome["slowest"][part.rpartition(": ")[2]]) for part in parts}
                return {**values, twice: place.stats()["bytes_read_again"] / MIB, **self.requests_of(case, place)}

        self.slow_rounds(columns, one, self.participants(kind))
        title = f"A player: slowest read of 128 KiB in each part, {delay:g} ms per request"
        self.table(title, columns, compared=[])
        rewind, again = self.median(f"{case}: rewind", "warmfs"), self.median(twice, "warmfs")
        if self.is_marked(kind, delay) and rewind is not None:
            self.mark("player: no byte fetched twice", again, again == 0, f"{again:.1f} MiB")
            self.mark("player: no stall after a rewind", rewind, rewind < STALL * delay, f"{rewind:.1f} ms")
