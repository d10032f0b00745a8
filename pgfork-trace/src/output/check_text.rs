//! `check` as text: what refuses next first, then every limit, then who is connected.

use super::{
    OutputOptions, Surroundings, check_history,
    escape::{name, sentence},
    text::Style,
    units::{bytes, count, counted, long_time},
};
use crate::{
    check::{Connections, LimitReport, Origin, Report, ServerReport, SocketCounts, Tally, Trend},
    verdict::headroom::{Effect, Limit, Place, Row, Unit},
};

/// Width of a bar in characters.
const BAR: u64 = 10;
/// Widest command that its effect stands next to.
const COMMAND_WIDTH: usize = 56;

/// The whole report.
#[must_use]
pub fn check_text(report: &Report, options: &OutputOptions, around: &Surroundings) -> String {
    let style = Style {
        color: around.colors(options.color, around.stdout_terminal),
    };
    let mut out = String::new();
    for server in &report.servers {
        if !out.is_empty() {
            out.push('\n');
        }
        out += &self::server(server, style);
    }
    rows(
        &mut out,
        style,
        "host saw",
        check_history::host(&report.history),
    );
    let unseen = report.not_seen.iter();
    rows(
        &mut out,
        style,
        "not seen",
        unseen.map(|note| sentence(note).into_owned()),
    );
    out += &format!(
        "\nKernel {}; {} looked at in {}.{:.1} ms; nothing was changed.\n",
        name(&report.kernel),
        counted(report.servers.len() as u64, "server", "servers"),
        report.took_us / 1000,
        report.took_us % 1000 / 100
    );
    out
}

fn server(server: &ServerReport, style: Style) -> String {
    let mut out = format!("{}\n", style.strong(&who(server)));
    let first = server.first.and_then(|first| server.limits.get(first));
    let summary = sentence(&server.summary);
    let painted = match first {
        Some(first) if first.near => style.alarm(&summary),
        _ => style.good(&summary),
    };
    out += &format!("  {painted}\n");
    if let Some(first) = first {
        let label = if first.near { "type" } else { "to raise" };
        rows(&mut out, style, label, remedies(&first.row, style));
    }
    out.push('\n');
    rows(&mut out, style, "limits", limits(server, style));
    rows(&mut out, style, "backend", [cost(server)]);
    rows(&mut out, style, "clients", clients(&server.connections));
    let others = others(&server.connections);
    rows(&mut out, style, "others", others);
    let wrong = server.findings.iter();
    rows(
        &mut out,
        style,
        "note",
        wrong.map(|finding| sentence(&finding.text).into_owned()),
    );
    rows(&mut out, style, "set in", server.origins.iter().map(origin));
    let seen = check_history::server(&server.history);
    rows(&mut out, style, "has seen", seen);
    rows(
        &mut out,
        style,
        "not seen",
        server
            .not_seen
            .iter()
            .map(|note| sentence(note).into_owned()),
    );
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
    let place = match origin.file.as_str() {
        "" => "the command line".to_owned(),
        file => format!("{}:{}", name(file), origin.line),
    };
    let target = match origin.target.as_str() {
        "" => String::new(),
        target => format!("{} ", name(target)),
    };
    let changed = origin
        .modified
        .as_ref()
        .map_or_else(String::new, |time| format!(", changed {}", name(time)));
    let state = match (&origin.now, origin.overridden) {
        (Some(now), _) => format!("; NOW {}", name(now)),
        (None, true) => "; overridden below".to_owned(),
        (None, false) => String::new(),
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

fn limits(server: &ServerReport, style: Style) -> Vec<String> {
    let mut out = Vec::new();
    let mut unlimited = Vec::new();
    for limit in &server.limits {
        if limit.row.max.is_none() && limit.row.backends.is_none() {
            unlimited.push(format!("{} {}", limit.row.limit.id(), place(&limit.row)));
            continue;
        }
        out.push(self::limit(limit, style));
        out.extend(
            limit
                .row
                .notes
                .iter()
                .map(|note| format!("    {}", style.label(&sentence(note)))),
        );
    }
    if !unlimited.is_empty() {
        out.push(format!("no limit: {}", unlimited.join(", ")));
    }
    out
}

fn limit(limit: &LimitReport, style: Style) -> String {
    let row = &limit.row;
    let numbers = match row.max {
        Some(max) => format!(
            "{} of {}",
            amount(row.used, row.unit),
            amount(max, row.unit)
        ),
        None => String::new(),
    };
    let room = match (row.backends, row.room) {
        (Some(more), _) => {
            let about = if row.uncertain_backends > 0 {
                format!(" (+-{})", count(row.uncertain_backends))
            } else {
                String::new()
            };
            format!("{}{about}", counted(more, "backend", "backends"))
        }
        (None, Some(room)) => format!("{} left", amount(room, row.unit)),
        (None, None) => String::new(),
    };
    let bar = bar(row);
    let bar = match (limit.near, row.effect) {
        (true, _) => style.alarm(&bar),
        (false, Effect::Slows) => style.doubt(&bar),
        (false, _) => style.good(&bar),
    };
    let trend = limit
        .trend
        .map_or_else(String::new, |trend| moved(trend, row.unit));
    let near = if limit.near { "  CLOSE" } else { "" };
    format!(
        "{:<23} {bar} {numbers:>24}  {room:<22}  {}{trend}{}",
        row.limit.id(),
        place(row),
        style.alarm(near)
    )
}

/// `, +12 tasks in 2.0 s, full in 40 s`.
fn moved(trend: Trend, unit: Unit) -> String {
    if trend.used_change == 0 {
        return String::new();
    }
    let sign = if trend.used_change > 0 { '+' } else { '-' };
    let full = trend.full_in_s.map_or_else(String::new, |seconds| {
        format!(
            ", full in {}",
            long_time(seconds.saturating_mul(1_000_000_000))
        )
    });
    format!(
        ", {sign}{} in {}.{} s{full}",
        amount(trend.used_change.unsigned_abs(), unit),
        trend.over_ms / 1000,
        trend.over_ms % 1000 / 100
    )
}

/// `[#######...]`, full only when nothing is left.
fn bar(row: &Row) -> String {
    let filled = match (row.max, row.room) {
        (_, Some(0)) | (None, None) => BAR,
        (Some(max), Some(room)) => {
            let left =
                (u128::from(room.min(max)) * u128::from(BAR)).div_ceil(u128::from(max.max(1)));
            BAR - u64::try_from(left).unwrap_or(BAR).min(BAR)
        }
        _ => 0,
    };
    (0..BAR)
        .map(|at| if at < filled { '#' } else { '.' })
        .fold(String::from("["), |bar, c| bar + &c.to_string())
        + "]"
}

fn amount(number: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => bytes(number),
        Unit::Tasks => format!("{} tasks", count(number)),
        Unit::Numbers => format!("{} pids", count(number)),
        Unit::Connections => count(number),
    }
}

fn place(row: &Row) -> String {
    match &row.place {
        Place::Host => "host".to_owned(),
        Place::Server => "this server".to_owned(),
        Place::User { uid } => format!("uid {uid}"),
        Place::Cgroup {
            path,
            unit,
            property,
            ..
        } => match unit {
            Some(unit) => format!("{} {}", name(unit), name(property)),
            None => format!("{} {}", name(path), name(property)),
        },
    }
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

fn sockets(found: &SocketCounts) -> String {
    let mut out = format!(
        "sockets: {} TCP, {} Unix",
        count(found.tcp),
        count(found.unix)
    );
    if found.tcp_to_accept > 0 {
        out += &format!(", {} not accepted yet", count(found.tcp_to_accept));
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
