#!/usr/bin/env python3
"""What programs rely on, tried on a local directory and on a mount: only the differences are printed.

semantics.py LOCAL SOURCE VIEW [--only PART] [--verbose]

LOCAL is a directory on the local disk, VIEW a mount of SOURCE. Each check runs in a process of its own in an empty
directory and returns what it saw as plain data; it is right when it sees the same in both places. A check that differs
by the nature of FUSE has its reason in INHERENT; it is printed and not counted.
"""

import array
import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import random
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

INHERENT = {
    "birth_time": "the fuser crate knows no FUSE_STATX",
    "temporary_file_without_name": "the fuser crate knows no FUSE_TMPFILE; programs fall back to a named temporary file",
    "flags_of_files": "the ioctls of lsattr and chattr, which no FUSE file system tried answers either",
    "fallocate_shift": "the kernel's FUSE knows no collapse and no insert",
    "map_beyond_end": "a store through a map beyond the end becomes visible when the file grows, on every FUSE page cache",
}
SECONDS_MAX = 60
NOBODY, DAEMON = 65534, 1
CHECKS = {}
libc = ctypes.CDLL(None, use_errno=True)


def check(function):
    CHECKS[function.__name__] = function
    return function


def tell(function, *arguments, **named):
    """The result, or the name of the error."""
    try:
        return function(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def sys_call(name, *arguments):
    """A call that Python lacks; paths as bytes."""
    result = getattr(libc, name)(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def put(path, data=b"", mode=0o644):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, data) if data else None
    os.close(fd)


def get(path):
    with open(path, "rb") as file:
        return file.read()


def digest(data):
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:12]}"


def child(function, *arguments):
    """Runs in a forked process; what it returns comes back as plain data, what it raises as text."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(inlet)
        try:
            value = function(*arguments)
        except OSError as error:
            value = errno.errorcode.get(error.errno, str(error))
        except BaseException as error:  # the parent has to hear of it, whatever it is
            value = f"{type(error).__name__}: {error}"
        os.write(outlet, json.dumps(value).encode()[:60_000])
        os._exit(0)
    os.close(outlet)
    data = b""
    while block := os.read(inlet, 65536):
        data += block
    os.close(inlet)
    _, status = os.waitpid(pid, 0)
    if not data:
        return f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no answer"
    return json.loads(data)


def as_user(function, *arguments, uid=NOBODY, groups=()):
    def run():
        if os.getuid() == 0:
            os.setgroups(list(groups))
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        return function(*arguments)

    return child(run)


def mode(path):
    info = os.lstat(path)
    return f"{info.st_mode:o} {info.st_uid}:{info.st_gid} links {info.st_nlink if not stat.S_ISDIR(info.st_mode) else '-'}"


def later(path, what, function, *arguments):
    """Whether `what` (mtime or ctime) of the path moved forward through the call."""
    before = getattr(os.lstat(path), f"st_{what}_ns")
    time.sleep(0.02)
    function(*arguments)
    return getattr(os.lstat(path), f"st_{what}_ns") > before


# --- who owns what


@check
def create_modes():
    seen = []
    for mask in (0, 0o022, 0o077):
        os.umask(mask)
        for m in (0o777, 0o666, 0o4755, 0o2644, 0):
            put(f"f{mask}-{m}", mode=m)
            seen.append(mode(f"f{mask}-{m}"))
        os.mkdir(f"d{mask}", 0o1777)
        seen.append(mode(f"d{mask}"))
    return seen


@check
def create_as_user():
    os.chmod(".", 0o777)
    seen = []
    seen.append(as_user(lambda: (put("a", b"x"), os.mkdir("d"), os.symlink("a", "l"), os.mkfifo("p"), [mode(n) for n in "adlp"])[-1]))
    # A supplementary group is enough to write here and to give a file to.
    os.mkdir("shared", 0o770)
    os.chown("shared", 0, 5)
    os.chmod("shared", 0o770)
    seen.append(as_user(lambda: (put("shared/a"), os.chown("shared/a", -1, 5), mode("shared/a"))[-1], groups=[5]))
    seen.append(as_user(lambda: tell(put, "shared/b")))
    return seen


@check
def setgid_directory():
    os.mkdir("d")
    os.chown("d", 0, 5)
    os.chmod("d", 0o2777)
    as_user(lambda: (put("d/f"), os.mkdir("d/sub"), put("d/x", mode=0o2755)))
    return [mode(f"d/{n}") for n in ("f", "sub", "x")]


@check
def permissions_of_users():
    os.chmod(".", 0o755)
    put("secret", b"x", 0o600)
    os.mkdir("closed", 0o700)
    put("closed/f")
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    put("sticky/f")
    os.mkdir("write-only")
    os.chmod("write-only", 0o733)

    def tries():
        return [
            tell(get, "secret"),
            tell(os.stat, "closed/f"),
            tell(os.listdir, "closed"),
            tell(os.unlink, "sticky/f"),
            tell(os.rename, "sticky/f", "sticky/g"),
            tell(put, "new"),
            tell(os.chmod, "secret", 0o777),
            tell(os.chown, "secret", NOBODY, NOBODY),
            tell(os.listdir, "write-only"),
            tell(put, "write-only/f"),
            tell(os.utime, "secret"),
            os.access("secret", os.R_OK),
            os.access("closed", os.X_OK),
        ]

    return as_user(lambda: [str(t)[:40] for t in tries()])


@check
def open_own_file_without_permission():
    os.chmod(".", 0o777)

    def run():
        fd = os.open("f", os.O_RDWR | os.O_CREAT, 0)
        os.write(fd, b"abc")
        again = tell(os.open, "f", os.O_RDONLY)
        ro = os.open("r", os.O_WRONLY | os.O_CREAT, 0o444)
        os.write(ro, b"x")
        return [os.pread(fd, 3, 0).decode(), again, os.fstat(ro).st_size]

    return as_user(run)


@check
def suid_goes_away():
    os.chmod(".", 0o777)
    seen = []
    for what in ("write", "truncate", "ftruncate", "fallocate", "chown", "map", "owner chmod"):
        name = what.replace(" ", "")
        put(name, b"x" * 100)
        os.chown(name, NOBODY, NOBODY)
        os.chmod(name, 0o6777)

        def run():
            fd = os.open(name, os.O_RDWR)
            if what == "write":
                os.write(fd, b"y")
            elif what == "truncate":
                os.truncate(name, 5)
            elif what == "ftruncate":
                os.ftruncate(fd, 5)
            elif what == "fallocate":
                os.posix_fallocate(fd, 0, 5000)
            elif what == "chown":
                os.chown(name, -1, NOBODY)
            elif what == "owner chmod":
                os.chmod(name, 0o6755)
            elif what == "map":
                with mmap.mmap(fd, 100) as view:
                    view[0:1] = b"z"
                    view.flush()

        seen.append([what, tell(as_user, run), mode(name)])
        os.chmod(name, 0o6777)
        fd = os.open(name, os.O_RDWR)
        os.write(fd, b"y")
        seen.append(["root write", mode(name)])
    return seen


@check
def ownership():
    put("f")
    os.symlink("f", "l")
    seen = []
    os.chown("f", 7, 8)
    os.chown("l", 9, 10, follow_symlinks=False)
    os.chown("f", -1, 11)
    seen += [mode("f"), mode("l")]
    seen.append(later("f", "ctime", os.chown, "f", -1, -1))
    return seen


@check
def access_control_lists():
    seen = []
    put("f", b"", 0o640)
    run = lambda *a: subprocess.run(a, capture_output=True, text=True)
    os.stat("f")
    seen.append(run("setfacl", "-m", "u:daemon:rwx,m::rwx", "f").stderr)
    seen.append(mode("f"))
    seen.append(run("setfacl", "-m", "m::r--", "f").stderr)
    seen.append(mode("f"))
    os.chmod("f", 0o660)
    seen.append(run("getfacl", "-cn", "f").stdout)
    os.mkdir("d")
    seen.append(run("setfacl", "-d", "-m", "u:daemon:rwx,g::r-x,o::---", "d").stderr)
    os.umask(0o077)
    put("d/f", b"", 0o666)
    os.mkdir("d/sub")
    seen += [run("getfacl", "-cn", p).stdout for p in ("d", "d/f", "d/sub")]
    os.chmod(".", 0o755)
    os.chmod("d", 0o777)
    put("g", b"secret", 0o600)
    seen.append(run("setfacl", "-m", "u:daemon:r", "g").stderr)
    seen.append(as_user(lambda: get("g").decode(), uid=DAEMON))
    seen.append(as_user(lambda: get("g").decode()))
    seen.append(run("setfacl", "-b", "g").stderr)
    seen.append([mode("g"), as_user(lambda: get("g").decode(), uid=DAEMON)])
    return seen


@check
def extended_attributes():
    put("f")
    os.mkdir("d")
    os.symlink("f", "l")
    seen = []
    for path in ("f", "d", "l"):
        kw = {"follow_symlinks": False}
        seen.append([path, tell(os.setxattr, path, "user.a", b"1", **kw), tell(os.listxattr, path, **kw)])
        seen.append([path, tell(os.setxattr, path, "trusted.a", b"1", **kw), str(tell(os.getxattr, path, "trusted.a", **kw))])
    seen.append(tell(os.setxattr, "f", "user.a", b"2", os.XATTR_CREATE))
    seen.append(tell(os.setxattr, "f", "user.b", b"2", os.XATTR_REPLACE))
    seen.append(tell(os.getxattr, "f", "user.none"))
    seen.append(tell(os.removexattr, "f", "user.none"))
    seen.append(tell(os.setxattr, "f", "user.empty", b""))
    seen.append(str(tell(os.getxattr, "f", "user.empty")))
    seen.append(tell(os.setxattr, "f", "nonsense", b"1"))
    seen.append(tell(os.setxattr, "f", "user." + "n" * 300, b"1"))
    seen.append(tell(os.setxattr, "f", "user.big", b"1" * 65537))
    seen.append(tell(os.setxattr, "f", "user.large", b"1" * 2000))
    seen.append(sys_call("getxattr", b"f", b"user.large", None, 0))
    seen.append(tell(sys_call, "getxattr", b"f", b"user.large", ctypes.create_string_buffer(10), 10))
    seen.append(sorted(os.listxattr("f")))
    seen.append(later("f", "ctime", os.setxattr, "f", "user.a", b"3"))
    return seen


# --- names


@check
def names():
    seen = []
    every = [b"n" * 255, b"\xff\xfe bytes", b"new\nline", b" ", b"-rf", b"*", "ü".encode(), "u\u0308".encode(), b"...", b"A", b"a", b"\x01"]
    for name in every:
        seen.append(tell(put, name, name))
        seen.append(tell(lambda: get(name) == name))
    seen.append(sorted(os.listdir(b"."), key=bytes) == sorted(every))
    for bad in (b"n" * 256, b"n" * 5000, b"d/" + b"n" * 256):
        seen += [tell(f, bad) for f in (os.stat, put, os.mkdir, os.unlink, os.rmdir, os.readlink)]
        seen += [tell(os.rename, every[0], bad), tell(os.link, every[0], bad), tell(os.symlink, b"x", bad)]
    return [str(s)[:60] for s in seen]


@check
def paths_longer_than_path_max():
    name, depth = "d" * 200, 40
    for _ in range(depth):
        os.mkdir(name)
        os.chdir(name)
    put("deep", b"deep")
    seen = [get("deep").decode(), len(os.getcwd()) > 0 if depth * 201 < 4000 else "-", os.listdir(".")]
    os.rename("deep", "deeper")
    os.link("deeper", "two")
    os.symlink("x", "l")
    os.setxattr("deeper", "user.a", b"1")
    os.truncate("deeper", 2)
    os.utime("deeper", ns=(10**9, 10**9))
    os.chmod("deeper", 0o600)
    seen += [mode("deeper"), get("two").decode(), os.readlink("l"), os.stat("two").st_mtime]
    for n in ("deeper", "two", "l"):
        os.unlink(n)
    for _ in range(depth):
        os.chdir("..")
        os.rmdir(name)
    return seen + [os.listdir(".")]


@check
def errors_of_names():
    put("f", b"x")
    os.mkdir("d")
    put("d/f")
    os.mkdir("e")
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dangling")
    os.symlink("d", "to-d")
    return [
        str(s)[:60]
        for s in [
            tell(os.stat, "none"), tell(os.stat, "f/x"), tell(os.stat, "loop"), tell(os.stat, "dangling"), tell(os.stat, "f/"),
            tell(os.mkdir, "d"), tell(os.mkdir, "f"), tell(os.mkdir, "dangling"), tell(os.mkdir, "none/d"), tell(os.rmdir, "d"), tell(os.rmdir, "f"),
            tell(os.rmdir, "to-d"), tell(os.rmdir, "."), tell(os.rmdir, "e/."), tell(os.rmdir, "d/.."), tell(os.unlink, "d"), tell(os.unlink, "f/"),
            tell(os.rename, "d", "d/inner"), tell(os.rename, "f", "d"), tell(os.rename, "d", "f"), tell(os.rename, "e", "d"),
            tell(os.rename, "none", "f"), tell(os.rename, "f", "none/f"), tell(os.rename, "d", "."), tell(os.rename, "f", "f"),
            tell(os.link, "d", "link-to-dir"), tell(os.link, "f", "d"), tell(os.link, "none", "x"),
            tell(os.link, "dangling", "hard-link-to-symlink", follow_symlinks=False), os.readlink("hard-link-to-symlink"),
            tell(os.symlink, "x", "f"), tell(os.symlink, "", "empty"), tell(os.symlink, "t" * 4096, "too-long"),
            tell(os.symlink, "t" * 4095, "longest"), tell(lambda: len(os.readlink("longest"))), tell(lambda: os.lstat("longest").st_size),
            tell(os.readlink, "f"), tell(os.truncate, "d", 0), tell(os.truncate, "f", -1), tell(os.truncate, "f", 1 << 62),
            tell(os.open, "d", os.O_WRONLY), tell(os.open, "f", os.O_RDONLY | os.O_DIRECTORY), tell(os.open, "to-d", os.O_RDONLY | os.O_NOFOLLOW),
            tell(os.open, "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY), tell(os.open, "dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
            tell(os.open, "d", os.O_CREAT | os.O_RDWR), tell(os.open, "none/", os.O_CREAT | os.O_WRONLY),
            tell(lambda: os.close(os.open("dangling", os.O_CREAT | os.O_WRONLY))), tell(os.stat, "nowhere") != "ENOENT",
            tell(os.mknod, "f"), tell(os.mkfifo, "d"),
        ]
    ]  # fmt: skip


@check
def rename_flags():
    NOREPLACE, EXCHANGE, WHITEOUT, AT = 1, 2, 4, -100
    put("a", b"A")
    put("b", b"B")
    os.mkdir("d")
    put("d/x")
    r = lambda a, b, flags: tell(sys_call, "renameat2", AT, a, AT, b, flags)
    seen = [r(b"a", b"b", NOREPLACE), r(b"a", b"c", NOREPLACE), sorted(os.listdir("."))]
    seen += [r(b"b", b"c", EXCHANGE), get("b").decode(), get("c").decode()]
    seen += [r(b"b", b"d", EXCHANGE), get("d").decode(), os.listdir("b"), r(b"b", b"none", EXCHANGE)]
    seen += [r(b"c", b"d", NOREPLACE | EXCHANGE), r(b"c", b"d", 64)]
    return seen


@check
def rename_whiteout():
    put("a", b"A")
    seen = [tell(sys_call, "renameat2", -100, b"a", -100, b"b", 4), sorted(os.listdir("."))]
    return seen + [mode("a") if os.path.lexists("a") else None]


@check
def replaced_while_read():
    put("f", b"0" * 5000)
    stop = time.monotonic() + 1.5

    def replace():
        n = 0
        while time.monotonic() < stop:
            n += 1
            put("f.new", str(n % 10).encode() * 5000)
            os.rename("f.new", "f")

    def read():
        bad = set()
        while time.monotonic() < stop:
            try:
                data = get("f")
                if len(data) != 5000 or len(set(data)) != 1:
                    bad.add(f"torn: {len(data)} bytes")
                os.stat("f")
            except OSError as error:
                bad.add(errno.errorcode[error.errno])
        return sorted(bad)

    pid = os.fork()
    if pid == 0:
        replace()
        os._exit(0)
    seen = [child(read), read()]
    os.waitpid(pid, 0)
    return seen + [sorted(os.listdir("."))]


@check
def unlinked_but_open():
    put("f", b"hello")
    fd = os.open("f", os.O_RDWR)
    os.unlink("f")
    seen = [os.fstat(fd).st_nlink, os.read(fd, 10).decode(), os.write(fd, b" more"), os.pread(fd, 20, 0).decode(), os.listdir(".")]
    os.ftruncate(fd, 3)
    os.fchmod(fd, 0o600)
    os.fchown(fd, 5, 5)
    os.utime(fd, ns=(10**9, 2 * 10**9))
    tell(os.setxattr, fd, "user.a", b"1")
    seen += [os.fstat(fd).st_size, oct(os.fstat(fd).st_mode), os.fstat(fd).st_mtime, tell(lambda: os.getxattr(fd, "user.a").decode())]
    put("f", b"another")
    seen += [os.pread(fd, 20, 0).decode(), get("f").decode(), os.fstat(fd).st_size]
    again = tell(os.open, f"/proc/self/fd/{fd}", os.O_RDWR)
    seen.append(os.pread(again, 9, 0).decode() if isinstance(again, int) else again)
    os.fsync(fd)
    os.close(fd)
    put("g", b"old")
    fd = os.open("g", os.O_RDWR)
    put("h", b"new")
    os.rename("h", "g")
    os.write(fd, b"OLD!")
    seen += [os.pread(fd, 9, 0).decode(), get("g").decode(), os.fstat(fd).st_nlink, sorted(os.listdir("."))]
    return seen


@check
def temporary_file_without_name():
    fd = tell(os.open, ".", os.O_TMPFILE | os.O_RDWR, 0o600)
    if not isinstance(fd, int):
        return fd
    os.write(fd, b"data")
    seen = [os.fstat(fd).st_nlink, os.listdir(".")]
    seen.append(tell(sys_call, "linkat", -100, f"/proc/self/fd/{fd}".encode(), -100, b"named", 0x400))
    return seen + [tell(lambda: get("named").decode()), tell(mode, "named")]


@check
def directory_removed_and_made_again():
    os.mkdir("d")
    put("d/f")
    old = os.open("d", os.O_RDONLY)
    os.unlink("d/f")
    os.rmdir("d")
    os.mkdir("d")
    put("d/new")
    seen = [os.listdir(old), tell(os.stat, "f", dir_fd=old), tell(lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=old)), os.listdir("d")]
    return seen + [os.fstat(old).st_nlink, os.fstat(old).st_ino != os.stat("d").st_ino]


@check
def links():
    put("a", b"x")
    before = os.stat("a").st_nlink
    seen = [before, later("a", "ctime", os.link, "a", "b"), os.stat("a").st_nlink, os.stat("a").st_ino == os.stat("b").st_ino]
    os.chmod("b", 0o600)
    fd = os.open("b", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"yyy")
    seen += [mode("a"), os.stat("a").st_size, get("a").decode(), later("a", "ctime", os.unlink, "b"), mode("a"), os.fstat(fd).st_nlink]
    os.truncate("a", 1)
    before = os.stat("a").st_ctime_ns
    time.sleep(0.02)
    os.rename("a", "c")
    seen += [os.fstat(fd).st_size, os.stat("c").st_ctime_ns > before]
    os.link("c", "d")
    # Renaming one name of a file over another does nothing.
    os.rename("c", "d")
    return seen + [sorted(os.listdir(".")), mode("c")]


@check
def special_files():
    seen = []
    os.mkfifo("fifo")
    pid = os.fork()
    if pid == 0:
        put("fifo", b"through")
        os._exit(0)
    seen.append(get("fifo").decode())
    os.waitpid(pid, 0)
    server = socket.socket(socket.AF_UNIX)
    seen.append(tell(server.bind, "socket"))
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    seen.append(tell(client.connect, "socket"))
    seen.append(tell(os.mknod, "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    seen.append(tell(os.mknod, "block", stat.S_IFBLK | 0o600, os.makedev(7, 200)))
    seen.append(tell(os.mknod, "large", stat.S_IFCHR | 0o600, os.makedev(300, 70000)))
    seen.append(tell(put, "null", b"gone"))
    for name in sorted(os.listdir(".")):
        info = os.lstat(name)
        seen.append([name, mode(name), os.major(info.st_rdev), os.minor(info.st_rdev), info.st_size])
    return seen


# --- directories


@check
def directory_entries():
    put("f")
    os.mkdir("d")
    os.symlink("x", "l")
    os.mkfifo("p")
    seen = []
    with os.scandir(".") as entries:
        for e in sorted(entries, key=lambda e: e.name):
            seen.append([e.name, e.is_file(follow_symlinks=False), e.is_dir(), e.is_symlink(), e.inode() == os.lstat(e.name).st_ino])
    seen += [os.stat("d").st_nlink, os.stat("d/..").st_ino == os.stat(".").st_ino]
    seen += [later(".", "mtime", put, "new"), later(".", "mtime", os.unlink, "new"), later(".", "mtime", os.mkdir, "e")]
    seen += [later(".", "mtime", os.rename, "e", "g"), later(".", "ctime", os.rmdir, "g"), later("d", "mtime", os.rename, "f", "d/f")]
    seen += [tell(lambda: os.fsync(os.open(".", os.O_RDONLY))), tell(lambda: os.read(os.open(".", os.O_RDONLY), 10))]
    return seen


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]


def directory_calls():
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(Dirent)
    libc.telldir.restype = ctypes.c_long
    libc.telldir.argtypes = libc.readdir.argtypes = libc.rewinddir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


@check
def directory_positions():
    directory_calls()
    for n in range(600):
        put(f"file{n}")
    d = libc.opendir(b".")
    order, cookies = [], []
    while True:
        cookies.append(libc.telldir(d))
        entry = libc.readdir(d)
        if not entry:
            break
        order.append(entry.contents.name)
    wrong = 0
    for n in random.Random(1).sample(range(len(order)), 200):
        libc.seekdir(d, cookies[n])
        entry = libc.readdir(d)
        wrong += not entry or entry.contents.name != order[n]
    # And with entries that went and came in between.
    gone = set(random.Random(2).sample([o for o in order if o.startswith(b"file")], 200))
    for name in gone:
        os.unlink(name)
    for n in range(200):
        put(f"later{n}")
    middle = len(order) // 2
    libc.seekdir(d, cookies[middle])
    rest = []
    while entry := libc.readdir(d):
        rest.append(entry.contents.name)
    expected = [o for o in order[middle:] if o not in gone]
    missing = [o for o in expected if o not in rest]
    twice = len(rest) != len(set(rest))
    libc.rewinddir(d)
    count = 0
    while libc.readdir(d):
        count += 1
    libc.closedir(d)
    return [len(order), len(set(order)), wrong, len(missing), twice, count]


@check
def directory_changes_while_listed():
    directory_calls()
    stay = {f"stay{n}".encode() for n in range(3000)}
    for name in stay:
        put(name)
    for n in range(600):
        put(f"go{n}")
    d = libc.opendir(b".")
    found, n = [], 0
    while entry := libc.readdir(d):
        found.append(entry.contents.name)
        n += 1
        if n % 5 == 0 and n < 3000:
            tell(os.unlink, f"go{n // 5}")
            put(f"come{n}")
            tell(os.rename, f"come{n}", f"moved{n}")
    libc.closedir(d)
    stayed = [f for f in found if f in stay]
    return [len(stayed), len(set(stayed)), len(found) == len(set(found))]


@check
def large_directory():
    for n in range(5000):
        put(f"file-with-a-rather-long-name-{n:06}")
    seen = [len(os.listdir(".")), len(set(os.listdir(".")))]
    with os.scandir(".") as entries:
        seen.append(sum(1 for e in entries if e.is_file()))
    for n in range(0, 5000, 2):
        os.unlink(f"file-with-a-rather-long-name-{n:06}")
    seen.append(len(os.listdir(".")))
    os.mkdir("inner")
    seen.append(subprocess.run(["rm", "-rf", *os.listdir(".")], check=False).returncode)
    return seen + [os.listdir(".")]


@check
def removed_working_directory():
    os.mkdir("d")
    os.chdir("d")
    os.rmdir("../d")
    return [tell(put, "f"), tell(os.mkdir, "x"), tell(os.listdir, "."), tell(os.getcwd), os.stat(".").st_nlink]


# --- data


@check
def read_and_write():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    rng, model = random.Random(3), bytearray()
    for _ in range(400):
        pos, size = rng.randrange(300_000), rng.randrange(20_000)
        data = rng.randbytes(size)
        os.pwrite(fd, data, pos)
        if len(model) < pos + size and size:
            model.extend(bytes(pos + size - len(model)))
        if size:
            model[pos : pos + size] = data
        if rng.random() < 0.1:
            cut = rng.randrange(300_000)
            os.ftruncate(fd, cut)
            model = model[:cut] + bytes(max(0, cut - len(model)))
        pos, size = rng.randrange(310_000), rng.randrange(40_000)
        if os.pread(fd, size, pos) != bytes(model[pos : pos + size]):
            return f"wrong bytes at {pos}, {size} of them"
        if os.stat("f").st_size != len(model):
            return "wrong size"
    return [get("f") == bytes(model), tell(os.pread, fd, 10, 1 << 40).decode(), os.fstat(fd).st_blocks * 512 <= len(model) + 65536]


@check
def write_errors():
    put("f", b"x")
    ro, wo = os.open("f", os.O_RDONLY), os.open("f", os.O_WRONLY)
    seen = [tell(os.write, ro, b"x"), tell(os.read, wo, 1), tell(os.ftruncate, ro, 0), tell(os.pwrite, wo, b"x", -1), tell(os.pread, ro, 1, -1)]
    seen += [tell(os.lseek, ro, -1, 0), tell(os.pwrite, wo, b"x", (1 << 63) - 1), os.write(wo, b""), tell(os.posix_fallocate, wo, 0, 0)]

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return [tell(os.pwrite, wo, b"y" * 2000, 0), tell(os.pwrite, wo, b"y", 1000), tell(os.ftruncate, wo, 1001), os.fstat(wo).st_size]

    return seen + [child(limited)]


@check
def append():
    a, b = (os.open("f", os.O_RDWR | os.O_CREAT | os.O_APPEND) for _ in "ab")
    os.write(a, b"one")
    os.write(b, b"two")
    os.pwrite(a, b"three", 0)  # Linux appends that too
    os.truncate("f", 4)
    os.write(b, b"four")
    seen = [get("f").decode(), os.lseek(b, 0, 1)]

    def lines(n):
        fd = os.open("g", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for k in range(300):
            os.write(fd, f"{n} {k:05}\n".encode())

    pids = []
    for n in range(4):
        pid = os.fork()
        if pid == 0:
            lines(n)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    fcntl.fcntl(a, fcntl.F_SETFL, 0)
    os.pwrite(a, b"X", 0)
    return seen + [len(get("g").splitlines()), len(set(get("g").splitlines())), get("f").decode()]


@check
def truncation():
    put("f", b"x" * 10_000)
    seen = [digest(get("f"))]
    for size in (5000, 20_000, 4096, 8192, 0, 1):
        os.truncate("f", size)
        seen.append(digest(get("f")))
    seen.append(later("f", "mtime", os.truncate, "f", 1))
    seen.append(later("f", "ctime", os.truncate, "f", 7))
    fd = os.open("f", os.O_RDONLY)
    os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
    return seen + [os.fstat(fd).st_size, os.read(fd, 10).decode()]


@check
def large_files():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    seen = []
    for pos in (0, 2**31 - 2, 2**32 - 2, 5 * 2**30, 2**40):
        os.pwrite(fd, f"at {pos}".encode(), pos)
    for pos in (0, 2**31 - 2, 2**32 - 2, 5 * 2**30, 2**40):
        seen.append(os.pread(fd, len(f"at {pos}"), pos).decode())
    seen += [os.stat("f").st_size, os.pread(fd, 5, 3 * 2**30).hex(), os.stat("f").st_blocks < 1000]
    with mmap.mmap(fd, 4096, offset=5 * 2**30) as view:
        seen.append(view[:5].decode())
    return seen


@check
def holes():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 10 << 20)
    os.pwrite(fd, b"x" * 4096, 1 << 20)
    os.pwrite(fd, b"x" * 65536, 5 << 20)
    seen = []
    for pos in (0, 1 << 20, (1 << 20) + 4096, 5 << 20, (5 << 20) + 65536, 10 << 20):
        seen.append([tell(os.lseek, fd, pos, os.SEEK_DATA), tell(os.lseek, fd, pos, os.SEEK_HOLE)])
    put("g")
    empty = os.open("g", os.O_RDONLY)
    return seen + [tell(os.lseek, empty, 0, os.SEEK_DATA), tell(os.lseek, empty, 0, os.SEEK_HOLE)]


def fallocate(fd, how, pos, size):
    return tell(sys_call, "fallocate", fd, how, pos, size)


@check
def fallocate_in_place():
    KEEP, PUNCH, ZERO = 1, 2, 16
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 100_000)
    os.pread(fd, 100_000, 0)
    seen = [fallocate(fd, PUNCH | KEEP, 5000, 20_000), digest(get("f")), os.stat("f").st_blocks]
    seen += [fallocate(fd, 0, 90_000, 50_000), digest(get("f")), fallocate(fd, KEEP, 200_000, 50_000), os.stat("f").st_size]
    seen += [fallocate(fd, ZERO, 40_000, 5000), digest(get("f")), fallocate(fd, ZERO, 139_000, 5000), digest(get("f"))]
    seen += [fallocate(fd, PUNCH, 0, 10), fallocate(fd, 0, 0, 0), fallocate(fd, 0, -1, 5), fallocate(os.open("f", os.O_RDONLY), 0, 0, 5)]
    seen += [later("f", "mtime", lambda: fallocate(fd, PUNCH | KEEP, 0, 4096)), later("f", "ctime", lambda: fallocate(fd, 0, 0, 300_000))]
    return seen


@check
def fallocate_shift():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 65536)
    return [fallocate(fd, 8, 4096, 4096), fallocate(fd, 32, 4096, 8192), digest(get("f"))]


@check
def copy_within_the_kernel():
    a, b = (os.open(n, os.O_RDWR | os.O_CREAT) for n in "ab")
    data = random.Random(5).randbytes(300_000)
    os.write(a, data)
    seen = [digest(get("a")), tell(os.copy_file_range, a, b, 200_000, 1000, 500), digest(get("b"))]
    seen += [tell(os.copy_file_range, a, b, 200_000, 290_000, 0), digest(get("b")), tell(os.copy_file_range, a, b, 10, 400_000, 0)]
    seen += [tell(os.copy_file_range, a, a, 1000, 0, 200_000), digest(get("a")), tell(os.copy_file_range, a, a, 1000, 0, 500)]
    seen += [os.sendfile(b, a, 0, 300_000), digest(get("b"))]
    inlet, outlet = os.pipe()
    seen += [os.splice(a, outlet, 10_000, 77), digest(os.read(inlet, 10_000)), os.write(outlet, b"piped"), os.splice(inlet, b, 5, None, 3), get("b")[:10].hex()]
    put("c")
    return seen + [later("b", "mtime", os.copy_file_range, a, b, 10, 0, 0)]


@check
def direct_io():
    fd = tell(os.open, "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    if not isinstance(fd, int):
        return fd
    page = mmap.mmap(-1, 65536)
    page.write(random.Random(6).randbytes(65536))
    seen = [os.pwritev(fd, [page], 0), os.pwritev(fd, [page], 65536)]
    back = mmap.mmap(-1, 65536)
    seen += [os.preadv(fd, [back], 65536), back[:] == page[:], os.preadv(fd, [back], 131072), digest(get("f"))]
    # Buffered and direct in turn: each sees what the other wrote.
    buffered = os.open("f", os.O_RDWR)
    for n in range(20):
        os.pwrite(buffered, bytes([n]) * 4096, 4096)
        os.preadv(fd, [back], 0)
        seen.append(back[4096] == n and back[8191] == n)
        page[0:4096] = bytes([100 + n]) * 4096
        os.pwritev(fd, [page], 0)
        seen.append(os.pread(buffered, 4096, 0) == page[0:4096])
    with mmap.mmap(buffered, 131072) as view:
        seen.append(view[0] == page[0])
    return seen


@check
def shared_maps():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 50_000)
    view, other = mmap.mmap(fd, 50_000), mmap.mmap(os.open("f", os.O_RDWR), 50_000)
    view[100:105] = b"map 1"
    seen = [os.pread(fd, 5, 100).decode(), other[100:105].decode(), child(lambda: get("f")[100:105].decode())]
    os.pwrite(fd, b"write", 20_000)
    seen += [view[20_000:20_005].decode(), child(lambda: (other.__setitem__(slice(5, 8), b"kid"), view[5:8].decode())[-1]), view[5:8].decode()]
    private = mmap.mmap(fd, 50_000, flags=mmap.MAP_PRIVATE)
    private[0:2] = b"pp"
    seen.append(os.pread(fd, 2, 0).hex())
    view.flush()
    seen.append(later("f", "mtime", lambda: (view.__setitem__(0, 65), view.flush())))
    os.ftruncate(fd, 100)
    os.ftruncate(fd, 50_000)
    seen += [view[20_000:20_005].hex(), digest(get("f"))]
    view.close()
    other.close()
    ro = mmap.mmap(os.open("f", os.O_RDONLY), 50_000, prot=mmap.PROT_READ)
    seen += [ro[5:8].decode(), tell(mmap.mmap, os.open("f", os.O_RDONLY), 100)]
    return seen + [child(lambda: (os.truncate("f", 10), ro[20_000])[-1])]


@check
def map_beyond_end():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 100)
    with mmap.mmap(fd, 100) as view:
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(view)) + 200, 65, 10)
    os.ftruncate(fd, 1000)
    return digest(get("f"))


@check
def times():
    put("f")
    os.symlink("f", "l")
    seen = []
    for ns in (10**18 + 123_456_789, 1, 0, -(10**9) - 5, 2**31 * 10**9 + 7, 2**33 * 10**9 + 9):
        os.utime("f", ns=(ns, ns))
        os.utime("l", ns=(ns + 1000, ns + 1000), follow_symlinks=False)
        seen += [os.stat("f").st_mtime_ns, os.stat("f").st_atime_ns, os.lstat("l").st_mtime_ns]
    OMIT, NOW = (1 << 30) - 2, (1 << 30) - 1
    spec = lambda *v: struct.pack("qqqq", *v)
    os.utime("f", ns=(5, 7))
    sys_call("utimensat", -100, b"f", spec(0, OMIT, 99, 0), 0)
    seen += [os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns]
    sys_call("utimensat", -100, b"f", spec(0, NOW, 0, OMIT), 0)
    seen += [os.stat("f").st_atime > 10**9, os.stat("f").st_mtime_ns, tell(sys_call, "utimensat", -100, b"f", spec(0, 10**9, 0, 0), 0)]
    fd = os.open("f", os.O_RDWR)
    os.utime("f", ns=(5, 7))
    seen += [os.fstat(fd).st_mtime_ns, later("f", "mtime", os.write, fd, b"x"), later("f", "mtime", os.write, fd, b"")]
    os.utime(fd, ns=(11, 13))
    os.close(fd)
    seen += [os.stat("f").st_mtime_ns, later("f", "ctime", os.chmod, "f", 0o644), later("f", "mtime", os.chmod, "f", 0o600)]
    # Written, then dated back: closing and reading change nothing of it.
    with open("g", "wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.utime("g", ns=(17, 19))
    get("g")
    return seen + [os.stat("g").st_mtime_ns]


@check
def birth_time():
    put("f")
    run = subprocess.run(["stat", "-c", "%W", "f"], capture_output=True, text=True)
    return run.stdout.strip() not in ("0", "-")


@check
def file_system_figures():
    s = os.statvfs(".")
    return [s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax, os.stat(".").st_blksize, os.pathconf(".", "PC_LINK_MAX") > 0]


@check
def sync_calls():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 10_000)
    seen = [tell(os.fsync, fd), tell(os.fdatasync, fd), tell(sys_call, "syncfs", fd), tell(sys_call, "sync_file_range", fd, 0, 100, 7)]
    seen += [tell(os.fsync, os.open("f", os.O_RDONLY)), tell(lambda: os.fsync(os.open(".", os.O_RDONLY)))]
    seen += [tell(os.posix_fadvise, fd, 0, 0, advice) for advice in range(6)] + [tell(lambda: os.readlink(f"/proc/self/fd/{fd}").endswith("/f"))]
    seen.append(tell(sys_call, "readahead", fd, 0, 1000))
    synced = os.open("g", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    return seen + [os.write(synced, b"abc"), bool(fcntl.fcntl(synced, fcntl.F_GETFL) & os.O_SYNC)]


@check
def many_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    fds = [os.open(f"f{n}", os.O_RDWR | os.O_CREAT) for n in range(3000)]
    for n, fd in enumerate(fds):
        os.write(fd, str(n).encode())
    return [all(os.pread(fd, 9, 0) == str(n).encode() for n, fd in enumerate(fds)), len(os.listdir("."))]


@check
def only_one_creates():
    won, threads = [], []
    barrier = threading.Barrier(8)

    def run():
        for n in range(100):
            barrier.wait()
            if isinstance(tell(os.open, f"f{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY), int):
                won.append(n)
            if tell(os.mkdir, f"d{n}") is None:
                won.append(-n - 1)

    for _ in range(8):
        threads.append(threading.Thread(target=run))
        threads[-1].start()
    for t in threads:
        t.join()
    return sorted(won) == sorted(list(range(100)) + [-n - 1 for n in range(100)])


@check
def programs():
    put("script", b"#!/bin/sh\necho ran $1\n", 0o755)
    seen = [subprocess.run(["./script", "x"], capture_output=True, text=True).stdout]
    with open("/bin/sleep", "rb") as program:
        put("sleep", program.read(), 0o755)
    run = subprocess.Popen(["./sleep", "2"])
    time.sleep(0.2)
    seen += [tell(os.open, "sleep", os.O_WRONLY), tell(os.truncate, "sleep", 0)]
    os.unlink("sleep")
    seen.append(run.wait())
    writing = os.open("script", os.O_WRONLY)
    seen.append(tell(subprocess.run, ["./script"], capture_output=True) == "ETXTBSY")
    os.close(writing)
    put("no", b"#!/bin/sh\n", 0o644)
    return seen + [tell(subprocess.run, ["./no"])]


@check
def flags_of_files():
    put("f")
    buffer = array.array("l", [0])
    fd = os.open("f", os.O_RDONLY)
    seen = tell(fcntl.ioctl, fd, 0x80086601, buffer)  # FS_IOC_GETFLAGS, what lsattr and cp ask
    return seen, tell(fcntl.ioctl, fd, 0x5413, bytearray(8))  # TIOCGWINSZ: no terminal


# --- locks


@check
def locks_between_processes():
    put("f", b"x" * 100)
    a = os.open("f", os.O_RDWR)
    seen = []

    def try_lock(kind):
        fd = os.open("f", os.O_RDWR)
        if kind == "flock":
            return tell(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return tell(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)

    seen += [fcntl.flock(a, fcntl.LOCK_EX), child(try_lock, "flock"), child(try_lock, "fcntl")]
    seen += [fcntl.flock(a, fcntl.LOCK_UN), child(try_lock, "flock")]
    seen += [fcntl.lockf(a, fcntl.LOCK_EX, 10, 0), child(try_lock, "fcntl"), fcntl.lockf(a, fcntl.LOCK_UN, 10, 0), child(try_lock, "fcntl")]
    fcntl.flock(a, fcntl.LOCK_SH)
    seen += [child(lambda: fcntl.flock(os.open("f", os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)), child(try_lock, "flock")]
    fcntl.flock(a, fcntl.LOCK_EX)

    def wait_for_lock(call):
        # A signal has to free whoever waits.
        class Rung(Exception):
            pass

        def ring(*_):
            raise Rung

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            call()
        except Rung:
            return "interrupted"
        return "locked"

    seen.append(child(wait_for_lock, lambda: fcntl.flock(os.open("f", os.O_RDWR), fcntl.LOCK_EX)))
    fcntl.lockf(a, fcntl.LOCK_EX, 10, 0)
    seen.append(child(wait_for_lock, lambda: fcntl.lockf(os.open("f", os.O_RDWR), fcntl.LOCK_EX, 10, 0)))
    # One that waits gets it when it becomes free.
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(a)  # inherited, and it would hold the lock after the parent's close
        fd = os.open("f", os.O_RDWR)
        os.write(ready[1], b"x")
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(done[1], b"x")
        os._exit(0)
    os.read(ready[0], 1)
    time.sleep(0.2)
    seen.append(bool(select.select([done[0]], [], [], 0)[0]))
    os.close(a)
    seen.append(bool(select.select([done[0]], [], [], 5)[0]))
    os.waitpid(pid, 0)
    # Open-file-description locks and who holds one.
    b = os.open("f", os.O_RDWR)
    spec = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
    seen.append(tell(fcntl.fcntl, b, 37, spec) != "EINVAL")  # F_OFD_SETLK
    seen.append(tell(fcntl.fcntl, os.open("f", os.O_RDWR), 37, spec))
    return seen


# --- changes behind the mount's back: `there` is the same directory in the source


def wait_until(function, seconds=3.0):
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if function():
            return "in time" if time.monotonic() - began < 1.1 else f"late: {time.monotonic() - began:.1f} s"
        time.sleep(0.01)
    return "never"


@check
def source_changes_content(there):
    seen = []
    put("f", b"1" * 5000)
    get("f")
    time.sleep(0.05)
    # Seen within the ttl: on a file system of its own, at once.
    for n, data in enumerate([b"2" * 5000, b"3" * 9000, b"4" * 100]):
        put(f"{there}/f", data)
        seen.append(wait_until(lambda: digest(get("f")) == digest(data)))
    # Written in the source with the old size and mtime restored: only ctime tells.
    info = os.stat(f"{there}/f")
    time.sleep(0.05)
    put(f"{there}/f", b"5" * 100)
    os.utime(f"{there}/f", ns=(info.st_atime_ns, info.st_mtime_ns))
    seen.append(wait_until(lambda: get("f").decode()[:3] == "555"))
    # Replaced there by another file.
    put(f"{there}/new", b"6" * 50)
    os.rename(f"{there}/new", f"{there}/f")
    seen.append(wait_until(lambda: get("f").decode()[:3] == "666"))
    # In a file that stays open. (Whatever was believed of the old file is forgotten by then.)
    time.sleep(1.2)
    fd = os.open("f", os.O_RDONLY)
    os.pread(fd, 100, 0)
    time.sleep(0.05)
    put(f"{there}/f", b"7" * 50)
    return seen + [wait_until(lambda: os.pread(fd, 3, 0) == b"777")]


@check
def source_changes_names(there):
    os.listdir(".")
    tell(os.stat, "new")
    put(f"{there}/new", b"x")
    seen = [wait_until(lambda: os.path.exists("new")), wait_until(lambda: "new" in os.listdir("."))]
    os.chmod(f"{there}/new", 0o600)
    seen.append(wait_until(lambda: stat.S_IMODE(os.stat("new").st_mode) == 0o600))
    os.rename(f"{there}/new", f"{there}/moved")
    seen.append(wait_until(lambda: not os.path.exists("new") and os.path.exists("moved")))
    os.unlink(f"{there}/moved")
    seen.append(wait_until(lambda: not os.path.exists("moved") and os.listdir(".") == []))
    os.mkdir(f"{there}/d")
    seen.append(wait_until(lambda: os.path.isdir("d")))
    put("d/from-view", b"x")
    seen.append(get(f"{there}/d/from-view").decode())
    subprocess.run(["rm", "-r", f"{there}/d"], check=True)
    put(f"{there}/d", b"now a file")
    return seen + [wait_until(lambda: os.path.isfile("d")), tell(lambda: get("d").decode())]


@check
def view_changes_reach_the_source(there):
    put("f", b"abc")
    seen = [get(f"{there}/f").decode()]
    fd = os.open("f", os.O_RDWR)
    os.pwrite(fd, b"B", 1)
    seen.append(get(f"{there}/f").decode())
    os.ftruncate(fd, 2)
    seen.append(get(f"{there}/f").decode())
    os.chmod("f", 0o604)
    os.rename("f", "g")
    a, b = os.stat("g"), os.stat(f"{there}/g")
    same = "st_mode st_ino st_nlink st_uid st_gid st_size st_mtime_ns st_ctime_ns st_blocks".split()
    return seen + [[name for name in same if getattr(a, name) != getattr(b, name)], os.listdir(there)]


def run_checks(place, source, only):
    """Outcome per check: `place` is where to work, `source` the same directory behind the mount."""
    outcomes = {}
    for name, function in CHECKS.items():
        if only and only not in name:
            continue
        os.mkdir(os.path.join(place, name))
        there = os.path.join(source, name)

        def run():
            os.chdir(os.path.join(place, name))
            os.umask(0o022)
            return function(there) if function.__code__.co_argcount else function()

        inlet, outlet = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(inlet)
            os.setpgid(0, 0)
            # A thread must not keep the process from ending, and a traceback says more than an error name.
            answer = child_answer(run, place)
            os.write(outlet, answer)
            os._exit(0)
        os.close(outlet)
        data, end = b"", time.monotonic() + SECONDS_MAX
        while True:
            # A check that hangs inside the mount takes no signal: it is left behind, not waited for.
            if not select.select([inlet], [], [], max(0, end - time.monotonic()))[0]:
                tell(os.killpg, pid, signal.SIGKILL)
                data = json.dumps(f"still not done after {SECONDS_MAX} s").encode()
                break
            block = os.read(inlet, 65536)
            data += block
            if not block:
                os.waitpid(pid, 0)
                break
        os.close(inlet)
        outcomes[name] = json.loads(data or b'"crashed"')
    return outcomes


def child_answer(run, place):
    try:
        return json.dumps(run(), default=str).encode()[:60_000]
    except BaseException as error:
        line = error.__traceback__
        while line.tb_next and line.tb_next.tb_frame.f_code.co_filename == __file__:
            line = line.tb_next
        return json.dumps(f"{type(error).__name__} in line {line.tb_lineno}: {error}".replace(place, "")).encode()


def show(name, local, view):
    if isinstance(local, list) and isinstance(view, list) and len(local) == len(view):
        for n, (a, b) in enumerate(zip(local, view)):
            if a != b:
                print(f"{name}[{n}]: local {json.dumps(a)[:300]}")
                print(f"{' ' * len(f'{name}[{n}]')}  mount {json.dumps(b)[:300]}")
    else:
        print(f"{name}: local {json.dumps(local)[:600]}")
        print(f"{' ' * len(name)}  mount {json.dumps(view)[:600]}")


def main():
    arguments = [a for a in sys.argv[1:] if not a.startswith("--")]
    if len(arguments) != 3:
        sys.exit(__doc__)
    only = next((a[len("--only=") :] for a in sys.argv if a.startswith("--only=")), "")
    local_dir, source, view_dir = arguments
    local, view = run_checks(local_dir, local_dir, only), run_checks(view_dir, source, only)
    different = 0
    for name in local:
        if "--verbose" in sys.argv:
            print(f"{name}: {json.dumps(local[name])[:2000]}")
        if local[name] != view[name]:
            if name in INHERENT:
                print(f"{name}: differs by nature, {INHERENT[name]}")
            else:
                different += 1
                show(name, local[name], view[name])
    print(f"{len(local)} checks, {different} differ")
    sys.exit(1 if different or not local else 0)


if __name__ == "__main__":
    main()
