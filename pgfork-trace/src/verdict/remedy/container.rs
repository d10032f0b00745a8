//! How limits of containers are set to last.

use crate::host::cgroup::Runtime;

/// The command that changes a limit of a running container, where its runtime has one.
pub(super) fn update(
    runtime: Option<Runtime>,
    option: &str,
    value: &str,
    id: &str,
) -> Option<String> {
    let program = match runtime? {
        Runtime::Docker => "docker",
        Runtime::Podman => "podman",
        _ => return None,
    };
    // Both take -1 for no limit.
    let value = if value == "infinity" { "-1" } else { value };
    Some(format!("{program} update {option} {value} {id}"))
}

/// What else to change, so that the next container has it too.
pub(super) fn lasting(runtime: Option<Runtime>, what: &str, kubelet: &str, file: &str) -> String {
    match runtime {
        Some(Runtime::Kubernetes | Runtime::Containerd | Runtime::Crio) => {
            format!("raise {what} there too, in Kubernetes {kubelet}")
        }
        Some(Runtime::Lxc) => {
            format!("raise {what} there too, lxc.cgroup2.{file} in its configuration")
        }
        _ => format!("raise {what} there too"),
    }
}
