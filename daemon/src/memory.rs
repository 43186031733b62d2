//! How much memory there is.

use std::fs;

/// Bytes that a new process could use; `None` where the system does not say.
pub(crate) fn available() -> Option<u64> {
    bytes().map(|(available, _)| available)
}

/// Available and total bytes. A container's bound counts, not the machine's memory.
pub(crate) fn bytes() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line
            .trim_start_matches(':')
            .split_whitespace()
            .next()?
            .parse()
            .ok()?;
        Some(kib << 10)
    };
    let bound = fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(u64::MAX);
    Some((
        field("MemAvailable")?.min(bound),
        field("MemTotal")?.min(bound),
    ))
}
