//! Lines of `/proc/PID/mountinfo` (`show_mountinfo`, fs/proc_namespace.c, 5.10 to 7.2).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::read::{self, ReadError};

/// `36 35 98:0 /mounted /mount/point rw,opts [tags] - type source rw,super_options`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    /// `major:minor` of the file system.
    pub(super) device: &'a [u8],
    /// The part of the file system that is mounted.
    pub(super) mounted: PathBuf,
    /// Where, as the process sees it.
    pub(super) mount_point: PathBuf,
    /// Type of the file system.
    pub(super) kind: &'a [u8],
    /// Options of the file system, separated by commas.
    pub(super) options: &'a [u8],
}

/// Hands over each mount, in the order of the file; lines that are none are left out. `None` when
/// there is no such file.
///
/// # Errors
/// When reading fails for another reason than absence or permission.
pub(super) fn each(path: &Path, mut take: impl FnMut(Mount)) -> Result<Option<()>, ReadError> {
    read::lines(path, |_, line| {
        parse(line).into_iter().for_each(&mut take);
        Ok(())
    })
}

fn parse(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = read::fields(line);
    let device = fields.nth(2)?;
    let mounted = fields.next()?;
    let mount_point = fields.next()?;
    let mut after = fields.skip_while(|&field| field != b"-").skip(1);
    let kind = after.next()?;
    Some(Mount {
        device,
        mounted: unescape(mounted),
        mount_point: unescape(mount_point),
        kind,
        // The source is free text, and may be empty: the options are what comes last.
        options: after.last().unwrap_or_default(),
    })
}

/// Undoes the octal escapes (`\040` is a space).
fn unescape(text: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let (byte, next) = match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), tail),
            _ => (*first, tail),
        };
        plain.push(byte);
        rest = next;
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_fields_however_odd_their_names_are() {
        let line = b"36 35 0:45 /a\\012b /dev/sh\\040m rw shared:5 master:1 - tmpfs  rw,size=1k";
        let mount = parse(line).unwrap();
        assert_eq!(mount.device, b"0:45");
        assert_eq!(mount.mounted, Path::new("/a\nb"));
        assert_eq!(mount.mount_point, Path::new("/dev/sh m"));
        assert_eq!(
            (mount.kind, mount.options),
            (&b"tmpfs"[..], &b"rw,size=1k"[..])
        );
        // What is no escape stays.
        assert_eq!(unescape(b"a\\9\\04"), Path::new("a\\9\\04"));
    }

    #[test]
    fn what_is_cut_off_is_no_mount() {
        for line in [
            "",
            "36 35 0:45",
            "36 35 0:45 / /x rw",
            "36 35 0:45 / /x rw -",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(b"1 2 0:3 / /x rw - tmpfs").unwrap().options, b"");
    }
}
