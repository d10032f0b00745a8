//! Prototypes of kernel functions, and the small BTF that attaching needs.
//!
//! A function is attached only when its prototype is the expected one. The name
//! alone is not enough: the BTF of 5.10 describes `mm_init` as a namesake with
//! other parameters, and an fexit program on it hangs the kernel at the next
//! fork, because the trampoline saves the wrong number of registers.

use std::{collections::BTreeMap, fmt};

use super::btf::{
    Btf, BtfError, KIND_ENUM, KIND_ENUM64, KIND_FUNC, KIND_FUNC_PROTO, KIND_FWD, KIND_INT,
    KIND_PTR, KIND_STRUCT, KIND_UNION,
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

/// BTF with the ids of the given functions and nothing else: a loader that looks
/// functions up by name finds the running kernel's ids in it, at a tenth of
/// the memory that the kernel's own BTF takes to parse.
#[must_use]
pub fn skeleton(functions: &BTreeMap<u32, String>) -> Vec<u8> {
    // An anonymous float of 8 bytes: the smallest valid type, without a tail.
    const FILLER: [u32; 3] = [0, 16 << 24, 8];
    let last = functions.keys().next_back().copied().unwrap_or(0);
    let types_length = last.saturating_mul(12);
    let names = functions.values();
    let strings_length: usize = 1 + names.map(|name| name.len() + 1).sum::<usize>();
    let strings_length = u32::try_from(strings_length).unwrap_or(0);
    // Megabytes: at once, and not by doubling.
    let mut file = Vec::with_capacity((24 + types_length + strings_length) as usize);
    file.extend(0xeb9f_u16.to_ne_bytes());
    file.extend([1, 0]);
    for length in [24, 0, types_length, types_length, strings_length] {
        file.extend(length.to_ne_bytes());
    }
    let mut strings = vec![0u8];
    for id in 1..=last {
        let words = match functions.get(&id) {
            Some(name) => {
                let at = u32::try_from(strings.len()).unwrap_or(0);
                strings.extend_from_slice(name.as_bytes());
                strings.push(0);
                // A static function; its prototype is not looked at.
                [at, KIND_FUNC << 24, 1]
            }
            None => FILLER,
        };
        file.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }
    file.extend(strings);
    file
}

/// Bytes that [`skeleton`] takes for these functions, and a loader to parse it: aya-obj 0.3 keeps
/// 72 for each id, in a vector that grows by doubling.
#[must_use]
pub fn skeleton_cost(functions: &BTreeMap<u32, String>) -> usize {
    let last = functions.keys().next_back().copied().unwrap_or(0) as usize;
    last * 12 + (last + 1).next_power_of_two() * 72
}

#[cfg(test)]
mod tests {
    use crate::kernel::btf::Wanted;

    use super::*;

    #[test]
    fn the_skeleton_is_valid_btf_with_the_same_ids() {
        let functions =
            BTreeMap::from([(3, "copy_creds".to_owned()), (70, "alloc_pid".to_owned())]);
        let bytes = skeleton(&functions);
        aya::Btf::parse(&bytes, aya::Endianness::default()).unwrap();

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let wanted = Wanted {
            types: ["copy_creds", "alloc_pid", "absent"].into(),
            members: [].into(),
        };
        let btf = Btf::open(file.path(), &wanted).unwrap();
        for (id, name) in &functions {
            let ids: Vec<u32> = btf.named(name, KIND_FUNC).map(|ty| ty.id).collect();
            assert_eq!(ids, [*id]);
        }
        assert_eq!(btf.named("absent", KIND_FUNC).count(), 0);
    }
}
