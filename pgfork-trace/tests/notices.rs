//! What it says of the host that it runs on: methods that are refused, processes that are hidden
//! or cannot be watched, and what its kernel side does.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests are tests"
)]

mod support;

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use support::{BINARY, Tracer, assert_refuses, output, run, skipped, stderr, unique, wait_for};

/// A process of the test's own, ended with it.
struct Own(Child);

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A copy of a program under another name, asleep.
fn asleep(program: &Path, copy: &Path, directory: &Path) -> Own {
    fs::copy(program, copy).unwrap();
    let child = Command::new(copy)
        .arg0("sleep")
        .arg("600")
        .current_dir(directory)
        .stdin(Stdio::null())
        .spawn();
    Own(child.unwrap())
}

fn notices(lines: &[&Value], code: &str) -> Vec<String> {
    let of_code = lines.iter().filter(|line| line["code"] == code);
    of_code
        .map(|line| line["message"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_method_that_this_kernel_refuses_is_told_when_another_is_used() {
    needs_tracing!();
    let own = std::process::id().to_string();
    let mut tracer = Tracer::start(&["--pid", &own]);
    let start = tracer.line("start", |_| true);
    let method = start["method"].as_str().unwrap().to_owned();
    let finished = tracer.stop();
    let fallback = notices(&finished.of("notice"), "fallback");
    // The same answers, asked for one by one.
    let refused = ["fexit", "kprobe"]
        .into_iter()
        .take_while(|better| *better != method);
    let refused: Vec<&str> = refused.collect();
    for better in &refused {
        let output = run(&["--pid", &own, "--for", "1", "--method", better]);
        assert_refuses(&output, &[&format!("method {better} does not work")]);
        assert!(
            fallback[0].contains(&format!("{better}: ")),
            "{better} is not in: {fallback:?}"
        );
    }
    if refused.is_empty() {
        assert!(fallback.is_empty(), "{fallback:?}");
        skipped("the best method works on this kernel");
    } else {
        assert_eq!(fallback.len(), 1);
        let expected = format!("using the {method} method");
        assert!(fallback[0].starts_with(&expected), "{fallback:?}");
    }
}

/// In a mount namespace of its own, with another `/proc`, and without the right to see through it.
fn where_proc_is_hidden(arguments: &[&str]) -> Command {
    let script = "mount -t proc -o hidepid=invisible proc /proc && \
        exec setpriv --regid=65534 --clear-groups --bounding-set=-sys_ptrace --inh-caps=-all \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh", BINARY])
        .args(arguments);
    command
}

#[test]
fn processes_that_proc_hides_are_the_reason() {
    needs_root!();
    let mounted = output(&mut where_proc_is_hidden(&["--version"]));
    if !mounted.status.success() {
        return skipped(&stderr(&mounted));
    }
    let words = ["may be there all the same", "hidepid=invisible"];
    let output = |arguments: &[&str]| output(&mut where_proc_is_hidden(arguments));
    assert_refuses(
        &output(&["--port", "1"]),
        &["no postmaster on port 1", words[0], words[1]],
    );
    assert_refuses(
        &output(&["--data-dir", "/nowhere"]),
        &["no postmaster in data directory", words[0], words[1]],
    );
    let init = output(&["--pid", "1"]);
    assert_refuses(&init, &["there is no process 1", words[0], words[1]]);
    // Where everything can be seen nothing is hidden.
    let all = stderr(&run(&["--port", "1"]));
    assert!(!all.contains(words[0]), "{all}");
    needs_tracing!();
    let mut command = where_proc_is_hidden(&["--json", "--for", "1"]);
    let mut tracer = Tracer::spawn(&mut command);
    tracer.line("start", |_| true);
    let finished = tracer.finish();
    let hidden = notices(&finished.of("notice"), "proc_hidden");
    assert_eq!(hidden.len(), 1, "{:#?}", finished.lines);
    assert!(hidden[0].contains(words[1]), "{hidden:?}");
    assert_eq!(notices(&finished.of("notice"), "waiting").len(), 1);
}

/// A process that is taken for a postmaster: by its program's name, and its lock file.
fn pretended(program: &Path, directory: &Path, port: u16) -> Own {
    let data = directory.join(port.to_string());
    fs::create_dir(&data).unwrap();
    let postgres = data.join("postgres");
    let own = asleep(program, &postgres, &data);
    let lock = format!("{}\n{}\n0\n{port}\n", own.0.id(), data.display());
    fs::write(data.join("postmaster.pid"), lock).unwrap();
    let exe = format!("/proc/{}/exe", own.0.id());
    wait_for("its program", || {
        (fs::read_link(&exe).ok()? == postgres).then_some(())
    });
    own
}

#[test]
fn a_postmaster_that_cannot_be_watched_does_not_end_the_watch_of_others() {
    needs_tracing!();
    let Some(fixed) = Some(Path::new("/bin/busybox")).filter(|path| is_static(path)) else {
        return skipped("no static busybox is installed");
    };
    let directory = tempfile::tempdir().unwrap();
    let port = |at| 50_000 + u16::try_from(std::process::id() % 400 * 32 + at).unwrap();
    let [one, two] = [unique(), unique()].map(port);
    let _watched = pretended(Path::new("/bin/sleep"), directory.path(), one);
    let silent = pretended(fixed, directory.path(), two);
    let (both, alone) = (format!("{one},{two}"), two.to_string());
    // Without a C library there is no fork() to watch by this method.
    let arguments = ["--method", "tracepoint", "--port"];
    let mut tracer = Tracer::watching(&[&arguments[..], &[&both]].concat());
    let start = tracer.seen("start");
    assert_eq!(start["postmasters"].as_array().unwrap().len(), 1);
    assert_eq!(start["postmasters"][0]["port"], one);
    let notice = tracer.line("notice", |line| line["code"] == "not_watched");
    let message = notice["message"].as_str().unwrap();
    assert!(message.contains(&silent.0.id().to_string()), "{message}");
    let finished = tracer.stop();
    assert_eq!(finished.end("signal")["refusals"], 0);
    assert_eq!(finished.of("totals").len(), 1, "of what was watched");
    // With nothing left to watch, or when it was named itself, that is an error.
    let words = ["the return of fork cannot be watched in process"];
    assert_refuses(&run(&[&arguments[..], &[&alone]].concat()), &words);
    let pid = silent.0.id().to_string();
    let named = [
        "--method",
        "tracepoint",
        "--port",
        &one.to_string(),
        "--pid",
    ];
    assert_refuses(&run(&[&named[..], &[&pid]].concat()), &words);
}

fn is_static(program: &Path) -> bool {
    let interpreter = b"/lib64/ld-linux";
    fs::read(program).is_ok_and(|bytes| {
        !bytes
            .windows(interpreter.len())
            .any(|window| window == interpreter)
    })
}

/// Sizes of the ring buffers that a process has open.
fn ring_buffers(pid: u32) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let infos = entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    infos
        // BPF_MAP_TYPE_RINGBUF (include/uapi/linux/bpf.h)
        .filter(|info| info.lines().any(|line| line == "map_type:\t27"))
        .filter_map(|info| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix("max_entries:\t")?.parse().ok())
        })
        .collect()
}

#[test]
fn the_kernel_side_speaks_under_v_only() {
    needs_root!();
    needs_tracing!();
    let directory = tempfile::tempdir().unwrap();
    let name = format!("pgft-v-{}", std::process::id());
    let mut smallest = Vec::new();
    for verbose in [true, false] {
        let mut arguments = vec!["--comm", name.as_str()];
        if verbose {
            arguments.push("-v");
        }
        let mut tracer = Tracer::watching(&arguments);
        smallest.push(ring_buffers(tracer.pid()).into_iter().min().unwrap());
        let sleeper = asleep(
            Path::new("/bin/sleep"),
            &directory.path().join(&name),
            directory.path(),
        );
        let pid = sleeper.0.id();
        tracer.line("postmaster", |line| line["postmaster"]["pid"] == pid);
        let finished = tracer.stop();
        let said = format!("exec of a watched name by pid {pid}");
        assert_eq!(
            finished.stderr.contains(&said),
            verbose,
            "{}",
            finished.stderr
        );
        assert!(notices(&finished.of("notice"), "no_diagnostics").is_empty());
    }
    // The buffer of diagnostics: aya-log's own 128 KiB, or one page.
    assert_eq!(smallest[1], 4096, "{smallest:?}");
    assert!(smallest[0] > smallest[1], "{smallest:?}");
}
