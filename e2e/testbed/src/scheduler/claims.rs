//! The claims of a pod: those that it names, those made from its templates, and the one made for its
//! extended resources.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            ContainerExtendedResourceRequest, Pod, PodExtendedResourceClaimStatus,
            PodResourceClaim, PodResourceClaimStatus, PodSpec,
        },
        resource::v1::{
            DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim,
            ResourceClaimSpec, ResourceClaimTemplate,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    quantity::Amount,
    scheduler::{
        Scheduler,
        client::{Error, answer, is_owned},
    },
};

/// Which of a pod's claims a claim was made for.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";

/// Marks the claim that was made for a pod's extended resources.
const EXTENDED: &str = "resource.kubernetes.io/extended-resource-claim";

/// What a class may always be asked for by, with its name after this.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";

/// A pod by what its claims need of it.
struct Owner<'p> {
    namespace: &'p str,
    name: &'p str,
    uid: &'p str,
    spec: &'p PodSpec,
}

impl<'p> Owner<'p> {
    fn of(pod: &'p Pod) -> Result<Self, Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let missing =
            |what: &str| Error::Pod { pod: name.to_owned(), why: format!("has no `{what}`") };
        let uid = pod.metadata.uid.as_deref().ok_or_else(|| missing("metadata.uid"))?;
        let spec = pod.spec.as_ref().ok_or_else(|| missing("spec"))?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        Ok(Self { namespace, name, uid, spec })
    }

    /// Metadata of a claim that is made for the pod and goes with it.
    fn metadata(&self, prefix: String, annotation: (&str, &str)) -> ObjectMeta {
        let (key, value) = annotation;
        ObjectMeta {
            generate_name: Some(prefix),
            namespace: Some(self.namespace.to_owned()),
            annotations: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: self.name.to_owned(),
                uid: self.uid.to_owned(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        }
    }
}

impl Scheduler {
    /// The claims of a pod, in the order of its spec and then that for its extended resources. Makes
    /// those that are not there yet, and writes their names into the pod's status.
    pub async fn claims_of(&self, pod: &Pod) -> Result<Vec<ResourceClaim>, Error> {
        let owner = Owner::of(pod)?;
        let list = self.claims(owner.namespace).list(&ListParams::default()).await;
        let there = answer(list, || format!("list ResourceClaims of `{}`", owner.namespace))?.items;
        let mut claims = Vec::new();
        let mut statuses = Vec::new();
        for reference in owner.spec.resource_claims.iter().flatten() {
            let claim = self.claim_for(&owner, reference, &there).await?;
            if reference.resource_claim_template_name.is_some() {
                statuses.push(PodResourceClaimStatus {
                    name: reference.name.clone(),
                    resource_claim_name: claim.metadata.name.clone(),
                });
            }
            claims.push(claim);
        }
        let extended = self.extended(&owner, &there).await?;
        let extended_status = extended.as_ref().map(|(_, status)| status);
        if !statuses.is_empty() || extended_status.is_some() {
            self.write_names(&owner, &statuses, extended_status).await?;
        }
        claims.extend(extended.map(|(claim, _)| claim));
        Ok(claims)
    }

    async fn claim_for(
        &self,
        owner: &Owner<'_>,
        reference: &PodResourceClaim,
        there: &[ResourceClaim],
    ) -> Result<ResourceClaim, Error> {
        let name = reference.name.as_str();
        match (&reference.resource_claim_name, &reference.resource_claim_template_name) {
            (Some(claim), None) => {
                let get = self.claims(owner.namespace).get(claim).await;
                answer(get, || format!("get ResourceClaim `{}/{claim}`", owner.namespace))
            }
            (None, Some(template)) => match made_for(owner, there, (POD_CLAIM, name)) {
                Some(claim) => Ok(claim.clone()),
                None => self.made_template(owner, name, template).await,
            },
            _ => {
                let why = format!(
                    "claim `{name}` must have a claim's name or a template's, and has both or neither"
                );
                Err(Error::Pod { pod: owner.name.to_owned(), why })
            }
        }
    }

    async fn made_template(
        &self,
        owner: &Owner<'_>,
        name: &str,
        template: &str,
    ) -> Result<ResourceClaim, Error> {
        let templates: Api<ResourceClaimTemplate> =
            Api::namespaced(self.client.clone(), owner.namespace);
        let what = || format!("get ResourceClaimTemplate `{}/{template}`", owner.namespace);
        let template = answer(templates.get(template).await, what)?.spec.unwrap_or_default();
        let mut metadata = owner.metadata(format!("{}-{name}-", owner.name), (POD_CLAIM, name));
        let given = template.metadata.unwrap_or_default();
        metadata.labels = given.labels;
        metadata.annotations.get_or_insert_default().extend(given.annotations.unwrap_or_default());
        self.create(owner, ResourceClaim { metadata, spec: template.spec, status: None }).await
    }

    async fn extended(
        &self,
        owner: &Owner<'_>,
        there: &[ResourceClaim],
    ) -> Result<Option<(ResourceClaim, PodExtendedResourceClaimStatus)>, Error> {
        let classes: Api<DeviceClass> = Api::all(self.client.clone());
        let classes =
            answer(classes.list(&ListParams::default()).await, || "list DeviceClasses".to_owned())?
                .items;
        let (requests, request_mappings): (Vec<_>, Vec<_>) =
            extended_requests(owner.spec, &classes).into_iter().unzip();
        if requests.is_empty() {
            return Ok(None);
        }
        let annotation = (EXTENDED, "true");
        let claim = match made_for(owner, there, annotation) {
            Some(claim) => claim.clone(),
            None => {
                let metadata =
                    owner.metadata(format!("{}-extended-resources-", owner.name), annotation);
                let devices = DeviceClaim { requests: Some(requests), ..DeviceClaim::default() };
                let spec = Some(ResourceClaimSpec { devices: Some(devices) });
                self.create(owner, ResourceClaim { metadata, spec, status: None }).await?
            }
        };
        let resource_claim_name = claim.metadata.name.clone().unwrap_or_default();
        Ok(Some((claim, PodExtendedResourceClaimStatus { request_mappings, resource_claim_name })))
    }

    async fn create(
        &self,
        owner: &Owner<'_>,
        claim: ResourceClaim,
    ) -> Result<ResourceClaim, Error> {
        let created = self.claims(owner.namespace).create(&PostParams::default(), &claim).await;
        answer(created, || {
            format!("create a ResourceClaim for pod `{}/{}`", owner.namespace, owner.name)
        })
    }

    async fn write_names(
        &self,
        owner: &Owner<'_>,
        claims: &[PodResourceClaimStatus],
        extended: Option<&PodExtendedResourceClaimStatus>,
    ) -> Result<(), Error> {
        let mut status = json!({"resourceClaimStatuses": claims});
        if let Some(extended) = extended {
            status["extendedResourceClaimStatus"] = json!(extended);
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), owner.namespace);
        let patch = Patch::Merge(json!({"status": status}));
        let written = pods.patch_status(owner.name, &PatchParams::default(), &patch).await;
        answer(written.map(drop), || {
            format!("write the status of pod `{}/{}`", owner.namespace, owner.name)
        })
    }
}

fn made_for<'c>(
    owner: &Owner,
    there: &'c [ResourceClaim],
    annotation: (&str, &str),
) -> Option<&'c ResourceClaim> {
    let (key, value) = annotation;
    there.iter().find(|claim| {
        let annotations = claim.metadata.annotations.as_ref();
        is_owned(claim, owner.uid)
            && annotations.and_then(|all| all.get(key)).is_some_and(|there| there == value)
    })
}

/// The devices that containers ask for as resources of a class, and which container each is for.
fn extended_requests(
    spec: &PodSpec,
    classes: &[DeviceClass],
) -> Vec<(DeviceRequest, ContainerExtendedResourceRequest)> {
    let containers = spec.containers.iter().enumerate();
    let requests = containers.flat_map(|(index, container)| {
        let limits =
            container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
        let asked = limits
            .filter_map(|(resource, count)| Some((resource, class_of(resource, classes)?, count)));
        asked.enumerate().map(move |(number, (resource, class, count))| {
            let name = format!("container-{index}-request-{number}");
            let mapping = ContainerExtendedResourceRequest {
                container_name: container.name.clone(),
                request_name: name.clone(),
                resource_name: resource.clone(),
            };
            (request(name, class, count), mapping)
        })
    });
    requests.collect()
}

fn request(name: String, class: &str, count: &Quantity) -> DeviceRequest {
    let whole = Amount::of(count).nanos() / 1_000_000_000;
    let exactly = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".to_owned()),
        count: Some(i64::try_from(whole).unwrap_or(i64::MAX)),
        ..ExactDeviceRequest::default()
    };
    DeviceRequest { name, exactly: Some(exactly), first_available: None }
}

fn class_of<'c>(resource: &str, classes: &'c [DeviceClass]) -> Option<&'c str> {
    let found = classes.iter().find(|class| {
        let explicit = class.spec.as_ref().and_then(|spec| spec.extended_resource_name.as_deref());
        let implicit = resource.strip_prefix(IMPLICIT);
        explicit == Some(resource)
            || implicit.is_some_and(|name| class.metadata.name.as_deref() == Some(name))
    });
    found?.metadata.name.as_deref()
}
