//! Lines of a server's own log, in its three formats: what the server says, told from what clients
//! have it say.
//!
//! A client chooses the text of statements and of some errors, and its names (user, database,
//! application), which stand before the message where log_line_prefix has them. What an
//! authenticated client has the server log as a message of its own (`RAISE LOG`) is told apart in
//! csvlog and jsonlog only.

use std::borrow::Cow;

/// Between severity and message (src/backend/utils/error/elog.c `send_message_to_server_log`,
/// PostgreSQL 10 to 18).
const SEPARATOR: &str = ":  ";
const FORK: &str = "could not fork ";
const SLOTS: [&str; 2] = [
    "sorry, too many clients already",
    "remaining connection slots are reserved for ",
];
const MEMORY: &str = "out of memory";

/// `log_destination` of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// With log_line_prefix and, of a text of several lines, a tab before all but the first.
    Stderr,
    /// `csvlog`.
    Csv,
    /// `jsonlog`, since version 15.
    Json,
}

impl Format {
    /// By its name in `current_logfiles`.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "stderr" => Some(Self::Stderr),
            "csvlog" => Some(Self::Csv),
            "jsonlog" => Some(Self::Json),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Log,
    Error,
    Fatal,
}

/// Severities in the languages that PostgreSQL 15 has catalogs of (src/backend/po): a message may
/// be in English behind one of these, where it has no translation. PANIC is an error here.
const SEVERITIES: [(Severity, &[&str]); 3] = [
    (
        Severity::Log,
        &[
            "LOG",
            "LOGG",
            "СООБЩЕНИЕ",
            "ЗАПИСУВАННЯ",
            "ჟურნალი",
            "로그",
            "日志",
        ],
    ),
    // Before errors: some of these end like one.
    (
        Severity::Fatal,
        &[
            "FATAL",
            "FATALE",
            "FATALT",
            "ВАЖНО",
            "ФАТАЛЬНО",
            "ფატალური",
            "치명적오류",
            "致命错误",
        ],
    ),
    (
        Severity::Error,
        &[
            "ERROR",
            "FEHLER",
            "ERREUR",
            "ERRORE",
            "FEL",
            "ОШИБКА",
            "ПОМИЛКА",
            "შეცდომა",
            "오류",
            "错误",
            "PANIC",
            "PANIK",
            "PANICO",
            "ПАНИКА",
            "ПАНІКА",
            "პანიკა",
            "손상",
        ],
    ),
];

/// What a line says about processes and memory that were refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A fork: what for (`worker process`), and the text of the error.
    Fork { child: String, error: String },
    /// A client, because all slots are taken.
    Slots,
    /// Memory of a process.
    Memory,
}

/// The refusal that one line is about. `separators`: how often log_line_prefix itself has what
/// stands between severity and message.
pub(super) fn refusal(line: &[u8], format: Format, separators: usize) -> Option<Refusal> {
    let line = String::from_utf8_lossy(line);
    if ![FORK, SLOTS[0], SLOTS[1], MEMORY]
        .iter()
        .any(|text| line.contains(text))
    {
        return None;
    }
    let (severity, message, session) = match format {
        Format::Stderr => {
            let (severity, message) = stderr(&line, separators)?;
            (severity, Cow::Borrowed(message), false)
        }
        Format::Csv => csv(&line)?,
        Format::Json => json(&line)?,
    };
    // A severity behind it: it stands in a name of the client, before the message.
    if message.contains(SEPARATOR) {
        return None;
    }
    match severity {
        // A postmaster has no client.
        Severity::Log if !session && message.starts_with(FORK) => {
            let (child, error) = message[FORK.len()..].split_once(": ")?;
            Some(Refusal::Fork {
                child: child.to_owned(),
                error: error.to_owned(),
            })
        }
        Severity::Fatal if message == SLOTS[0] || message.starts_with(SLOTS[1]) => {
            Some(Refusal::Slots)
        }
        _ if message.starts_with(MEMORY) => Some(Refusal::Memory),
        _ => None,
    }
}

/// The first severity and what stands behind it. Statements, details and contexts stand behind
/// other words.
fn stderr(line: &str, separators: usize) -> Option<(Severity, &str)> {
    if line.starts_with('\t') {
        return None;
    }
    let ends = line.match_indices(SEPARATOR).take(separators + 1);
    ends.filter_map(|(at, _)| {
        let severity = severity(|word| line[..at].ends_with(word))?;
        Some((severity, without_state(&line[at + SEPARATOR.len()..])))
    })
    .next()
}

fn severity(is: impl Fn(&str) -> bool) -> Option<Severity> {
    SEVERITIES
        .iter()
        .find(|(_, words)| words.iter().any(|word| is(word)))
        .map(|(severity, _)| *severity)
}

/// With log_error_verbosity = verbose the SQLSTATE comes first.
fn without_state(message: &str) -> &str {
    match message.split_once(": ") {
        Some((state, rest))
            if state.len() == 5
                && state
                    .bytes()
                    .all(|it| it.is_ascii_uppercase() || it.is_ascii_digit()) =>
        {
            rest
        }
        _ => message,
    }
}

/// Severity, message and whether it is of a client's session, of a line of csvlog (elog.c, from 15
/// on csvlog.c `write_csvlog`, PostgreSQL 10 to 18: fields 12 and 14; 2 and 5 are user and host).
/// A line that begins inside of a field is not in this form: all quotes in a field are doubled.
fn csv(line: &str) -> Option<(Severity, Cow<'static, str>, bool)> {
    let mut fields = Vec::new();
    let mut rest = line;
    while fields.len() < 14 {
        let (quoted, field, more) = csv_field(rest)?;
        fields.push((quoted, field));
        rest = match more.strip_prefix(',') {
            Some(more) => more,
            None if fields.len() == 14 => more,
            None => return None,
        };
    }
    let (quoted, message) = fields.pop()?;
    let session = !fields[1].1.is_empty() || !fields[4].1.is_empty();
    let found = severity(|word| fields[11].1 == word)?;
    quoted.then_some((found, Cow::Owned(message), session))
}

/// Whether the first field is quoted, its text, and what follows it.
fn csv_field(text: &str) -> Option<(bool, String, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        let (field, rest) = text.split_at(end);
        return (!field.contains('"')).then(|| (false, field.to_owned(), rest));
    };
    let mut field = String::new();
    loop {
        let (piece, more) = rest.split_once('"')?;
        field += piece;
        match more.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None if more.is_empty() || more.starts_with(',') => return Some((true, field, more)),
            None => return None,
        }
    }
}

/// The same of a line of jsonlog (jsonlog.c `write_jsonlog`, PostgreSQL 15 to 18).
fn json(line: &str) -> Option<(Severity, Cow<'static, str>, bool)> {
    let entry: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    let found = entry.get("error_severity")?.as_str()?;
    let found = severity(|word| found == word)?;
    let message = entry.get("message")?.as_str()?.to_owned();
    let session = entry.contains_key("user") || entry.contains_key("remote_host");
    Some((found, Cow::Owned(message), session))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(child: &str, error: &str) -> Refusal {
        Refusal::Fork {
            child: child.to_owned(),
            error: error.to_owned(),
        }
    }

    /// A whole line of csvlog.
    fn csv_line(
        user: &str,
        severity: &str,
        message: &str,
        query: &str,
        application: &str,
    ) -> String {
        format!(
            "2026-11-23 10:00:01.123 UTC,{user},,7,,6564.2bc,5,,2026-11-23 10:00:00 UTC,,0,{severity},00000,{message},,,,,,{query},,,{application},\"postmaster\",,0"
        )
    }

    #[test]
    fn what_the_server_says_is_known_in_all_formats() {
        let connection = fork("new process for connection", "Cannot allocate memory");
        let text = "could not fork new process for connection: Cannot allocate memory";
        for (line, format) in [
            (format!("LOG:  {text}"), Format::Stderr),
            (
                format!("2026-11-23 10:00:00 UTC [7] LOG:  {text}"),
                Format::Stderr,
            ),
            (format!("x LOG:  00000: {text}"), Format::Stderr),
            (format!("x СООБЩЕНИЕ:  {text}"), Format::Stderr),
            (
                csv_line("", "LOG", &format!("\"{text}\""), "", "\"\""),
                Format::Csv,
            ),
            (
                format!(r#"{{"pid":7,"error_severity":"LOG","message":"{text}"}}"#),
                Format::Json,
            ),
        ] {
            let found = refusal(line.as_bytes(), format, 0);
            assert_eq!(found.as_ref(), Some(&connection), "{line}");
        }
        assert_eq!(
            refusal(
                csv_line(
                    "",
                    "LOG",
                    "\"could not fork \"\"io_worker\"\" process: x\"",
                    "",
                    ""
                )
                .as_bytes(),
                Format::Csv,
                0
            ),
            Some(fork("\"io_worker\" process", "x"))
        );
        for (line, expected) in [
            ("FATAL:  sorry, too many clients already", Refusal::Slots),
            (
                "u@d FATAL:  53300: sorry, too many clients already",
                Refusal::Slots,
            ),
            (
                "致命错误:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
                Refusal::Slots,
            ),
            ("FEHLER:  out of memory", Refusal::Memory),
            ("ERROR:  out of memory at character 8", Refusal::Memory),
        ] {
            assert_eq!(
                refusal(line.as_bytes(), Format::Stderr, 0),
                Some(expected),
                "{line}"
            );
        }
    }

    #[test]
    fn a_prefix_may_have_the_separator_itself() {
        let line = b"app:  [7]:  LOG:  could not fork worker process: x";
        assert_eq!(refusal(line, Format::Stderr, 0), None);
        assert_eq!(
            refusal(line, Format::Stderr, 2),
            Some(fork("worker process", "x"))
        );
    }

    #[test]
    fn what_a_client_chose_is_not_taken_for_it() {
        let text = "could not fork worker process: x";
        for label in [
            "STATEMENT",
            "DETAIL",
            "HINT",
            "QUERY",
            "CONTEXT",
            "ANWEISUNG",
            "INSTRUCTION ",
            "문장",
        ] {
            for text in [
                text,
                "LOG:  could not fork worker process: x",
                "select 'LOG:  could not fork worker process: x",
                "sorry, too many clients already",
                "FATAL:  sorry, too many clients already",
                "out of memory",
                "ERROR:  out of memory",
            ] {
                let line = format!("2026 [7] {label}:  {text}");
                assert_eq!(refusal(line.as_bytes(), Format::Stderr, 0), None, "{line}");
            }
        }
        for line in [
            // The next line of a statement.
            "\tLOG:  could not fork worker process: x",
            "ERROR:  syntax error at \"LOG:  could not fork worker process: x\"",
            "ERROR:  invalid input syntax for type integer: \"out of memory\"",
            "LOG:  statement: select 'could not fork worker process: x'",
            "LOG:  statement: select ',\"could not fork worker process: x'",
            "LOG:  statement: select '\"message\":\"could not fork worker process: x'",
            // Names in the prefix.
            "[7] LOG:  could not fork worker process: x FATAL:  role \"a\" does not exist",
            "FATAL:  sorry, too many clients already ERROR:  x",
            "ERROR:  could not fork worker process: x",
            "LOG:  could not fork worker process",
            "konnte nicht: could not fork worker process: x",
        ] {
            assert_eq!(refusal(line.as_bytes(), Format::Stderr, 0), None, "{line}");
        }
        let quoted = format!("\"{text}\"");
        for line in [
            csv_line("", "LOG", "\"ready\"", &quoted, "\"\""),
            csv_line("", "LOG", "\"ready\"", "", &quoted),
            csv_line(&quoted, "LOG", "\"ready\"", "", ""),
            // RAISE LOG.
            csv_line("\"joe\"", "LOG", &quoted, "", ""),
            // The next line of a statement, whose quotes are doubled, and its end.
            csv_line("", "LOG", &format!("\"{quoted}\""), "", ""),
            format!(
                "{},1,,\"x\"",
                csv_line("", "LOG", &format!("\"{quoted}\""), "", "")
            ),
            format!(",,,,,,,,,,,LOG,00000,{text},,\",8,,\"x\",\"client backend\""),
            format!(",,,,,,,,,,,LOG,,\",8,,{quoted},\"client backend\",,0"),
        ] {
            assert_eq!(refusal(line.as_bytes(), Format::Csv, 0), None, "{line}");
        }
        for line in [
            r#"{"error_severity":"LOG","message":"ready","statement":"could not fork worker process: x"}"#,
            r#"{"error_severity":"LOG","message":"\"message\":\"could not fork worker process: x"}"#,
            r#"{"user":"joe","error_severity":"LOG","message":"could not fork worker process: x"}"#,
            r#"worker","error_severity":"LOG","message":"could not fork worker process: x"}"#,
        ] {
            assert_eq!(refusal(line.as_bytes(), Format::Json, 0), None, "{line}");
        }
    }
}
