//! What `e2e/README.md` and `docs/security.md` name is there: tests, and manifests.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("e2e/README.md")).unwrap()
}

/// The words in backticks, outside of blocks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The file that a test is named to be in, and its name.
fn place(test: &str) -> Option<(PathBuf, &str)> {
    let (module, name) = test.rsplit_once("::")?;
    let file = match module.strip_prefix("suite::") {
        Some(module) => format!("tests/suite/{}.rs", module.replace("::", "/")),
        None if module.contains('/') => module.to_owned(),
        None => format!("e2e/cluster/src/suites/{module}"),
    };
    Some((root().join(file), name))
}

/// How many tests a page names, each of which is there.
fn tests_of(page: &str) -> usize {
    let named = quoted(page).filter_map(place);
    let there = named.inspect(|(file, name)| {
        let code = fs::read_to_string(file).unwrap_or_default();
        assert!(code.contains(&format!("fn {name}(")), "no test `{name}` in {}", file.display());
    });
    there.count()
}

#[test]
fn tests_that_stand_for_those_of_others_are_there() {
    let named = tests_of(&readme());
    assert!(named > 50, "{named} tests are named");
}

#[test]
fn tests_that_show_what_an_attacker_cannot_do_are_there() {
    let named = tests_of(&fs::read_to_string(root().join("docs/security.md")).unwrap());
    assert!(named > 10, "{named} tests are named");
}

#[test]
fn the_table_of_manifests_has_them_all() {
    let text = readme();
    let named: BTreeSet<_> = quoted(&text).collect();
    for entry in fs::read_dir(root().join("e2e/cluster/manifests")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(named.contains(name), "no line has `{name}`");
    }
    let suite = root().join("e2e/cluster/src/suites/compatibility.rs");
    let suite = fs::read_to_string(suite).unwrap();
    let (_, list) = suite.split_once("tests!(\"compatibility\":").unwrap();
    for test in
        list.split(");").next().unwrap().split(',').map(str::trim).filter(|it| !it.is_empty())
    {
        assert!(text.contains(&format!("`{test}`")), "no line has `{test}`");
    }
}
