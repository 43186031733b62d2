//! The memory of a process, as the system counts it.

use crate::error::{Error, Result, io};

/// Bytes of a page on the systems that this runs on.
const PAGE: f64 = 4096.0;

/// Bytes that are resident of a process, `"self"` or its number; and those of them that are mapped from files.
pub(crate) fn resident(process: &str) -> Result<(f64, f64)> {
    let path = format!("/proc/{process}/statm");
    let text = std::fs::read_to_string(&path).map_err(io(&path))?;
    let mut pages = text.split_whitespace().map(str::parse::<f64>);
    match (pages.nth(1), pages.next()) {
        (Some(Ok(resident)), Some(Ok(shared))) => Ok((resident * PAGE, shared * PAGE)),
        _ => Err(Error::Content(format!("{path} says something else"))),
    }
}
