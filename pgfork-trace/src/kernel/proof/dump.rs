//! What bpftool says about a BTF file: an opinion independent of the reader under test.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process::{Command, Stdio},
};

/// One type of the dump.
#[derive(Debug, Default)]
pub(super) struct Type {
    /// `STRUCT`, `PTR` and so on.
    pub(super) kind: String,
    /// Empty for anonymous ones.
    pub(super) name: String,
    /// `size`, where it has one.
    pub(super) size: u32,
    /// `type_id` or `ret_type_id`.
    pub(super) refers_to: u32,
    /// `nr_elems` of an array.
    pub(super) elements: u32,
    /// `fwd_kind` of a forward declaration.
    pub(super) of_union: bool,
    pub(super) members: Vec<Member>,
}

/// A member, parameter or enum constant.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) ty: u32,
    pub(super) bits: u32,
    pub(super) bitfield_size: u32,
    pub(super) value: i64,
}

/// All types by id.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub(super) types: BTreeMap<u32, Type>,
    names: HashMap<String, Vec<u32>>,
}

/// Whether bpftool is installed and runs.
pub(super) fn bpftool_works() -> bool {
    Command::new("bpftool")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

impl Dump {
    /// Runs `bpftool btf dump file FILE format raw`.
    pub(super) fn of(file: &Path) -> Self {
        let output = Command::new("bpftool")
            .args(["btf", "dump", "file"])
            .arg(file)
            .args(["format", "raw"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Self::parse(&String::from_utf8(output.stdout).unwrap())
    }

    fn parse(text: &str) -> Self {
        let mut dump = Self::default();
        let mut last = 0;
        for line in text.lines() {
            if let Some(member) = line.strip_prefix('\t') {
                let ty: &mut Type = dump.types.get_mut(&last).unwrap();
                if member.starts_with('\'') {
                    ty.members.push(parse_member(member));
                }
                continue;
            }
            let (id, rest) = line.strip_prefix('[').unwrap().split_once("] ").unwrap();
            last = id.parse().unwrap();
            let (kind, rest) = rest.split_once(' ').unwrap();
            let (name, fields) = quoted(rest);
            dump.names.entry(name.clone()).or_default().push(last);
            dump.types.insert(
                last,
                Type {
                    kind: kind.to_owned(),
                    name,
                    size: number(fields, "size").unwrap_or(0),
                    refers_to: number(fields, "type_id")
                        .or_else(|| number(fields, "ret_type_id"))
                        .unwrap_or(0),
                    elements: number(fields, "nr_elems").unwrap_or(0),
                    of_union: fields.contains("fwd_kind=union"),
                    members: Vec::new(),
                },
            );
        }
        dump
    }

    pub(super) fn named(&self, name: &str, kind: &str) -> impl Iterator<Item = u32> {
        self.names
            .get(name)
            .into_iter()
            .flatten()
            .copied()
            .filter(move |id| self.types[id].kind == kind)
    }

    /// Behind typedefs and qualifiers.
    pub(super) fn resolve(&self, mut id: u32) -> Option<(u32, &Type)> {
        loop {
            let ty = self.types.get(&id)?;
            match ty.kind.as_str() {
                "TYPEDEF" | "CONST" | "VOLATILE" | "RESTRICT" | "TYPE_TAG" => id = ty.refers_to,
                _ => return Some((id, ty)),
            }
        }
    }

    /// Byte offset of a field in the first struct of this name that has it.
    pub(super) fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let path: Vec<&str> = path.split('.').collect();
        self.named(structure, "STRUCT")
            .find_map(|id| self.bits(id, &path))
            .map(|bits| bits / 8)
    }

    fn bits(&self, id: u32, path: &[&str]) -> Option<u32> {
        self.types[&id].members.iter().find_map(|member| {
            let rest = if member.name.is_empty() {
                path
            } else if member.name == path[0] {
                &path[1..]
            } else {
                return None;
            };
            if rest.is_empty() {
                return Some(member.bits);
            }
            let (inner, ty) = self.resolve(member.ty)?;
            if !matches!(ty.kind.as_str(), "STRUCT" | "UNION") {
                return None;
            }
            Some(member.bits + self.bits(inner, rest)?)
        })
    }

    /// Value of an enum constant.
    pub(super) fn constant(&self, name: &str) -> Option<i64> {
        self.types
            .values()
            .filter(|ty| matches!(ty.kind.as_str(), "ENUM" | "ENUM64"))
            .flat_map(|ty| &ty.members)
            .find(|member| member.name == name)
            .map(|member| member.value)
    }

    /// Id and prototype of each function of this name, in words.
    pub(super) fn prototypes(&self, function: &str) -> Vec<(u32, String)> {
        self.named(function, "FUNC")
            .map(|id| {
                let proto = &self.types[&self.types[&id].refers_to];
                let parameters: Vec<String> = proto
                    .members
                    .iter()
                    .map(|parameter| self.class(parameter.ty))
                    .collect();
                let result = self.class(proto.refers_to);
                (id, format!("{result} ({})", parameters.join(", ")))
            })
            .collect()
    }

    fn class(&self, id: u32) -> String {
        let Some((_, ty)) = self.resolve(id) else {
            return "void".to_owned();
        };
        match ty.kind.as_str() {
            "INT" | "ENUM" | "ENUM64" => format!("int{}", ty.size * 8),
            "PTR" => match self.resolve(ty.refers_to) {
                Some((_, to)) if matches!(to.kind.as_str(), "STRUCT" | "UNION" | "FWD") => {
                    if to.name.is_empty() {
                        "pointer".to_owned()
                    } else {
                        format!("{} *", to.name)
                    }
                }
                _ => "pointer".to_owned(),
            },
            "STRUCT" | "UNION" => format!("struct of {} bytes", ty.size),
            _ => "by value".to_owned(),
        }
    }
}

/// `'name' rest`; an anonymous one has no name.
fn quoted(text: &str) -> (String, &str) {
    let (name, rest) = text.strip_prefix('\'').unwrap().split_once('\'').unwrap();
    let name = if name == "(anon)" { "" } else { name };
    (name.to_owned(), rest)
}

fn number(fields: &str, key: &str) -> Option<u32> {
    fields.split_ascii_whitespace().find_map(|field| {
        let (name, value) = field.split_once('=')?;
        (name == key).then(|| value.trim_end_matches(',').parse().unwrap())
    })
}

fn parse_member(line: &str) -> Member {
    let (name, fields) = quoted(line);
    let value = fields.split_once("val=").map_or(0, |(_, value)| {
        let value = value.trim_end_matches(['U', 'L']);
        // Constants beyond i64 are of no interest here.
        value.parse().unwrap_or(i64::MAX)
    });
    Member {
        name,
        ty: number(fields, "type_id").unwrap_or(0),
        bits: number(fields, "bits_offset").unwrap_or(0),
        bitfield_size: number(fields, "bitfield_size").unwrap_or(0),
        value,
    }
}
