//! The machine a guest gets, in QEMU's words.

use std::path::{Path, PathBuf};

use super::{Cgroup, Clock, Init, VmSpec};

/// The files of one run, all in its temporary directory but the two images.
#[derive(Debug)]
pub(crate) struct Files {
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// The initial RAM disk.
    pub(crate) initrd: PathBuf,
    /// The root filesystem; never written to.
    pub(crate) root: PathBuf,
    /// The tar with the job.
    pub(crate) job: PathBuf,
    /// Receives the kernel's console.
    pub(crate) console: PathBuf,
    /// Holds the sockets.
    pub(crate) dir: PathBuf,
}

/// A port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Stdout,
    Stderr,
    Files,
    Control,
}

impl Port {
    /// Every port there is.
    pub(crate) const ALL: [Self; 4] = [Self::Stdout, Self::Stderr, Self::Files, Self::Control];

    /// Its name in the guest, after `pgfork.`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Files => "files",
            Self::Control => "control",
        }
    }
}

/// QEMU's command line.
pub(crate) fn arguments(spec: &VmSpec, files: &Files) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| all.extend(words.iter().map(|word| (*word).to_owned()));
    add(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-nic",
        "none",
    ]);
    // thread=multi and cx16 have both crashed guests under emulation.
    add(&["-accel", "tcg,thread=single,tb-size=512"]);
    match spec.clock {
        Clock::Host => add(&["-cpu", "max,-cx16", "-smp", "2"]),
        // A microcoded copy counts an instruction for each of its rounds: without these two the
        // kernel copies eight bytes a round, as near to hardware as counting gets.
        Clock::Instructions => add(&[
            "-cpu",
            "max,-cx16,-erms,-fsrm",
            "-smp",
            "1",
            "-icount",
            "shift=2,sleep=off",
        ]),
    }
    add(&["-m", &spec.memory_mib.to_string()]);
    add(&[
        "-kernel",
        &files.kernel.to_string_lossy(),
        "-initrd",
        &files.initrd.to_string_lossy(),
    ]);
    add(&["-append", &kernel_command_line(spec)]);
    add(&[
        "-chardev",
        &format!("file,id=console,path={}", escape(&files.console)),
    ]);
    add(&["-serial", "chardev:console"]);
    for (id, file, more) in [
        ("root", &files.root, "snapshot=on"),
        ("job", &files.job, "readonly=on"),
    ] {
        let drive = format!(
            "if=none,id={id},file={},format=raw,cache=unsafe,{more}",
            escape(file)
        );
        add(&[
            "-drive",
            &drive,
            "-device",
            &format!("virtio-blk-pci,drive={id}"),
        ]);
    }
    add(&["-device", "virtio-serial-pci"]);
    for port in Port::ALL {
        let name = port.name();
        let socket = format!("socket,id={name},path={}", escape(&files.dir.join(name)));
        add(&["-chardev", &socket]);
        add(&[
            "-device",
            &format!("virtserialport,chardev={name},name=pgfork.{name}"),
        ]);
    }
    all
}

/// A path inside an option list, where a comma separates.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn kernel_command_line(spec: &VmSpec) -> String {
    let mut words = vec!["console=ttyS0", "loglevel=5", "panic=-1", "oops=panic"];
    // Under emulation the TSC is the cheapest clock, and as good as the host's.
    words.extend(["mitigations=off", "no_timer_check", "tsc=reliable"]);
    if spec.init == Init::Systemd {
        words.extend([
            "systemd.unit=pgfork-vm.target",
            "systemd.show_status=0",
            "systemd.firstboot=0",
        ]);
        match spec.cgroup {
            Cgroup::V2 => words.push("systemd.unified_cgroup_hierarchy=1"),
            Cgroup::V1 => words.extend([
                "systemd.unified_cgroup_hierarchy=0",
                "systemd.legacy_systemd_cgroup_controller=1",
                "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
            ]),
        }
    }
    words.extend(spec.kernel_arguments.iter().map(String::as_str));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::{Postgres, Series};
    use super::*;

    fn spec() -> VmSpec {
        VmSpec::new(Series::V6_1, Postgres::V15, ["true"])
    }

    #[test]
    fn arguments_follow_the_spec() {
        let dir = PathBuf::from("/tmp/a,b");
        let files = Files {
            kernel: "/c/vmlinuz".into(),
            initrd: dir.join("initrd"),
            root: "/c/root.ext4".into(),
            job: dir.join("job.tar"),
            console: dir.join("console"),
            dir,
        };
        let all = arguments(
            &VmSpec {
                memory_mib: 768,
                ..spec()
            },
            &files,
        );
        let after =
            |option: &str| &all[all.iter().position(|word| word == option).expect(option) + 1];
        assert_eq!(after("-m"), "768");
        assert_eq!(after("-kernel"), "/c/vmlinuz");
        assert!(
            all.iter()
                .any(|word| word.contains("/c/root.ext4") && word.contains("snapshot=on"))
        );
        assert!(
            all.iter()
                .any(|word| word.contains("file=/tmp/a,,b/job.tar"))
        );
        assert_eq!(
            all.iter()
                .filter(|word| word.starts_with("virtserialport"))
                .count(),
            4
        );
    }

    #[test]
    fn the_kernel_command_line_chooses_the_hierarchy_for_systemd() {
        assert!(!kernel_command_line(&spec()).contains("systemd"));
        let v1 = VmSpec {
            init: Init::Systemd,
            cgroup: Cgroup::V1,
            ..spec()
        };
        assert!(kernel_command_line(&v1).contains("unified_cgroup_hierarchy=0"));
        let more = VmSpec {
            kernel_arguments: vec!["quiet".to_owned()],
            ..spec()
        };
        assert!(kernel_command_line(&more).ends_with(" quiet"));
    }
}
