//! What cgroup paths say by their names: systemd units and containers.
//!
//! A name is a convention, not a proof: whoever may make a cgroup may call it anything.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use super::Controller;

/// Kind of a systemd unit that has a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnitKind {
    /// `.service`
    Service,
    /// `.scope`
    Scope,
    /// `.slice`
    Slice,
}

/// Which systemd instance runs a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Manager {
    /// The system's: `systemctl ...`.
    System,
    /// That of a user, by uid: `systemctl --user ...`.
    User(u32),
}

/// A systemd unit by its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitRef {
    /// Its name, escapes such as `\x2d` left as they are.
    pub unit: String,
    /// Its kind.
    pub kind: UnitKind,
    /// The systemd instance it belongs to.
    pub manager: Manager,
    /// Path of the unit's cgroup. The cgroup asked for may be one that the service made below it,
    /// which the unit's properties do not set.
    pub cgroup: PathBuf,
}

impl UnitRef {
    /// Whether it is a service that `systemctl` finds: one of the system, not of a user's own
    /// manager.
    pub fn is_system_service(&self) -> bool {
        self.kind == UnitKind::Service && self.manager == Manager::System
    }

    /// The property that sets the controller's limit of this unit.
    pub fn property(&self, controller: Controller) -> &'static str {
        match controller {
            Controller::Pids => "TasksMax",
            Controller::Memory => "MemoryMax",
        }
    }
}

/// The innermost systemd unit that the cgroup `path` is, or is in.
pub fn unit_of(path: &Path) -> Option<UnitRef> {
    let mut found = None;
    let mut manager = Manager::System;
    let mut cgroup = PathBuf::from("/");
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        cgroup.push(name);
        let Some((unit, kind)) = unit_name(name) else {
            continue;
        };
        let user = unit
            .strip_prefix("user@")
            .and_then(|rest| rest.strip_suffix(".service"));
        let unit_manager = manager;
        if let Some(uid) = user.and_then(|uid| uid.parse().ok()) {
            manager = Manager::User(uid);
        }
        found = Some(UnitRef {
            unit: unit.to_owned(),
            kind,
            manager: unit_manager,
            cgroup: cgroup.clone(),
        });
    }
    found
}

/// The unit that a cgroup is named after. systemd allows few characters in unit names
/// (`VALID_CHARS` in src/basic/unit-name.c) and puts `_` before a name that the kernel could take
/// for a file of its own.
fn unit_name(name: &OsStr) -> Option<(&str, UnitKind)> {
    let name = name.to_str()?;
    let name = name.strip_prefix('_').unwrap_or(name);
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if name.len() > 255 || !name.bytes().all(valid) {
        return None;
    }
    let (stem, suffix) = name.rsplit_once('.')?;
    let kind = match suffix {
        "service" => UnitKind::Service,
        "scope" => UnitKind::Scope,
        "slice" => UnitKind::Slice,
        _ => return None,
    };
    (!stem.is_empty()).then_some((name, kind))
}

/// What made a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd, through Kubernetes' CRI or nerdctl.
    Containerd,
    /// CRI-O.
    Crio,
    /// Podman.
    Podman,
    /// LXC or Incus.
    Lxc,
    /// systemd-nspawn.
    Nspawn,
    /// A Kubernetes pod, by a runtime that its name does not tell.
    Kubernetes,
    /// A container id, but no sign of a runtime.
    Unknown,
}

impl Runtime {
    /// What sets limits of its containers, as people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd | Self::Crio | Self::Kubernetes => "the kubelet or its runtime",
            Self::Lxc => "LXC",
            Self::Nspawn => "systemd-nspawn",
            Self::Unknown => "the container's runtime",
        }
    }
}

/// A container by its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRef {
    /// Its id, 64 hexadecimal digits; for LXC and nspawn its name.
    pub id: String,
    /// What made it.
    pub runtime: Runtime,
    /// The Kubernetes pod it is in.
    pub pod_uid: Option<String>,
    /// Path of the container's cgroup.
    pub cgroup: PathBuf,
}

impl ContainerRef {
    /// The id as tools show it: the first 12 digits. Names are not cut.
    pub fn short(&self) -> &str {
        match self.runtime {
            Runtime::Lxc | Runtime::Nspawn => &self.id,
            _ => self.id.get(..12).unwrap_or(&self.id),
        }
    }
}

/// The innermost container that the cgroup `path` is, or is in.
pub fn container_of(path: &Path) -> Option<ContainerRef> {
    let mut found: Option<ContainerRef> = None;
    let mut pod = None;
    let mut parent = "";
    let mut cgroup = PathBuf::from("/");
    for component in path.components() {
        let Component::Normal(name) = component else {
            continue;
        };
        cgroup.push(name);
        // Names of containers are ASCII; anything else is none, and no parent of one.
        let name = name.to_str().unwrap_or_default();
        // `kubepods-...-pod<uid>.slice:cri-containerd:<id>`: a path that was meant for systemd.
        for piece in name.split(':') {
            pod = pod_uid(piece).or(pod);
            if let Some((runtime, id)) = container_name(parent, piece, pod.is_some()) {
                found = Some(ContainerRef {
                    id: id.to_owned(),
                    runtime,
                    pod_uid: pod.clone(),
                    cgroup: cgroup.clone(),
                });
            }
            parent = piece;
        }
    }
    found
}

fn container_name<'n>(parent: &str, name: &'n str, in_pod: bool) -> Option<(Runtime, &'n str)> {
    const PREFIXES: [(&str, Runtime); 6] = [
        ("docker-", Runtime::Docker),
        ("cri-containerd-", Runtime::Containerd),
        ("nerdctl-", Runtime::Containerd),
        ("containerd-", Runtime::Containerd),
        ("crio-", Runtime::Crio),
        ("libpod-", Runtime::Podman),
    ];
    let bare = name.strip_suffix(".scope").unwrap_or(name);
    let prefixed = PREFIXES.iter().find_map(|&(prefix, runtime)| {
        let id = bare.strip_prefix(prefix)?;
        is_id(id).then_some((runtime, id))
    });
    if prefixed.is_some() {
        return prefixed;
    }
    if is_id(bare) {
        let runtime = match parent {
            "docker" => Runtime::Docker,
            "cri-containerd" | "containerd" => Runtime::Containerd,
            "crio" => Runtime::Crio,
            "libpod_parent" | "libpod" => Runtime::Podman,
            _ if in_pod => Runtime::Kubernetes,
            _ => Runtime::Unknown,
        };
        return Some((runtime, bare));
    }
    let lxc = name.strip_prefix("lxc.payload.");
    let lxc = lxc.or_else(|| matches!(parent, "lxc" | "lxc.payload").then_some(name));
    let nspawn = name
        .strip_prefix("systemd-nspawn@")
        .and_then(|rest| rest.strip_suffix(".service"));
    let named = lxc
        .map(|name| (Runtime::Lxc, name))
        .or_else(|| nspawn.map(|name| (Runtime::Nspawn, name)));
    named.filter(|(_, name)| is_plain_name(name))
}

/// The uid in `pod<uid>` or `kubepods-burstable-pod<uid>.slice`, where systemd has `_` for `-`.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.strip_prefix("kubepods-")?.rsplit_once("pod")?.1,
        None => name.strip_prefix("pod")?,
    };
    // A uuid, or for a static pod the 32 digits of a hash.
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let rest_is_dashes = uid
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'));
    (digits == 32 && rest_is_dashes && uid.len() <= 36).then(|| uid.replace('_', "-"))
}

fn is_id(text: &str) -> bool {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 64 && text.bytes().all(digit)
}

fn is_plain_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=255).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
