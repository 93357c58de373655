//! Reading NVIDIA's v1 configuration file. A key that it does not have is refused by name.
//!
//! These keys are accepted, whatever they say, because they mean nothing here:
//!
//! | key | why |
//! |---|---|
//! | `flags.failOnInitError` | the agent waits for the NVIDIA driver and says so |
//! | `flags.nvidiaDriverRoot`, `flags.nvidiaDevRoot`, `flags.plugin.containerDriverRoot` | `--nvidia-driver-root`, `--dev-root` and `--driver-root`, for both interfaces |
//! | `flags.plugin.nvidiaCTKPath` | CDI files name Kerf's own hook, or `--nvidia-cdi-hook-path` |
//! | `flags.mpsRoot` | MPS is not served: [`Sharing::by_mps`] |
//! | `flags.deviceDiscoveryStrategy` | GPUs are found through NVML |
//! | `flags.useNodeFeatureAPI`, `flags.gfd` | they are GPU feature discovery's |
//! | `imex.required` | a container gets a channel where there is one |

use std::{collections::BTreeSet, ops::RangeInclusive};

use serde_json::Value;

use super::{
    Config, DeviceRef, IdStrategy, ListStrategy, MigStrategy, Names, Pattern, Replicated,
    SharedDevices, SharedPolicy, Sharing, boolean, full_name,
};
use crate::model::strict::{self, Object, OneLine};

/// Why a document is no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be read at all.
    #[error("neither YAML nor JSON: {}", OneLine(.0))]
    Syntax(String),
    /// A key that is not known, or a value that cannot be.
    #[error(transparent)]
    Strict(#[from] strict::Error),
    /// A key that must be there is not.
    #[error("`{key}` is missing in {at}; add {example}")]
    Missing {
        /// Path of the object.
        at: String,
        /// The key.
        key: &'static str,
        /// What it might be.
        example: &'static str,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

const NAME: &str =
    "a name of lower-case letters, digits, `-` and `.`, 63 characters at most with `nvidia.com/`";
const NAME_OF_SHARES: &str = "short enough for 63 characters with `nvidia.com/` and `.shared`";
const DEVICES: &str = "`all`, a number of devices, or a list of devices";
const DEVICE: &str = "a GPU's index, its index and that of a MIG device such as `0:1`, or a UUID";
const CHANNEL: &str = "0, the only channel that containers get";

/// Reads a document; an empty one says nothing.
pub(super) fn read(text: &str) -> Result<Config> {
    let document = parse(text)?;
    let mut config = Config::default();
    if document.is_null() {
        return Ok(config);
    }
    let object = Object::document(&document)?;
    object.only(&["version", "flags", "resources", "sharing", "imex"])?;
    version(&object)?;
    if let Some(flags) = object.object("flags")? {
        self::flags(&flags, &mut config)?;
    }
    if let Some(resources) = object.object("resources")? {
        config.names = names(&resources)?;
    }
    if let Some(sharing) = object.object("sharing")? {
        config.sharing = self::sharing(&sharing)?;
    }
    if let Some(imex) = object.object("imex")? {
        config.imex_channels = channels(&imex)?;
    }
    Ok(config)
}

fn parse(text: &str) -> Result<Value> {
    let options = serde_saphyr::options! { with_snippet: false };
    let read = serde_saphyr::from_str_with_options(text, options);
    read.map_err(|error| {
        Error::Syntax(error.render_with_formatter(&serde_saphyr::UserMessageFormatter))
    })
}

/// No version is the first one.
fn version(object: &Object<'_>) -> Result<()> {
    match object.text("version")? {
        None | Some("") => Ok(()),
        Some(version) => Ok(object.one_of("version", version, &[("v1", ())])?),
    }
}

fn flags(flags: &Object<'_>, config: &mut Config) -> Result<()> {
    flags.only(&[
        "migStrategy",
        "failOnInitError",
        "mpsRoot",
        "nvidiaDriverRoot",
        "nvidiaDevRoot",
        "gdrcopyEnabled",
        "gdsEnabled",
        "mofedEnabled",
        "useNodeFeatureAPI",
        "deviceDiscoveryStrategy",
        "plugin",
        "gfd",
    ])?;
    set(&mut config.mig_strategy, word(flags, "migStrategy", &MigStrategy::WORDS)?);
    set(&mut config.gdrcopy, flag(flags, "gdrcopyEnabled")?);
    set(&mut config.gds, flag(flags, "gdsEnabled")?);
    set(&mut config.mofed, flag(flags, "mofedEnabled")?);
    if let Some(gfd) = flags.object("gfd")? {
        gfd.only(&["oneshot", "noTimestamp", "sleepInterval", "outputFile", "machineTypeFile"])?;
    }
    flags.object("plugin")?.map_or(Ok(()), |plugin| self::plugin(&plugin, config))
}

fn plugin(plugin: &Object<'_>, config: &mut Config) -> Result<()> {
    plugin.only(&[
        "passDeviceSpecs",
        "deviceListStrategy",
        "deviceIDStrategy",
        "cdiAnnotationPrefix",
        "nvidiaCTKPath",
        "containerDriverRoot",
        "sharedDevicesAllocationPolicy",
    ])?;
    let policy = word(plugin, "sharedDevicesAllocationPolicy", &SharedPolicy::WORDS)?;
    set(&mut config.shared_policy, policy);
    set(&mut config.pass_device_specs, flag(plugin, "passDeviceSpecs")?);
    set(&mut config.list_strategies, list_strategies(plugin)?);
    set(&mut config.id_strategy, word(plugin, "deviceIDStrategy", &IdStrategy::WORDS)?);
    let prefix = plugin.text("cdiAnnotationPrefix")?.filter(|prefix| !prefix.is_empty());
    set(&mut config.cdi_annotation_prefix, prefix.map(str::to_owned));
    Ok(())
}

fn set<T>(value: &mut T, said: Option<T>) {
    if let Some(said) = said {
        *value = said;
    }
}

/// One of some words; the empty one says nothing.
fn word<T: Copy>(
    object: &Object<'_>,
    key: &'static str,
    words: &[(&'static str, T)],
) -> Result<Option<T>> {
    match object.text(key)? {
        None | Some("") => Ok(None),
        Some(text) => Ok(Some(object.one_of(key, text, words)?)),
    }
}

fn flag(object: &Object<'_>, key: &str) -> Result<Option<bool>> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(Value::String(text)) if boolean(text).is_some() => Ok(boolean(text)),
        Some(other) => Ok(object.wrong(key, "true or false", other)?),
    }
}

/// A word, several with commas between them, or a list of such.
fn list_strategies(plugin: &Object<'_>) -> Result<Option<BTreeSet<ListStrategy>>> {
    const KEY: &str = "deviceListStrategy";
    let texts = match plugin.get(KEY) {
        None => return Ok(None),
        Some(Value::String(text)) => vec![text.as_str()],
        Some(Value::Array(items)) => each(plugin, KEY, "a string", items, Value::as_str)?,
        Some(other) => return Ok(plugin.wrong(KEY, "a string or a list of strings", other)?),
    };
    let words = texts.iter().flat_map(|text| text.split(',')).map(str::trim);
    let words = words.filter(|word| !word.is_empty());
    let strategies = words.map(|word| plugin.one_of(KEY, word, &ListStrategy::WORDS));
    let strategies: BTreeSet<_> = strategies.collect::<Result<_, _>>()?;
    Ok(Some(strategies).filter(|strategies| !strategies.is_empty()))
}

/// What the items of a list are; an item that is not what it should be is refused by its number.
fn each<'v, T>(
    object: &Object<'_>,
    key: &str,
    want: &'static str,
    items: &'v [Value],
    read: impl Fn(&'v Value) -> Option<T>,
) -> Result<Vec<T>> {
    let item = |(i, item): (usize, &'v Value)| match read(item) {
        Some(read) => Ok(read),
        None => Ok(object.wrong(&format!("{key}[{i}]"), want, item)?),
    };
    items.iter().enumerate().map(item).collect()
}

fn names(resources: &Object<'_>) -> Result<Names> {
    resources.only(&["gpus", "mig"])?;
    let patterns = |key| resources.objects(key)?.iter().map(pattern).collect::<Result<_>>();
    Ok(Names { gpus: patterns("gpus")?, mig: patterns("mig")? })
}

fn pattern(object: &Object<'_>) -> Result<Pattern> {
    object.only(&["pattern", "name"])?;
    let pattern = object.text("pattern")?.filter(|pattern| !pattern.is_empty());
    let pattern =
        pattern.ok_or_else(|| missing(object, "pattern", "a pattern such as `*A100*`"))?;
    Ok(Pattern { pattern: pattern.to_owned(), name: required_name(object)? })
}

/// What is shared. MPS wins over time slicing, as with NVIDIA's device plugin.
fn sharing(object: &Object<'_>) -> Result<Sharing> {
    object.only(&["timeSlicing", "mps"])?;
    let slicing = object.object("timeSlicing")?.map(|slicing| shares(&slicing)).transpose()?;
    let mps = object.object("mps")?.map(|mps| shares(&mps)).transpose()?.unwrap_or_default();
    let by_mps = mps.resources.into_iter().map(|shared| shared.name).collect();
    Ok(Sharing { by_mps, ..slicing.unwrap_or_default() })
}

fn shares(object: &Object<'_>) -> Result<Sharing> {
    object.only(&["renameByDefault", "failRequestsGreaterThanOne", "resources"])?;
    let rename = flag(object, "renameByDefault")?.unwrap_or(false);
    let resources = object.objects("resources")?;
    let resources = resources.iter().map(|resource| replicated(resource, rename));
    Ok(Sharing {
        fail_requests_greater_than_one: flag(object, "failRequestsGreaterThanOne")?
            .unwrap_or(false),
        resources: resources.collect::<Result<_>>()?,
        by_mps: BTreeSet::new(),
    })
}

fn replicated(object: &Object<'_>, rename_by_default: bool) -> Result<Replicated> {
    object.only(&["name", "rename", "devices", "replicas"])?;
    let name = required_name(object)?;
    let rename = match self::name(object, "rename")? {
        Some(rename) => rename,
        None if rename_by_default => shared_name(object, &name)?,
        None => name.clone(),
    };
    Ok(Replicated { name, rename, devices: devices(object)?, replicas: replicas(object)? })
}

fn missing(object: &Object<'_>, key: &'static str, example: &'static str) -> Error {
    Error::Missing { at: object.path().to_owned(), key, example }
}

fn name(object: &Object<'_>, key: &str) -> Result<Option<String>> {
    match object.text(key)? {
        None | Some("") => Ok(None),
        Some(text) => match full_name(text) {
            Some(name) => Ok(Some(name)),
            None => Ok(object.wrong(key, NAME, &text.into())?),
        },
    }
}

fn required_name(object: &Object<'_>) -> Result<String> {
    name(object, "name")?.ok_or_else(|| missing(object, "name", "a resource name such as `gpu`"))
}

fn shared_name(object: &Object<'_>, name: &str) -> Result<String> {
    match full_name(&format!("{name}.shared")) {
        Some(name) => Ok(name),
        None => Ok(object.wrong("name", NAME_OF_SHARES, &name.into())?),
    }
}

/// Each share is a device that the kubelet is told of, and a GPU may have seven MIG devices: more shares than
/// anybody can use would cost the agent and the kubelet their memory.
const REPLICAS: RangeInclusive<u32> = 2..=512;

fn replicas(object: &Object<'_>) -> Result<u32> {
    let Some(value) = object.get("replicas") else {
        return Err(missing(object, "replicas", "how many shares each device has, 2 to 512"));
    };
    match small(value).or(value.as_str().and_then(number)) {
        Some(replicas) if REPLICAS.contains(&replicas) => Ok(replicas),
        _ => Ok(object.wrong("replicas", "a whole number from 2 to 512", value)?),
    }
}

fn devices(object: &Object<'_>) -> Result<SharedDevices> {
    const KEY: &str = "devices";
    match object.get(KEY) {
        None => Ok(SharedDevices::All),
        Some(Value::String(text)) if text == "all" => Ok(SharedDevices::All),
        Some(Value::Array(items)) if !items.is_empty() => {
            each(object, KEY, DEVICE, items, device).map(SharedDevices::Listed)
        }
        Some(other) => match small(other).filter(|count| *count > 0) {
            Some(count) => Ok(SharedDevices::Count(count)),
            None => Ok(object.wrong(KEY, DEVICES, other)?),
        },
    }
}

fn device(value: &Value) -> Option<DeviceRef> {
    let Value::String(text) = value else { return small(value).map(DeviceRef::Gpu) };
    match text.split_once(':') {
        Some((gpu, mig)) => Some(DeviceRef::Mig(number(gpu)?, number(mig)?)),
        None if is_uuid(text) => Some(DeviceRef::Uuid(text.clone())),
        None => number(text).map(DeviceRef::Gpu),
    }
}

fn small(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// Digits alone: a sign says that something else was meant.
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// `GPU-<uuid>`, `MIG-<uuid>` or `MIG-GPU-<uuid>/<gi>/<ci>`.
fn is_uuid(text: &str) -> bool {
    if let Some(old) = text.strip_prefix("MIG-GPU-") {
        let mut parts = old.split('/');
        return parts.next().is_some_and(is_plain_uuid)
            && parts.clone().count() == 2
            && parts.all(|part| number(part).is_some());
    }
    text.strip_prefix("GPU-").or(text.strip_prefix("MIG-")).is_some_and(is_plain_uuid)
}

fn is_plain_uuid(text: &str) -> bool {
    let groups = text.split('-');
    let hex = |group: &str| group.bytes().all(|byte| byte.is_ascii_hexdigit());
    groups.clone().all(hex) && groups.map(str::len).eq([8, 4, 4, 4, 12])
}

fn channels(imex: &Object<'_>) -> Result<Vec<u32>> {
    const KEY: &str = "channelIDs";
    imex.only(&[KEY, "required"])?;
    let mut channels = match imex.get(KEY) {
        None => Vec::new(),
        Some(Value::Array(items)) => {
            each(imex, KEY, CHANNEL, items, |item| small(item).filter(|channel| *channel == 0))?
        }
        Some(other) => return Ok(imex.wrong(KEY, "`[]` or `[0]`", other)?),
    };
    channels.dedup();
    Ok(channels)
}
