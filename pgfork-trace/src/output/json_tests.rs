//! Tests of JSON lines and of their schema. `PGFORK_TRACE_BLESS=1` rewrites docs/json-schema.json.

use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::{
    super::{
        file::Store,
        line::Refusal,
        samples::{self, time},
    },
    *,
};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Store for Memory {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn take_back(&mut self, _bytes: u64) -> io::Result<()> {
        unreachable!("nothing fails here")
    }
}

impl Memory {
    fn lines(&self) -> Vec<Value> {
        let bytes = self.0.lock().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn of_type(&self, wanted: &str) -> Vec<Value> {
        let mut lines = self.lines();
        lines.retain(|line| line["type"] == wanted);
        lines
    }

    fn len(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
}

fn refusal(refusal: Refusal) -> Line {
    Line::Refusal(Box::new(refusal))
}

#[test]
fn schema_is_the_committed_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/json-schema.json");
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("PGFORK_TRACE_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        text == committed,
        "run the tests with PGFORK_TRACE_BLESS=1 and look at the difference"
    );
}

#[test]
fn every_line_is_valid() {
    // Readers must accept fields of later versions; here, each has to be described.
    let mut strict = schema();
    strict["unevaluatedProperties"] = false.into();
    let validator = jsonschema::validator_for(&strict).unwrap();
    for line in samples::all() {
        let encoded = encode(time("12:00:00"), &line);
        let value: Value = serde_json::from_slice(&encoded).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| format!("{error} at {}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:?} in {value:#}");
        assert!(!has_null(&value), "{value:#}");
    }
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(fields) => fields.values().any(has_null),
        _ => false,
    }
}

#[test]
fn schema_refuses_what_is_no_line() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let good: Value =
        serde_json::from_slice(&encode(time("12:00:00"), &refusal(samples::commit_limit())))
            .unwrap();
    assert!(validator.is_valid(&good));
    for field in [
        "schema",
        "type",
        "time",
        "cause",
        "certainty",
        "evidence",
        "postmaster",
        "process",
        "method",
    ] {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&bad), "without {field}");
    }
    for (field, value) in [
        ("cause", "magic"),
        ("type", "other"),
        ("schema", "pgfork-trace/2"),
        ("method", "guess"),
    ] {
        let mut bad = good.clone();
        bad[field] = value.into();
        assert!(!validator.is_valid(&bad), "{field} {value}");
    }
}

#[test]
fn refusal_has_its_fields_at_the_top() {
    let line = encode(
        time("12:03:04.123456789"),
        &refusal(samples::commit_limit()),
    );
    assert!(line.starts_with(
        br#"{"schema":"pgfork-trace/1","time":"2026-03-01T12:03:04.123456Z","type":"refusal","postmaster":{"pid":1843,"#
    ));
    let value: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        value["errno"],
        serde_json::json!({"number": 12, "name": "ENOMEM"})
    );
    assert_eq!(value["cause"], "commit_limit");
    assert_eq!(value["certainty"], "observed");
    assert_eq!(value["scope"]["kind"], "host");
    assert_eq!(value["method"], "fexit");
    assert_eq!(
        value["evidence"]["overcommit"]["requested_bytes"],
        148 * 1024
    );
    assert_eq!(value["lost_before"], 0);
}

#[test]
fn what_is_missing_is_absent() {
    let value: Value =
        serde_json::from_slice(&encode(time("12:00:00"), &refusal(samples::sparse()))).unwrap();
    for field in [
        "errno",
        "duration_ns",
        "clone_flags",
        "scope",
        "check",
        "stage",
        "also_possible",
    ] {
        assert!(value.get(field).is_none(), "{field}");
    }
    assert_eq!(value["evidence"], serde_json::json!({}));
    assert_eq!(value["process"], serde_json::json!({"pid": 9, "tid": 9}));
}

#[test]
fn strings_are_complete_and_harmless_on_a_terminal() {
    let line = encode(time("12:00:00"), &refusal(samples::hostile()));
    let text = std::str::from_utf8(&line).unwrap().trim_end_matches('\n');
    assert_eq!(text.chars().find(|c| escape::is_unsafe(*c)), None);
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!(value["process"]["comm"], samples::HOSTILE);
    // Beyond 16 bits: a surrogate pair.
    let tag = encode(time("12:00:00"), &Notice::line("x", "a\u{e0041}\"b"));
    let value: Value = serde_json::from_slice(&tag).unwrap();
    assert_eq!(value["message"], "a\u{e0041}\"b");
    assert!(
        std::str::from_utf8(&tag)
            .unwrap()
            .contains(r#"a\udb40\udc41\"b"#)
    );
}

#[test]
fn without_a_limit_every_refusal_is_kept() {
    let memory = Memory::default();
    let mut json = JsonLines::new(Box::new(memory.clone()), None);
    for _ in 0..100 {
        json.emit(time("12:00:00"), &refusal(samples::commit_limit()))
            .unwrap();
    }
    json.tick(time("13:00:00")).unwrap();
    json.flush(time("13:00:00")).unwrap();
    assert_eq!(memory.of_type("refusal").len(), 100);
    assert_eq!(memory.lines().len(), 100);
}

#[test]
fn size_limit_stops_details_and_counts_go_on() {
    const LIMIT: u64 = 64 * 1024;
    let memory = Memory::default();
    let mut json = JsonLines::new(Box::new(memory.clone()), Some(LIMIT));
    json.emit(
        time("12:00:00"),
        &samples::start(vec![samples::postmaster()], &[]),
    )
    .unwrap();
    for _ in 0..500 {
        json.emit(time("12:00:00"), &refusal(samples::commit_limit()))
            .unwrap();
        json.emit(time("12:00:00"), &refusal(samples::pids()))
            .unwrap();
    }
    let details = memory.of_type("refusal").len();
    assert!(details > 10, "{details}");
    assert_eq!(memory.of_type("notice").len(), 1);
    assert_eq!(memory.of_type("notice")[0]["code"], "max_size_reached");
    assert_eq!(memory.of_type("repeat").len(), 0);
    json.tick(time("12:01:01")).unwrap();
    assert_eq!(memory.of_type("repeat").len(), 2);
    // For ever: counts stop too, and nothing is lost at the end.
    for minute in 2..59 {
        for second in 0..3 {
            let now = time(&format!("12:{minute:02}:0{second}"));
            json.emit(now, &refusal(samples::commit_limit())).unwrap();
            json.emit(now, &Notice::line("x", "y")).unwrap();
            json.tick(now).unwrap();
        }
    }
    assert!(memory.len() <= LIMIT);
    let totals = Line::Totals(samples::totals(
        samples::postmaster(),
        1_000,
        &[("commit_limit", 500)],
    ));
    json.emit(time("13:00:00"), &totals).unwrap();
    json.emit(time("13:00:00"), &Line::End(samples::end(1_000, 0, true)))
        .unwrap();
    assert!(memory.len() <= LIMIT);
    let counted: u64 = memory
        .of_type("repeat")
        .iter()
        .map(|it| it["refusals"].as_u64().unwrap())
        .sum();
    assert_eq!(counted + details as u64, 1_000 + 57 * 3);
    assert_eq!(memory.lines().last().unwrap()["type"], "end");
    assert_eq!(memory.of_type("refusal").len(), details);
}
