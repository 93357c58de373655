//! How text may look where it goes: colour or none, box drawing or plain ASCII.

use std::io::IsTerminal;

/// What the reader of the output can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// ANSI colours. Never the only sign of anything.
    pub color: bool,
    /// Characters outside ASCII.
    pub unicode: bool,
}

/// A colour of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// The terminal's own.
    Plain,
    /// For what leads.
    Bold,
    /// What is wrong.
    Red,
    /// What can be had.
    Green,
    /// What is strange.
    Yellow,
    /// What is held.
    Cyan,
}

/// The lines of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// Runs from left to right.
    pub horizontal: char,
    /// Runs from top to bottom.
    pub vertical: char,
    /// Left end, join and right end of a line above.
    pub top: [char; 3],
    /// Left end, join and right end of a line below.
    pub bottom: [char; 3],
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Style {
    /// What standard output can show: colour on a terminal unless `NO_COLOR` is set
    /// (<https://no-color.org>), box drawing where the locale is UTF-8.
    pub fn of_stdout() -> Self {
        Self::of(std::io::stdout().is_terminal(), variable)
    }

    /// What standard error can show.
    pub fn of_stderr() -> Self {
        Self::of(std::io::stderr().is_terminal(), variable)
    }

    fn of(terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_some_and(|term| term == "dumb");
        // The first that is set decides, as setlocale(3) says; none is the POSIX locale.
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        Self {
            color: terminal && !dumb && set("NO_COLOR").is_none(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// `text` in a colour.
    pub fn paint(self, paint: Paint, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Plain => return text.to_owned(),
            Paint::Bold => 1,
            Paint::Red => 31,
            Paint::Green => 32,
            Paint::Yellow => 33,
            Paint::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// What stands between the parts of a line.
    pub fn separator(self) -> &'static str {
        if self.unicode { " · " } else { ", " }
    }

    /// What stands between a number and what there are so many of.
    pub fn times(self) -> char {
        if self.unicode { '×' } else { 'x' }
    }

    /// What a picture is drawn with.
    pub fn lines(self) -> Lines {
        if self.unicode {
            let (top, bottom) = (['┌', '┬', '┐'], ['└', '┴', '┘']);
            Lines { horizontal: '─', vertical: '│', top, bottom }
        } else {
            Lines { horizontal: '-', vertical: '|', top: ['+'; 3], bottom: ['+'; 3] }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(terminal: bool, variables: &[(&str, &str)]) -> (bool, bool) {
        let variable = |name: &str| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let style = Style::of(terminal, variable);
        (style.color, style.unicode)
    }

    #[test]
    fn the_environment_decides() {
        assert_eq!(of(true, &[]), (true, false));
        assert_eq!(of(false, &[("LANG", "de_DE.UTF-8")]), (false, true));
        assert_eq!(of(true, &[("LANG", "C.utf8"), ("NO_COLOR", "1")]), (false, true));
        assert_eq!(of(true, &[("LANG", "C.UTF-8"), ("NO_COLOR", "")]), (true, true));
        assert_eq!(of(true, &[("LANG", "C.UTF-8"), ("LC_ALL", "POSIX")]), (true, false));
        assert_eq!(of(true, &[("LC_ALL", ""), ("LC_CTYPE", "en_US.UTF-8")]), (true, true));
        assert_eq!(of(true, &[("TERM", "dumb")]), (false, false));
    }

    #[test]
    fn colour_is_an_addition() {
        let colored = Style { color: true, unicode: true };
        assert_eq!(colored.paint(Paint::Red, "lost"), "\x1b[31mlost\x1b[0m");
        assert_eq!(colored.paint(Paint::Plain, "free"), "free");
        assert_eq!(Style::default().paint(Paint::Red, "lost"), "lost");
    }
}
