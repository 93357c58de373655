//! As much TOML as the configuration of container runtimes needs: tables, keys, strings, words, lists
//! and inline tables. What is not understood is passed over: the files are not ours.

use std::collections::BTreeMap;

/// The values of documents by the path of their key. A list has its elements, all else is one.
#[derive(Debug, Default)]
pub(super) struct Document(BTreeMap<Vec<String>, Vec<String>>);

impl Document {
    /// Adds what a text says, in the place of what others said.
    pub(super) fn read(&mut self, text: &str) {
        let mut table = Vec::new();
        for line in lines(text) {
            match line.trim().strip_prefix('[') {
                Some(header) => table = path(header.trim_matches(['[', ']'])),
                None => self.assign(&table, &line),
            }
        }
    }

    /// The value of a key.
    pub(super) fn get(&self, path: &[&str]) -> Option<&str> {
        self.list(path)?.first().map(String::as_str)
    }

    /// The elements of a list.
    pub(super) fn list(&self, path: &[&str]) -> Option<&[String]> {
        let path: Vec<_> = path.iter().copied().map(str::to_owned).collect();
        self.0.get(&path).map(Vec::as_slice)
    }

    /// `key = value`.
    fn assign(&mut self, table: &[String], text: &str) {
        let [key, value] = split(text, '=')[..] else { return };
        let key: Vec<_> = table.iter().cloned().chain(path(key)).collect();
        let value = value.trim();
        let within = |open: char, close: char| value.strip_prefix(open)?.strip_suffix(close);
        if let Some(pairs) = within('{', '}') {
            split(pairs, ',').into_iter().for_each(|pair| self.assign(&key, pair));
            return;
        }
        let elements = within('[', ']').map_or(vec![value], |elements| split(elements, ','));
        let elements = elements.into_iter().filter(|element| !element.trim().is_empty());
        self.0.insert(key, elements.map(unquoted).collect());
    }
}

/// Lines without their comments. One in which a bracket stays open goes on in the next.
fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut unfinished = String::new();
    for line in text.lines() {
        let comment = bare(line).into_iter().find(|(_, c, _)| *c == '#');
        unfinished.push_str(&line[..comment.map_or(line.len(), |(at, ..)| at)]);
        let closed = bare(&unfinished)
            .last()
            .is_none_or(|(_, c, open)| *open == 0 && !matches!(c, '[' | '{'));
        if closed {
            lines.push(std::mem::take(&mut unfinished));
        }
    }
    lines
}

/// What stands between separators outside of quotes and brackets.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut begin = 0;
    for (at, c, open) in bare(text) {
        if c == separator && open == 0 {
            parts.push(&text[begin..at]);
            begin = at + c.len_utf8();
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// The characters outside of quotes, with their places and the number of brackets around them.
fn bare(text: &str) -> Vec<(usize, char, usize)> {
    let mut found = Vec::new();
    let (mut quote, mut escaped, mut open) = (None, false, 0_usize);
    for (at, c) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(begun) if c == begun => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None => {
                open = open.saturating_sub(usize::from(matches!(c, ']' | '}')));
                found.push((at, c, open));
                open += usize::from(matches!(c, '[' | '{'));
            }
        }
    }
    found
}

fn path(key: &str) -> Vec<String> {
    split(key, '.').into_iter().map(unquoted).collect()
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let within = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    match (within('"'), within('\'')) {
        (Some(basic), _) => basic.replace("\\\"", "\"").replace("\\\\", "\\"),
        (None, Some(literal)) => literal.to_owned(),
        (None, None) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_where_is_found_as_it_is_meant() {
        let mut document = Document::default();
        document.read(
            r#"
version = 3 # not a string
imports = [ # of others
  '/etc/a/*.toml',   # 'no', "no"
  "/etc/b # c.toml",
]
not.a.table.key = "dotted"
[plugins."io.containerd.cri.v1.runtime".containerd]   # default_runtime_name = "no"
  # default_runtime_name = "no"
  default_runtime_name = "nvidia"
  snapshotter="over\"lay\\fs"
  [plugins . 'io.containerd.cri.v1.runtime' . containerd.runtimes."run.c"]
    options = { BinaryName = "/usr/bin/a=b", "Systemd Cgroup" = true, deep = { er = 'x' } }
  broken
  = 3
[[proxy]]
  empty = []
  last = 'one'"#,
        );
        const CRI: [&str; 2] = ["plugins", "io.containerd.cri.v1.runtime"];
        let cri = |rest: &[&str]| document.get(&[&CRI, rest].concat());
        assert_eq!(document.get(&["version"]), Some("3"));
        let imports = ["/etc/a/*.toml", "/etc/b # c.toml"].map(str::to_owned);
        assert_eq!(document.list(&["imports"]), Some(&imports[..]));
        assert_eq!(document.get(&["not", "a", "table", "key"]), Some("dotted"));
        assert_eq!(cri(&["containerd", "default_runtime_name"]), Some("nvidia"));
        assert_eq!(cri(&["containerd", "snapshotter"]), Some("over\"lay\\fs"));
        let runtime =
            |rest: &[&str]| cri(&[&["containerd", "runtimes", "run.c", "options"], rest].concat());
        assert_eq!(runtime(&["BinaryName"]), Some("/usr/bin/a=b"));
        assert_eq!(runtime(&["Systemd Cgroup"]), Some("true"));
        assert_eq!(runtime(&["deep", "er"]), Some("x"));
        assert_eq!(document.list(&["proxy", "empty"]), Some(&[][..]));
        assert_eq!(document.get(&["proxy", "last"]), Some("one"));
        assert_eq!(document.get(&["default_runtime_name"]), None);

        document.read("version = 4\n[other]\nversion = 5");
        assert_eq!(document.get(&["version"]), Some("4"));
    }

    #[test]
    fn nonsense_is_passed_over() {
        let mut document = Document::default();
        for text in ["[", "]]", "a = [1, 2", "\"a = 1", "{}", "=", "[a\nb = 1", "a = 'b\nä = 1"] {
            document.read(text);
        }
        document.read("key = \"value\"");
        assert_eq!(document.get(&["key"]), Some("value"));
    }
}
