//! BTF built by hand: good, truncated and broken.

use super::*;

/// Builds BTF with: 1 int, 2 struct inner{b@32}, 3 anonymous union{inner c@0},
/// 4 typedef of 2, 5 struct outer{a@0: int, @64: anon 3, d@128: typedef 4},
/// 6 enum{ZERO, SEVEN=7}, 7 proto int(outer*, int), 8 func f -> 7, 9 ptr -> 5.
fn sample() -> Vec<u8> {
    let mut strings = vec![0u8];
    let mut name = |text: &str| {
        let at = strings.len() as u32;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    let (int, inner, b, outer, a, c, d, seven, f) = (
        name("int"),
        name("inner"),
        name("b"),
        name("outer"),
        name("a"),
        name("c"),
        name("d"),
        name("SEVEN"),
        name("f"),
    );
    let mut words: Vec<u32> = Vec::new();
    let info = |kind: u32, count: u32| kind << 24 | count;
    words.extend([int, info(KIND_INT, 0), 4, 32]);
    words.extend([inner, info(KIND_STRUCT, 1), 8, b, 1, 32]);
    words.extend([0, info(KIND_UNION, 1), 8, c, 2, 0]);
    words.extend([0, info(KIND_TYPEDEF, 0), 2]);
    words.extend([
        outer,
        info(KIND_STRUCT, 3),
        24,
        a,
        1,
        0,
        0,
        3,
        64,
        d,
        4,
        128,
    ]);
    words.extend([0, info(KIND_ENUM, 1), 4, seven, 7]);
    words.extend([0, info(KIND_FUNC_PROTO, 2), 1, 0, 9, 0, 1]);
    words.extend([f, info(KIND_FUNC, 1), 7]);
    words.extend([0, info(KIND_PTR, 0), 5]);
    let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut file = Vec::new();
    file.extend(MAGIC.to_ne_bytes());
    file.extend([1, 0]);
    for word in [
        24,
        0,
        types.len() as u32,
        types.len() as u32,
        strings.len() as u32,
    ] {
        file.extend(word.to_ne_bytes());
    }
    file.extend(types);
    file.extend(strings);
    file
}

fn open(bytes: &[u8]) -> Result<Btf, BtfError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let wanted = Wanted {
        types: ["outer", "f"].into(),
        members: ["a", "b", "c", "d", "SEVEN"].into(),
    };
    Btf::open(file.path(), &wanted)
}

#[test]
fn finds_members_through_anonymous_ones_and_typedefs() {
    let btf = open(&sample()).unwrap();
    assert_eq!(btf.offset_of("outer", "a").unwrap(), Some(0));
    assert_eq!(btf.offset_of("outer", "c").unwrap(), Some(8));
    assert_eq!(btf.offset_of("outer", "c.b").unwrap(), Some(12));
    assert_eq!(btf.offset_of("outer", "d.b").unwrap(), Some(20));
    assert_eq!(btf.offset_of("outer", "b").unwrap(), None);
    assert_eq!(btf.offset_of("inner", "b").unwrap(), None, "not asked for");
}

#[test]
fn finds_constants_and_functions() {
    let btf = open(&sample()).unwrap();
    assert_eq!(btf.constant("SEVEN"), Some(7));
    assert_eq!(btf.constant("ZERO"), None);
    let function = btf.named("f", KIND_FUNC).next().unwrap();
    assert_eq!(function.id, 8);
    let proto = btf.type_by_id(function.size_or_type).unwrap().unwrap();
    assert_eq!(btf.parameters(proto).unwrap(), [9, 1]);
}

#[test]
fn broken_files_are_errors_not_panics() {
    let good = sample();
    for len in 0..good.len() {
        // Every truncation: an error, or the strings still hold what is looked up.
        let _ = open(&good[..len]);
    }
    assert!(matches!(open(&[]), Err(BtfError::Read { .. })));
    let mut bad = good.clone();
    bad[0] = 0;
    assert!(matches!(open(&bad), Err(BtfError::Format { .. })));
    let mut unknown_kind = good;
    unknown_kind[24 + 7] = 31;
    let error = open(&unknown_kind).unwrap_err().to_string();
    assert!(error.contains("unknown kind 31"), "{error}");
}
