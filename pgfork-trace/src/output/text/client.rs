//! Whose connection it was, and where connections come from.

use super::super::{
    escape::name,
    line::{ClientCount, Connects, Refusal},
    units::{count, counted},
};
use crate::verdict::client::{ChildKind, Client};

/// Most clients named in the summary; JSON has ten.
const SHOWN: usize = 3;

/// `, client 10.0.3.17:52114`: for the first row of a refusal.
pub(super) fn whose(refusal: &Refusal) -> String {
    if let Some(client) = &refusal.client {
        return format!(", client {}", shown(client));
    }
    match &refusal.child {
        Some(child) if child.kind == ChildKind::Worker => match child.likely {
            Some(process) => format!(", for no client: most likely the {process}"),
            None => ", for no client: a worker".to_owned(),
        },
        Some(child) if !matches!(child.kind, ChildKind::ClientBackend | ChildKind::Unknown) => {
            let kind = child.kind.name().replace('_', " ");
            format!(", for no client: {kind} (says its log)")
        }
        _ => String::new(),
    }
}

fn shown(client: &Client) -> String {
    match client {
        Client::Tcp4 { address, port } => format!("{address}:{port}"),
        Client::Tcp6 { address, port } => format!("[{address}]:{port}"),
        Client::Unix { pid, uid, comm } => match (pid, comm) {
            (Some(pid), Some(comm)) => format!("{} (pid {pid}, uid {uid})", name(comm)),
            (Some(pid), None) => format!("pid {pid}, uid {uid}"),
            (None, _) => format!("uid {uid} on the Unix socket"),
        },
    }
}

/// `1 190 connections, 8.9 a second: 10.0.3.17 (1 100), ...`
pub(super) fn connections(connects: &Connects) -> Option<String> {
    if connects.connects == 0 {
        return None;
    }
    let mut places: Vec<String> = connects
        .clients
        .iter()
        .take(SHOWN)
        .map(|client| format!("{} ({})", place(client), count(client.connects)))
        .collect();
    let unnamed = connects.clients.iter().skip(SHOWN);
    let (mut others, mut theirs) = (connects.other_clients, connects.other_connects);
    for client in unnamed {
        others += 1;
        theirs += client.connects;
    }
    if others > 0 {
        let others = counted(others, "other client", "other clients");
        places.push(format!("{others} ({})", count(theirs)));
    }
    let mut row = format!(
        "{}, {:.1} a second: {}.",
        counted(connects.connects, "connection", "connections"),
        connects.connects_per_second,
        places.join(", ")
    );
    if connects.without_client > 0 {
        let forks = counted(connects.without_client, "fork", "forks");
        row += &format!(" {forks} for no client.");
    }
    if connects.unattributed > 0 {
        let forks = counted(connects.unattributed, "fork", "forks");
        row += &format!(" Of {forks} it is not known.");
    }
    Some(row)
}

fn place(client: &ClientCount) -> String {
    match (client.address, client.uid) {
        (Some(address), _) => address.to_string(),
        (None, Some(uid)) => format!("uid {uid}"),
        (None, None) => "not known".to_owned(),
    }
}
