#!/usr/bin/env python3
"""Prefetches the file after the one that is being read: 02.flac while 01.flac plays, page 5 while page 4 is looked at.

A plugin of warmfs, type "command", always running: it gets a line of JSON for each event, and answers with lines that
say what to do. See next-track.toml.
"""

import json
import os
import sys
from pathlib import PurePosixPath

MOUNTPOINT = os.environ.get("WARMFS_MOUNTPOINT", ".")
# Files that the program reads again and again need not be thought about again and again.
last = None


def follower(path):
    """The next name in the directory with the same ending, or None."""
    try:
        names = os.listdir(os.path.join(MOUNTPOINT, path.parent))
    except OSError as error:
        print(f"cannot list {path.parent}: {error}", file=sys.stderr)
        return None
    later = sorted(name for name in names if name > path.name and name.endswith(path.suffix))
    return path.parent / later[0] if later else None


for line in sys.stdin:
    event = json.loads(line)
    # A path that is not UTF-8 comes as path_bytes too; this plugin leaves such files alone.
    if event["event"] != "on_open" or "path_bytes" in event or event["path"] == last:
        continue
    last = event["path"]
    if (following := follower(PurePosixPath(last))) is not None:
        print(json.dumps({"action": "prefetch", "path": str(following)}), flush=True)
