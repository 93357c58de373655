//! Manifests: YAML files of API objects, applied and deleted.

use std::path::Path;

use anyhow::Context;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{Namespace, Pod},
        resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate},
    },
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// An object of a kind that the examples use.
#[derive(Clone, Debug, PartialEq)]
pub enum Manifest {
    /// `v1`
    Namespace(Box<Namespace>),
    /// `v1`
    Pod(Box<Pod>),
    /// `resource.k8s.io/v1`
    DeviceClass(Box<DeviceClass>),
    /// `resource.k8s.io/v1`
    ResourceClaim(Box<ResourceClaim>),
    /// `resource.k8s.io/v1`
    ResourceClaimTemplate(Box<ResourceClaimTemplate>),
}

/// Reads the documents of a YAML file, in their order.
pub fn read(path: &Path) -> anyhow::Result<Vec<Manifest>> {
    parse_all(path, |_| true)
}

/// Reads the device classes of a YAML file that holds more: what Kerf is installed with.
pub fn device_classes(path: &Path) -> anyhow::Result<Vec<Manifest>> {
    parse_all(path, |document| document["kind"] == "DeviceClass")
}

fn parse_all(path: &Path, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Vec<Manifest>> {
    let file = || format!("read `{}`", path.display());
    let text = std::fs::read_to_string(path).with_context(file)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).with_context(file)?;
    documents
        .into_iter()
        .filter(|document| !document.is_null() && wanted(document))
        .map(|document| parse(document).with_context(file))
        .collect()
}

fn parse(document: Value) -> anyhow::Result<Manifest> {
    let field =
        |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (field("apiVersion"), field("kind"));
    Ok(match (version.as_str(), kind.as_str()) {
        ("v1", "Namespace") => Manifest::Namespace(object(document)?),
        ("v1", "Pod") => Manifest::Pod(object(document)?),
        ("resource.k8s.io/v1", "DeviceClass") => Manifest::DeviceClass(object(document)?),
        ("resource.k8s.io/v1", "ResourceClaim") => Manifest::ResourceClaim(object(document)?),
        ("resource.k8s.io/v1", "ResourceClaimTemplate") => {
            Manifest::ResourceClaimTemplate(object(document)?)
        }
        _ => anyhow::bail!("kind `{kind}` of `{version}` is none that the examples use"),
    })
}

fn object<K: DeserializeOwned>(document: Value) -> anyhow::Result<Box<K>> {
    Ok(Box::new(serde_json::from_value(document)?))
}

/// Creates each object, in order. One that is there already stays as it is.
pub async fn apply(client: &Client, manifests: &[Manifest]) -> anyhow::Result<()> {
    for manifest in manifests {
        match manifest {
            Manifest::Namespace(object) => create(&Api::all(client.clone()), object.as_ref()).await,
            Manifest::DeviceClass(object) => {
                create(&Api::all(client.clone()), object.as_ref()).await
            }
            Manifest::Pod(object) => {
                create(&api_of(client, object.as_ref()), object.as_ref()).await
            }
            Manifest::ResourceClaim(object) => {
                create(&api_of(client, object.as_ref()), object.as_ref()).await
            }
            Manifest::ResourceClaimTemplate(object) => {
                create(&api_of(client, object.as_ref()), object.as_ref()).await
            }
        }?;
    }
    Ok(())
}

/// Deletes each object, the last first. One that is gone already is no error.
pub async fn delete(client: &Client, manifests: &[Manifest]) -> anyhow::Result<()> {
    for manifest in manifests.iter().rev() {
        match manifest {
            Manifest::Namespace(object) => remove(&Api::all(client.clone()), object.as_ref()).await,
            Manifest::DeviceClass(object) => {
                remove(&Api::all(client.clone()), object.as_ref()).await
            }
            Manifest::Pod(object) => {
                remove(&api_of(client, object.as_ref()), object.as_ref()).await
            }
            Manifest::ResourceClaim(object) => {
                remove(&api_of(client, object.as_ref()), object.as_ref()).await
            }
            Manifest::ResourceClaimTemplate(object) => {
                remove(&api_of(client, object.as_ref()), object.as_ref()).await
            }
        }?;
    }
    Ok(())
}

fn api_of<K>(client: &Client, object: &K) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let namespace = object.meta().namespace.as_deref().unwrap_or("default");
    Api::namespaced(client.clone(), namespace)
}

async fn create<K>(api: &Api<K>, object: &K) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => other.map(drop).with_context(|| format!("create {}", name_of(object))),
    }
}

async fn remove<K>(api: &Api<K>, object: &K) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let name = object.meta().name.as_deref().unwrap_or_default();
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop).with_context(|| format!("delete {}", name_of(object))),
    }
}

fn name_of<K: Resource<DynamicType = ()>>(object: &K) -> String {
    let name = object.meta().name.as_deref().unwrap_or_default();
    format!("{} `{name}`", K::kind(&()))
}
