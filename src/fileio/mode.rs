//! How a stream opens its file, in Python's mode strings.

use super::Error;
use nix::fcntl::OFlag;
use std::fmt;
use std::str::FromStr;

/// What an error message names as valid.
const MODES: &str =
    "rb, r+b, wb, w+b, ab, a+b, xb, x+b (the b may be left out or stand behind the +)";

/// A mode of Python's `open`, always binary.
///
/// | mode | reads | writes | file that is there | file that is missing |
/// |---|---|---|---|---|
/// | `rb` | yes | no | opened | error |
/// | `r+b` | yes | yes | opened | error |
/// | `wb`, `w+b` | with `+` | yes | emptied | created |
/// | `ab`, `a+b` | with `+` | at its end | opened | created |
/// | `xb`, `x+b` | with `+` | yes | error | created |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    base: Base,
    plus: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Base {
    Read,
    Write,
    Append,
    Exclusive,
}

impl Mode {
    /// `rb`, what a stream opens with unless it is told otherwise.
    pub const READ: Mode = Mode {
        base: Base::Read,
        plus: false,
    };

    /// May it be read?
    pub fn reads(self) -> bool {
        self.plus || self.base == Base::Read
    }

    /// May it be written?
    pub fn writes(self) -> bool {
        self.plus || self.base != Base::Read
    }

    /// Does every write go to the end of the file?
    pub fn appends(self) -> bool {
        self.base == Base::Append
    }

    /// Is the file emptied when it is opened? Not by `O_TRUNC`: the stream does it through the cache, which must know.
    pub(super) fn truncates(self) -> bool {
        self.base == Base::Write
    }

    /// Flags of open(2). Not `O_APPEND`: with it Linux appends what is written at an offset (pwrite(2), BUGS).
    pub(super) fn flags(self) -> OFlag {
        let access = match (self.reads(), self.writes()) {
            (true, true) => OFlag::O_RDWR,
            (false, _) => OFlag::O_WRONLY,
            (true, false) => OFlag::O_RDONLY,
        };
        access
            | match self.base {
                Base::Read => OFlag::empty(),
                Base::Write | Base::Append => OFlag::O_CREAT,
                Base::Exclusive => OFlag::O_CREAT | OFlag::O_EXCL,
            }
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mode, Error> {
        let unknown = || Error::UnknownMode {
            given: text.to_owned(),
            valid: MODES,
        };
        let (first, rest) = text.split_at_checked(1).ok_or_else(unknown)?;
        let base = match first {
            "r" => Base::Read,
            "w" => Base::Write,
            "a" => Base::Append,
            "x" => Base::Exclusive,
            _ => return Err(unknown()),
        };
        let plus = match rest {
            "" | "b" => false,
            "+" | "+b" | "b+" => true,
            _ => return Err(unknown()),
        };
        Ok(Mode { base, plus })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = match self.base {
            Base::Read => "r",
            Base::Write => "w",
            Base::Append => "a",
            Base::Exclusive => "x",
        };
        write!(f, "{base}{}b", if self.plus { "+" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_python_reads_them() {
        for (text, reads, writes, printed) in [
            ("rb", true, false, "rb"),
            ("r", true, false, "rb"),
            ("r+b", true, true, "r+b"),
            ("rb+", true, true, "r+b"),
            ("w", false, true, "wb"),
            ("w+", true, true, "w+b"),
            ("ab", false, true, "ab"),
            ("xb+", true, true, "x+b"),
        ] {
            let mode: Mode = text.parse().expect("a valid mode");
            assert_eq!((mode.reads(), mode.writes()), (reads, writes), "{text}");
            assert_eq!(mode.to_string(), printed);
        }
    }

    #[test]
    fn an_unknown_mode_names_the_valid_ones() {
        for text in ["", "b", "rw", "rt", "rbb", "+r", "é", "wb++"] {
            let error = text.parse::<Mode>().expect_err("not a mode").to_string();
            assert!(error.contains("rb, r+b, wb"), "{text:?}: {error}");
        }
    }
}
