//! What a remedy promises, and whether it holds.

use std::{io::Read as _, os::unix::net::UnixStream};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    scenarios::{EAGAIN, expect_eq},
    server::{PATIENCE, RunningClient, SOCKET, Server, wait_for},
};

/// The number of "room for 50 more tasks".
fn room(refusal: &Value) -> Result<usize> {
    let remedies = refusal["remedy"].as_array().into_iter().flatten();
    let mut effects = remedies.filter_map(|remedy| remedy["effect"].as_str());
    let number = effects.find_map(|effect| {
        let rest = effect.strip_prefix("room for ")?;
        let rest = rest.strip_prefix("about ").unwrap_or(rest);
        rest.split(' ').next()?.parse().ok()
    });
    number.with_context(|| format!("no room is promised: {}", refusal["remedy"]))
}

/// As many tasks as were promised are forked, and the next one is refused.
pub(crate) fn room_for_tasks(server: &Server, refusal: &Value) -> Result<()> {
    let room = room(refusal)?;
    let (before, refused) = (server.processes().len(), server.refused_in_log(EAGAIN));
    // A backend is forked for a client that says nothing.
    let clients: Vec<UnixStream> = (0..room)
        .map(|_| UnixStream::connect(SOCKET))
        .collect::<Result<_, _>>()?;
    wait_for("as many backends as were promised room for", || {
        (server.processes().len() == before + room).then_some(())
    })?;
    expect_eq!(server.refused_in_log(EAGAIN), refused, "refused so far");
    let mut next = UnixStream::connect(SOCKET)?;
    next.set_read_timeout(Some(PATIENCE))?;
    let mut answer = Vec::new();
    next.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(
        answer.contains("could not fork"),
        "one more than {room}: {answer}"
    );
    drop(clients);
    wait_for("they are gone", || {
        (server.processes().len() == before).then_some(())
    })
}

/// Some of the backends that were promised room for, each with a client that is connected.
pub(crate) fn room_for_backends(server: &Server, refusal: &Value) -> Result<()> {
    const SOME: usize = 10;
    ensure!(room(refusal)? >= SOME, "too little: {}", refusal["remedy"]);
    let clients: Vec<RunningClient> = (0..SOME)
        .map(|_| RunningClient::start())
        .collect::<Result<_>>()?;
    server.wait_for_backends(SOME)?;
    drop(clients);
    server.settle()
}
