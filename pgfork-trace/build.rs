//! Chooses the eBPF object that is built in: the committed one, or another for tests.

fn main() {
    const VARIABLE: &str = "PGFORK_TRACE_EBPF_OBJECT";
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = std::env::var(VARIABLE).unwrap_or_else(|_| {
        let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        format!("{directory}/ebpf/pgfork-trace-x86_64.o")
    });
    println!("cargo::rerun-if-changed={object}");
    println!("cargo::rustc-env=PGFORK_TRACE_EBPF_OBJECT_PATH={object}");
}
