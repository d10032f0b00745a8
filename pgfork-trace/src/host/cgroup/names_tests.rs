use super::*;

const ID: &str = "7f3c1b2a90de7f3c1b2a90de7f3c1b2a90de7f3c1b2a90de7f3c1b2a90deabcd";

fn unit(path: &str) -> Option<(String, UnitKind, Manager, String)> {
    let found = unit_of(Path::new(path))?;
    let cgroup = found.cgroup.to_str().unwrap().to_owned();
    Some((found.unit, found.kind, found.manager, cgroup))
}

#[test]
fn units_by_path() {
    use Manager::{System, User};
    use UnitKind::{Scope, Service, Slice};
    let template = "/system.slice/system-postgresql.slice";
    let instance = format!("{template}/postgresql@15-main.service");
    let cases: [(&str, &str, UnitKind, Manager, &str); 9] = [
        (
            "/system.slice/postgresql.service",
            "postgresql.service",
            Service,
            System,
            "/system.slice/postgresql.service",
        ),
        (
            &instance,
            "postgresql@15-main.service",
            Service,
            System,
            &instance,
        ),
        (template, "system-postgresql.slice", Slice, System, template),
        (
            "/system.slice",
            "system.slice",
            Slice,
            System,
            "/system.slice",
        ),
        (
            "/system.slice/system-my\\x2dpg.slice/my\\x2dpg@a.service",
            "my\\x2dpg@a.service",
            Service,
            System,
            "/system.slice/system-my\\x2dpg.slice/my\\x2dpg@a.service",
        ),
        (
            "/user.slice/user-1000.slice/session-3.scope",
            "session-3.scope",
            Scope,
            System,
            "/user.slice/user-1000.slice/session-3.scope",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/pg.service",
            "pg.service",
            Service,
            User(1000),
            "/user.slice/user-1000.slice/user@1000.service/app.slice/pg.service",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service",
            "user@1000.service",
            Service,
            System,
            "/user.slice/user-1000.slice/user@1000.service",
        ),
        (
            "/system.slice/_cgroup.service/inner/x",
            "cgroup.service",
            Service,
            System,
            "/system.slice/_cgroup.service",
        ),
    ];
    for (path, name, kind, manager, cgroup) in cases {
        let expected = (name.to_owned(), kind, manager, cgroup.to_owned());
        assert_eq!(unit(path), Some(expected), "{path}");
    }
}

#[test]
fn what_is_no_unit() {
    let long = format!("/{}.service", "x".repeat(300));
    for path in [
        "",
        "/",
        "/docker/abc",
        "/.slice",
        "/a b.service",
        "/\x1b[2J.service",
        "/pg.service.d",
        "/..",
        &long,
    ] {
        assert_eq!(unit_of(Path::new(path)), None, "{path:?}");
    }
    let odd = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"/\xff.service");
    assert_eq!(unit_of(Path::new(odd)), None);
}

#[test]
fn the_property_follows_the_controller() {
    let unit = unit_of(Path::new("/system.slice")).unwrap();
    assert_eq!(unit.property(Controller::Pids), "TasksMax");
    assert_eq!(unit.property(Controller::Memory), "MemoryMax");
}

#[test]
fn containers_by_id() {
    use Runtime::{Containerd, Crio, Docker, Kubernetes, Podman, Unknown};
    let pod = "0aa1b2c3-d4e5-f607-1829-3a4b5c6d7e8f";
    let pod_slice = "0aa1b2c3_d4e5_f607_1829_3a4b5c6d7e8f";
    let slices =
        format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod_slice}.slice");
    let guaranteed = format!("/kubepods.slice/kubepods-pod{pod_slice}.slice");
    let cases = [
        (format!("/docker/{ID}"), Docker, None),
        (format!("/system.slice/docker-{ID}.scope"), Docker, None),
        (
            format!("/docker/{ID}/system.slice/postgresql.service"),
            Docker,
            None,
        ),
        (
            format!("/system.slice/docker-{ID}.scope/init"),
            Docker,
            None,
        ),
        (
            format!("{slices}/cri-containerd-{ID}.scope"),
            Containerd,
            Some(pod),
        ),
        (
            format!("{guaranteed}/crio-{ID}.scope/container"),
            Crio,
            Some(pod),
        ),
        (format!("{slices}/docker-{ID}.scope"), Docker, Some(pod)),
        (
            format!("/kubepods/burstable/pod{pod}/{ID}"),
            Kubernetes,
            Some(pod),
        ),
        (format!("/kubepods/pod{pod}/{ID}"), Kubernetes, Some(pod)),
        (
            format!(
                "/system.slice/containerd.service/kubepods-burstable-pod{pod_slice}.slice:cri-containerd:{ID}"
            ),
            Containerd,
            Some(pod),
        ),
        (
            format!("/machine.slice/libpod-{ID}.scope/container"),
            Podman,
            None,
        ),
        (
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
            Podman,
            None,
        ),
        (format!("/libpod_parent/libpod-{ID}"), Podman, None),
        (format!("/../../docker-{ID}.scope"), Docker, None),
        (format!("/ecs/0123456789abcdef/{ID}"), Unknown, None),
        (
            format!("/system.slice/nerdctl-{ID}.scope"),
            Containerd,
            None,
        ),
    ];
    for (path, runtime, pod) in cases {
        let found = container_of(Path::new(&path)).expect(&path);
        assert_eq!(found.id, ID, "{path}");
        assert_eq!(found.short(), "7f3c1b2a90de");
        assert_eq!(found.runtime, runtime, "{path}");
        assert_eq!(found.pod_uid.as_deref(), pod, "{path}");
        assert!(found.cgroup.to_str().unwrap().contains(ID));
    }
}

#[test]
fn containers_by_name() {
    use Runtime::{Lxc, Nspawn};
    for (path, runtime, name) in [
        ("/lxc/web-1", Lxc, "web-1"),
        ("/lxc/web-1/system.slice/postgresql.service", Lxc, "web-1"),
        ("/lxc.payload.pg_main/init.scope", Lxc, "pg_main"),
        ("/lxc.payload/pg", Lxc, "pg"),
        (
            "/machine.slice/systemd-nspawn@pg.service/payload",
            Nspawn,
            "pg",
        ),
    ] {
        let found = container_of(Path::new(path)).expect(path);
        assert_eq!((found.runtime, found.short()), (runtime, name), "{path}");
    }
}

#[test]
fn a_container_inside_a_container_is_the_inner_one() {
    let inner = "a".repeat(64);
    let found = container_of(Path::new(&format!("/docker/{ID}/docker/{inner}/x"))).unwrap();
    assert_eq!(found.id, inner);
    assert_eq!(
        found.cgroup,
        Path::new(&format!("/docker/{ID}/docker/{inner}"))
    );
}

#[test]
fn what_is_no_container() {
    let upper = ID.to_uppercase();
    for path in [
        "/".to_owned(),
        "/system.slice/postgresql.service".to_owned(),
        "/docker/abc".to_owned(),
        format!("/docker/{upper}"),
        format!("/docker/{ID}0"),
        format!("/machine.slice/libpod-conmon-{ID}.scope"),
        format!("/system.slice/crio-conmon-{ID}.scope"),
        "/lxc/\x1b[2J".to_owned(),
        "/lxc.monitor.web".to_owned(),
        "/kubepods.slice/kubepods-burstable.slice".to_owned(),
    ] {
        assert_eq!(container_of(Path::new(&path)), None, "{path:?}");
    }
}
