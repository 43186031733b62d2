//! The machine: processor, memory, disk, threads, libtorch.

use std::fs;
use std::path::{Path, PathBuf};

use super::Report;
use crate::config::{Config, DeviceChoice, format_bytes};

/// The libtorch that the binary was built against; another one has other functions.
const LIBTORCH: &str = "2.11.";

/// Below this, not even the smallest model of the catalogue runs comfortably.
const LEAST_MEMORY: u64 = 2 << 30;

pub(super) fn look(config: &Config, report: &mut Report) {
    processor(report);
    threads(config, report);
    memory(report);
    disk(
        "disk of data_dir",
        &config.data_dir,
        config.min_free_bytes,
        report,
    );
    disk("disk of cache_dir", &config.cache_dir, 0, report);
    libtorch(config, report);
}

fn processor(report: &mut Report) {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| names.contains(&name.trim()))
            .map(|(_, value)| value.trim().to_owned())
    };
    let name = field(&["model name", "Model"]).unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let flags = field(&["flags", "Features"]).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|one| one == flag);
    let useful: Vec<&str> = [
        "avx2",
        "avx512f",
        "avx512_bf16",
        "amx_bf16",
        "asimd",
        "bf16",
    ]
    .into_iter()
    .filter(|flag| has(flag))
    .collect();
    if useful.is_empty() && !flags.is_empty() {
        report.warning(
            "processor",
            format!("{name}: neither AVX2 nor NEON"),
            "it works, but slowly; a virtual machine may hide what its host has: ask for CPU type \"host\"",
        );
    } else {
        report.ok("processor", format!("{name} ({})", useful.join(" ")));
    }
}

fn threads(config: &Config, report: &mut Report) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = config.thread_count();
    if threads > cores {
        report.warning(
            "threads",
            format!("threads = {threads}, but only {cores} cores may be used"),
            "threads that share a core wait for each other: set threads = 0",
        );
    } else {
        report.ok("threads", format!("{threads} on {cores} cores"));
    }
}

fn memory(report: &mut Report) {
    let Some((available, total)) = crate::memory::bytes() else {
        return report.warning("memory", "unknown: /proc/meminfo cannot be read", "");
    };
    let finding = format!(
        "{} of {} available",
        format_bytes(available),
        format_bytes(total)
    );
    if available < LEAST_MEMORY {
        let mend = "stop other programs, or give this machine more memory";
        report.warning("memory", finding, mend);
    } else {
        report.ok("memory", finding);
    }
}

fn disk(subject: &'static str, directory: &Path, floor: u64, report: &mut Report) {
    let there = existing(directory);
    let stat = match rustix::fs::statvfs(&there) {
        Ok(stat) => stat,
        Err(error) => {
            let finding = format!("{}: {error}", there.display());
            return report.problem(
                subject,
                finding,
                "make the directory readable, or set another",
            );
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let finding = format!("{} free at {}", format_bytes(free), directory.display());
    if free < floor {
        report.problem(
            subject,
            format!(
                "{finding}, less than min_free_bytes = {}",
                format_bytes(floor)
            ),
            "make room or set data_dir to another disk; nothing is written before",
        );
    } else if free < floor.saturating_mul(2) {
        report.warning(
            subject,
            format!(
                "{finding}, and below {} nothing is written",
                format_bytes(floor)
            ),
            "make room soon",
        );
    } else {
        report.ok(subject, finding);
    }
}

/// The directory, or what of it exists.
pub(super) fn existing(directory: &Path) -> PathBuf {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    absolute
        .ancestors()
        .find(|one| one.exists())
        .map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

fn libtorch(config: &Config, report: &mut Report) {
    let Some(library) = loaded_library("libtorch_cpu.so") else {
        return report.warning(
            "libtorch",
            "its files are not seen in this process's memory map",
            "",
        );
    };
    let finding = |version: &str| format!("{version}, {}", library.display());
    match version(&library) {
        Some(version) if version.starts_with(LIBTORCH) => report.ok("libtorch", finding(&version)),
        Some(version) => report.problem(
            "libtorch",
            finding(&version),
            format!("this binary needs {LIBTORCH}x: run `make setup`, or set LIBTORCH to such a folder and build again"),
        ),
        None => report.warning(
            "libtorch",
            finding("version unknown"),
            format!("make sure that it is {LIBTORCH}x; its folder has no file `build-version`"),
        ),
    }
    let devices = tch::Cuda::device_count();
    match config.device {
        DeviceChoice::Cuda(index) if i64::try_from(index).unwrap_or(i64::MAX) >= devices => report
            .problem(
                "device",
                format!("{} is set, but libtorch sees {devices} CUDA devices", config.device),
                "set device = \"auto\" or \"cpu\"; for a GPU, LIBTORCH must be a CUDA build and the driver be loaded",
            ),
        DeviceChoice::Cuda(_) => report.ok("device", config.device.to_string()),
        DeviceChoice::Auto if devices > 0 => report.ok("device", "auto: cuda:0"),
        DeviceChoice::Auto | DeviceChoice::Cpu => report.ok("device", "cpu"),
    }
}

/// The path of a library that this process has loaded: what counts, whatever was meant to be.
fn loaded_library(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps
        .lines()
        .filter_map(|line| Some(&line[line.find('/')?..]));
    paths
        .find(|path| path.rsplit('/').next() == Some(name))
        .map(PathBuf::from)
}

/// The version that stands beside the library: in `build-version` of a libtorch folder, or in
/// `version.py` of a PyTorch one. The set-up links the library, so both the link's folder and the
/// file's own are looked at by their parents.
fn version(library: &Path) -> Option<String> {
    let folder = library.parent()?.parent()?;
    if let Ok(text) = fs::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = fs::read_to_string(folder.join("version.py")).ok()?;
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    Some(line.split(['\'', '"']).nth(1)?.to_owned())
}
