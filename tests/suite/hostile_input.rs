//! What others wrote, spoilt in every way: no parser panics, and what it says is one line that is not too long.

use std::{fmt::Display, fs};

use kerf::{
    model::{
        cdi::Spec,
        config,
        exposition::Format,
        health::kernel_log,
        kubelet_checkpoint,
        linker::{cache::Cache, elf::Elf},
        plugin::{
            config::{Config, Overrides},
            id::DeviceId,
        },
        record::Record,
        takeover::Checkpoint,
        unread::Told,
    },
    node::{host, store},
    proto::podresources::ListPodResourcesResponse,
};
use prost::Message;

/// A tenth of what the ignored test tries.
const INPUTS: usize = 100_000;

/// An event's note has 1024 bytes; what a line is about comes on top.
const LONGEST_LINE: usize = 900;

/// Pseudorandom numbers: the same inputs for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % sides.max(1)
    }

    /// One to four changes: a byte, a cut, a piece doubled or moved, a word of the formats put in.
    fn spoil(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut input = seed.to_vec();
        for _ in 0..=self.roll(4) {
            let (at, to) = (self.roll(input.len()), self.roll(input.len()));
            let (from, to) = (at.min(to), at.max(to));
            match self.roll(6) {
                0 if !input.is_empty() => input[at] = u8::try_from(self.roll(256)).unwrap(),
                1 => input.truncate(at),
                2 => drop(input.drain(from..to)),
                3 if input.len() < 1 << 14 => {
                    let piece = input[from..to].to_vec();
                    input.splice(from..from, piece);
                }
                4 if !input.is_empty() => input[at] ^= 1 << self.roll(8),
                _ => {
                    let word = WORDS[self.roll(WORDS.len())].as_bytes();
                    input.splice(at..at, word.iter().copied());
                }
            }
        }
        input
    }
}

const WORDS: [&str; 24] = [
    "null",
    "true",
    "-1",
    "18446744073709551616",
    "1e999",
    "0.5",
    "\"\"",
    "[",
    "]",
    "{",
    "}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":{\"a\":",
    "&a [*a,*a]",
    "<<: *a",
    "\n",
    "\0",
    "\u{202e}",
    "\\u0000",
    "é",
    ":",
    ",",
    "../../etc/passwd",
    "claim",
];

/// Panics if a line of an error would not do in an event.
fn check_line(of: &str, error: &dyn Display) {
    let line = error.to_string();
    assert!(!line.contains(['\n', '\r']), "{of}: {line:?}");
    assert!(line.len() <= LONGEST_LINE, "{of}: {} bytes: {line}", line.len());
}

/// A parser, what it reads when all is well, and how it is called.
type Parser = (&'static str, Vec<u8>, fn(&[u8]));

fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

fn record(input: &[u8]) {
    match Record::parse(input) {
        Ok(record) => {
            let again = serde_json::to_vec(&record).unwrap();
            assert_eq!(Record::parse(&again).unwrap(), record);
        }
        Err(error) => check_line("record", &error),
    }
}

fn checkpoint(input: &[u8]) {
    if let Err(error) = Checkpoint::parse(input) {
        check_line("checkpoint", &error);
    }
}

fn kubelet(input: &[u8]) {
    if let Err(error) = kubelet_checkpoint::parse(input) {
        check_line("kubelet's file", &error);
    }
}

fn plugin(input: &[u8]) {
    if let Err(error) = Config::read(&text(input), &Overrides::default()) {
        check_line("plugin's file", &error);
    }
}

fn opaque(input: &[u8]) {
    let Ok(parameters) = serde_json::from_slice(input) else { return };
    if let Err(error) = config::Config::parse(&parameters) {
        check_line("configuration", &error);
    }
}

fn spec(input: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<Spec>(input) else { return };
    if let Err(error) = spec.validate() {
        check_line("CDI file", &error);
    }
    Told::by_spec("7f3e", &spec);
}

fn cache(input: &[u8]) {
    if let Some(cache) = Cache::parse(input) {
        cache.libraries().count();
        cache.encode();
    }
}

fn elf(input: &[u8]) {
    let read = |buffer: &mut [u8], offset: u64| {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(input.len());
        let length = buffer.len().min(input.len() - from);
        buffer[..length].copy_from_slice(&input[from..from + length]);
        Ok(length)
    };
    if let Ok(Some(elf)) = Elf::new(read) {
        drop((elf.is_native_library(), elf.soname(), elf.section(".note.cuda.fwd_compatibility")));
    }
}

fn pods(input: &[u8]) {
    let decoded = ListPodResourcesResponse::decode(input);
    if let Ok(decoded) = decoded {
        assert!(decoded.encoded_len() < 1 << 20);
    }
}

fn words(input: &[u8]) {
    let text = text(input);
    Format::accepted(&text);
    kernel_log::parse(&text);
    if let Some(id) = DeviceId::parse(&text) {
        assert_eq!(DeviceId::parse(&id.to_string()), Some(id));
    }
}

fn kept(input: &[u8]) {
    drop(serde_json::from_slice::<store::Kept>(input));
    drop(serde_json::from_slice::<store::Numbers>(input));
}

fn parsers() -> Vec<Parser> {
    let mut listed = Vec::new();
    pods_of_a_node().encode(&mut listed).unwrap();
    let mut cached = Cache::default();
    cached.add("libcuda.so.1", "/usr/lib/libcuda.so.1");
    vec![
        ("record", RECORD.into(), record),
        ("NVIDIA's checkpoint", CHECKPOINT.into(), checkpoint),
        ("the kubelet's file", KUBELET.into(), kubelet),
        ("the plugin's file", PLUGIN.into(), plugin),
        ("opaque configuration", OPAQUE.into(), opaque),
        ("CDI file", SPEC.into(), spec),
        ("linker's cache", cached.encode().unwrap(), cache),
        ("library", kerf_nvml::elf::library("libcuda.so.1"), elf),
        ("pods' resources", listed, pods),
        ("words", b"GPU-4404041a-04cf-1ccf-9e70-f139a9b1e23c::3".into(), words),
        ("health and numbers", KEPT.into(), kept),
    ]
}

fn pods_of_a_node() -> ListPodResourcesResponse {
    use kerf::proto::podresources::{ContainerDevices, ContainerResources, PodResources};
    let devices = ContainerDevices {
        resource_name: "nvidia.com/gpu".to_owned(),
        device_ids: vec!["GPU-1".to_owned()],
        ..ContainerDevices::default()
    };
    let container = ContainerResources {
        name: "main".to_owned(),
        devices: vec![devices],
        ..ContainerResources::default()
    };
    let (name, namespace) = ("pod".to_owned(), "default".to_owned());
    let pod = PodResources { name, namespace, containers: vec![container] };
    ListPodResourcesResponse { pod_resources: vec![pod] }
}

fn try_all(inputs: usize, seed: u64) {
    for (name, valid, parse) in parsers() {
        let mut dice = Dice(seed);
        parse(&valid);
        for number in 0..inputs {
            let input = dice.spoil(&valid);
            let tried = std::panic::catch_unwind(|| parse(&input));
            assert!(tried.is_ok(), "{name}, input {number}: {:?}", text(&input));
        }
    }
}

#[test]
fn no_parser_panics() {
    try_all(INPUTS, 0x5eed);
}

#[test]
#[ignore = "ten times as many: cargo test --release --test suite -- --ignored hostile_input"]
fn no_parser_panics_in_a_million_inputs_each() {
    try_all(10 * INPUTS, 0x0bad_5eed);
}

/// The runtimes' configuration is read where it lies.
#[test]
fn no_configuration_of_a_runtime_is_too_strange() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("etc/containerd/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let mut dice = Dice(0x5eed);
    for _ in 0..INPUTS / 20 {
        let input = dice.spoil(RUNTIME.as_bytes());
        store::write_atomic(&file, &input, 0o644).unwrap();
        for line in host::bypasses(dir.path()) {
            check_line("runtime", &line);
        }
    }
}

const RECORD: &str = r#"{"version":1,"bootId":"b0f1","since":"2026-03-04T11:48:00Z","plan":{"claim":{"namespace":"ml",
"name":"train","uid":"7f3e"},"pods":["train-0"],"devices":[{"requests":["gpu"],"pool":"node-1","device":"gpu-0-mig",
"target":{"type":"mig","gpu":"GPU-5d","profile":19,"profileName":"1g.10gb","placement":{"start":4,"size":1}},
"origin":"made"}]},"state":"prepared","devices":[{"uuid":"MIG-77","cdi":["k8s.gpu.nvidia.com/claim=7f3e-0"]}],
"carving":{"before":[],"made":[{"position":0,"id":11}]}}"#;

const CHECKPOINT: &str = r#"{"checksum":0,"v2":{"preparedClaims":{"7f3e":{"checkpointState":"PrepareCompleted","status":
{"allocation":{"devices":{"results":[{"request":"gpu","driver":"gpu.nvidia.com","pool":"node","device":"gpu-0"}]}}},
"preparedDevices":[{"devices":[{"type":"gpu","gpu":{"info":{"uuid":"GPU-1"},"device":{"Requests":["gpu"]}}}]}]}}}}"#;

const KUBELET: &str = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"u","ContainerName":"init","ResourceName":
"nvidia.com/gpu","DeviceIDs":{"0":["GPU-1"]},"AllocResp":"CgA="}],"RegisteredDevices":{"nvidia.com/gpu":["GPU-1"]}},
"Checksum":1234}"#;

const PLUGIN: &str = "version: v1\nflags:\n  migStrategy: mixed\nresources:\n  gpus:\n  - {pattern: '*', name: gpu}\n\
                      sharing:\n  timeSlicing:\n    resources:\n    - {name: nvidia.com/gpu, replicas: 4}\n";

const OPAQUE: &str = r#"{"apiVersion":"resource.nvidia.com/v1beta1","kind":"GpuConfig","sharing":{"strategy":
"TimeSlicing","timeSlicingConfig":{"interval":"Default"}}}"#;

const SPEC: &str = r#"{"cdiVersion":"0.6.0","kind":"k8s.gpu.nvidia.com/claim","devices":[{"name":"7f3e-gpu-0",
"containerEdits":{"deviceNodes":[{"path":"/dev/nvidia0","major":195,"minor":0,"type":"c"}]}}],"containerEdits":{}}"#;

const KEPT: &str = r#"{"health":{"version":1,"bootId":"b","at":"2026-11-30T00:00:00Z","gpus":{}},"logRead":{"secs":1,
"nanos":0},"logSequence":7,"bootId":"b","gpus":{"GPU-1":0},"described":[]}"#;

const RUNTIME: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'nvidia'\n\
                       [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]\n\
                       BinaryName = '/usr/bin/nvidia-container-runtime'\n";
