//! Results as a person reads them. Pure: results in, text out.

pub(crate) mod table;

use crate::mode::Mode;
use crate::work::WORKS;

/// The names that options take.
pub(crate) fn list() -> String {
    let works: String = WORKS.iter().map(|work| format!("  {:<14} {}\n", work.id, work.title)).collect();
    let modes: String = Mode::ALL.iter().map(|mode| format!("  {:<14} {}\n", mode.name(), mode.title())).collect();
    format!("works:\n{works}modes:\n{modes}")
}
