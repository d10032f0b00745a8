//! 5,000 backends are counted right; what that costs is printed, and decides nothing: `cargo test -p
//! pgfork-trace --release many_backends -- --nocapture`.

use std::fmt::Write as _;

use super::*;

#[test]
fn many_backends() {
    let fake = FakeRoot::new();
    server(&fake, "0::/app.slice/pg.service\n");
    host(&fake);
    v2(&fake);
    let mut out = String::new();
    let mut backends = 0;
    for wanted in [1000, 5000] {
        for number in backends..wanted {
            let title = format!(
                "postgres: app{} db 10.0.{}.1({number}) idle",
                number % 7,
                number % 50
            );
            backend(&fake, 1000 + number, &title);
        }
        backends = wanted;
        let found = look_at(&fake);
        assert_eq!(found.connections.clients, u64::from(wanted));
        let report = look(fake.root(), &Filter::default(), Near::default()).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        let _ = writeln!(out, "{wanted} backends: {} us, {peak}", report.took_us);
    }
    println!("{out}");
}
