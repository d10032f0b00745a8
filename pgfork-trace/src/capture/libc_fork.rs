//! Where a process's C library keeps `fork` and `errno`.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead, BufReader},
    os::unix::{
        ffi::OsStringExt,
        fs::{FileExt, MetadataExt},
    },
    path::PathBuf,
};

use object::{
    Endianness, Object, ObjectSymbol,
    elf::{FileHeader64, R_X86_64_TPOFF64, SHT_RELA},
    read::{
        ReadCache,
        elf::{ElfFile64, FileHeader as _, Rela as _, SectionHeader as _},
    },
};

use super::CaptureError;
use crate::host::open_regular;

/// A process's C library.
#[derive(Debug)]
pub(super) struct Library {
    /// The file, as this process can open it.
    pub(super) path: PathBuf,
    /// Offset of `fork` in the file.
    pub(super) fork_offset: u64,
    /// Offset of `errno` from the thread pointer, when the library says.
    pub(super) errno_tp_offset: Option<i64>,
}

/// Finds the C library of `pid` among its mappings.
pub(super) fn locate(pid: u32) -> Result<Library, CaptureError> {
    let maps = PathBuf::from(format!("/proc/{pid}/maps"));
    let file = File::open(&maps).map_err(|source| CaptureError::Read {
        path: maps.clone(),
        source,
    })?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(file);
    loop {
        line.clear();
        let read = reader
            .read_until(b'\n', &mut line)
            .map_err(|source| CaptureError::Read {
                path: maps.clone(),
                source,
            })?;
        if read == 0 {
            if let Some(own) = own_library(pid) {
                return Ok(own);
            }
            return Err(CaptureError::NoLibc {
                pid,
                why: "no C library is mapped into it (a static or Go program forks by itself)"
                    .to_owned(),
            });
        }
        if let Some((start, name)) = c_library(&line) {
            let mut path = PathBuf::from(format!("/proc/{pid}/root"));
            path.push(name.strip_prefix("/").unwrap_or(&name));
            return examine(pid, path, start);
        }
    }
}

/// A child of this very program, where that is linked statically: its C library lies where
/// this process has its own.
fn own_library(pid: u32) -> Option<Library> {
    let program = |process: &str| {
        let file = std::fs::metadata(format!("/proc/{process}/exe")).ok()?;
        Some((file.dev(), file.ino()))
    };
    if program(&pid.to_string())? != program("self")? {
        return None;
    }
    let fork = libc::fork as *const () as usize as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let fork_offset = maps.lines().find_map(|line| offset_in(line, fork))?;
    Some(Library {
        path: PathBuf::from(format!("/proc/{pid}/exe")),
        fork_offset,
        errno_tp_offset: errno_of_this_thread(),
    })
}

/// Where `address` lies in the file that this line of `maps` is a mapping of.
fn offset_in(line: &str, address: u64) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let offset = number(fields.nth(1)?)?;
    (start..end)
        .contains(&address)
        .then(|| address - start + offset)
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::unnecessary_wraps, reason = "other architectures have none")]
fn errno_of_this_thread() -> Option<i64> {
    let thread_pointer: i64;
    // SAFETY: x86-64's ABI keeps the thread pointer at its own address.
    unsafe { std::arch::asm!("mov {}, fs:0", out(reg) thread_pointer) };
    // SAFETY: always callable.
    let errno = unsafe { libc::__errno_location() } as i64;
    Some(errno - thread_pointer)
}

#[cfg(not(target_arch = "x86_64"))]
fn errno_of_this_thread() -> Option<i64> {
    None
}

/// `(start, path)` when this line of `maps` is the first mapping of a C library.
fn c_library(line: &[u8]) -> Option<(u64, PathBuf)> {
    let slash = line.iter().position(|byte| *byte == b'/')?;
    let fixed = std::str::from_utf8(&line[..slash]).ok()?;
    let mut fields = fixed.split_ascii_whitespace();
    let (start, _) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    if u64::from_str_radix(offset, 16).ok()? != 0 {
        return None;
    }
    let path = PathBuf::from(OsString::from_vec(line[slash..].trim_ascii_end().to_vec()));
    let name = path.file_name()?.to_str()?;
    let is_libc =
        name.starts_with("libc.so") || name.starts_with("libc-2.") || name.starts_with("ld-musl-");
    is_libc.then_some((u64::from_str_radix(start, 16).ok()?, path))
}

fn examine(pid: u32, path: PathBuf, start: u64) -> Result<Library, CaptureError> {
    let no = |why: String| CaptureError::NoLibc { pid, why };
    // Its owner chooses what is there.
    let opened = open_regular(&path, true).map_err(|source| CaptureError::Read {
        path: path.clone(),
        source,
    })?;
    let (file, _) = opened.ok_or_else(|| no(format!("{} is no file", path.display())))?;
    let cache = ReadCache::new(file);
    let elf = ElfFile64::<Endianness, _>::parse(&cache).map_err(|error| {
        no(format!(
            "{} is not a 64 bit ELF file: {error}",
            path.display()
        ))
    })?;
    let fork = elf
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok("fork") && symbol.is_definition())
        .ok_or_else(|| no(format!("{} has no symbol fork", path.display())))?;
    let fork_offset = file_offset(&elf, fork.address())
        .ok_or_else(|| no(format!("fork of {} lies in no segment", path.display())))?;
    let errno_tp_offset = errno_slot(&elf).and_then(|slot| read_slot(pid, start + slot));
    Ok(Library {
        path,
        fork_offset,
        errno_tp_offset,
    })
}

type Elf<'a> = ElfFile64<'a, Endianness, &'a ReadCache<File>>;

fn file_offset(elf: &Elf<'_>, address: u64) -> Option<u64> {
    use object::read::elf::ProgramHeader as _;
    let endian = elf.endian();
    elf.elf_program_headers().iter().find_map(|segment| {
        let start = segment.p_vaddr(endian);
        let inside = segment.p_type(endian) == object::elf::PT_LOAD
            && (start..start + segment.p_filesz(endian)).contains(&address);
        inside.then(|| address - start + segment.p_offset(endian))
    })
}

/// Address of the GOT slot that holds `errno`'s offset from the thread pointer:
/// the relocation of type TPOFF64 that names the symbol `errno`, or its place
/// in the library's thread-local block.
fn errno_slot(elf: &Elf<'_>) -> Option<u64> {
    let endian = elf.endian();
    let (number, place) = elf
        .dynamic_symbols()
        .find(|symbol| symbol.name() == Ok("errno"))
        .map(|symbol| (symbol.index().0, symbol.address()))?;
    let sections = elf.elf_section_table();
    let header: &FileHeader64<Endianness> = elf.elf_header();
    sections
        .iter()
        .filter(|section| section.sh_type(endian) == SHT_RELA)
        .filter_map(|section| section.rela(endian, elf.data()).ok().flatten())
        .flat_map(|(relocations, _)| relocations)
        .find(|relocation| {
            let symbol = relocation.r_sym(endian, header.is_mips64el(endian)) as usize;
            let addend = relocation.r_addend(endian);
            relocation.r_type(endian, header.is_mips64el(endian)) == R_X86_64_TPOFF64
                && (symbol == number && addend == 0
                    || symbol == 0 && u64::try_from(addend) == Ok(place))
        })
        .map(|relocation| relocation.r_offset(endian))
}

fn read_slot(pid: u32, address: u64) -> Option<i64> {
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut value = [0; 8];
    memory.read_exact_at(&mut value, address).ok()?;
    let offset = i64::from_ne_bytes(value);
    // x86-64 keeps thread-local storage below the thread pointer.
    (-0x10_0000..0).contains(&offset).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognises_the_c_library_among_mappings() {
        let glibc = b"7f3b9c000000-7f3b9c026000 r--p 00000000 fe:00 1310 /usr/lib/x86_64-linux-gnu/libc.so.6\n";
        assert_eq!(
            c_library(glibc),
            Some((
                0x7f3b_9c00_0000,
                PathBuf::from("/usr/lib/x86_64-linux-gnu/libc.so.6")
            ))
        );
        let later = b"7f3b9c026000-7f3b9c17b000 r-xp 00026000 fe:00 1310 /usr/lib/x86_64-linux-gnu/libc.so.6\n";
        assert_eq!(c_library(later), None);
        let old = b"7f3b9c000000-7f3b9c026000 r--p 00000000 fe:00 1310 /lib/x86_64-linux-gnu/libc-2.31.so\n";
        assert!(c_library(old).is_some());
        let other = b"7f3b9c000000-7f3b9c026000 r--p 00000000 fe:00 1310 /usr/lib/libcrypto.so.3\n";
        assert_eq!(c_library(other), None);
        assert_eq!(c_library(b"7f3b-7f3c rw-p 00000000 00:00 0 [heap]\n"), None);
        assert_eq!(c_library(b"/\n"), None);
    }

    #[test]
    fn an_address_lies_in_the_file_where_its_mapping_says() {
        let line = "00401000-005d4000 r-xp 00001000 fe:00 77 /usr/sbin/pgfork-trace";
        assert_eq!(offset_in(line, 0x40_2345), Some(0x2345));
        assert_eq!(offset_in(line, 0x5d_4000), None);
        assert_eq!(offset_in("garbage", 1), None);
    }

    #[test]
    fn this_programs_own_children_are_found_without_a_library() {
        let own = own_library(std::process::id()).unwrap();
        assert_eq!(own.errno_tp_offset, errno_of_this_thread());
        assert!(own.fork_offset > 0);
        assert!(own_library(1).is_none_or(|_| std::process::id() == 1));
    }

    #[test]
    fn finds_fork_and_errno_of_this_process() {
        let library = locate(std::process::id()).unwrap();
        assert!(library.fork_offset > 0);
        assert_eq!(library.errno_tp_offset, errno_of_this_thread());
    }
}
