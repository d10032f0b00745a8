//! Lines of configuration files that set limits, with the place they stand in. Facts only: which
//! one wins is the order they are in, which is that of the programs that apply them.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cgroup::Manager;
use super::read::config as read_file;
use super::{Root, users};

/// Longest configuration file that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// One setting in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// File.
    pub file: PathBuf,
    /// Line in it, from 1.
    pub line: usize,
    /// When the file was last changed.
    pub modified: Option<SystemTime>,
    /// What is set: `vm.overcommit_ratio`, `TasksMax`, `nproc`.
    pub key: String,
    /// To what, as written.
    pub value: String,
    /// For whom: the unit, the user or group of limits.conf; empty for the whole host.
    pub target: String,
}

/// Assignments to `keys` in sysctl.d, the one that is applied last at the end (sysctl.d(5)). Names
/// with `/` for `.` and a leading `-` are understood.
#[must_use]
pub fn sysctl_lines(root: &Root, keys: &[&str]) -> Vec<Line> {
    const DIRECTORIES: [&str; 5] = [
        "/etc/sysctl.d",
        "/run/sysctl.d",
        "/usr/local/lib/sysctl.d",
        "/usr/lib/sysctl.d",
        "/lib/sysctl.d",
    ];
    let mut files = by_name(root, DIRECTORIES.map(PathBuf::from));
    files.push(PathBuf::from(SYSCTL_CONF));
    let mut seen = HashSet::new();
    files.retain(|file| {
        let real = root.join(file).canonicalize();
        real.is_ok_and(|real| seen.insert(real))
    });
    let mut found = boot_lines(root, keys);
    for file in files {
        each_line(root, &file, |line, text, modified| {
            if text.starts_with(['#', ';']) {
                return;
            }
            let Some((key, value)) = text.split_once('=') else {
                return;
            };
            let key = dotted(key.trim().trim_start_matches('-'));
            if keys.contains(&key.as_str()) {
                found.push(Line {
                    file: file.clone(),
                    line,
                    modified,
                    key,
                    value: value.trim().to_owned(),
                    target: String::new(),
                });
            }
        });
    }
    found
}

/// Read last by procps (`sysctl --system`); by systemd-sysctl only where a file of sysctl.d is a
/// link to it, and then it is not listed under this name.
pub const SYSCTL_CONF: &str = "/etc/sysctl.conf";

/// `sysctl.NAME=VALUE` on the kernel's command line, which is applied before any file
/// (fs/proc/proc_sysctl.c `do_sysctl_args`, 5.8 to 7.2).
fn boot_lines(root: &Root, keys: &[&str]) -> Vec<Line> {
    let file = PathBuf::from("/proc/cmdline");
    let content = std::fs::read(root.join(&file)).unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let words = text.split_ascii_whitespace().filter_map(|word| {
        let (key, value) = word.strip_prefix("sysctl.")?.split_once('=')?;
        let key = dotted(key);
        keys.contains(&key.as_str()).then(|| Line {
            file: file.clone(),
            line: 1,
            modified: None,
            key,
            value: value.to_owned(),
            target: String::new(),
        })
    });
    words.collect()
}

/// With a slash as first separator, dots and slashes have changed places.
fn dotted(key: &str) -> String {
    match key.find(['.', '/']).and_then(|at| key[at..].chars().next()) {
        Some('/') => key
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

/// Lines for `items` (`nproc`) in limits.conf and limits.d, as pam_limits reads them.
#[must_use]
pub fn limits_lines(root: &Root, items: &[&str]) -> Vec<Line> {
    let mut files = vec![PathBuf::from("/etc/security/limits.conf")];
    files.extend(by_name(root, [PathBuf::from("/etc/security/limits.d")]));
    let mut found = Vec::new();
    for file in files {
        each_line(root, &file, |line, text, modified| {
            let text = text.split('#').next().unwrap_or_default();
            let words: Vec<&str> = text.split_ascii_whitespace().collect();
            if let [domain, kind, item, value] = words.as_slice()
                && items.contains(item)
            {
                found.push(Line {
                    file: file.clone(),
                    line,
                    modified,
                    key: (*item).to_owned(),
                    value: format!("{kind} {value}"),
                    target: (*domain).to_owned(),
                });
            }
        });
    }
    found
}

/// Where units of the system are, strongest first (systemd.unit(5)).
const SYSTEM_DIRECTORIES: [&str; 13] = [
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];
/// Where those of a user are, with `~` for the home and `%` for /run/user/UID.
const USER_DIRECTORIES: [&str; 15] = [
    "~/.config/systemd/user.control",
    "%/systemd/user.control",
    "%/systemd/transient",
    "%/systemd/generator.early",
    "~/.config/systemd/user",
    "/etc/systemd/user",
    "%/systemd/user",
    "/run/systemd/user",
    "%/systemd/generator",
    "~/.local/share/systemd/user",
    "/usr/local/share/systemd/user",
    "/usr/share/systemd/user",
    "/usr/local/lib/systemd/user",
    "/usr/lib/systemd/user",
    "%/systemd/generator.late",
];

/// Where the units of a service manager are, strongest first.
#[must_use]
pub fn unit_directories(root: &Root, manager: Manager) -> Vec<PathBuf> {
    let Manager::User(uid) = manager else {
        return SYSTEM_DIRECTORIES.map(PathBuf::from).to_vec();
    };
    let home = users::by_uid(root, uid).map(|user| user.home);
    let place = |directory: &&str| match directory.split_at(1) {
        ("~", below) => home.as_ref().map(|home| format!("{home}{below}")),
        ("%", below) => Some(format!("/run/user/{uid}{below}")),
        _ => Some((*directory).to_owned()),
    };
    USER_DIRECTORIES
        .iter()
        .filter_map(place)
        .map(PathBuf::from)
        .collect()
}

/// Assignments to `keys` in the unit file and drop-ins of `unit`, the strongest at the end.
#[must_use]
pub fn unit_lines(root: &Root, unit: &str, manager: Manager, keys: &[&str]) -> Vec<Line> {
    let directories = unit_directories(root, manager);
    let names = names_of(unit);
    // The unit's own file, else that of its template.
    let fragment = names.iter().take(2).find_map(|name| {
        let mut files = directories.iter().map(|directory| directory.join(name));
        files.find(|file| root.join(file).exists())
    });
    let mut files = Vec::from_iter(fragment);
    // Of two drop-ins with one name the one in the stronger directory counts, be it for a less
    // specific name; those for all units of the type are weakest (src/shared/dropin.c
    // `unit_file_find_dropin_paths`).
    let kind = unit.rsplit_once('.').map(|(_, kind)| kind.to_owned());
    let of = |names: &[String]| -> Vec<PathBuf> {
        let each = directories.iter().flat_map(|directory| {
            names
                .iter()
                .map(move |name| directory.join(format!("{name}.d")))
        });
        each.collect()
    };
    let mut drop_ins = of(&names);
    drop_ins.extend(of(kind.as_slice()));
    files.extend(by_name(root, drop_ins));
    ini_lines(root, files, unit, keys)
}

/// Assignments to `keys` in the configuration of systemd itself (systemd-system.conf(5)).
#[must_use]
pub fn manager_lines(root: &Root, keys: &[&str]) -> Vec<Line> {
    const DIRECTORIES: [&str; 4] = [
        "/etc/systemd",
        "/run/systemd",
        "/usr/local/lib/systemd",
        "/usr/lib/systemd",
    ];
    let main = DIRECTORIES.map(|directory| Path::new(directory).join("system.conf"));
    let mut files: Vec<PathBuf> = main
        .into_iter()
        .find(|file| root.join(file).exists())
        .into_iter()
        .collect();
    files.extend(by_name(
        root,
        DIRECTORIES.map(|directory| Path::new(directory).join("system.conf.d")),
    ));
    ini_lines(root, files, "", keys)
}

/// Names under which drop-ins for a unit may stand, in the order in which systemd looks
/// (`unit_file_find_dirs`): itself, its template, and the same for its prefixes that end in a dash.
fn names_of(unit: &str) -> Vec<String> {
    let mut names = Vec::new();
    add_names(unit, &mut names);
    names
}

fn add_names(unit: &str, names: &mut Vec<String>) {
    if names.iter().any(|name| name == unit) {
        return;
    }
    names.push(unit.to_owned());
    let Some((stem, kind)) = unit.rsplit_once('.') else {
        return;
    };
    let (prefix, instance) = match stem.split_once('@') {
        Some((prefix, instance)) => (prefix, Some(instance)),
        None => (stem, None),
    };
    if instance.is_some_and(|instance| !instance.is_empty()) {
        add_names(&format!("{prefix}@.{kind}"), names);
    }
    // A dash at the end is that of the name before.
    let inner = prefix.strip_suffix('-').unwrap_or(prefix);
    if let Some(dash) = inner.rfind('-').filter(|dash| *dash > 0) {
        let prefix = &inner[..=dash];
        let built = match instance {
            Some(instance) => format!("{prefix}@{instance}.{kind}"),
            None => format!("{prefix}.{kind}"),
        };
        add_names(&built, names);
    }
}

fn ini_lines(root: &Root, files: Vec<PathBuf>, target: &str, keys: &[&str]) -> Vec<Line> {
    let mut found = Vec::new();
    for file in files {
        each_line(root, &file, |line, text, modified| {
            let Some((key, value)) = text.split_once('=') else {
                return;
            };
            if keys.contains(&key.trim()) {
                found.push(Line {
                    file: file.clone(),
                    line,
                    modified,
                    key: key.trim().to_owned(),
                    value: value.trim().to_owned(),
                    target: target.to_owned(),
                });
            }
        });
    }
    found
}

/// `NAME=VALUE` in a file of variables, for names that start with `prefix` (systemd.exec(5),
/// EnvironmentFile=).
#[must_use]
pub fn assignments(root: &Root, file: &Path, prefix: &str) -> Vec<Line> {
    let mut found = Vec::new();
    each_line(root, file, |line, text, modified| {
        if let Some((key, value)) = text.split_once('=')
            && key.starts_with(prefix)
        {
            found.push(Line {
                file: file.to_owned(),
                line,
                modified,
                key: key.to_owned(),
                value: value.trim_matches(['"', '\'']).to_owned(),
                target: String::new(),
            });
        }
    });
    found
}

/// All `*.conf` in the directories, by name; of two with one name, the earlier directory's counts.
fn by_name(root: &Root, directories: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut files = BTreeMap::<OsString, PathBuf>::new();
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(root.join(&directory)) else {
            continue;
        };
        for name in entries
            .filter_map(Result::ok)
            .map(|entry| entry.file_name())
        {
            if name.as_bytes().ends_with(b".conf") {
                let path = directory.join(&name);
                files.entry(name).or_insert(path);
            }
        }
    }
    files.into_values().collect()
}

/// Calls `each` with number and trimmed text of every line. A file that cannot be read, or is no
/// regular one (a link to /dev/null masks), has none.
fn each_line(root: &Root, file: &Path, mut each: impl FnMut(usize, &str, Option<SystemTime>)) {
    let path = root.join(file);
    let Ok(content) = read_file(&path, FILE_LIMIT) else {
        return;
    };
    let modified = std::fs::metadata(&path).and_then(|it| it.modified()).ok();
    for (at, line) in content.split(|&byte| byte == b'\n').enumerate() {
        each(at + 1, String::from_utf8_lossy(line).trim(), modified);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeRoot;
    use super::*;

    fn told(lines: &[Line]) -> Vec<String> {
        lines
            .iter()
            .map(|it| format!("{}:{} {}={}", it.file.display(), it.line, it.key, it.value))
            .collect()
    }

    #[test]
    fn the_last_of_sysctl_d_wins_and_names_mask() {
        let fake = FakeRoot::new();
        fake.write("etc/sysctl.d/90-pg.conf", "# x\nvm.overcommit_memory = 2\n");
        fake.write("usr/lib/sysctl.d/90-pg.conf", "vm.overcommit_memory = 1\n");
        fake.write(
            "usr/lib/sysctl.d/10-a.conf",
            "-vm/overcommit_memory=0\nnet.x=1\nodd\n",
        );
        fake.write("etc/sysctl.conf", "vm.overcommit_memory=0\n");
        fake.link("etc/sysctl.d/95-masked.conf", "/dev/null");
        fake.link("etc/sysctl.d/05-conf.conf", fake.path("etc/sysctl.conf"));
        assert_eq!(
            told(&sysctl_lines(fake.root(), &["vm.overcommit_memory"])),
            [
                "/etc/sysctl.d/05-conf.conf:1 vm.overcommit_memory=0",
                "/usr/lib/sysctl.d/10-a.conf:1 vm.overcommit_memory=0",
                "/etc/sysctl.d/90-pg.conf:2 vm.overcommit_memory=2",
            ]
        );
    }

    #[test]
    fn a_unit_its_template_and_drop_ins() {
        let fake = FakeRoot::new();
        fake.write(
            "lib/systemd/system/postgresql@.service",
            "[Service]\nTasksMax=100\nExecStart=x\n",
        );
        fake.write(
            "etc/systemd/system/postgresql@.service.d/20.conf",
            "[Service]\nTasksMax=200\n",
        );
        fake.write(
            "run/systemd/system/postgresql@15-main.service.d/20.conf",
            "TasksMax=300\n",
        );
        fake.write("etc/systemd/system/service.d/10.conf", "TasksMax=50\n");
        assert_eq!(
            told(&unit_lines(
                fake.root(),
                "postgresql@15-main.service",
                Manager::System,
                &["TasksMax"]
            )),
            [
                "/lib/systemd/system/postgresql@.service:2 TasksMax=100",
                "/etc/systemd/system/service.d/10.conf:1 TasksMax=50",
                // The directory counts before the name.
                "/etc/systemd/system/postgresql@.service.d/20.conf:2 TasksMax=200",
            ]
        );
        assert_eq!(
            names_of("a-b-c.slice"),
            ["a-b-c.slice", "a-b-.slice", "a-.slice"]
        );
        assert_eq!(
            names_of("a-b@i-j.service"),
            [
                "a-b@i-j.service",
                "a-b@.service",
                "a-@.service",
                "a-@i-j.service"
            ]
        );
        assert_eq!(names_of("-.slice"), ["-.slice"]);
        fake.write(
            "etc/systemd/system.conf",
            "[Manager]\n#DefaultTasksMax=1\nDefaultTasksMax=15%\n",
        );
        assert_eq!(
            told(&manager_lines(fake.root(), &["DefaultTasksMax"])),
            ["/etc/systemd/system.conf:3 DefaultTasksMax=15%"]
        );
    }

    #[test]
    fn a_users_own_units() {
        let fake = FakeRoot::new();
        fake.write("etc/passwd", "pg:x:26:26::/home/pg:/bin/sh\n");
        fake.write("usr/lib/systemd/user/pg.service", "TasksMax=1\n");
        fake.write("home/pg/.config/systemd/user/pg.service", "TasksMax=2\n");
        fake.write("etc/systemd/system/pg.service", "TasksMax=3\n");
        fake.write(
            "run/user/26/systemd/transient/pg.service.d/5.conf",
            "TasksMax=4\n",
        );
        assert_eq!(
            told(&unit_lines(
                fake.root(),
                "pg.service",
                Manager::User(26),
                &["TasksMax"]
            )),
            [
                "/home/pg/.config/systemd/user/pg.service:1 TasksMax=2",
                "/run/user/26/systemd/transient/pg.service.d/5.conf:1 TasksMax=4",
            ]
        );
    }

    #[test]
    fn the_kernels_command_line_comes_first() {
        let fake = FakeRoot::new();
        fake.write(
            "proc/cmdline",
            "quiet sysctl.vm.overcommit_memory=2 sysctl.vm/x=1 sysctl.kernel/pid_max=9\n",
        );
        fake.write("etc/sysctl.d/1.conf", "kernel.pid_max=8\n");
        assert_eq!(
            told(&sysctl_lines(
                fake.root(),
                &["vm.overcommit_memory", "kernel.pid_max"]
            )),
            [
                "/proc/cmdline:1 vm.overcommit_memory=2",
                "/proc/cmdline:1 kernel.pid_max=9",
                "/etc/sysctl.d/1.conf:1 kernel.pid_max=8",
            ]
        );
    }

    #[test]
    fn limits_of_users() {
        let fake = FakeRoot::new();
        fake.write(
            "etc/security/limits.conf",
            "#* soft nproc 1\npostgres soft nproc 256 # low\nroot hard core 0\n",
        );
        fake.write(
            "etc/security/limits.d/20-nproc.conf",
            "* - nproc 4096\n\u{0}\n",
        );
        let lines = limits_lines(fake.root(), &["nproc"]);
        assert_eq!(
            told(&lines),
            [
                "/etc/security/limits.conf:2 nproc=soft 256",
                "/etc/security/limits.d/20-nproc.conf:1 nproc=- 4096",
            ]
        );
        assert_eq!(lines[1].target, "*");
    }
}
