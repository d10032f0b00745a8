use super::super::discover::discover;
use super::*;
use crate::host::fake::{FakeProcess, FakeRoot};

fn host() -> (FakeRoot, Vec<Postmaster>) {
    let fake = FakeRoot::new();
    fake.process(&FakeProcess::new(1));
    for (pid, port) in [(100, 5432), (200, 5433), (300, 5432)] {
        let directory = format!("pg/{pid}");
        fake.process(&FakeProcess::postgres(pid, &directory));
        fake.data_dir(&directory, &format!("/data/{pid}"), i64::from(pid), port);
    }
    let found = discover(fake.root()).unwrap().postmasters;
    (fake, found)
}

fn chosen(filter: &Filter) -> Result<Vec<Pid>, String> {
    let (fake, postmasters) = host();
    match select(fake.root(), &postmasters, filter) {
        Ok(targets) => Ok(targets.iter().map(Target::pid).collect()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn nothing_asked_is_everything() {
    assert_eq!(chosen(&Filter::default()).unwrap(), [100, 200, 300]);
    let fake = FakeRoot::new();
    assert!(
        select(fake.root(), &[], &Filter::default())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_name_alone_is_no_postmaster_now_or_later() {
    let named = Filter {
        comms: vec!["pgbouncer".to_owned()],
        ..Filter::default()
    };
    assert!(chosen(&named).unwrap().is_empty());
    assert!(!named.awaits_postmasters());
    let ported = Filter {
        ports: vec![5433],
        ..named
    };
    assert_eq!(chosen(&ported).unwrap(), [200]);
    assert!(ported.awaits_postmasters());
    assert!(Filter::default().awaits_postmasters());
}

#[test]
fn filters_add_up_and_nothing_is_twice() {
    let filter = Filter {
        pids: vec![300, 1, 1],
        ports: vec![5433],
        data_dirs: vec!["/data/200".into(), "/data/300/".into()],
        comms: Vec::new(),
    };
    assert_eq!(chosen(&filter).unwrap(), [200, 300, 1]);
}

#[test]
fn a_port_of_several_containers_is_all_of_them() {
    let filter = Filter {
        ports: vec![5432],
        ..Filter::default()
    };
    assert_eq!(chosen(&filter).unwrap(), [100, 300]);
}

#[test]
fn any_process_can_be_named_by_pid() {
    let (fake, postmasters) = host();
    let filter = Filter {
        pids: vec![1],
        ..Filter::default()
    };
    let targets = select(fake.root(), &postmasters, &filter).unwrap();
    let [Target::Process(process)] = targets.as_slice() else {
        panic!("{targets:?}");
    };
    assert_eq!(process.stat.comm, "sh");
}

#[test]
fn a_data_directory_by_another_path() {
    let (fake, postmasters) = host();
    fake.link("etc/main", fake.path("pg/200"));
    let filter = |path: PathBuf| Filter {
        data_dirs: vec![path],
        ..Filter::default()
    };
    for path in [
        "/etc/main".into(),
        "/pg/200".into(),
        "/pg/100/../200/.".into(),
    ] {
        let targets = select(fake.root(), &postmasters, &filter(path)).unwrap();
        assert_eq!(targets.len(), 1);
        assert_eq!(targets[0].pid(), 200);
    }
}

#[test]
fn errors_name_what_exists() {
    let port = Filter {
        ports: vec![1],
        ..Filter::default()
    };
    assert_eq!(
        chosen(&port).unwrap_err(),
        "no postmaster on port 1; found: 100 (port 5432, \"/data/100\"), \
         200 (port 5433, \"/data/200\"), 300 (port 5432, \"/data/300\")"
    );
    let directory = Filter {
        data_dirs: vec!["/x\x1b".into()],
        ..Filter::default()
    };
    let error = chosen(&directory).unwrap_err();
    assert!(
        error.starts_with("no postmaster in data directory \"/x\\u{1b}\"; found: 100"),
        "{error}"
    );
    let pid = Filter {
        pids: vec![4000],
        ..Filter::default()
    };
    assert_eq!(chosen(&pid).unwrap_err(), "there is no process 4000");
    let fake = FakeRoot::new();
    let error = select(fake.root(), &[], &port).unwrap_err().to_string();
    assert_eq!(error, "no postmaster on port 1; no postmaster was found");
}

#[test]
fn a_thread_is_refused_with_its_process() {
    let (fake, postmasters) = host();
    fake.process(&FakeProcess::new(5));
    fake.write(
        "proc/5/status",
        "Tgid:\t4\nPPid:\t1\nUid:\t1 1 1 1\nThreads:\t2\n",
    );
    let filter = Filter {
        pids: vec![5],
        ..Filter::default()
    };
    let error = select(fake.root(), &postmasters, &filter)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "5 is a thread of process 4; give the process");
}
