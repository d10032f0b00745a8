//! One refusal, whole: what happened first, then why, then what to do.

use super::{
    super::{
        escape::{name, sentence},
        line::{Errno, Refusal},
        units::counted,
    },
    actor::actor,
    client, container, numbers,
    style::Style,
    who,
};
use crate::verdict::{
    Cause, Certainty, CheckSeen, Considered, Remedy, Scope, TrailEntry, Verdict,
    client::{Child, ChildKind},
};

/// Column of the certainty.
const CERTAINTY_COLUMN: usize = 76;
/// Widest command that its effect stands next to.
const COMMAND_WIDTH: usize = 48;
/// Most checks listed that could not be watched.
const MOST_NOT_SEEN: usize = 5;

/// Rows with a label; rows that go on have an empty one.
pub(super) struct Block {
    pub(super) out: String,
    pub(super) style: Style,
}

impl Block {
    pub(super) fn rows(&mut self, label: &str, rows: impl IntoIterator<Item = String>) {
        let mut label = label;
        for row in rows {
            self.out += &format!("  {}{row}\n", self.style.label(&format!("{label:<10}")));
            label = "";
        }
    }

    pub(super) fn row(&mut self, label: &str, row: String) {
        self.rows(label, [row]);
    }
}

/// The block of a refusal; `clock` is its time.
pub(super) fn refusal(clock: &str, refusal: &Refusal, style: Style) -> String {
    let verdict = &refusal.verdict;
    let mut block = Block {
        out: format!(
            "{clock}  {}  {}{}{}\n",
            style.alarm("REFUSED"),
            style.strong(&who(&refusal.postmaster)),
            caller(refusal),
            client::whose(refusal)
        ),
        style,
    };
    block.row("errno", errno(refusal));
    block.row(
        "cause",
        cause(
            verdict.cause,
            verdict.certainty,
            verdict.scope.as_ref(),
            style,
        ),
    );
    let inlined = inline_check(verdict);
    block.rows(
        "check",
        inlined.or_else(|| check(verdict.check.as_ref(), &verdict.trail)),
    );
    block.row("because", sentence(&verdict.because).into_owned());
    block.rows("numbers", numbers::lines(verdict));
    if verdict.certainty == Certainty::Unknown {
        block.rows(
            "stage",
            verdict
                .stage
                .map(|it| format!("the fork got as far as {it}")),
        );
        block.rows("ruled out", considered(&verdict.ruled_out));
    }
    block.rows("possible", considered(&verdict.also_possible));
    block.rows("also full", considered(&verdict.also_full));
    if verdict.certainty == Certainty::Unknown {
        block.rows("not seen", not_seen(&verdict.not_seen));
    }
    block.rows("remedy", remedies(verdict.cause, &verdict.remedy, style));
    let next = refusal.next_limit.as_ref();
    block.rows("next", next.map(|next| sentence(&next.text).into_owned()));
    if refusal.lost_before > 0 {
        block.row(
            "lost",
            format!(
                "details of {} before this one; they are counted",
                counted(refusal.lost_before, "refusal", "refusals")
            ),
        );
    }
    block.out
}

/// Who called fork, where it was not the watched process's first thread.
fn caller(refusal: &Refusal) -> String {
    let process = &refusal.process;
    if process.role.is_some() && process.pid != refusal.postmaster.pid {
        return format!(", in {}", actor(process));
    }
    let comm = process
        .comm
        .as_ref()
        .map(|comm| format!(" ({})", name(comm)))
        .unwrap_or_default();
    if process.pid != refusal.postmaster.pid {
        format!(", in process {}{comm}", process.pid)
    } else if process.tid != process.pid {
        format!(", in thread {}{comm}", process.tid)
    } else {
        String::new()
    }
}

/// PostgreSQL's own words, as its log and the client have them. For a connection they are the
/// same in versions 13 to 18 (src/backend/postmaster/postmaster.c `BackendStartup`); for
/// anything else they name the process, which is not known here.
fn errno(refusal: &Refusal) -> String {
    let for_client = matches!(
        &refusal.child,
        Some(Child {
            kind: ChildKind::ClientBackend,
            ..
        })
    );
    let server = refusal.is_for_postmaster();
    match &refusal.errno {
        Some(errno) if for_client => format!(
            "{}: \"could not fork new process for connection: {}\"",
            errno.name,
            strerror(errno)
        ),
        Some(errno) => format!("{}: {}", errno.name, strerror(errno)),
        None if for_client => {
            "not readable here; the server log has it: \"could not fork new process for connection: ...\"".to_owned()
        }
        None if server => "not readable here; the server log has it: \"could not fork ...\"".to_owned(),
        None => "not readable here".to_owned(),
    }
}

/// The text of glibc, which is what PostgreSQL prints almost everywhere.
pub(super) fn strerror(errno: &Errno) -> String {
    match errno.number {
        libc::ENOMEM => "Cannot allocate memory".to_owned(),
        libc::EAGAIN => "Resource temporarily unavailable".to_owned(),
        number => {
            let text = std::io::Error::from_raw_os_error(number).to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}

pub(super) fn cause(
    cause: Cause,
    certainty: Certainty,
    scope: Option<&Scope>,
    style: Style,
) -> String {
    let entry = cause.entry();
    let whose = match scope {
        Some(Scope::Cgroup {
            container: Some(id),
            ..
        }) => format!(" ({})", container(id)),
        Some(Scope::Cgroup {
            unit: Some(unit), ..
        }) => format!(" ({})", name(unit)),
        Some(Scope::Cgroup {
            path: Some(path), ..
        }) => format!(" ({})", name(path)),
        Some(Scope::User { uid: Some(uid), .. }) => format!(" (uid {uid})"),
        Some(Scope::PidNamespace { level: 0, .. }) => " (the host's)".to_owned(),
        Some(Scope::PidNamespace { inum, .. }) => format!(" (pid namespace {inum})"),
        _ => String::new(),
    };
    let length = entry.id.len() + 2 + entry.title.len() + whose.chars().count();
    let gap = CERTAINTY_COLUMN.saturating_sub(length).max(2);
    let shown = format!("[{}]", certainty.name());
    format!(
        "{}: {}{whose}{:gap$}{}",
        style.strong(entry.id),
        entry.title,
        "",
        match certainty {
            Certainty::Observed => style.good(&shown),
            Certainty::Deduced | Certainty::Unknown => style.doubt(&shown),
        }
    )
}

/// Where the check of a cause sits that has no function of its own to be hooked.
fn inline_check(verdict: &Verdict) -> Option<String> {
    let function = verdict.cause.entry().function;
    (verdict.check.is_none() && verdict.cause != Cause::Unknown && !function.is_empty())
        .then(|| format!("in {function} (no return of the check itself was seen)"))
}

/// The way to the check, or all that was seen failing.
pub(super) fn check(check: Option<&CheckSeen>, trail: &[TrailEntry]) -> Option<String> {
    let Some(CheckSeen {
        function,
        path,
        returned,
    }) = check
    else {
        let trail: Vec<String> = trail
            .iter()
            .map(|entry| format!("{} = {}", entry.function, entry.returned))
            .collect();
        return (!trail.is_empty())
            .then(|| format!("not identified; seen failing: {}", trail.join(", ")));
    };
    let mut way = path.clone();
    if way.last() != Some(function) {
        way.push(function);
    }
    let result = match returned {
        Some(returned) => format!(" = {returned}"),
        None => " (its return was not seen)".to_owned(),
    };
    Some(way.join(" > ") + &result)
}

pub(super) fn considered(all: &[Considered]) -> impl Iterator<Item = String> {
    all.iter()
        .map(|it| format!("{}: {}", it.what, sentence(&it.why)))
}

pub(super) fn not_seen(all: &[String]) -> Vec<String> {
    let mut rows: Vec<String> = all
        .iter()
        .take(MOST_NOT_SEEN)
        .map(|why| sentence(why).into_owned())
        .collect();
    if all.len() > MOST_NOT_SEEN {
        rows.push(format!(
            "and {} more, see `pgfork-trace probes`",
            all.len() - MOST_NOT_SEEN
        ));
    }
    rows
}

pub(super) fn remedies(cause: Cause, remedies: &[Remedy], style: Style) -> Vec<String> {
    if remedies.is_empty() {
        return vec![match cause {
            Cause::Unknown => "none: no limit is proven to be the cause".to_owned(),
            cause => format!("in general: {}", cause.entry().remedy),
        }];
    }
    // Ways to more commit limit stand for each other; limits on one path, or now and later, go together.
    let joint = match cause {
        Cause::CommitLimit | Cause::ShmCommitRefused | Cause::OvercommitHeuristic => "or ",
        _ => "and ",
    };
    let commands: Vec<String> = remedies
        .iter()
        .enumerate()
        .map(|(at, remedy)| {
            let joint = if at == 0 { "" } else { joint };
            format!("{joint}{}", sentence(&remedy.change))
        })
        .collect();
    let fitting = commands.iter().map(|it| it.chars().count());
    let width = fitting
        .filter(|width| *width <= COMMAND_WIDTH)
        .max()
        .unwrap_or(0);
    commands
        .iter()
        .zip(remedies)
        .flat_map(|(command, remedy)| remedy_rows(command, remedy, width, style))
        .collect()
}

fn remedy_rows(command: &str, remedy: &Remedy, width: usize, style: Style) -> Vec<String> {
    let effect = sentence(&remedy.effect);
    let length = command.chars().count();
    let command = style.strong(command);
    if length > width {
        return vec![command, format!("    {effect}")];
    }
    let gap = width - length + 3;
    vec![format!("{command}{:gap$}{effect}", "")]
}
