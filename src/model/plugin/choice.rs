//! Which of several configuration files is a node's: its label says so, else a default.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The file that is chosen where nothing else is said.
const DEFAULT: &str = "default";

/// What is known of a node's label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// Nothing yet. Why not, in one line.
    Unknown(String),
    /// The node has none.
    Absent,
    /// What it says.
    Value(String),
}

/// A choice as it is kept on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The file; none for the defaults without a file.
    pub file: Option<String>,
}

/// What becomes of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one counts.
    File(String),
    /// None does: the defaults.
    Plain,
    /// It cannot be told: what was chosen last stays, and where nothing was, nothing is to be served.
    /// Why, in one line.
    Stay(String),
}

/// Chooses from the names of files.
///
/// NVIDIA's sidecar takes a default while the API server has not answered yet. That would give a node
/// another node's configuration for a while, so here what was chosen last counts until the label is known.
pub fn choose(
    files: &BTreeSet<String>,
    label: &Label,
    default: Option<&str>,
    remembered: Option<&Remembered>,
) -> Choice {
    match (label, remembered) {
        (Label::Value(name), _) if !name.is_empty() => named(files, name, "the node's label"),
        (Label::Value(_) | Label::Absent, _) => unlabelled(files, default),
        (Label::Unknown(why), None) => {
            Choice::Stay(format!("the node's label is not known: {why}"))
        }
        (Label::Unknown(_), Some(Remembered { file: None })) => Choice::Plain,
        (Label::Unknown(_), Some(Remembered { file: Some(name) })) => {
            named(files, name, "the last choice")
        }
    }
}

fn named(files: &BTreeSet<String>, name: &str, by: &str) -> Choice {
    if files.contains(name) {
        return Choice::File(name.to_owned());
    }
    let there: Vec<_> = files.iter().map(|file| format!("`{file}`")).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    Choice::Stay(format!("{by} names configuration `{name}`, which is not there; there is {there}"))
}

fn unlabelled(files: &BTreeSet<String>, default: Option<&str>) -> Choice {
    match (default, files.first()) {
        (Some(name), _) => named(files, name, "`--default-config`"),
        (None, _) if files.contains(DEFAULT) => Choice::File(DEFAULT.to_owned()),
        (None, Some(only)) if files.len() == 1 => Choice::File(only.clone()),
        (None, _) => Choice::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn file(name: &str) -> Choice {
        Choice::File(name.to_owned())
    }

    fn stay(why: &str) -> Choice {
        Choice::Stay(why.to_owned())
    }

    fn value(text: &str) -> Label {
        Label::Value(text.to_owned())
    }

    #[test]
    fn the_label_chooses() {
        let files = files(&["a", "b", "default"]);
        let remembered = Remembered { file: Some("a".to_owned()) };
        assert_eq!(choose(&files, &value("b"), Some("a"), Some(&remembered)), file("b"));
        let unknown = choose(&files, &value("c"), Some("a"), Some(&remembered));
        let why = "the node's label names configuration `c`, which is not there; there is `a`, `b`, `default`";
        assert_eq!(unknown, stay(why));
    }

    #[test]
    fn without_a_label_there_is_a_default() {
        let remembered = Remembered { file: Some("b".to_owned()) };
        for (names, default, choice) in [
            (&["a", "b", "default"][..], Some("a"), file("a")),
            (&["a", "b", "default"], None, file("default")),
            (&["a", "b"], None, Choice::Plain),
            (&["a"], None, file("a")),
            (&[], None, Choice::Plain),
            (
                &[],
                Some("a"),
                stay(
                    "`--default-config` names configuration `a`, which is not there; there is none",
                ),
            ),
        ] {
            for label in [Label::Absent, value("")] {
                let chosen = choose(&files(names), &label, default, Some(&remembered));
                assert_eq!(chosen, choice, "{names:?} {default:?}");
            }
        }
    }

    #[test]
    fn while_the_label_is_not_known_the_last_choice_counts() {
        let files = files(&["a", "default"]);
        let label = Label::Unknown("no answer".to_owned());
        let choose =
            |remembered: Option<Remembered>| choose(&files, &label, Some("a"), remembered.as_ref());
        let of = |name: &str| Some(Remembered { file: Some(name.to_owned()) });
        assert_eq!(choose(of("default")), file("default"));
        assert_eq!(choose(Some(Remembered { file: None })), Choice::Plain);
        assert_eq!(choose(None), stay("the node's label is not known: no answer"));
        let why =
            "the last choice names configuration `b`, which is not there; there is `a`, `default`";
        assert_eq!(choose(of("b")), stay(why));
    }
}
