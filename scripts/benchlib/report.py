"""What came out: figures of rounds, tables, marks, and all of it as data."""

import os
import platform
import statistics
import subprocess
import sys

from .work import Failed

ROWS = ["local disk", "direct", "sshfs", "warmfs", "bindfs", "mergerfs", "rclone"]


def progress(text):
    """A line that the next one overwrites, for those who watch."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def faster_rate(own, other):
    return own / other


def faster_time(own, other):
    return other / own


class Report:
    """Figures are kept by case and by file system, one value for each round; text stands for a failure. A case may be
    named `WORK: COLUMN`."""

    def __init__(self):
        self.results = {}
        self.partial = set()
        self.marks = []
        self.notes = []
        self.hung = False

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)

    def attempt(self, case, name, measure):
        """One figure of one round; a failure is noted once, and stands in the table."""
        try:
            return measure()
        except Failed as failure:
            word, *text = failure.args
            if word != "not there":
                self.note(f"{case}, {name}: {word}" + "".join(f": {one.splitlines()[-1]}" for one in text if one))
            # What takes too long on a peer is the peer's affair.
            self.hung |= word == "hung" and name == "warmfs"
            return word

    def add(self, case, name, value, partial=False):
        self.results.setdefault(case, {}).setdefault(name, []).append(value)
        if partial:
            self.partial.add((case, name))

    def failed(self, case, name):
        """The failure of an earlier round."""
        return next((value for value in self.results.get(case, {}).get(name, []) if isinstance(value, str)), None)

    def values(self, case, name):
        values = self.results.get(case, {}).get(name, [])
        return [] if any(isinstance(value, str) for value in values) else values

    def median(self, case, name):
        values = self.values(case, name)
        return statistics.median(values) if values else None

    def cell(self, case, name):
        value = self.median(case, name)
        if value is None:
            return self.failed(case, name) or "-"
        digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2 if value >= 0.01 else 5
        return ("~" if (case, name) in self.partial else "") + f"{value:.{digits}f}"

    def ratio(self, case, name, faster):
        """How many times as fast warmfs is: the median over the rounds."""
        pairs = list(zip(self.values(case, "warmfs"), self.values(case, name)))
        return statistics.median(faster(own, other) for own, other in pairs) if pairs else None

    def table(self, title, cases, faster=faster_rate, compared=None, marks=()):
        """A row for each file system, a column for each case (with its unit), then the ratios and the marks of the
        cases that are to be compared: all, unless named."""
        progress("")
        labels = {case: case.rpartition(": ")[2] for case in cases}
        widths = {case: max(len(labels[case]), len(unit), 8) + 2 for case, unit in cases.items()}
        names = [name for name in ROWS if any(name in self.results.get(case, {}) for case in cases)]
        compared = list(cases) if compared is None else compared
        print(f"\n{title}")
        print(f"  {'':<20}" + "".join(f"{labels[case]:>{widths[case]}}" for case in cases))
        print(f"  {'':<20}" + "".join(f"{unit:>{widths[case]}}" for case, unit in cases.items()))
        for name in names:
            print(f"  {name:<20}" + "".join(f"{self.cell(case, name):>{widths[case]}}" for case in cases))
        for name in names:
            numbers = {case: self.ratio(case, name, faster) if case in compared else None for case in cases}
            if name != "warmfs" and any(numbers.values()):
                shown = (f"{f'{n:.2f} x' if n else '':>{widths[case]}}" for case, n in numbers.items())
                print(f"  {'warmfs / ' + name:<20}" + "".join(shown))
        for case, peer, wanted in marks:
            if case in compared and (value := self.ratio(case, peer, faster)):
                self.mark(f"{case} >= {wanted} x {peer}", value, value >= wanted)
        sys.stdout.flush()

    def mark(self, text, value, reached, shown=None):
        self.marks.append({"mark": text, "value": value, "ok": bool(reached)})
        print(f"  {text}: {shown or f'{value:.2f}'} {'ok' if reached else 'MISSED'}", flush=True)

    def report(self, **more):
        """Everything as data. The spread is the lowest and the highest round."""

        def spread(case, name):
            values = self.values(case, name)
            return [min(values), max(values)] if values else None

        def of_all(figure):
            return {case: {name: figure(case, name) for name in row} for case, row in self.results.items()}

        return {
            **more,
            "medians": of_all(self.median),
            "spreads": of_all(spread),
            "values": self.results,
            "partial": sorted([case, name] for case, name in self.partial),
            "marks": self.marks,
            "notes": self.notes,
        }


def machine(warmfs):
    """What was measured, and on what."""
    commands = {
        "warmfs": [warmfs, "--version"],
        "bindfs": ["bindfs", "--version"],
        "mergerfs": ["mergerfs", "--version"],
        "rclone": ["rclone", "version"],
        "sshfs": ["sshfs", "--version"],
        "fio": ["fio", "--version"],
        "git": ["git", "--version"],
    }
    found = {}
    for name, command in commands.items():
        try:
            output = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
            found[name] = output.split("\n")[0].strip()
        except (OSError, subprocess.TimeoutExpired):
            found[name] = None
    return {"kernel": platform.release(), "processors": os.cpu_count(), "versions": found}
