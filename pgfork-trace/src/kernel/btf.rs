//! A streaming reader of the kernel's BTF (`/sys/kernel/btf/vmlinux`).
//!
//! The file is read in pieces and never held: a host at its commit limit has no
//! room for the five to ten megabytes that a full parse takes. Format:
//! Documentation/bpf/btf.rst.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Where the kernel shows its own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
pub(crate) const HEADER_LEN: usize = 24;
const CHUNK: usize = 64 * 1024;
/// The position of every n-th type is kept.
const INDEX_STEP: u32 = 32;

pub(crate) const KIND_INT: u32 = 1;
pub(crate) const KIND_PTR: u32 = 2;
pub(crate) const KIND_ARRAY: u32 = 3;
pub(crate) const KIND_STRUCT: u32 = 4;
pub(crate) const KIND_UNION: u32 = 5;
pub(crate) const KIND_ENUM: u32 = 6;
pub(crate) const KIND_FWD: u32 = 7;
pub(crate) const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
pub(crate) const KIND_FUNC: u32 = 12;
pub(crate) const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
pub(crate) const KIND_ENUM64: u32 = 19;

/// Why BTF could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file could not be opened or read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The contents are not BTF as this reader knows it.
    #[error("{path} is not the BTF this program knows: {what}", path = .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was wrong, and where.
        what: String,
    },
}

/// One type: the fixed part, and where its variable part lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) id: u32,
    pub(crate) name: u32,
    info: u32,
    /// `size` or `type`, by kind.
    pub(crate) size_or_type: u32,
    /// File position of the variable part.
    tail: u64,
}

impl Type {
    pub(crate) const fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    const fn count(self) -> u32 {
        self.info & 0xffff
    }

    const fn bitfields(self) -> bool {
        self.info >> 31 == 1
    }

    fn tail_len(self) -> Option<u64> {
        let count = u64::from(self.count());
        Some(match self.kind() {
            KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
            KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
            KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT
            | KIND_FUNC | KIND_FLOAT | KIND_TYPE_TAG => 0,
            _ => return None,
        })
    }

    const fn is_modifier(self) -> bool {
        matches!(
            self.kind(),
            KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG
        )
    }
}

/// A member of a struct or union.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    name: u32,
    ty: u32,
    bit_offset: u32,
}

/// Names to look for; everything else in the file is passed over.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// Names of structs and functions.
    pub types: HashSet<&'a str>,
    /// Names of struct members and enum constants.
    pub members: HashSet<&'a str>,
}

/// The kernel's types, opened and indexed for the names that were wanted.
#[derive(Debug)]
pub struct Btf {
    file: File,
    path: PathBuf,
    types_at: u64,
    types_end: u64,
    strings_at: u64,
    strings_end: u64,
    /// Position of types 1, 1 + `INDEX_STEP`, ...
    index: Vec<u32>,
    /// Offset in the string section to name, for wanted names only.
    names: HashMap<u32, String>,
    /// Structs, unions and functions with wanted names, in file order.
    found: HashMap<String, Vec<Type>>,
    /// Values of wanted enum constants.
    constants: HashMap<String, u64>,
}

impl Btf {
    /// Opens `path` and finds what is wanted, in one pass over the strings and
    /// one over the types.
    ///
    /// # Errors
    /// When the file cannot be read or is not BTF.
    pub fn open(path: &Path, wanted: &Wanted<'_>) -> Result<Self, BtfError> {
        let file = File::open(path).map_err(|source| BtfError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut btf = Self {
            file,
            path: path.to_owned(),
            types_at: 0,
            types_end: 0,
            strings_at: 0,
            strings_end: 0,
            index: Vec::new(),
            names: HashMap::new(),
            found: HashMap::new(),
            constants: HashMap::new(),
        };
        btf.read_header()?;
        btf.find_names(wanted)?;
        btf.find_types(wanted)?;
        Ok(btf)
    }

    fn format_error(&self, what: impl Into<String>) -> BtfError {
        BtfError::Format {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), BtfError> {
        self.file
            .read_exact_at(buffer, at)
            .map_err(|source| BtfError::Read {
                path: self.path.clone(),
                source,
            })
    }

    fn read_header(&mut self) -> Result<(), BtfError> {
        let mut header = [0; HEADER_LEN];
        self.read(&mut header, 0)?;
        if u16::from_ne_bytes([header[0], header[1]]) != MAGIC {
            return Err(self.format_error("wrong magic number"));
        }
        let word = |at: usize| u64::from(u32_at(&header, at));
        let header_len = word(4);
        self.types_at = header_len + word(8);
        self.types_end = self.types_at + word(12);
        self.strings_at = header_len + word(16);
        self.strings_end = self.strings_at + word(20);
        Ok(())
    }

    /// Passes over the string section and keeps the offsets of wanted names.
    fn find_names(&mut self, wanted: &Wanted<'_>) -> Result<(), BtfError> {
        let mut buffer = vec![0; CHUNK];
        let mut at = self.strings_at;
        while at < self.strings_end {
            let len = usize::try_from(self.strings_end - at).map_or(CHUNK, |left| left.min(CHUNK));
            self.read(&mut buffer[..len], at)?;
            let mut start = 0;
            while let Some(end) = buffer[start..len].iter().position(|byte| *byte == 0) {
                let name = &buffer[start..start + end];
                if let Ok(name) = std::str::from_utf8(name)
                    && (wanted.types.contains(name) || wanted.members.contains(name))
                {
                    let offset = at - self.strings_at + start as u64;
                    self.names.insert(narrow(offset), name.to_owned());
                }
                start += end + 1;
            }
            if start == 0 {
                return Err(self.format_error(format!("a name longer than {CHUNK} bytes at {at}")));
            }
            at += start as u64;
        }
        Ok(())
    }

    /// Passes over the type section; keeps wanted types and a sparse index.
    fn find_types(&mut self, wanted: &Wanted<'_>) -> Result<(), BtfError> {
        let mut window = Window::default();
        let mut at = self.types_at;
        let mut id = 1;
        while at < self.types_end {
            if (id - 1) % INDEX_STEP == 0 {
                self.index.push(narrow(at));
            }
            let ty = parse_type(id, window.get(self, at, 12)?, at + 12);
            let tail_len = ty.tail_len().ok_or_else(|| {
                self.format_error(format!("type {id} of unknown kind {}", ty.kind()))
            })?;
            if matches!(ty.kind(), KIND_ENUM | KIND_ENUM64) {
                let tail = window.get(self, ty.tail, tail_len)?;
                let constants = wanted_constants(ty, tail, &self.names);
                self.constants.extend(constants);
            } else if matches!(ty.kind(), KIND_STRUCT | KIND_UNION | KIND_FUNC)
                && let Some(name) = self.names.get(&ty.name)
                && wanted.types.contains(name.as_str())
            {
                self.found.entry(name.clone()).or_default().push(ty);
            }
            at += 12 + tail_len;
            id += 1;
        }
        Ok(())
    }

    /// Types named `name` of this kind, in file order.
    pub(crate) fn named(&self, name: &str, kind: u32) -> impl Iterator<Item = Type> {
        self.found
            .get(name)
            .into_iter()
            .flatten()
            .copied()
            .filter(move |ty| ty.kind() == kind)
    }

    /// Value of an enum constant, wherever it is defined.
    #[must_use]
    pub fn constant(&self, name: &str) -> Option<u64> {
        self.constants.get(name).copied()
    }

    /// The type with this id; `None` for 0, which is void.
    pub(crate) fn type_by_id(&self, id: u32) -> Result<Option<Type>, BtfError> {
        if id == 0 {
            return Ok(None);
        }
        let slot = (id - 1) / INDEX_STEP;
        let Some(start) = self.index.get(slot as usize) else {
            return Err(self.format_error(format!("no type {id}")));
        };
        let mut at = u64::from(*start);
        let mut current = 1 + slot * INDEX_STEP;
        loop {
            let mut fixed = [0; 12];
            self.read(&mut fixed, at)?;
            let ty = parse_type(current, &fixed, at + 12);
            if current == id {
                return Ok(Some(ty));
            }
            let tail_len = ty
                .tail_len()
                .ok_or_else(|| self.format_error(format!("type {current} of unknown kind")))?;
            at += 12 + tail_len;
            current += 1;
        }
    }

    /// The type behind typedefs and qualifiers; `None` for void.
    pub(crate) fn resolve(&self, id: u32) -> Result<Option<Type>, BtfError> {
        let mut next = id;
        for _ in 0..32 {
            match self.type_by_id(next)? {
                Some(ty) if ty.is_modifier() => next = ty.size_or_type,
                other => return Ok(other),
            }
        }
        Err(self.format_error(format!("type {id} is a chain of qualifiers without end")))
    }

    fn members(&self, ty: Type) -> Result<Vec<Member>, BtfError> {
        let mut tail = vec![0; 12 * ty.count() as usize];
        self.read(&mut tail, ty.tail)?;
        Ok(tail
            .chunks_exact(12)
            .map(|entry| {
                let offset = u32_at(entry, 8);
                Member {
                    name: u32_at(entry, 0),
                    ty: u32_at(entry, 4),
                    bit_offset: if ty.bitfields() {
                        offset & 0xff_ffff
                    } else {
                        offset
                    },
                }
            })
            .collect())
    }

    /// `(name, type id)` of each parameter of a function type.
    pub(crate) fn parameters(&self, proto: Type) -> Result<Vec<u32>, BtfError> {
        let mut tail = vec![0; 8 * proto.count() as usize];
        self.read(&mut tail, proto.tail)?;
        Ok(tail.chunks_exact(8).map(|entry| u32_at(entry, 4)).collect())
    }

    /// Byte offset of `path` ("a" or "a.b") in the first struct named `structure`
    /// that has it. Anonymous members are looked through.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn offset_of(&self, structure: &str, path: &str) -> Result<Option<u32>, BtfError> {
        for ty in self.named(structure, KIND_STRUCT) {
            if let Some(bits) = self.bit_offset(ty, path)? {
                return Ok(Some(bits / 8));
            }
        }
        Ok(None)
    }

    fn bit_offset(&self, ty: Type, path: &str) -> Result<Option<u32>, BtfError> {
        let (first, rest) = path
            .split_once('.')
            .map_or((path, None), |(a, b)| (a, Some(b)));
        for member in self.members(ty)? {
            let inner_path = if member.name == 0 {
                path
            } else if self.names.get(&member.name).map(String::as_str) == Some(first) {
                match rest {
                    None => return Ok(Some(member.bit_offset)),
                    Some(rest) => rest,
                }
            } else {
                continue;
            };
            if let Some(inner) = self.resolve(member.ty)?
                && matches!(inner.kind(), KIND_STRUCT | KIND_UNION)
                && let Some(bits) = self.bit_offset(inner, inner_path)?
            {
                return Ok(Some(member.bit_offset + bits));
            }
        }
        Ok(None)
    }

    /// The name at an offset of the string section, at most 127 bytes of it.
    pub(crate) fn name_at(&self, offset: u32) -> Result<String, BtfError> {
        let at = self.strings_at + u64::from(offset);
        let len =
            usize::try_from(self.strings_end.saturating_sub(at)).map_or(128, |left| left.min(128));
        let mut buffer = vec![0; len];
        self.read(&mut buffer, at)?;
        let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(len);
        Ok(String::from_utf8_lossy(&buffer[..end]).into_owned())
    }
}

/// A sliding window over the file for the sequential pass.
#[derive(Default)]
struct Window {
    buffer: Vec<u8>,
    at: u64,
    len: usize,
}

impl Window {
    fn get(&mut self, btf: &Btf, at: u64, len: u64) -> Result<&[u8], BtfError> {
        let len = usize::try_from(len).map_err(|_| btf.format_error("a type without end"))?;
        if at < self.at || at + len as u64 > self.at + self.len as u64 {
            let left = usize::try_from(btf.types_end.saturating_sub(at)).unwrap_or(CHUNK);
            let want = left.min(CHUNK.max(len));
            if want < len {
                return Err(
                    btf.format_error(format!("the type section ends within the type at {at}"))
                );
            }
            self.buffer.resize(want.max(self.buffer.len()), 0);
            btf.read(&mut self.buffer[..want], at)?;
            self.at = at;
            self.len = want;
        }
        let start = usize::try_from(at - self.at).map_err(|_| btf.format_error("bad position"))?;
        Ok(&self.buffer[start..start + len])
    }
}

fn wanted_constants(ty: Type, tail: &[u8], names: &HashMap<u32, String>) -> Vec<(String, u64)> {
    let size = if ty.kind() == KIND_ENUM64 { 12 } else { 8 };
    tail.chunks_exact(size)
        .filter_map(|entry| {
            let name = names.get(&u32_at(entry, 0))?;
            let high = if size == 12 {
                u64::from(u32_at(entry, 8)) << 32
            } else {
                0
            };
            Some((name.clone(), high | u64::from(u32_at(entry, 4))))
        })
        .collect()
}

fn parse_type(id: u32, fixed: &[u8], tail: u64) -> Type {
    Type {
        id,
        name: u32_at(fixed, 0),
        info: u32_at(fixed, 4),
        size_or_type: u32_at(fixed, 8),
        tail,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

/// Positions fit: the header gives section lengths as 32 bit numbers.
fn narrow(position: u64) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
