//! Buffers for what is put together from several slots.
//!
//! FUSE takes one piece of memory as its answer. Fresh buffers of some hundred KiB, on several threads at once, come from
//! the system with every use, and cost more in page faults than the copies into them: where the kernel's read-ahead was
//! raised to 256 KiB or 1 MiB (`read_ahead_kb`), the memory tier answered with 1.3 GB/s, and with these buffers 2.4 to 2.9.
//! Whoever drops the bytes gives the buffer back.

use bytes::Bytes;
use parking_lot::Mutex;

/// Buffers kept: one for each thread that usually answers, and some in between. At most 8 MiB.
const KEPT_MAX: usize = 8;

/// Smaller ones the allocator keeps itself.
const SIZE_MIN: usize = 64 << 10;

/// The largest request of the kernel; a program of the library may ask for more, and has its own to keep.
const SIZE_MAX: usize = 1 << 20;

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Goes back when nobody uses it any more.
struct Lent(Vec<u8>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = KEPT.lock();
        if kept.len() < KEPT_MAX {
            kept.push(std::mem::take(&mut self.0));
        }
    }
}

/// `pieces`, `size` bytes together, one after the other.
pub(super) fn of<'a>(pieces: impl Iterator<Item = &'a Bytes>, size: usize) -> Bytes {
    let is_lent = (SIZE_MIN..=SIZE_MAX).contains(&size);
    let mut whole = if is_lent {
        take(size)
    } else {
        Vec::with_capacity(size)
    };
    for piece in pieces {
        whole.extend_from_slice(piece);
    }
    if is_lent {
        Bytes::from_owner(Lent(whole))
    } else {
        whole.into()
    }
}

/// An empty buffer that takes `size` bytes, and not many times more: who keeps the bytes for long keeps all of it.
fn take(size: usize) -> Vec<u8> {
    let mut kept = KEPT.lock();
    let fits = |buffer: &Vec<u8>| (size..=2 * size).contains(&buffer.capacity());
    let found = kept.iter().rposition(fits);
    // One that does not fit makes room for one that will.
    let buffer = found.map(|index| kept.swap_remove(index));
    let is_full = buffer.is_none() && kept.len() == KEPT_MAX;
    let unfit = is_full.then(|| kept.remove(0));
    // Memory goes back to the system without the lock.
    drop(kept);
    drop(unfit);
    let mut buffer = buffer.unwrap_or_else(|| Vec::with_capacity(size));
    buffer.clear();
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tests of this process use the same buffers, so which one comes is not said.
    #[test]
    fn what_is_lent_is_what_was_put_in() {
        for round in 0..100_u8 {
            for size in [10, SIZE_MIN, 300_000, SIZE_MAX, SIZE_MAX + 1] {
                let pieces = [
                    Bytes::from(vec![round; size / 2]),
                    Bytes::from(vec![round + 1; size - size / 2]),
                ];
                let whole = of(pieces.iter(), size);
                let (first, second) = whole.split_at(size / 2);
                assert!(first == &pieces[0][..] && second == &pieces[1][..]);
                let part = whole.slice(1..);
                drop(whole);
                assert_eq!(part.len(), size - 1);
                assert!(part[0] == round && part[size - 2] == round + 1);
            }
        }
        assert!(KEPT.lock().len() <= KEPT_MAX);
    }
}
