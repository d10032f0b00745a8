//! `check` as text: what refuses next first, then every limit, then who is connected.

use super::{
    OutputOptions, Surroundings, check_history, check_table,
    escape::{name, sentence},
    text::Style,
    units::{bytes, count, counted, long_time},
};
use crate::{
    check::{
        Connections, LimitReport, Origin, Report, ServerReport, SocketCounts, StateAge, Tally,
    },
    verdict::{
        findings::Finding,
        headroom::{Limit, Row},
    },
};

/// Widest command that its effect stands next to.
const COMMAND_WIDTH: usize = 56;
/// Lines about clients while watching: how many, since when, and the most frequent addresses.
const WATCHED_LINES: usize = 6;

/// The whole report.
#[must_use]
pub fn check_text(report: &Report, options: &OutputOptions, around: &Surroundings) -> String {
    let verbose = options.verbose > 0;
    let style = style(options, around);
    let mut out = String::new();
    for server in &report.servers {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &self::server(server, style, verbose);
    }
    rows(
        &mut out,
        style,
        "host saw",
        check_history::host(&report.history),
    );
    rows(&mut out, style, "not seen", notes(&report.not_seen));
    out += &format!(
        "\nKernel {}; {} looked at in {}.{:.1} ms; nothing was changed.\n",
        match report.kernel.as_str() {
            "" => "unknown".into(),
            kernel => name(kernel),
        },
        counted(report.servers.len() as u64, "server", "servers"),
        report.took_us / 1000,
        report.took_us % 1000 / 100
    );
    out
}

/// What moves, for a screen that is drawn again and again.
#[must_use]
pub fn watch_text(report: &Report, options: &OutputOptions, around: &Surroundings) -> String {
    let style = style(options, around);
    let mut out = String::new();
    for server in &report.servers {
        out += &headline(server, style);
        rows(&mut out, style, "type", typed(server, style));
        let first = server.first;
        let shown: Vec<&LimitReport> = server
            .limits
            .iter()
            .enumerate()
            .filter(|(at, limit)| {
                let moves = limit.trend.is_some_and(|trend| trend.used_change != 0);
                limit.near || first == Some(*at) || moves && limit.row.max.is_some()
            })
            .map(|(_, limit)| limit)
            .collect();
        rows(
            &mut out,
            style,
            "limits",
            check_table::table(&shown, style, false),
        );
        let clients = clients(&server.connections).into_iter();
        rows(&mut out, style, "clients", clients.take(WATCHED_LINES));
        rows(&mut out, style, "others", others(&server.connections));
    }
    out += &format!(
        "{}; {}; -v for everything, Ctrl-C stops.\n",
        name(&report.time),
        counted(report.near, "limit is close", "limits are close")
    );
    out
}

fn style(options: &OutputOptions, around: &Surroundings) -> Style {
    Style {
        color: around.colors(options.color, around.stdout_terminal),
    }
}

fn notes(notes: &[String]) -> impl Iterator<Item = String> {
    notes.iter().map(|note| sentence(note).into_owned())
}

/// Who it is, and what refuses next.
fn headline(server: &ServerReport, style: Style) -> String {
    let summary = sentence(&server.summary);
    let near = server.limits.iter().any(|limit| limit.near);
    let painted = match near {
        true => style.alarm(&summary),
        false if server.unread.is_empty() => style.good(&summary),
        false => summary.into_owned(),
    };
    format!("{}\n  {painted}\n", style.strong(&who(server)))
}

/// What is wrong, and below it what to type.
fn note(finding: &Finding, style: Style) -> impl Iterator<Item = String> {
    let command = finding.command.as_ref();
    let command = command.map(|command| format!("    {}", style.strong(&sentence(command))));
    std::iter::once(sentence(&finding.text).into_owned()).chain(command)
}

/// What makes room, where that is wanted.
fn typed(server: &ServerReport, style: Style) -> Option<String> {
    let command = server.make_room.as_ref()?;
    Some(style.strong(&sentence(command)))
}

fn server(server: &ServerReport, style: Style, verbose: bool) -> String {
    let mut out = headline(server, style);
    let near = server.limits.iter().filter(|limit| limit.near);
    let several = near.clone().count() > 1;
    for limit in near {
        let of = several.then(|| format!("for {}:", limit.row.limit.id()));
        let typed = remedies(&limit.row, style);
        rows(&mut out, style, "type", of.into_iter().chain(typed));
    }
    let wrong = server.findings.iter();
    rows(
        &mut out,
        style,
        "note",
        wrong.flat_map(|finding| note(finding, style)),
    );
    out.push('\n');
    let (endless, limited): (Vec<&LimitReport>, Vec<&LimitReport>) =
        server.limits.iter().partition(|limit| {
            limit.row.max.is_none() && !limit.row.limit_unknown && limit.row.backends.is_none()
        });
    let mut table = check_table::table(&limited, style, verbose);
    table.extend(check_table::unlimited(&endless));
    rows(&mut out, style, "limits", table);
    rows(&mut out, style, "backend", [cost(server)]);
    rows(&mut out, style, "clients", clients(&server.connections));
    rows(&mut out, style, "others", others(&server.connections));
    rows(&mut out, style, "settings", settings(server, verbose));
    rows(&mut out, style, "set in", origins(server, verbose));
    let seen = check_history::server(&server.history);
    rows(&mut out, style, "has seen", seen);
    rows(&mut out, style, "not seen", notes(&server.not_seen));
    out
}

/// In one line, or with `verbose` each with its place.
fn settings(server: &ServerReport, verbose: bool) -> Vec<String> {
    let all = server.settings.iter();
    if verbose {
        return all
            .map(|it| {
                let now = it
                    .now
                    .map_or_else(String::new, |now| format!("; NOW {now}"));
                format!(
                    "{} = {}  {}{now}",
                    it.name,
                    name(&it.value),
                    name(&it.source)
                )
            })
            .collect();
    }
    let all: Vec<String> = all
        .map(|it| {
            let now = it
                .now
                .map_or_else(String::new, |now| format!(" (NOW {now})"));
            format!("{} {}{now}", it.name, name(&it.value))
        })
        .collect();
    all.chunks(4).map(|line| line.join(", ")).collect()
}

/// What is in force; with `verbose` also what is overridden.
fn origins(server: &ServerReport, verbose: bool) -> Vec<String> {
    let (lost, kept): (Vec<&Origin>, Vec<&Origin>) =
        server.origins.iter().partition(|origin| origin.overridden);
    if verbose {
        return server.origins.iter().map(origin).collect();
    }
    let mut out: Vec<String> = kept.into_iter().map(origin).collect();
    if !lost.is_empty() {
        let lines = counted(lost.len() as u64, "line that is", "lines that are");
        out.push(format!("{lines} overridden (-v)"));
    }
    out
}

fn rows(out: &mut String, style: Style, label: &str, rows: impl IntoIterator<Item = String>) {
    let mut label = label;
    for row in rows {
        *out += &format!("  {}{row}\n", style.label(&format!("{label:<10}")));
        label = "";
    }
}

fn origin(origin: &Origin) -> String {
    let place = match (origin.file.as_str(), origin.source.as_str()) {
        ("", source) => sentence(source).into_owned(),
        (file, _) => format!("{}:{}", name(file), origin.line),
    };
    let target = match origin.target.as_str() {
        "" => String::new(),
        target => format!("{} ", name(target)),
    };
    let changed = origin
        .modified
        .as_ref()
        .map_or_else(String::new, |time| format!(", changed {}", name(time)));
    let state = match (&origin.now, &origin.not_applied, origin.overridden) {
        (Some(now), ..) => format!("; NOW {}", name(now)),
        (None, Some(why), _) => format!("; not applied: {}", sentence(why)),
        (None, None, true) => "; overridden".to_owned(),
        (None, None, false) => String::new(),
    };
    format!(
        "{target}{} = {}  {place}{changed}{state}",
        name(&origin.key),
        name(&origin.value)
    )
}

fn who(server: &ServerReport) -> String {
    let mut parts = vec![format!("postmaster {}", server.pid)];
    parts.extend(
        server
            .version
            .as_ref()
            .map(|version| format!("PostgreSQL {}", name(version))),
    );
    parts.extend(server.port.map(|port| format!("port {port}")));
    parts.push(name(&server.data_dir).into_owned());
    match (&server.container, &server.unit) {
        (Some(id), _) => parts.push(format!("container {}", name(id.get(..12).unwrap_or(id)))),
        (None, Some(unit)) => parts.push(name(unit).into_owned()),
        (None, None) => {}
    }
    parts.join("  ")
}

fn remedies(row: &Row, style: Style) -> Vec<String> {
    let commands = row.remedy.iter().enumerate().map(|(at, remedy)| {
        let or = match (at, row.limit) {
            (0, _) => "",
            // Ways to more of the same; limits on one path, or now and later, go together.
            _ if remedy.change.starts_with("echo '") => "and ",
            (
                _,
                Limit::CommitLimit
                | Limit::OvercommitHeuristic
                | Limit::GlobalOomKill
                | Limit::MaxConnections,
            ) => "or ",
            _ => "and ",
        };
        (
            format!("{or}{}", sentence(&remedy.change)),
            sentence(&remedy.effect),
        )
    });
    let mut out = Vec::new();
    for (command, effect) in commands {
        let length = command.chars().count();
        let command = style.strong(&command);
        if length > COMMAND_WIDTH {
            out.push(command);
            out.push(format!("    {effect}"));
        } else {
            let gap = COMMAND_WIDTH - length + 2;
            out.push(format!("{command}{:gap$}{effect}", ""));
        }
    }
    out
}

fn cost(server: &ServerReport) -> String {
    let cost = &server.backend_cost;
    let mut parts = vec![counted(cost.tasks, "task", "tasks")];
    parts.extend(
        cost.commit_bytes
            .map(|it| format!("{} of promised memory", bytes(it))),
    );
    parts.extend(cost.private_bytes.map(|it| {
        format!(
            "{} of RAM of its own",
            bytes(it.saturating_add(cost.kernel_bytes.unwrap_or(0)))
        )
    }));
    let source = match cost.measured_backends {
        0 => "not measured".to_owned(),
        measured => format!("median of {measured} that run"),
    };
    let charge = server.fork_charge_bytes.map_or_else(String::new, |it| {
        format!("; a fork asks for {} at once", bytes(it))
    });
    format!("costs {} ({source}){charge}", parts.join(", "))
}

fn clients(found: &Connections) -> Vec<String> {
    let mut out = vec![format!(
        "{}: {}",
        counted(found.clients, "connection", "connections"),
        match found.activity_hidden {
            true => "what they do is not in their titles (update_process_title is off)".to_owned(),
            false => format!(
                "{} idle, {} idle in transaction, {} waiting for a lock, {} being let in",
                count(found.idle),
                count(found.idle_in_transaction),
                count(found.waiting),
                count(found.starting)
            ),
        }
    )];
    if let Some(arrivals) = found.arrivals {
        let tenths = arrivals.backends.saturating_mul(10_000) / arrivals.over_ms.max(1);
        out.push(format!(
            "{} and stayed since the last look, {}.{} a second",
            counted(arrivals.backends, "came", "came"),
            count(tenths / 10),
            tenths % 10
        ));
    }
    out.extend(found.states.iter().filter_map(age));
    if let (Some(oldest), Some(median)) = (found.oldest_s, found.median_age_s) {
        out.push(format!(
            "connected for: oldest {}, median {}",
            long_time(oldest.saturating_mul(1_000_000_000)),
            long_time(median.saturating_mul(1_000_000_000))
        ));
    }
    for (label, tallies) in [
        ("address", &found.by_address),
        ("user", &found.by_user),
        ("database", &found.by_database),
        ("activity", &found.by_activity),
    ] {
        if !tallies.is_empty() {
            out.push(format!("by {label}: {}", list(tallies)));
        }
    }
    out.extend(found.sockets.as_ref().map(sockets));
    out.extend(
        found
            .pooler
            .as_ref()
            .map(|hint| sentence(hint).into_owned()),
    );
    out
}

/// `idle in transaction for: oldest 12 min, median 40 s; 2 for more than 5 min`.
fn age(state: &StateAge) -> Option<String> {
    let time = |seconds: u64| long_time(seconds.saturating_mul(1_000_000_000));
    let (oldest, median) = (state.oldest_s?, state.median_s?);
    let mut out = format!(
        "{} for: oldest {}, median {}",
        name(&state.state),
        time(oldest),
        time(median)
    );
    if state.over_5min > 0 {
        out += &format!("; {} for more than 5 min", count(state.over_5min));
    }
    let unknown = state.clients - state.known;
    let parts = [
        (state.at_least, "at least: seen so for that long"),
        (unknown, "not known"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{} {what}", count(*number)))
        .collect();
    if !parts.is_empty() {
        out += &format!(" (of {}: {})", count(state.clients), parts.join(", "));
    }
    Some(out)
}

fn sockets(found: &SocketCounts) -> String {
    let mut out = format!(
        "sockets: {} TCP, {} Unix",
        count(found.tcp),
        count(found.unix)
    );
    let waiting = found.tcp_to_accept.saturating_add(found.unix_to_accept);
    if waiting > 0 {
        out += &format!(", {} not accepted yet", count(waiting));
    }
    if found.tcp_closing > 0 {
        out += &format!(", {} closing", count(found.tcp_closing));
    }
    if !found.by_address.is_empty() {
        out += &format!("; from {}", list(&found.by_address));
    }
    out
}

fn others(found: &Connections) -> Vec<String> {
    let mut out = Vec::new();
    if found.wal_senders > 0 {
        out.push(counted(found.wal_senders, "wal sender", "wal senders"));
    }
    if !found.helpers.is_empty() {
        out.push(format!("of the server: {}", list(&found.helpers)));
    }
    if !found.started_by_children.is_empty() {
        out.push(format!(
            "processes started by: {}",
            list(&found.started_by_children)
        ));
    }
    if found.zombies > 0 {
        out.push(format!(
            "{} not reaped; each counts as a task",
            counted(found.zombies, "zombie", "zombies")
        ));
    }
    out
}

fn list(tallies: &[Tally]) -> String {
    let shown: Vec<String> = tallies
        .iter()
        .map(|tally| {
            let label = match tally.name.as_str() {
                "" => "(none)".into(),
                text => name(text),
            };
            format!("{} {label}", count(tally.count))
        })
        .collect();
    shown.join(", ")
}
