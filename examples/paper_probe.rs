use tidegate::config::*;
use tidegate::engine::{self, Handle, Notice};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n: u64 = a[1].parse().unwrap();
    let k: u64 = a[2].parse().unwrap();
    let p: usize = a[3].parse().unwrap();
    let ring: usize = a[4].parse().unwrap();
    let (graph, sum) = tidegate::jobs::paper::job(n, k).unwrap();
    let mut c = Config::workers(p);
    c.ring_slots = ring;
    if a[5] == "threads" { c.driver = Driver::Threads; }
    if let Some(ms) = a.get(6) {
        let _ = std::fs::remove_dir_all("/tmp/snap");
        c = c.with_snapshots(Snapshots::every(std::time::Duration::from_millis(ms.parse().unwrap()), "/tmp/snap"));
    }
    let r = engine::run(&graph, &c, &Handle::default(), &mut |n| if !matches!(n, Notice::Tick|Notice::Completed{..}) { eprintln!("{n:?}") }).unwrap();
    println!("{:.2} M/s {:016x} expected {:016x} {:?} cap p99 {} snap p50 {} {:?}", n as f64 / r.elapsed.as_secs_f64() / 1e6, sum.sum(), tidegate::workload::paper::expected_checksum(n, k), r.cadence, r.capture_ns.value_at_quantile(0.99), r.snapshot_ns.value_at_quantile(0.5), r.end);
}
