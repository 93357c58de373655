//! Who may import whom: the arrows of the crate's first page, read from the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each room of `src/` may import besides itself.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("model", &[][..]),
        ("proto", &[]),
        ("metrics", &["model"]),
        ("node", &["model", "metrics"]),
        ("cluster", &["model", "metrics"]),
        ("sockets", &[]),
        ("telemetry", &["model", "metrics", "sockets"]),
        ("driver", &["node", "cluster", "model", "metrics"]),
        ("kubelet", &["driver", "model", "metrics", "proto", "sockets"]),
        ("cli", &["cluster", "driver", "kubelet", "metrics", "model", "node", "telemetry"]),
    ])
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The source without its comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The rooms named after `crate::`, alone or at the first level of a group.
fn imports(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(identifier(rest).to_owned());
            continue;
        };
        let (mut depth, mut item) = (0, true);
        for (offset, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => item = true,
                c if item && depth == 0 && !c.is_whitespace() => {
                    rooms.insert(identifier(&group[offset..]).to_owned());
                    item = false;
                }
                _ => {}
            }
        }
    }
    rooms
}

#[test]
fn each_room_imports_only_what_it_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for (room, allowed) in allowed() {
        let folder = src.join(room);
        let file = src.join(format!("{room}.rs"));
        let mut files = if folder.is_dir() { sources(&folder) } else { Vec::new() };
        files.extend(file.is_file().then_some(file));
        assert!(!files.is_empty(), "no sources in {room}");
        for file in files {
            for import in imports(&code(&file)) {
                if import != room && !allowed.contains(&import.as_str()) {
                    wrong.push(format!("{} imports {import}", file.display()));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// Programs that run elsewhere than the agent are small: they know what is true, and nothing else.
#[test]
fn other_programs_import_only_the_model() {
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin");
    let mut wrong = Vec::new();
    for file in sources(&bin) {
        let code = code(&file);
        let rooms = imports(&code.replace("crate::", "").replace("kerf::", "crate::"));
        let others = ["tokio", "tonic", "kube", "k8s_openapi", "nvml_wrapper", "clap"];
        let others = others.into_iter().filter(|name| code.contains(&format!("{name}::")));
        let found = rooms.iter().map(|room| &**room).filter(|room| *room != "model").chain(others);
        wrong.extend(found.map(|name| format!("{} imports {name}", file.display())));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_room_is_in_the_table() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let named = allowed();
    let rooms = fs::read_dir(src).unwrap().map(|entry| entry.unwrap().path());
    let unknown: Vec<_> = rooms
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|room| !["lib", "main", "bin"].contains(&room.as_str()))
        .filter(|room| !named.contains_key(room.as_str()))
        .collect();
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn the_model_is_pure() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model");
    let impure = [
        "tokio",
        "tonic",
        "kube::",
        "nvml_wrapper",
        "std::fs",
        "std::env",
        "std::net",
        "Instant",
        "SystemTime",
    ];
    let mut wrong = Vec::new();
    for file in sources(&src) {
        let code = code(&file);
        wrong.extend(
            impure
                .iter()
                .filter(|name| code.contains(**name))
                .map(|name| format!("{} names {name}", file.display())),
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn production_code_knows_no_simulation() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let wrong: Vec<_> = sources(&src)
        .into_iter()
        .filter(|file| {
            let code = code(file);
            code.contains("kerf_nvml::")
                || code.contains("kerf_testbed::")
                || code.contains("cfg!(test)")
        })
        .collect();
    assert_eq!(wrong, Vec::<PathBuf>::new());
}

#[test]
fn imports_are_found_alone_and_in_groups() {
    let code = "use crate::model::gpu::Gpu;\nuse crate::{\n    driver::{self, Driver},\n    node::x,\n};\nlet a = crate::proto::b;";
    let expected = ["driver", "model", "node", "proto"].map(str::to_owned);
    assert_eq!(imports(code), BTreeSet::from(expected));
}
