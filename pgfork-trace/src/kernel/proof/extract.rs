//! Writes a small BTF file with what this program looks at, from bpftool's dump of a large one.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    super::{
        btf::{
            KIND_ARRAY, KIND_ENUM, KIND_ENUM64, KIND_FUNC, KIND_FUNC_PROTO, KIND_FWD, KIND_INT,
            KIND_PTR, KIND_STRUCT, KIND_UNION,
        },
        layout::Layout,
        plan::Plan,
    },
    dump::{Dump, Type},
};

/// How much of a type is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    Whole,
    /// A struct by value that is not looked into: its size alone.
    Stub,
    /// A struct behind a pointer: its name alone.
    Forward,
}

struct Writer<'a> {
    dump: &'a Dump,
    members: HashSet<&'static str>,
    ids: HashMap<(u32, Form), u32>,
    waiting: VecDeque<(u32, Form)>,
    strings: Vec<u8>,
    offsets: HashMap<String, u32>,
    words: Vec<u32>,
}

/// The structs, functions and enums that `Layout` and `Plan` ask for, in the
/// order of the original, and what they refer to; ids are given anew.
pub(super) fn extract(dump: &Dump) -> Vec<u8> {
    let wanted = Layout::wanted();
    let functions = Plan::functions();
    let mut writer = Writer {
        dump,
        members: wanted.members,
        ids: HashMap::new(),
        waiting: VecDeque::new(),
        strings: vec![0],
        offsets: HashMap::from([(String::new(), 0)]),
        words: Vec::new(),
    };
    for (id, ty) in &dump.types {
        let name = ty.name.as_str();
        let is_root = match ty.kind.as_str() {
            "STRUCT" => wanted.types.contains(name),
            "FUNC" => functions.contains(name),
            "ENUM" | "ENUM64" => ty
                .members
                .iter()
                .any(|member| writer.members.contains(member.name.as_str())),
            _ => false,
        };
        if is_root {
            writer.id(*id, Form::Whole);
        }
    }
    while let Some((id, form)) = writer.waiting.pop_front() {
        writer.write(&dump.types[&id], form);
    }
    writer.finish()
}

impl Writer<'_> {
    fn id(&mut self, id: u32, form: Form) -> u32 {
        if id == 0 {
            return 0;
        }
        let next = self.ids.len() as u32 + 1;
        *self.ids.entry((id, form)).or_insert_with(|| {
            self.waiting.push_back((id, form));
            next
        })
    }

    /// A type used by value as this member.
    fn by_value(&mut self, id: u32, member: &str) -> u32 {
        let Some((id, ty)) = self.dump.resolve(id) else {
            return 0;
        };
        let looked_into = member.is_empty() || self.members.contains(member);
        match ty.kind.as_str() {
            "STRUCT" | "UNION" if !looked_into => self.id(id, Form::Stub),
            _ => self.id(id, Form::Whole),
        }
    }

    fn pointee(&mut self, id: u32) -> u32 {
        match self.dump.resolve(id) {
            Some((id, ty)) if matches!(ty.kind.as_str(), "STRUCT" | "UNION") => {
                let form = if self.ids.contains_key(&(id, Form::Whole)) {
                    Form::Whole
                } else {
                    Form::Forward
                };
                self.id(id, form)
            }
            Some((id, ty)) if ty.kind == "FWD" => self.id(id, Form::Whole),
            // Pointers to anything else are all alike.
            _ => 0,
        }
    }

    fn name(&mut self, name: &str) -> u32 {
        if let Some(offset) = self.offsets.get(name) {
            return *offset;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        self.offsets.insert(name.to_owned(), offset);
        offset
    }

    fn write(&mut self, ty: &Type, form: Form) {
        let name = self.name(&ty.name);
        let is_union = ty.kind == "UNION";
        match (ty.kind.as_str(), form) {
            (_, Form::Forward) => {
                let info = KIND_FWD << 24 | u32::from(is_union) << 31;
                self.words.extend([name, info, 0]);
            }
            ("STRUCT" | "UNION", _) => self.write_struct(ty, name, form),
            ("INT", _) => {
                let bits = ty.size * 8;
                self.words.extend([name, KIND_INT << 24, ty.size, bits]);
            }
            ("FLOAT", _) => self.words.extend([name, 16 << 24, ty.size]),
            ("FWD", _) => {
                let info = KIND_FWD << 24 | u32::from(ty.of_union) << 31;
                self.words.extend([name, info, 0]);
            }
            ("PTR", _) => {
                let to = self.pointee(ty.refers_to);
                self.words.extend([0, KIND_PTR << 24, to]);
            }
            ("ARRAY", _) => {
                let element = self.by_value(ty.refers_to, "?");
                self.words
                    .extend([0, KIND_ARRAY << 24, 0, element, element, ty.elements]);
            }
            ("ENUM" | "ENUM64", _) => self.write_enum(ty, name),
            ("FUNC", _) => {
                let proto = self.id(ty.refers_to, Form::Whole);
                self.words.extend([name, KIND_FUNC << 24, proto]);
            }
            ("FUNC_PROTO", _) => {
                let result = self.by_value(ty.refers_to, "?");
                let count = ty.members.len() as u32;
                self.words
                    .extend([0, KIND_FUNC_PROTO << 24 | count, result]);
                for parameter in &ty.members {
                    let parameter = self.by_value(parameter.ty, "?");
                    self.words.extend([0, parameter]);
                }
            }
            (kind, _) => panic!("{kind} is not expected here"),
        }
    }

    fn write_struct(&mut self, ty: &Type, name: u32, form: Form) {
        let kind = if ty.kind == "UNION" {
            KIND_UNION
        } else {
            KIND_STRUCT
        };
        if form == Form::Stub {
            self.words.extend([name, kind << 24, ty.size]);
            return;
        }
        let bitfields = ty.members.iter().any(|member| member.bitfield_size > 0);
        let count = ty.members.len() as u32;
        let info = kind << 24 | u32::from(bitfields) << 31 | count;
        self.words.extend([name, info, ty.size]);
        for member in &ty.members {
            let name = self.name(&member.name);
            let member_type = self.by_value(member.ty, &member.name);
            let width = if bitfields {
                member.bitfield_size << 24
            } else {
                0
            };
            self.words.extend([name, member_type, width | member.bits]);
        }
    }

    fn write_enum(&mut self, ty: &Type, name: u32) {
        let wide = ty.kind == "ENUM64";
        let kept: Vec<_> = ty
            .members
            .iter()
            .filter(|member| self.members.contains(member.name.as_str()))
            .collect();
        let kind = if wide { KIND_ENUM64 } else { KIND_ENUM };
        self.words
            .extend([name, kind << 24 | kept.len() as u32, ty.size]);
        for member in kept {
            let name = self.name(&member.name);
            self.words.extend([name, member.value as u32]);
            if wide {
                self.words.push((member.value >> 32) as u32);
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        let types: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let mut file = vec![0x9f, 0xeb, 1, 0];
        let lengths = [24, 0, types.len(), types.len(), self.strings.len()];
        for length in lengths {
            file.extend((length as u32).to_le_bytes());
        }
        file.extend(types);
        file.extend(self.strings);
        file
    }
}
