"""What is mounted for a measurement: warmfs and its peers, and the slow storage below them. Everything is used in a
`with`, and is unmounted in good order at its end, or by force."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from .work import Failed

PEERS = ["bindfs", "mergerfs", "rclone"]
PACKAGES = ["bindfs", "mergerfs", "rclone", "fio", "fuse3", "sshfs", "openssh-sftp-server"]
SFTP_SERVERS = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"]
# The most that one request of the slow source reads: what the kernel asks of most network file systems, or more.
REQUEST = 128 << 10


def mount_minor(path):
    """The minor device number of what is mounted at a path, or None. Asks the kernel's table, never the mount."""
    wanted = str(path).replace("\\", "\\134").replace(" ", "\\040")
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        fields = line.split(" ")
        if fields[4] == wanted:
            return fields[2].split(":")[1]
    return None


class Mount:
    """A mounted file system, its daemon in the foreground of its own session."""

    def __init__(self, name, command, mountpoint, log, scratch=None):
        self.name = name
        self.scratch = scratch
        self.path = mountpoint
        self.path.mkdir(exist_ok=True)
        self.log = log
        self.minor = None
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 15
            while (minor := mount_minor(mountpoint)) is None:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Failed("no mount", log.read_text(errors="replace").strip())
                time.sleep(0.02)
            self.minor = minor
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def memory(self):
        """Peak and present resident memory of the daemon, in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return [int(fields[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS")]

    def close(self):
        # First the polite way, which every one of them understands as "unmount and end".
        if self.process.poll() is None:
            self.process.terminate()
        if self.wait(5) and mount_minor(self.path) is None:
            return
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if mount_minor(self.path) is not None:
            if subprocess.run(["fusermount3", "-u", "-z", self.path], **quiet).returncode != 0:
                subprocess.run(["umount", "-l", self.path], **quiet)
        if not self.wait(2):
            self.process.kill()
            self.abort()
            self.wait(2)

    def wait(self, seconds):
        try:
            self.process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            return False

    def abort(self):
        """Cuts the connection of this mount, and of no other."""
        if self.minor is None:
            return
        connections = Path("/sys/fs/fuse/connections")
        if not (connections / self.minor).exists():
            subprocess.run(["mount", "-t", "fusectl", "none", connections], stderr=subprocess.DEVNULL)
        try:
            (connections / self.minor / "abort").write_text("1")
        except OSError:
            pass


class Disk:
    """A directory itself, where the others have a mount."""

    def __init__(self, path, name="local disk"):
        self.name = name
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def memory(self):
        return None


class SlowSource(Mount):
    """A directory whose every request takes a time, and which counts them."""

    def __init__(self, program, source, folder, milliseconds):
        self.control = folder / "slow.sock"
        self.milliseconds = milliseconds
        command = [program, source, folder / "mnt-slow", "--delay", f"{milliseconds}ms", "--max-read", str(REQUEST)]
        super().__init__("slow source", [*command, "--control", self.control], folder / "mnt-slow", folder / "slow.log")
        # The socket comes after the mount.
        deadline = time.monotonic() + 15
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.ask("reset")
                return
            time.sleep(0.02)
        self.close()
        raise Failed("no control socket")

    def ask(self, command):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.control))
            client.sendall(f"{command}\n".encode())
            answer = client.makefile().readline().strip()
        if answer.startswith("error"):
            raise Failed(answer)
        return answer

    def stats(self):
        """What was asked since the last reset, once nothing more is under way: some fetch ahead of the program."""
        seen = None
        deadline = time.monotonic() + 5
        while (now := json.loads(self.ask("stats"))) != seen and time.monotonic() < deadline:
            seen = now
            time.sleep(max(0.05, 3 * self.milliseconds / 1e3))
        return now

    @contextlib.contextmanager
    def without_delay(self):
        """For what is done before a measurement."""
        self.ask("delay 0")
        try:
            yield
        finally:
            self.ask(f"delay {self.milliseconds}ms")


class Sshfs(Mount):
    """A directory through sshfs, sftp-server and a line that takes its time; sshfs keeps its own caches."""

    def __init__(self, proxy, source, folder, milliseconds):
        self.proxy = None
        server = next((path for path in SFTP_SERVERS if os.path.exists(path)), None)
        if server is None or shutil.which("sshfs") is None:
            raise Failed("not there")
        self.proxy = subprocess.Popen(
            [proxy, "--delay-ms", str(milliseconds / 2), server],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            port = self.proxy.stdout.readline().decode().strip().rpartition(":")[2]
            command = ["sshfs", "-f", "-o", f"directport={port}", f"localhost:{source}", folder / "mnt-sshfs"]
            super().__init__("sshfs", command, folder / "mnt-sshfs", folder / "sshfs.log")
        except BaseException:
            self.end_proxy()
            raise

    def close(self):
        super().close()
        self.end_proxy()

    def end_proxy(self):
        if self.proxy is not None and self.proxy.poll() is None:
            self.proxy.terminate()
            self.proxy.wait()

    def stats(self):
        """Its requests are not counted."""
        return None


class Mounter:
    """Mounts what a row of the tables is about, below one working directory."""

    def __init__(self, folder, warmfs, slow_source, delay_proxy):
        self.folder = folder
        self.warmfs = warmfs
        self.slow_source = slow_source
        self.delay_proxy = delay_proxy
        self.source = folder / "source"
        self.source.mkdir()
        self.missing = [name for name in PEERS if shutil.which(name) is None]
        self.caches = 0

    def mount(self, name, *extra, source=None, ttl=None):
        """A mount of the source, or of another directory. `extra` is for warmfs; `ttl` is how many seconds names and
        attributes are believed, for those that have such a setting; without it they have their defaults."""
        source = source or self.source
        if name in ("local disk", "direct", "sshfs"):
            return Disk(source, name)
        if name in self.missing:
            raise Failed("not there")
        mountpoint = self.folder / f"mnt-{name}"
        log = self.folder / f"{name}.log"
        scratch = None
        if name == "warmfs":
            command = [self.warmfs, "mount", "--foreground", *extra]
            command += [f"--ttl={ttl}"] if ttl is not None else []
        elif name == "bindfs":
            command = ["bindfs", "-f"]
        elif name == "mergerfs":
            choice = "cache.files=auto-full,dropcacheonclose=false,category.create=mfs"
            if ttl is not None:
                choice += f",cache.attr={ttl},cache.entry={ttl},cache.statfs={ttl}"
                choice += ",cache.readdir=true,cache.symlinks=true"
            command = ["mergerfs", "-f", "-o", choice]
        elif name == "rclone":
            # A new cache for each mount: a cold one. And the setting that its manual advises for directories: without
            # it the first open reads all of a file, for a checksum.
            self.caches += 1
            scratch = self.folder / f"rclone-cache-{self.caches}"
            command = ["rclone", "mount", "--vfs-cache-mode", "full", "--vfs-fast-fingerprint"]
            command += ["--cache-dir", scratch, "--config", ""]
        else:
            raise ValueError(name)
        return Mount(name, [*command, source, mountpoint], mountpoint, log, scratch)

    def place(self, kind, milliseconds):
        """Slow storage that shows the source."""
        if kind == "sshfs":
            return Sshfs(self.delay_proxy, self.source, self.folder, milliseconds)
        return SlowSource(self.slow_source, self.source, self.folder, milliseconds)


def remove(folder):
    """Removes the working directory; never through a mount, where the source would be deleted."""
    if any(f" {folder}/" in line for line in Path("/proc/self/mountinfo").read_text().splitlines()):
        print(f"bench: still mounted, so left in place: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
