"""Work that is measured. It runs in a process of its own, so that a hung mount stops neither the measurement nor the
unmounting after it. Files stay open until the outcome is said. On slow storage, work that is not done within its limit is stopped: such a figure is the rate of
what was done by then, and `partial` says so."""

import json
import mmap
import os
import random
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

KIB = 1 << 10
MIB = 1 << 20

# git as everybody has it, but for what would write, or would tell the file systems apart by more than their speed:
# a mount with inode numbers of its own makes git read every file again, unless it may write its index.
GIT = [
    "git", "-c", "core.fsmonitor=false", "-c", "core.checkStat=minimal", "-c", "core.trustctime=false",
    "-c", "core.fileMode=false", "-c", "core.untrackedCache=false", "-c", "safe.directory=*",
]  # fmt: skip
GIT_ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


class Failed(Exception):
    """What stands in the table in place of a figure."""


def run_apart(command, timeout):
    """The standard output of a command that may hang on a mount: after the timeout nobody waits for it. What has said
    its outcome by then and only does not come to its end is done: closing a file may wait for all that is under way."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            out.seek(0)
            if not (said := out.read()):
                raise Failed("hung") from None
            return said
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        err.seek(0)
        if code != 0:
            text = err.read().decode(errors="replace").strip()
            raise Failed("refused" if "Invalid argument" in text else "failed", text)
        return out.read()


def work(name, *arguments, timeout=120):
    """The outcome of one of the functions below, `work_NAME`."""
    return json.loads(run_apart([sys.executable, __file__, json.dumps([name, *arguments])], timeout))


def fio(path, size, jobs, seconds, direct):
    """Random reads of 4 KiB per second."""
    output = run_apart(
        [
            "fio", "--name=bench", f"--filename={path}", f"--size={size}", "--rw=randread", "--bs=4k",
            "--ioengine=psync", f"--numjobs={jobs}", f"--direct={int(direct)}", "--time_based",
            f"--runtime={seconds:.1f}s" if seconds >= 1 else f"--runtime={int(seconds * 1000)}ms",
            # The cache is what is measured: fio must not empty it first.
            "--invalidate=0", "--allow_file_create=0", "--group_reporting", "--output-format=json",
        ],
        timeout=seconds + 60,
    )  # fmt: skip
    text = output.decode()
    return json.loads(text[text.index("{") :])["jobs"][0]["read"]["iops"]


def git(*arguments):
    """Runs git outside any measurement, and gives its output."""
    environment = {**os.environ, **GIT_ENVIRONMENT}
    return subprocess.run([*GIT, *arguments], env=environment, check=True, capture_output=True).stdout


# ---------------------------------------------------------------------------------------------------------------------
# On local storage


def buffer_of(size):
    """Memory that begins on a page, as dd and fio have it: copying to any other is several times slower."""
    return mmap.mmap(-1, size)


def work_read(path, size, block, passes):
    """Bytes per second of reading a file once, the median of some passes. One more, before, makes it warm."""
    buffer = buffer_of(block)
    rates = []
    fd = os.open(path, os.O_RDONLY)
    for number in range(passes + 1):
        done, start = 0, time.perf_counter()
        while count := os.preadv(fd, [buffer], done):
            done += count
        rates.append(done / (time.perf_counter() - start))
        assert done == size, f"read {done} bytes of {size}"
    os.close(fd)
    return statistics.median(rates[1:])


def work_read_once(path, size, block):
    """Seconds of reading a file from the start, as it is."""
    buffer = buffer_of(block)
    done, start = 0, time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    while count := os.preadv(fd, [buffer], done):
        done += count
    os.close(fd)
    assert done == size, f"read {done} bytes of {size}"
    return time.perf_counter() - start


def work_write(path, size, block, fsync):
    """Bytes per second of writing a new file, closed at the end (and on the disk, with fsync)."""
    buffer = buffer_of(block)
    buffer.write(os.urandom(block))
    start = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for position in range(0, size, block):
        assert os.pwrite(fd, buffer, position) == block, "short write"
    if fsync:
        os.fsync(fd)
    os.close(fd)
    took = time.perf_counter() - start
    assert os.stat(path).st_size == size, "wrong size after writing"
    os.unlink(path)
    return size / took


def work_files(folder, count):
    """Files per second: created with one KiB each, statted, unlinked."""
    data = os.urandom(1024)
    os.mkdir(folder)
    names = [f"{folder}/{number:06}" for number in range(count)]
    times = [time.perf_counter()]
    for name in names:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        os.close(fd)
    times.append(time.perf_counter())
    for name in names:
        assert os.stat(name).st_size == len(data)
    times.append(time.perf_counter())
    for name in names:
        os.unlink(name)
    times.append(time.perf_counter())
    os.rmdir(folder)
    return [count / (end - start) for start, end in zip(times, times[1:])]


def work_list(folder, flag, count):
    """Seconds of `ls FLAG | wc -l`, the start of the two programs included."""
    start = time.perf_counter()
    lines = subprocess.run(
        ["sh", "-c", 'ls "$1" "$2" | wc -l', "sh", flag, folder], stdout=subprocess.PIPE, check=True
    ).stdout
    took = time.perf_counter() - start
    assert count <= int(lines) <= count + 2, f"{int(lines)} lines for {count} entries"
    return took


# ---------------------------------------------------------------------------------------------------------------------
# On slow storage


def done_by(amount, whole, start):
    """How much was done, how long it took, and whether that was not all of it."""
    return {"done": amount, "seconds": time.perf_counter() - start, "partial": amount < whole}


def work_stream(path, size, block, limit):
    """Reads a file that nobody has read yet, from the start."""
    buffer = buffer_of(block)
    done, start = 0, time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    while time.perf_counter() < start + limit and (count := os.preadv(fd, [buffer], done)):
        done += count
    outcome = done_by(done, size, start)
    assert not outcome["partial"] or outcome["seconds"] >= limit, f"read {done} bytes of {size}"
    return outcome


def work_first(path):
    """Seconds of the open, and of the first read."""
    buffer = buffer_of(4 * KIB)
    times = [time.perf_counter()]
    fd = os.open(path, os.O_RDONLY)
    times.append(time.perf_counter())
    assert os.preadv(fd, [buffer], 0) == 4 * KIB
    times.append(time.perf_counter())
    return [end - start for start, end in zip(times, times[1:])]


def work_random(path, size, count, seed, limit):
    """Reads of 4 KiB at random places, one after the other."""
    buffer = buffer_of(4 * KIB)
    places = random.Random(seed).sample(range(size // (4 * KIB)), count)
    fd = os.open(path, os.O_RDONLY)
    done, start = 0, time.perf_counter()
    while done < count and time.perf_counter() < start + limit:
        assert os.preadv(fd, [buffer], places[done] * 4 * KIB) == 4 * KIB
        done += 1
    return done_by(done, count, start)


def outcome_of(command, whole, amount, limit):
    """Runs a program to its end or to the limit; `amount` says how much of the whole a piece of its output is. What
    it has still in its buffer counts as not done."""
    start = time.perf_counter()
    # Through a pipe: GNU tar reads no files when its output is /dev/null.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    fd, done, ended = process.stdout.fileno(), 0, False
    while not ended and (left := start + limit - time.perf_counter()) > 0:
        if select.select([fd], [], [], left)[0]:
            piece = os.read(fd, 64 * KIB)
            done += amount(piece)
            ended = not piece
    if ended:
        assert process.wait() == 0, f"{command[0]} failed"
        assert done == whole, f"{done} of {whole} from {command[0]}"
    outcome = done_by(done, whole, start)
    if not ended:
        process.kill()
        process.wait()
    return {**outcome, "partial": not ended}


def work_tar(folder, size, limit):
    """Packs a directory: bytes of the archive, which are `size` in all."""
    return outcome_of(["tar", "-C", folder, "-cf", "-", "."], size, len, limit)


def work_find(folder, entries, limit):
    """Lists a directory with all below it, and their attributes: lines, one for each entry."""
    # Line by line, so that what was done by the limit is known.
    return outcome_of(["stdbuf", "-oL", "find", folder, "-ls"], entries, lambda piece: piece.count(b"\n"), limit)


def work_learn(folder, processes):
    """Lists a tree with attributes, many directories at once: before a measurement, at the speed of its storage."""
    found = subprocess.run(["find", folder, "-type", "d", "-print0"], stdout=subprocess.PIPE, check=True).stdout
    command = ["xargs", "-0", "-n", "1", "-P", str(processes), "sh", "-c", 'find "$1" -maxdepth 1 -ls >/dev/null', "sh"]
    subprocess.run(command, input=found, check=True)


def work_git(folder, limit):
    """Whether a working tree is clean, asked of git."""
    start = time.perf_counter()
    environment = {**os.environ, **GIT_ENVIRONMENT}
    process = subprocess.Popen(
        [*GIT, "-C", folder, "status", "--porcelain"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return {"done": 0, "seconds": limit, "partial": True}
    outcome = done_by(1, 1, start)
    assert process.returncode == 0 and not output, f"not clean: {output[:200]}"
    return outcome


def work_forget(path):
    """Takes a file's pages from the page cache of the file system that shows it."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def work_reopen(folder, count, seconds):
    """Seconds of one open, read of 4 KiB and close, of files that were read before."""
    names = [f"{folder}/f{number:04}" for number in range(count)]
    buffer = buffer_of(4 * KIB)

    def once():
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            assert os.preadv(fd, [buffer], 0) == 4 * KIB
            os.close(fd)

    once()
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        once()
        rounds += 1
    return (time.perf_counter() - start) / max(rounds * len(names), 1)


def work_many(folder, size, block, limit):
    """Reads all files of a directory at once, each in a process of its own."""
    names = [f"{folder}/{name}" for name in sorted(os.listdir(folder))]
    ready, go = os.pipe(), os.pipe()
    result, readers = os.pipe(), []
    for name in names:
        if (pid := os.fork()) != 0:
            readers.append(pid)
            continue
        os.close(go[1])
        buffer, done = buffer_of(block), 0
        os.write(ready[1], b"r")
        os.read(go[0], 1)
        start, error = time.perf_counter(), 0
        try:
            fd = os.open(name, os.O_RDONLY)
            while time.perf_counter() < start + limit and (count := os.preadv(fd, [buffer], done)):
                done += count
        except OSError as failure:
            error = failure.errno
        os.write(result[1], struct.pack("<qq", done, error))
        os._exit(0)
    for _ in names:
        os.read(ready[0], 1)
    start = time.perf_counter()
    os.close(go[1])
    each = [struct.unpack("<qq", os.read(result[0], 16)) for _ in names]
    done = sum(count for count, _ in each)
    outcome = done_by(done, size * len(names), start)
    errors = {os.strerror(error) for _, error in each if error}
    assert not errors, f"read {done} bytes: {', '.join(errors)}"
    for pid in readers:
        os.waitpid(pid, 0)
    assert not outcome["partial"] or outcome["seconds"] >= limit, f"read {done} bytes"
    return outcome


def work_player(path, size, second, pause):
    """What a media player does with a film of `second` bytes per second: it looks at the start, jumps to the middle,
    plays, rewinds 10 seconds, plays on, pauses and goes on. Seconds of the slowest read in each part."""
    block = 128 * KIB
    buffer = buffer_of(block)
    fd = os.open(path, os.O_RDONLY)
    slowest = {}

    def play(part, position, count):
        end = position + count
        while position < end:
            start = time.perf_counter()
            got = os.preadv(fd, [buffer], position)
            assert got == block, f"{got} bytes at {position}"
            slowest[part] = max(slowest.get(part, 0), time.perf_counter() - start)
            position += got
        return position

    start = time.perf_counter()
    play("start", 0, 2 * MIB)
    middle = size // 2 // block * block
    played = play("jump", middle, 12 * second)
    # In whole blocks: the last of them must not reach beyond what was played.
    back = 10 * second // block * block
    play("rewind", played - back, back)
    position = play("play on", played, 2 * second)
    # A pause is a time that passes: nothing to wait for.
    time.sleep(pause)
    position = play("after a pause", position, 2 * second)
    return {"slowest": slowest, "seconds": time.perf_counter() - start - pause, "asked": 2 * MIB + position - middle}


if __name__ == "__main__":
    chosen, *values = json.loads(sys.argv[1])
    json.dump(globals()[f"work_{chosen}"](*values), sys.stdout)
    sys.stdout.flush()
