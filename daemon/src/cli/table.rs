//! Tables for people.
//!
//! Owns the look of every list. Never shortens what a user would have to copy: a short id is
//! accepted wherever it is shown.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table, TableComponent};

use super::console::Console;
use super::error::Result;

/// A table under these headings; a heading that begins with `>` aligns its column to the right.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_style(TableComponent::HeaderLines, '─')
        .set_style(TableComponent::MiddleHeaderIntersections, '─')
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(
            headings
                .iter()
                .map(|heading| heading.trim_start_matches('>')),
        );
    for (index, heading) in headings.iter().enumerate() {
        if heading.starts_with('>')
            && let Some(column) = table.column_mut(index)
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Name and value on a line each, for one thing with many fields.
pub(crate) fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = rows
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}"))
        .collect();
    lines.join("\n")
}

impl Console {
    /// Prints a table, wrapped where there is a terminal; files and pipes get long lines, which
    /// are better to search.
    pub(crate) fn rows(&mut self, mut rows: Table) -> Result<()> {
        if let Some(width) = self.width() {
            rows.set_width(width);
        }
        self.line(&rows.trim_fmt())
    }
}
