//! Each operation, as the kernel asks for it.

use super::{DEFAULT, Found, View, ask, caller};
use crate::ops::{NOWHERE, Op, bytes};
use crate::plain::{Answer, Attr, Code, Value};
use nix::errno::Errno;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;
use warmfs::cache::Trust;
use warmfs::overlay::SetAttr;
use warmfs::span::Span;
use warmfs::sys::{self, SetTime, Time};

impl View {
    pub(crate) fn apply(&mut self, op: &Op) -> Answer {
        match self.attempt(op) {
            Err(Code(Errno::ESTALE)) => self.attempt(op),
            other => other,
        }
    }

    fn attempt(&mut self, op: &Op) -> Answer {
        let (overlay, caller) = (self.overlay.clone(), caller());
        Ok(match *op {
            Op::Open(slot, place, flags) => {
                self.slots[slot] = None;
                self.slots[slot] = Some(self.open_path(place, flags)?);
                Value::Nothing
            }
            Op::Close(slot) => {
                let open = self.slots[slot].take().ok_or(Errno::EBADF)?;
                overlay.flush(open.handle)?.into()
            }
            Op::Read(slot, (pos, size)) => self
                .read(self.slot(slot, false)?.handle, Span::new(pos, size))?
                .into(),
            Op::Write(slot, (pos, size), seed) => {
                self.write(self.slot(slot, true)?, pos, bytes(size, seed))?
            }
            Op::Cut(slot, size) => {
                let open = self.slot(slot, true)?;
                self.set(
                    open.node,
                    Some(open.handle),
                    SetAttr {
                        size: Some(size),
                        ..DEFAULT
                    },
                )?
            }
            Op::Allocate(slot, mode, (pos, size)) => overlay
                .allocate(caller, self.slot(slot, true)?.handle, mode, pos, size)?
                .into(),
            Op::Copy(from, (from_pos, size), to, to_pos) => {
                let (from, to) = (self.slot(from, false)?.handle, self.slot(to, true)?);
                if to.flags & libc::O_APPEND != 0 {
                    return Err(Code(Errno::EBADF));
                }
                overlay
                    .copy(caller, (from, from_pos), (to.handle, to_pos), size)?
                    .into()
            }
            Op::StatOpen(slot) => {
                let open = self.slots[slot].as_ref().ok_or(Errno::EBADF)?;
                Value::Attr(self.attr(&self.getattr(open.node)?, None))
            }
            Op::Stat(place) => {
                let stat = self.getattr(self.there(place)?.node)?;
                Value::Attr(self.attr(&stat, Some(Path::new(place))))
            }
            Op::List(place) => {
                let found = self.list(place, false)?.into_iter();
                Value::Names(found.map(|(name, (kind, _))| (name, kind)).collect())
            }
            Op::ListPlus(place) => {
                let found = self.list(place, true)?.into_iter();
                let attr = |attr: Option<Attr>| attr.expect("it was asked for");
                Value::Attrs(
                    found
                        .map(|(name, (_, given))| (name, attr(given)))
                        .collect(),
                )
            }
            Op::Put(place, (pos, size), seed) => {
                let open = self.open_path(place, libc::O_WRONLY | libc::O_CREAT)?;
                self.write(&open, pos, bytes(size, seed))?
            }
            Op::Truncate(place, size) => {
                let there = self.no_link(place)?;
                match there.kind {
                    libc::S_IFREG => self.set(
                        there.node,
                        None,
                        SetAttr {
                            size: Some(size),
                            ..DEFAULT
                        },
                    )?,
                    libc::S_IFDIR => return Err(Code(Errno::EISDIR)),
                    _ => return Err(Code(Errno::EINVAL)),
                }
            }
            Op::Mkdir(place) => self.make(place, |dir, name| {
                overlay.mkdir(caller, dir, name, (0o755, 0))
            })?,
            Op::Mkfifo(place) => {
                let mode = (libc::S_IFIFO | 0o644, 0);
                self.make(place, |dir, name| overlay.mknod(caller, dir, name, mode, 0))?
            }
            Op::Symlink(place) => self.make(place, |dir, name| {
                overlay.symlink(caller, dir, name, Path::new(NOWHERE))
            })?,
            Op::Link(old, new) => {
                let old = self.there(old)?;
                self.make(new, |dir, name| overlay.link(old.node, dir, name))?
            }
            Op::Rmdir(place) => {
                let found = self.find(place)?;
                overlay.rmdir(found.dir, found.name)?.into()
            }
            Op::Unlink(place) => {
                let found = self.find(place)?;
                overlay.unlink(found.dir, found.name)?.into()
            }
            Op::Rename(from, to, flags) => {
                let (from, to) = (self.find(from)?, self.find(to)?);
                let node = |found: &Found| found.entry.map(|entry| entry.node);
                // Two names of one file: the kernel does nothing, and does not ask.
                if node(&from).is_some()
                    && node(&from) == node(&to)
                    && flags != sys::RENAME_NOREPLACE
                {
                    return Ok(Value::Nothing);
                }
                overlay
                    .rename((from.dir, from.name), (to.dir, to.name), flags)?
                    .into()
            }
            Op::Readlink(place) => {
                let there = self.there(place)?;
                if there.kind != libc::S_IFLNK {
                    return Err(Code(Errno::EINVAL));
                }
                let known = overlay.readlink_known(there.node, Trust::Ttl);
                ask(known, || overlay.readlink(there.node))?
                    .into_encoded_bytes()
                    .into()
            }
            Op::Chmod(place, mode) => self.set(
                self.no_link(place)?.node,
                None,
                SetAttr {
                    mode: Some(mode),
                    ..DEFAULT
                },
            )?,
            Op::SetTime(place, secs) => {
                let mtime = Some(SetTime::At(Time { secs, nanos: 5 }));
                self.set(self.there(place)?.node, None, SetAttr { mtime, ..DEFAULT })?
            }
            Op::SetXattr(place, name, size, flags) => {
                let (there, value) = (self.there(place)?, bytes(size as u64, 0));
                overlay
                    .setxattr(caller, there.node, OsStr::new(name), &value, flags, 0)?
                    .into()
            }
            Op::GetXattr(place, name, size) => {
                let (there, name) = (self.there(place)?, OsStr::new(name));
                let known = overlay.getxattr_known(there.node, name, size, Trust::Ttl);
                known
                    .unwrap_or_else(|| overlay.getxattr(there.node, name, size))?
                    .into()
            }
            Op::ListXattr(place) => {
                let there = self.there(place)?;
                let known = overlay.listxattr_known(there.node, 1000, Trust::Ttl);
                known
                    .unwrap_or_else(|| overlay.listxattr(there.node, 1000))?
                    .into()
            }
            Op::RemoveXattr(place, name) => overlay
                .removexattr(self.there(place)?.node, OsStr::new(name))?
                .into(),
            Op::Wait(millis) => {
                self.clock.advance(Duration::from_millis(millis));
                Value::Nothing
            }
            Op::Sweep => {
                overlay.close_idle(Duration::ZERO);
                Value::Nothing
            }
            Op::Outside(..) => Value::Nothing,
        })
    }
}
