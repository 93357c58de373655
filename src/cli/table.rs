//! Columns for people.

/// Rows as lines whose columns stand under each other, two spaces apart, without trailing spaces.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |row: &[String; N], column: usize| row[column].chars().count();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| width(row, column)).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Items after `first`, joined by `separator`, in lines of at most `limit` characters; further lines
/// are indented as far as `first` is long. An item that is longer than a line has one of its own.
pub(super) fn wrap(first: &str, items: &[String], separator: &str, limit: usize) -> String {
    let indent = first.chars().count();
    let mut text = first.to_owned();
    let mut column = indent;
    for (i, item) in items.iter().enumerate() {
        let last = i + 1 == items.len();
        let separator = if last { "" } else { separator };
        let length = item.chars().count() + separator.trim_end().chars().count();
        if column > indent && column + length > limit {
            text.truncate(text.trim_end().len());
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        }
        text.push_str(item);
        text.push_str(separator);
        column += item.chars().count() + separator.chars().count();
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["CLAIM", "STATE"], ["a/bé", ""], ["some/thing", "prepared"]];
        let text = table(&rows.map(|row| row.map(str::to_owned)));
        assert_eq!(text, "CLAIM       STATE\na/bé\nsome/thing  prepared\n");
        assert_eq!(table::<2>(&[]), "");
    }

    #[test]
    fn a_full_line_is_continued_under_its_items() {
        let items = ["one", "two", "three", "four"].map(str::to_owned);
        assert_eq!(wrap("> ", &items, ", ", 11), "> one, two,\n  three,\n  four\n");
        assert_eq!(wrap("> ", &items, ", ", 4), "> one,\n  two,\n  three,\n  four\n");
        assert_eq!(wrap("> ", &items, ", ", 99), "> one, two, three, four\n");
    }
}
