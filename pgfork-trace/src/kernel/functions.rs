//! Prototypes of kernel functions, and the small BTF that attaching needs.
//!
//! A function is attached only when its prototype is the expected one. The name
//! alone is not enough: the BTF of 5.10 describes `mm_init` as a namesake with
//! other parameters, and an fexit program on it hangs the kernel at the next
//! fork, because the trampoline saves the wrong number of registers.

use std::{collections::BTreeMap, fmt};

use super::btf::{
    Btf, BtfError, HEADER_LEN, KIND_ENUM, KIND_ENUM64, KIND_FUNC, KIND_FUNC_PROTO, KIND_FWD,
    KIND_INT, KIND_PTR, KIND_STRUCT, KIND_UNION,
};

/// A parameter or result, as far as hooks care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// No value.
    Void,
    /// An integer, bool or enum of this many bytes.
    Scalar(u32),
    /// A pointer to the struct or union of this name, or to something else (empty name).
    Pointer(String),
    /// A struct or union of this many bytes, by value.
    Value(u32),
    /// Passed by value in a way that no hook of ours expects.
    Other,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Void => f.write_str("void"),
            Self::Scalar(bytes) => write!(f, "int{}", bytes * 8),
            Self::Pointer(name) if name.is_empty() => f.write_str("pointer"),
            Self::Pointer(name) => write!(f, "{name} *"),
            Self::Value(bytes) => write!(f, "struct of {bytes} bytes"),
            Self::Other => f.write_str("by value"),
        }
    }
}

/// Prototype of a kernel function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prototype {
    /// BTF type id of the function.
    pub id: u32,
    /// Result.
    pub result: Class,
    /// Parameters in order.
    pub parameters: Vec<Class>,
}

impl fmt::Display for Prototype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters: Vec<String> = self.parameters.iter().map(Class::to_string).collect();
        write!(f, "{} ({})", self.result, parameters.join(", "))
    }
}

impl Btf {
    /// Every prototype that the kernel's BTF gives for this function name.
    ///
    /// # Errors
    /// When the file cannot be read or contradicts itself.
    pub fn prototypes(&self, function: &str) -> Result<Vec<Prototype>, BtfError> {
        let mut prototypes = Vec::new();
        for ty in self.named(function, KIND_FUNC) {
            let Some(proto) = self.type_by_id(ty.size_or_type)? else {
                continue;
            };
            if proto.kind() != KIND_FUNC_PROTO {
                continue;
            }
            let parameters = self
                .parameters(proto)?
                .into_iter()
                .map(|id| self.class_of(id))
                .collect::<Result<_, _>>()?;
            prototypes.push(Prototype {
                id: ty.id,
                result: self.class_of(proto.size_or_type)?,
                parameters,
            });
        }
        Ok(prototypes)
    }

    fn class_of(&self, id: u32) -> Result<Class, BtfError> {
        let Some(ty) = self.resolve(id)? else {
            return Ok(Class::Void);
        };
        Ok(match ty.kind() {
            KIND_INT | KIND_ENUM | KIND_ENUM64 => Class::Scalar(ty.size_or_type),
            KIND_PTR => Class::Pointer(match self.resolve(ty.size_or_type)? {
                Some(to) if matches!(to.kind(), KIND_STRUCT | KIND_UNION | KIND_FWD) => {
                    self.name_at(to.name)?
                }
                _ => String::new(),
            }),
            KIND_STRUCT | KIND_UNION => Class::Value(ty.size_or_type),
            _ => Class::Other,
        })
    }
}

/// Bytes of the fixed part of a type (`struct btf_type`, include/uapi/linux/btf.h); a function has no
/// other.
const TYPE_LENGTH: usize = 12;

/// BTF with the ids of the given functions and nothing else: a loader that looks
/// functions up by name finds the running kernel's ids in it, at a tenth of
/// the memory that the kernel's own BTF takes to parse. All other ids are of no kind (0), which
/// aya-obj 0.3 takes for a type without a tail: pages of zeros that are never written take no memory.
#[must_use]
pub fn skeleton(functions: &BTreeMap<u32, String>) -> Vec<u8> {
    let word = |number: usize| u32::try_from(number).unwrap_or(0).to_ne_bytes();
    let types = last_id(functions) * TYPE_LENGTH;
    let strings = 1 + functions.values().map(|name| name.len() + 1).sum::<usize>();
    let mut file = vec![0; HEADER_LEN + types + strings];
    // Magic and version 1.
    file[..2].copy_from_slice(&0xeb9f_u16.to_ne_bytes());
    file[2] = 1;
    let lengths = [HEADER_LEN, 0, types, types, strings];
    for (field, length) in file[4..].chunks_mut(4).zip(lengths) {
        field.copy_from_slice(&word(length));
    }
    let mut at = 1;
    for (id, name) in functions {
        let start = HEADER_LEN + (*id as usize - 1) * TYPE_LENGTH;
        // A static function; its prototype is not looked at.
        let words = [at, (KIND_FUNC << 24) as usize, 1];
        for (field, number) in file[start..].chunks_mut(4).zip(words) {
            field.copy_from_slice(&word(number));
        }
        let start = HEADER_LEN + types + at;
        file[start..start + name.len()].copy_from_slice(name.as_bytes());
        at += name.len() + 1;
    }
    file
}

fn last_id(functions: &BTreeMap<u32, String>) -> usize {
    functions.keys().next_back().map_or(0, |id| *id as usize)
}

/// Bytes that [`skeleton`] takes for these functions, and a loader to parse it: aya-obj 0.3 keeps
/// 72 for each id, in a vector that grows by doubling.
#[must_use]
pub fn skeleton_cost(functions: &BTreeMap<u32, String>) -> usize {
    let last = last_id(functions);
    last * TYPE_LENGTH + (last + 1).next_power_of_two() * 72
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_skeleton_is_valid_btf_with_the_same_ids() {
        let functions =
            BTreeMap::from([(3, "copy_creds".to_owned()), (70, "alloc_pid".to_owned())]);
        let bytes = skeleton(&functions);
        aya::Btf::parse(&bytes, aya::Endianness::default()).unwrap();
        let word = |at: usize| u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap()) as usize;
        let (types, strings) = (HEADER_LEN + word(8), HEADER_LEN + word(16));
        assert_eq!((word(12), word(16)), (70 * TYPE_LENGTH, 70 * TYPE_LENGTH));
        assert_eq!(strings + word(20), bytes.len());
        for id in 1..=70 {
            let at = types + (id as usize - 1) * TYPE_LENGTH;
            let Some(name) = functions.get(&id) else {
                assert_eq!(bytes[at..at + TYPE_LENGTH], [0; TYPE_LENGTH], "{id}");
                continue;
            };
            assert_eq!(word(at + 4), (KIND_FUNC << 24) as usize);
            let shown = &bytes[strings + word(at)..];
            assert!(shown.starts_with(format!("{name}\0").as_bytes()), "{id}");
        }
        assert_eq!(skeleton(&BTreeMap::new()).len(), HEADER_LEN + 1);
    }
}
