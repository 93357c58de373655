//! The examples, in a cluster of one node with eight H100s.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::{
    apiserver::{ApiOptions, ApiServer},
    manifests::{self, Manifest},
    scheduler::{PodRef, Scheduler},
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("{ROOT}/examples")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}

/// An API server with the classes and the slices of a node.
async fn cluster(gpus: u32) -> (ApiServer, Scheduler) {
    let server = ApiServer::start(ApiOptions::default()).await.unwrap();
    let installed = format!("{ROOT}/deploy/kerf.yaml");
    let classes = manifests::device_classes(installed.as_ref()).unwrap();
    manifests::apply(&server.client(), &classes).await.unwrap();
    slices_of(gpus).iter().for_each(|slice| drop(server.create(slice).unwrap()));
    let scheduler = Scheduler::new(server.client());
    (server, scheduler)
}

fn pods(manifests: &[Manifest]) -> Vec<(String, String)> {
    let pods = manifests.iter().filter_map(|manifest| match manifest {
        Manifest::Pod(pod) => Some(&pod.metadata),
        _ => None,
    });
    let namespace = |pod: &ObjectMeta| pod.namespace.clone().unwrap_or("default".to_owned());
    pods.map(|pod| (namespace(pod), pod.name.clone().unwrap())).collect()
}

/// Makes and allocates the claims of a pod, and returns each with its devices.
async fn schedule(
    server: &ApiServer,
    scheduler: &Scheduler,
    namespace: &str,
    pod: &str,
) -> Vec<(String, String)> {
    let pod: Pod = server.get(namespace, pod).unwrap();
    let mut given = Vec::new();
    for claim in scheduler.claims_of(&pod).await.unwrap() {
        let name = claim.metadata.name.unwrap();
        let stored = scheduler.allocate(namespace, &name, reference(&pod)).await.unwrap();
        let results = stored.status.unwrap().allocation.unwrap().devices.unwrap().results.unwrap();
        given.extend(results.into_iter().map(|result| (result.request, result.device)));
    }
    given
}

fn reference(pod: &Pod) -> PodRef<'_> {
    PodRef {
        name: pod.metadata.name.as_deref().unwrap(),
        uid: pod.metadata.uid.as_deref().unwrap(),
    }
}

#[test]
fn each_says_what_it_shows_and_has_no_unknown_field() {
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{}", path.display());
        let apply =
            format!("#   kubectl apply -f {}\n", path.strip_prefix(ROOT).unwrap().display());
        assert!(text.contains(&apply), "{} has no `{apply}`", path.display());

        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let read = manifests::read(&path).unwrap();
        let written: Vec<_> = read.iter().map(written).collect();
        assert_eq!(written, documents, "{}", path.display());
    }
}

/// The document as its type writes it. Quantities are texts, where YAML may have a number.
fn written(manifest: &Manifest) -> Value {
    let mut value = match manifest {
        Manifest::Namespace(object) => json!(object),
        Manifest::Pod(object) => json!(object),
        Manifest::DeviceClass(object) => json!(object),
        Manifest::ResourceClaim(object) => json!(object),
        Manifest::ResourceClaimTemplate(object) => json!(object),
    };
    let limits =
        value.pointer_mut("/spec/containers/0/resources/limits").and_then(Value::as_object_mut);
    for limit in limits.into_iter().flat_map(|limits| limits.values_mut()) {
        *limit = json!(limit.as_str().unwrap().parse::<u32>().unwrap());
    }
    value
}

/// Applies and schedules the examples one after the other. Returns what each pod was given.
async fn run(
    server: &ApiServer,
    scheduler: &Scheduler,
    files: &[PathBuf],
) -> (Vec<Manifest>, Vec<String>) {
    let (mut all, mut given) = (Vec::new(), Vec::new());
    for path in files {
        let manifests = manifests::read(path).unwrap();
        manifests::apply(&server.client(), &manifests).await.unwrap();
        for (namespace, pod) in pods(&manifests) {
            let devices = schedule(server, scheduler, &namespace, &pod).await;
            let devices: Vec<_> =
                devices.iter().map(|(request, device)| format!("{request}={device}")).collect();
            given.push(format!("{pod}: {}", devices.join(" ")));
        }
        all.extend(manifests);
    }
    (all, given)
}

/// What the examples claim, each on its own.
fn claims() -> Vec<ResourceClaim> {
    let mut claims = vec![gpu()];
    for manifest in files().iter().flat_map(|path| manifests::read(path).unwrap()) {
        match manifest {
            Manifest::ResourceClaim(claim) => claims.push(*claim),
            Manifest::ResourceClaimTemplate(template) => {
                let spec = template.spec.unwrap().spec;
                claims.push(ResourceClaim { spec, ..ResourceClaim::default() });
            }
            _ => {}
        }
    }
    claims
}

#[test]
fn all_fit_together_whichever_begins() {
    let mut claims = claims();
    assert_eq!(claims.len(), 9);
    for turn in 0..2 * claims.len() {
        let mut cluster = Cluster::of(8);
        let given: Vec<_> = claims.iter().map(|claim| cluster.take(claim.clone())).collect();
        assert!(given.iter().all(Result::is_ok), "{given:#?}");
        claims.rotate_left(1);
        if turn + 1 == claims.len() {
            claims.reverse();
        }
    }
}

#[tokio::test]
async fn all_fit_together_on_eight_gpus_and_leave_nothing() {
    let (server, scheduler) = cluster(8).await;
    let (all, given) = run(&server, &scheduler, &files()).await;
    assert_eq!(
        given,
        [
            "admin-access: watched=gpu-0",
            "extended-resource: container-0-request-0=gpu-0",
            "match-parent: trainer=gpu-1-mig-2g20gb-14-4 tester=gpu-1-mig-1g10gb-19-6",
            "prioritized-list: device/half=gpu-1-mig-4g40gb-5-0",
            "select-by-cel: mig=gpu-2-mig-3g40gb-9-4",
            "several-gpus: gpus=gpu-3 gpus=gpu-4",
            "shared-claim-a: gpu=gpu-5",
            "shared-claim-b: gpu=gpu-5",
            "two-mig-sizes: small=gpu-6-mig-1g10gb-19-6 large=gpu-2-mig-4g40gb-5-0",
            "whole-gpu: gpu=gpu-7",
        ]
    );

    for (namespace, pod) in pods(&all) {
        let pod: Pod = server.get(&namespace, &pod).unwrap();
        for claim in scheduler.claims_of(&pod).await.unwrap() {
            scheduler
                .release(&namespace, &claim.metadata.name.unwrap(), reference(&pod))
                .await
                .unwrap();
        }
    }
    let left = server.list::<ResourceClaim>();
    let left: Vec<_> =
        left.iter().map(|claim| (claim.metadata.name.as_deref(), claim.status.as_ref())).collect();
    assert_eq!(left, [(Some("shared-claim"), Some(&ResourceClaimStatus::default()))]);

    manifests::delete(&server.client(), &all).await.unwrap();
    assert_eq!(server.list::<ResourceClaim>(), []);
    assert_eq!(server.list::<Pod>(), []);
}

#[tokio::test]
async fn a_shared_claim_is_deallocated_with_its_last_pod() {
    let (server, scheduler) = cluster(1).await;
    let manifests = manifests::read(format!("{ROOT}/examples/shared-claim.yaml").as_ref()).unwrap();
    manifests::apply(&server.client(), &manifests).await.unwrap();
    let pods =
        ["shared-claim-a", "shared-claim-b"].map(|pod| server.get::<Pod>("default", pod).unwrap());
    let claim = || server.get::<ResourceClaim>("default", "shared-claim").unwrap().status.unwrap();
    let reserved = || -> Vec<String> {
        claim().reserved_for.into_iter().flatten().map(|pod| pod.name).collect()
    };
    for pod in &pods {
        // Twice, because what allocates retries.
        scheduler.allocate("default", "shared-claim", reference(pod)).await.unwrap();
        scheduler.allocate("default", "shared-claim", reference(pod)).await.unwrap();
    }
    assert_eq!(reserved(), ["shared-claim-a", "shared-claim-b"]);

    scheduler.release("default", "shared-claim", reference(&pods[0])).await.unwrap();
    assert_eq!(reserved(), ["shared-claim-b"]);
    assert!(claim().allocation.is_some());

    scheduler.release("default", "shared-claim", reference(&pods[1])).await.unwrap();
    assert_eq!(claim(), ResourceClaimStatus::default());
}

#[tokio::test]
async fn a_pod_says_which_claims_were_made_for_it() {
    let (server, scheduler) = cluster(8).await;
    for example in ["two-mig-sizes", "extended-resource"] {
        let manifests =
            manifests::read(format!("{ROOT}/examples/{example}.yaml").as_ref()).unwrap();
        manifests::apply(&server.client(), &manifests).await.unwrap();
    }

    let pod: Pod = server.get("default", "two-mig-sizes").unwrap();
    let made = scheduler.claims_of(&pod).await.unwrap();
    assert_eq!(scheduler.claims_of(&pod).await.unwrap(), made);
    let name = made[0].metadata.name.clone().unwrap();
    assert!(name.starts_with("two-mig-sizes-mig-"), "{name}");
    let annotations = made[0].metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["resource.kubernetes.io/pod-claim-name"], "mig");
    let pod: Pod = server.get("default", "two-mig-sizes").unwrap();
    let status = pod.status.unwrap();
    assert_eq!(
        json!(status.resource_claim_statuses),
        json!([{"name": "mig", "resourceClaimName": name}])
    );

    let pod: Pod = server.get("default", "extended-resource").unwrap();
    let made = scheduler.claims_of(&pod).await.unwrap();
    assert_eq!(scheduler.claims_of(&pod).await.unwrap(), made);
    let name = made[0].metadata.name.clone().unwrap();
    assert!(name.starts_with("extended-resource-extended-resources-"), "{name}");
    let owner = &made[0].metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), Some(&owner.uid)), ("Pod", pod.metadata.uid.as_ref()));
    let pod: Pod = server.get("default", "extended-resource").unwrap();
    assert_eq!(
        json!(pod.status.unwrap().extended_resource_claim_status),
        json!({
            "resourceClaimName": name,
            "requestMappings": [{
                "containerName": "main", "requestName": "container-0-request-0", "resourceName": "nvidia.com/gpu"
            }],
        })
    );
}

#[tokio::test]
async fn what_fits_nowhere_is_refused_with_the_reason() {
    let (server, scheduler) = cluster(1).await;
    let manifests = manifests::read(format!("{ROOT}/examples/several-gpus.yaml").as_ref()).unwrap();
    manifests::apply(&server.client(), &manifests).await.unwrap();
    let pod: Pod = server.get("default", "several-gpus").unwrap();
    let claim = scheduler.claims_of(&pod).await.unwrap().remove(0).metadata.name.unwrap();
    let refused = scheduler.allocate("default", &claim, reference(&pod)).await.unwrap_err();
    assert_eq!(refused.to_string(), format!("claim `default/{claim}`: {NOTHING_FITS}"));
    assert_eq!(server.get::<ResourceClaim>("default", &claim).unwrap().status, None);
}
