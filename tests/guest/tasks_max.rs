//! systemd's `TasksMax`, of the server's unit and of the slice above it, and the remedy by
//! `systemctl set-property`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    limits::number,
    scenarios::{EAGAIN, apply, certainty, check_common, expect_eq, first, refuse_one},
    server::Server,
};

const UNIT: &str = "pgtest.service";
const SLICE: &str = "pgtest.slice";

fn systemctl(arguments: &[&str]) -> Result<()> {
    let output = Command::new("systemctl").args(arguments).output()?;
    ensure!(
        output.status.success(),
        "systemctl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The unit's own limit.
pub(crate) fn of_the_unit(server: &mut Server, method: &str) -> Result<()> {
    refused(server, method, "tasks_max", "system.slice", UNIT)
}

/// That of the slice which the unit is in.
pub(crate) fn of_the_slice(server: &mut Server, method: &str) -> Result<()> {
    refused(server, method, "tasks_max_slice", SLICE, SLICE)
}

/// The server's unit is put into a slice; the limit is that of one of the two.
fn refused(server: &mut Server, method: &str, name: &str, slice: &str, whose: &str) -> Result<()> {
    fs::write(
        format!("/run/systemd/system/{UNIT}"),
        format!("[Service]\nSlice={slice}\nExecStart=/bin/sleep infinity\nTasksMax=100\n"),
    )?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["start", UNIT])?;
    let slice_directory = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .iter()
        .map(|root| Path::new(root).join(slice))
        .find(|slice| slice.join(UNIT).join("pids.max").exists())
        .context("the unit has no pids cgroup")?;
    let unit_directory = slice_directory.join(UNIT);
    server.enter(&unit_directory)?;
    let (limited, path, ancestor) = if whose == UNIT {
        (unit_directory, format!("/{slice}/{UNIT}"), 0)
    } else {
        (slice_directory, format!("/{slice}"), 1)
    };
    let tasks = number(limited.join("pids.current"))?;
    let property = format!("TasksMax={tasks}");
    systemctl(&["set-property", "--runtime", whose, &property])?;
    let said = refuse_one(server, name, method, EAGAIN)?;
    let refusal = first(&said)?;
    let sure = certainty(method, false);
    check_common(server, refusal, "EAGAIN", "pids_cgroup_max", sure)?;
    expect_eq!(refusal["postmaster"]["unit"], UNIT, "the server's unit");
    expect_eq!(refusal["scope"]["unit"], whose, "unit");
    expect_eq!(refusal["scope"]["property"], "TasksMax", "property");
    expect_eq!(refusal["scope"]["path"], path, "path");
    expect_eq!(refusal["scope"]["ancestor"], ancestor, "ancestor");
    let level = &refusal["evidence"]["pids"][ancestor];
    expect_eq!(level["limit"], tasks, "limit");
    ensure!(
        said.text.contains("and asked for 1 more"),
        "what was asked for: {}",
        said.text
    );
    let command = refusal["remedy"][0]["command"].as_str().unwrap_or_default();
    ensure!(
        command.starts_with(&format!("systemctl set-property {whose} TasksMax=")),
        "remedy: {command}"
    );
    apply(refusal, usize::MAX)?;
    server.connect().context("after the remedy")?;
    server.restart()?;
    systemctl(&["stop", UNIT])?;
    // What the remedy has set lasts: the next one begins without it.
    systemctl(&["revert", whose])
}
