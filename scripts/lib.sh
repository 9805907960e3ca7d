# shellcheck shell=bash
# Common ground of the scripts in this folder. Sourced, not run; the sourcing script has `set -eu -o pipefail`.
#
# What it promises: whatever a script mounts is unmounted when the script ends, however it ends, and a mount that hangs
# is cut off instead of hanging the script with it. Written for bash 3.2, which macOS still brings, where noted below;
# everything that mounts is for Linux.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TOOLS=$ROOT/target/tools          # programs that only the scripts need: never part of the build
WORK=                             # this run's temporary directory, see make_work
MOUNTS=()                         # mount points of this run, newest last
MOUNT_PIDS=()                     # the process that serves each of them, same order
WATCHDOG_PID=
APT_UPDATED=

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { warn "$*"; exit 2; }

# usage: prints the comment block at the top of the script itself, so that the help has one home.
usage() { awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"; }

need_linux() { [ "$(uname -s)" = Linux ] || die "this script needs Linux"; }
need_root() { [ "$(id -u)" = 0 ] || die "this script must run as root: $1"; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# install_packages PACKAGE...: from Debian or Ubuntu. The package lists are fetched once per run, and only if needed.
install_packages() {
    command -v apt-get >/dev/null || die "please install: $* (apt-get is not here, so this script cannot)"
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        die "please install as root: $*"
    fi
    if [ -z "$APT_UPDATED" ]; then
        as_root apt-get update -qq || warn "apt-get update failed; trying with the package lists that are here"
        APT_UPDATED=1
    fi
    say "installing $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null </dev/null ||
        die "could not install: $*"
}

# need COMMAND [PACKAGE]: the command is there, or its package gets installed.
need() {
    local command=$1 package=${2:-$1}
    # Tools of the administrator are not on every user's path.
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || install_packages "$package"
}

# Rust from rustup is preferred; Debian's own "web" packages follow the Rust releases and serve as well.
need_rust() {
    local wanted have
    [ -d "$HOME/.cargo/bin" ] && PATH=$PATH:$HOME/.cargo/bin
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    if ! command -v cargo >/dev/null; then
        command -v apt-get >/dev/null || die "Rust $wanted or newer is needed, see https://rustup.rs"
        install_packages cargo-web rustc-web
    fi
    have=$(cargo --version | awk '{ print $2 }')
    if [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
        die "Rust $wanted or newer is needed, here is $have; see https://rustup.rs"
    fi
    # rustc calls the C compiler to link.
    command -v cc >/dev/null || case $(uname -s) in
        Darwin) die "a linker is needed: xcode-select --install" ;;
        *) need cc gcc && install_packages libc6-dev ;;
    esac
}

# need_crate NAME VERSION: a test program from crates.io, built once, kept beside the build.
need_crate() {
    need_rust
    if [ "$("$TOOLS/bin/$1" --version 2>/dev/null)" != "$1 $2" ]; then
        say "installing $1 $2 into target/tools"
        # -q: some hundred lines about its dependencies would hide the test's own.
        cargo install -q --locked --root "$TOOLS" "$1@$2" 2> >(grep -v 'be sure to add' >&2 || true)
    fi
}

# The binary under test: always the release build of this tree, unless WARMFS names another one.
build_warmfs() {
    if [ -z "${WARMFS:-}" ]; then
        need_rust
        (cd "$ROOT" && cargo build --release --locked --bin warmfs)
        WARMFS=${CARGO_TARGET_DIR:-$ROOT/target}/release/warmfs
    fi
    [ -x "$WARMFS" ] || die "no program at $WARMFS"
}

# make_work NAME [PARENT]: a directory in WORK, removed at the end. Not in /tmp, which is a RAM disk on many machines:
# the source must be an ordinary disk file system.
make_work() {
    WORK=$(mktemp -d "$(cd "${2:-${TMPDIR:-/var/tmp}}" && pwd -P)/warmfs-$1.XXXXXX")
    # Other users must get through, some tests switch to them.
    chmod 755 "$WORK"
    trap cleanup EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# need_fuse: the device is there, or it is said why not.
need_fuse() {
    need_linux
    if [ ! -e /dev/fuse ]; then
        # A container's or a minimal system's /dev may lack the node although the kernel has FUSE.
        as_root modprobe fuse 2>/dev/null || true
        if [ ! -e /dev/fuse ] && grep -qw fuse /proc/filesystems; then
            as_root mknod -m 666 /dev/fuse c 10 229 2>/dev/null || true
        fi
    fi
    [ -e /dev/fuse ] ||
        die "/dev/fuse is missing: this kernel or container has no FUSE (docker: --device /dev/fuse --cap-add SYS_ADMIN)"
    # A node alone does not say that the kernel serves it.
    if [ "$(id -u)" = 0 ] && ! (exec 3<>/dev/fuse) 2>/dev/null; then
        die "/dev/fuse cannot be opened: the container lacks the device (docker: --device /dev/fuse --cap-add SYS_ADMIN)"
    fi
    need fusermount3 fuse3
}

# mount_device DIR: "major:minor" of what is mounted exactly there, or nothing. Reads the mount table only: a look at
# the directory itself would hang with a hung mount.
mount_device() { awk -v dir="$1" '$5 == dir { device = $3 } END { if (device) print device }' /proc/self/mountinfo; }

# mount_view PEER SOURCE MOUNTPOINT [OPTION...]: mounts and waits until it is ready. VIEW is then the directory to work
# in and VIEW_PID the process that serves it. PEER is warmfs, or what it is compared with: bindfs, or none, which is
# the source itself. The options are for warmfs; the others get what comes closest.
mount_view() {
    local peer=$1 source=$2 point=$3 log tries
    shift 3
    VIEW=$point VIEW_PID=
    log=$WORK/mount-${#MOUNTS[@]}.log
    mkdir -p "$point"
    # A session of its own: Ctrl-C is for this script, which then unmounts in an orderly way.
    case $peer in
        warmfs) setsid "$WARMFS" mount --foreground "$@" "$source" "$point" >"$log" 2>&1 </dev/null & ;;
        bindfs)
            need bindfs
            setsid bindfs -f -o allow_other,suid,dev "$source" "$point" >"$log" 2>&1 </dev/null &
            ;;
        none)
            # shellcheck disable=SC2034 # the scripts that source this read it
            VIEW=$source
            return
            ;;
        *) die "unknown peer $peer: bindfs or none" ;;
    esac
    VIEW_PID=$!
    MOUNTS+=("$point")
    MOUNT_PIDS+=("$VIEW_PID")
    for ((tries = 0; tries < 200; tries++)); do
        if [ -n "$(mount_device "$point")" ]; then return; fi
        kill -0 "$VIEW_PID" 2>/dev/null || break
        sleep 0.05
    done
    sed 's/^/    /' "$log" >&2
    die "the mount did not become ready"
}

# abort_mount DIR: the kernel answers every request there with an error from now on, so that whoever hangs comes free.
abort_mount() {
    local device minor
    device=$(mount_device "$1")
    [ -n "$device" ] || return 0
    minor=${device#*:}
    if [ ! -e "/sys/fs/fuse/connections/$minor" ]; then
        as_root mount -t fusectl none /sys/fs/fuse/connections 2>/dev/null || true
    fi
    echo 1 | as_root tee "/sys/fs/fuse/connections/$minor/abort" >/dev/null 2>&1 || true
}

# unmount_view DIR: in good order; fails if it is still mounted or its process still there 20 seconds later.
unmount_view() {
    local point=$1 pid='' i tries
    [ -n "$(mount_device "$point")" ] || { forget_mount "$point"; return 0; }
    for i in "${!MOUNTS[@]}"; do
        [ "${MOUNTS[$i]}" = "$point" ] && pid=${MOUNT_PIDS[$i]}
    done
    # In the background with its output in a file: on a hung mount it may never come back.
    if [ -n "${WARMFS:-}" ] && [ -z "${UNMOUNT_WITH_SYSTEM:-}" ]; then
        "$WARMFS" umount "$point" >"$WORK/umount.log" 2>&1 </dev/null &
    else
        fusermount3 -u "$point" >"$WORK/umount.log" 2>&1 </dev/null &
    fi
    for ((tries = 0; tries < 400; tries++)); do
        if [ -z "$(mount_device "$point")" ] && ! kill -0 "$pid" 2>/dev/null; then
            forget_mount "$point"
            return 0
        fi
        sleep 0.05
    done
    sed 's/^/    /' "$WORK/umount.log" >&2
    warn "could not unmount $point"
    return 1
}

forget_mount() {
    local i
    for i in "${!MOUNTS[@]}"; do
        if [ "${MOUNTS[$i]}" = "$1" ]; then unset "MOUNTS[$i]" "MOUNT_PIDS[$i]"; fi
    done
}

# watchdog SECONDS: after that time every mount of this run made so far is aborted; the tests on it then fail and the
# script ends. `timeout` cannot do this, a program inside a hung request takes no signal.
watchdog() {
    stop_watchdog
    (
        trap - EXIT
        # The sleep must not outlive its watchdog: it would hold the script's output open for whoever reads that.
        sleep "$1" >/dev/null 2>&1 &
        trap 'kill $! 2>/dev/null' TERM
        wait $! || exit 0
        warn "not done after $1 seconds: aborting the mount"
        for point in ${MOUNTS[@]+"${MOUNTS[@]}"}; do abort_mount "$point"; done
    ) &
    WATCHDOG_PID=$!
}

stop_watchdog() {
    if [ -n "$WATCHDOG_PID" ]; then
        kill "$WATCHDOG_PID" 2>/dev/null || true
        wait "$WATCHDOG_PID" 2>/dev/null || true
        WATCHDOG_PID=
    fi
}

# show_mount_log: what the file system itself had to say, for a failed test.
show_mount_log() {
    local log
    for log in "$WORK"/mount-*.log; do
        if [ -s "$log" ]; then
            say "--- last lines of the mount's own output"
            tail -n 20 "$log"
        fi
    done
}

# Ends only what this run started. KEEP=1 leaves the files for a look, unmounted all the same.
cleanup() {
    local status=$? point pid i
    trap - EXIT HUP INT TERM
    set +e
    cd /
    stop_watchdog
    for pid in $(jobs -p); do
        case " ${MOUNT_PIDS[*]-} " in *" $pid "*) ;; *) kill "$pid" 2>/dev/null ;; esac
    done
    for i in "${!MOUNTS[@]}"; do
        point=${MOUNTS[$i]} pid=${MOUNT_PIDS[$i]}
        if ! unmount_view "$point" 2>/dev/null; then
            warn "forcing the unmount of $point"
            abort_mount "$point"
            as_root umount -l "$point" 2>/dev/null
            kill -9 "$pid" 2>/dev/null
        fi
    done
    if [ -n "${OTHER_MOUNT:-}" ]; then as_root umount -l "$OTHER_MOUNT" 2>/dev/null; fi
    if [ -n "$WORK" ]; then
        if [ -n "${KEEP:-}" ]; then
            say "kept: $WORK"
        elif grep -qF " $WORK/" /proc/self/mountinfo; then
            warn "something is still mounted below $WORK: not removed"
        else
            rm -rf --one-file-system "$WORK"
        fi
    fi
    exit "$status"
}

# finish NAME FAILURES [TEXT]: the last line and the exit code of every script.
finish() {
    if [ "$2" = 0 ]; then
        say "$1: PASS${3:+ ($3)}"
        exit 0
    fi
    say "$1: FAIL${3:+ ($3)}"
    exit 1
}
