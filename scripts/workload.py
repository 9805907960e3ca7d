#!/usr/bin/env python3
"""Trees for scripts/workload: makes one, changes it, compares two.

workload.py tree DIR FILES          makes a tree of FILES files, always the same
workload.py change DIR NUMBER       changes some of them, NUMBER decides which
workload.py attributes DIR          gives some files ACLs, extended attributes and further hard links
workload.py compare A B [--identity inode|times|none] [--without PATTERN ...]
                                    prints what differs in names, types, modes, owners, link counts, sizes, contents,
                                    link targets and extended attributes (ACLs are such); `times` adds mtime, `inode`
                                    adds mtime, ctime and the inode number
"""

import argparse
import fnmatch
import hashlib
import os
import random
import stat
import subprocess
import sys

SEED = 20  # of the tree; another one would only make another tree


def names(rng):
    words = "main util index parser cache config test data view model driver table node buffer page lock".split()
    odd = ["with space", "größe", "日本語", "-leading-dash", "UPPER", "a" * 120, "tab\tname", "quote'\"name"]
    base = rng.choice(words) + str(rng.randrange(1000)) if rng.random() < 0.97 else rng.choice(odd) + str(rng.randrange(1000))
    return base + rng.choice([".rs", ".c", ".h", ".py", ".md", ".json", ".bin", ""])


def text(rng, size):
    words = [f"{rng.choice('abcdefgh')}{n}" for n in range(50)]
    lines = []
    length = 0
    while length < size:
        line = " ".join(rng.choices(words, k=rng.randint(1, 14))) + "\n"
        lines.append(line)
        length += len(line)
    return "".join(lines).encode()[:size]


def body(rng):
    # Sizes as in source trees: most files are a few KiB, few are large.
    size = min(int(rng.lognormvariate(8, 1.5)), 3_000_000)
    if rng.random() < 0.02:
        return b""
    return rng.randbytes(size) if rng.random() < 0.1 else text(rng, size)


def tree(directory, files):
    rng = random.Random(SEED)
    folders = [""]
    for _ in range(files // 12):
        folders.append(os.path.join(rng.choice(folders[-40:]), f"dir{rng.randrange(10_000)}"))
    made = []
    for _ in range(files):
        path = os.path.join(directory, rng.choice(folders), names(rng))
        if os.path.lexists(path):
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if made and rng.random() < 0.02:
            os.symlink(os.path.relpath(rng.choice(made), os.path.dirname(path)), path)
            continue
        with open(path, "wb") as file:
            file.write(body(rng))
        if rng.random() < 0.05:
            os.chmod(path, 0o755)
        made.append(path)


def regular_files(directory):
    found = []
    for folder, folders, names_here in os.walk(directory):
        folders[:] = sorted(f for f in folders if f != ".git")
        found += [os.path.join(folder, name) for name in sorted(names_here)]
    return [path for path in found if stat.S_ISREG(os.lstat(path).st_mode)]


def change(directory, number):
    rng = random.Random(SEED + 1000 + number)
    for path in rng.sample(regular_files(directory), 60):
        what = rng.random()
        if what < 0.5:  # in place
            with open(path, "r+b") as file:
                file.seek(rng.randrange(max(1, os.path.getsize(path))))
                file.write(text(rng, rng.randint(1, 300)))
        elif what < 0.7:  # appended
            with open(path, "ab") as file:
                file.write(text(rng, rng.randint(1, 3000)))
        elif what < 0.8:  # saved as editors do: a temporary file renamed over the old one
            mode = stat.S_IMODE(os.stat(path).st_mode)
            with open(path + "~new", "wb") as file:
                file.write(body(rng))
                file.flush()
                os.fsync(file.fileno())
            os.chmod(path + "~new", mode)
            os.rename(path + "~new", path)
        elif what < 0.88:
            os.truncate(path, rng.randrange(os.path.getsize(path) + 1))
        elif what < 0.95:
            os.rename(path, path + f".moved{number}")
        else:
            os.unlink(path)
            with open(path + f".added{number}", "wb") as file:
                file.write(body(rng))


def attributes(directory):
    rng = random.Random(SEED + 1)
    chosen = rng.sample(regular_files(directory), 60)
    for path in chosen[:20]:
        subprocess.run(["setfacl", "-m", "u:daemon:r--,m::r-x", "--", path], check=True)
    for path in chosen[20:40]:
        os.setxattr(path, "user.note", rng.randbytes(rng.randint(0, 400)))
    for path in chosen[40:]:
        os.link(path, path + ".link")
    folder = os.path.dirname(chosen[0])
    subprocess.run(["setfacl", "-d", "-m", "u:daemon:rwx", "--", folder], check=True)


def describe(path, identity):
    info = os.lstat(path)
    fields = {
        "type": stat.S_IFMT(info.st_mode),
        "mode": oct(stat.S_IMODE(info.st_mode)),
        "uid": info.st_uid,
        "gid": info.st_gid,
        "rdev": info.st_rdev,
    }
    if stat.S_ISDIR(info.st_mode):
        # How many links a directory has and how large it is depends on the file system and its history.
        if identity == "inode":
            fields["links"] = info.st_nlink
            fields["size"] = info.st_size
    else:
        fields["links"] = info.st_nlink
        fields["size"] = info.st_size
    if identity != "none":
        fields["mtime"] = info.st_mtime_ns
    if identity == "inode":
        fields["ctime"] = info.st_ctime_ns
        fields["inode"] = info.st_ino
        fields["blocks"] = info.st_blocks
    if stat.S_ISLNK(info.st_mode):
        fields["target"] = os.readlink(path)
    if stat.S_ISREG(info.st_mode):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        fields["content"] = digest.hexdigest()[:16]
    fields["attributes"] = {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(os.listxattr(path, follow_symlinks=False))}
    return fields


def manifest(directory, identity, without):
    directory = os.fsencode(directory)
    found = {}
    for folder, folders, names_here in os.walk(directory):
        for name in folders[:] + names_here:
            path = os.path.join(folder, name)
            inner = os.path.relpath(path, directory)
            shown = inner.decode(errors="backslashreplace")
            if any(fnmatch.fnmatch(shown, pattern) for pattern in without):
                if name in folders:
                    folders.remove(name)
                continue
            if name in names_here or name in folders:
                found[shown] = describe(path, identity)
    return found


def compare(a, b, identity, without):
    left, right = (manifest(directory, identity, without) for directory in (a, b))
    differences = []
    for name in sorted(left.keys() | right.keys()):
        if name not in left or name not in right:
            differences.append(f"{name}: only in {a if name in left else b}")
        elif left[name] != right[name]:
            what = ", ".join(f"{k} {v} / {right[name].get(k)}" for k, v in left[name].items() if v != right[name].get(k))
            differences.append(f"{name}: {what}")
    for difference in differences[:20]:
        print(f"    {difference}")
    print(f"{len(left)} entries, {len(differences)} differences")
    if not left or differences:
        sys.exit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, more in {"tree": "files", "change": "number", "attributes": None}.items():
        command = commands.add_parser(name)
        command.add_argument("directory")
        if more:
            command.add_argument(more, type=int)
    command = commands.add_parser("compare")
    command.add_argument("a")
    command.add_argument("b")
    command.add_argument("--identity", choices=["inode", "times", "none"], default="none")
    command.add_argument("--without", action="append", default=[])
    arguments = parser.parse_args()
    if arguments.command == "tree":
        tree(arguments.directory, arguments.files)
    elif arguments.command == "change":
        change(arguments.directory, arguments.number)
    elif arguments.command == "attributes":
        attributes(arguments.directory)
    else:
        compare(arguments.a, arguments.b, arguments.identity, arguments.without)


if __name__ == "__main__":
    main()
