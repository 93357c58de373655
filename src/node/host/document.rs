//! What the configuration files of a container runtime say together.

use toml::{Table, Value};

/// The values of documents, the later in the place of the earlier.
#[derive(Debug, Default)]
pub(super) struct Document(Table);

impl Document {
    /// Adds what a text says. One that is no TOML says nothing: its program does not take it either.
    pub(super) fn read(&mut self, text: &str) {
        if let Ok(table) = text.parse() {
            merge(&mut self.0, table);
        }
    }

    /// The value of a key.
    pub(super) fn get(&self, path: &[&str]) -> Option<&Value> {
        let (last, tables) = path.split_last()?;
        let table = tables.iter().try_fold(&self.0, |table, name| table.get(*name)?.as_table());
        table?.get(*last)
    }

    /// The value of a key that is a string.
    pub(super) fn text(&self, path: &[&str]) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// The strings of a list.
    pub(super) fn list(&self, path: &[&str]) -> Option<Vec<String>> {
        let list = self.get(path)?.as_array()?.iter();
        Some(list.filter_map(Value::as_str).map(str::to_owned).collect())
    }
}

fn merge(into: &mut Table, more: Table) {
    for (name, value) in more {
        match (into.get_mut(&name), value) {
            (Some(Value::Table(into)), Value::Table(more)) => merge(into, more),
            (_, value) => drop(into.insert(name, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_document_replaces_values_and_adds_to_tables() {
        let mut document = Document::default();
        document.read(
            r#"
imports = ['/etc/a/*.toml', "/etc/b.toml", 3]
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "nvidia"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes."run.c"]
    options = { BinaryName = "/usr/bin/a=b" }"#,
        );
        document.read(
            "[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = 'runc'",
        );
        let cri = |rest: &[&str]| {
            let path = [&["plugins", "io.containerd.cri.v1.runtime", "containerd"], rest].concat();
            document.text(&path)
        };
        assert_eq!(cri(&["default_runtime_name"]), Some("runc"));
        assert_eq!(cri(&["runtimes", "run.c", "options", "BinaryName"]), Some("/usr/bin/a=b"));
        let imports = ["/etc/a/*.toml", "/etc/b.toml"].map(str::to_owned);
        assert_eq!(document.list(&["imports"]).as_deref(), Some(&imports[..]));
        assert_eq!(document.text(&["plugins"]), None);
    }

    #[test]
    fn what_is_no_toml_says_nothing() {
        let mut document = Document::default();
        document.read("key = 'value'");
        for text in ["[", "key = [1, 2", "\"a = 1", "key = 'other'\n= 3"] {
            document.read(text);
        }
        assert_eq!(document.text(&["key"]), Some("value"));
    }
}
