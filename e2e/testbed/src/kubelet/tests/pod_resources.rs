//! What the kubelet says on its podresources socket.

use kerf::proto::podresources::pod_resources_lister_client::PodResourcesListerClient;
use kerf::proto::podresources::*;
use tonic::transport::Channel;

use super::devices::{device, pod, registered};
use super::plugin::{RESOURCE, connect};
use super::*;

async fn client(kubelet: &Kubelet) -> PodResourcesListerClient<Channel> {
    PodResourcesListerClient::new(connect(kubelet.pod_resources_socket()).await.unwrap())
}

async fn list(kubelet: &Kubelet) -> Vec<PodResources> {
    let request = ListPodResourcesRequest {};
    client(kubelet).await.list(request).await.unwrap().into_inner().pod_resources
}

async fn get(kubelet: &Kubelet, pod: &str) -> Result<GetPodResourcesResponse, String> {
    let request = GetPodResourcesRequest { pod_name: pod.into(), pod_namespace: "default".into() };
    let answer = client(kubelet).await.get(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
}

fn on(id: &str, numa: Option<i64>) -> ContainerDevices {
    ContainerDevices {
        resource_name: RESOURCE.into(),
        device_ids: vec![id.into()],
        topology: numa.map(|id| TopologyInfo { nodes: vec![NumaNode { id }] }),
    }
}

fn pod_with(
    name: &str,
    devices: Vec<ContainerDevices>,
    claims: Vec<DynamicResource>,
) -> PodResources {
    let container = ContainerResources {
        name: "main".into(),
        devices,
        dynamic_resources: claims,
        ..Default::default()
    };
    PodResources { name: name.into(), namespace: "default".into(), containers: vec![container] }
}

#[tokio::test]
async fn devices_are_listed_by_numa_node() {
    let (_root, kubelet, plugin, _serving) = registered(options(), Default::default()).await;
    let listed = [device("gpu-0", &[0, 1]), device("gpu-1", &[]), device("gpu-2", &[1])];
    plugin.devices.send_replace(listed.to_vec());
    kubelet.wait_for(|state| state.resources[RESOURCE].capacity() == 3).await;
    let request = AllocatableResourcesRequest {};
    let allocatable = client(&kubelet).await.get_allocatable_resources(request).await.unwrap();
    // A device with an empty topology is not there at all.
    let devices = vec![on("gpu-0", Some(0)), on("gpu-0", Some(1)), on("gpu-2", Some(1))];
    assert_eq!(
        allocatable.into_inner(),
        AllocatableResourcesResponse { devices, ..Default::default() }
    );

    kubelet.admit(&pod("a"), "main", &[(RESOURCE, 3)]).await.unwrap();
    let devices =
        vec![on("gpu-0", Some(0)), on("gpu-0", Some(1)), on("gpu-1", None), on("gpu-2", Some(1))];
    let expected = pod_with("a", devices, vec![]);
    assert_eq!(list(&kubelet).await, std::slice::from_ref(&expected));
    let answer = GetPodResourcesResponse { pod_resources: Some(expected) };
    assert_eq!(get(&kubelet, "a").await, Ok(answer));
    assert_eq!(get(&kubelet, "b").await, Err("pod b in namespace default not found".into()));
    kubelet.end_pod(&pod("a"));
    assert_eq!(list(&kubelet).await, []);
}

#[tokio::test]
async fn claims_are_listed_with_the_cdi_names_so_far() {
    let (_root, kubelet, _double) = start_both(options()).await;
    kubelet.admit(&pod("a"), "main", &[]).await.unwrap();
    kubelet.prepare_pod(DRIVER, "uid-a", &claims(&["u1"])).await.unwrap();
    kubelet.prepare_pod(DRIVER, "other", &claims(&["u2"])).await.unwrap();
    let claim = |uid: &str| DynamicResource {
        claim_name: format!("claim-{uid}"),
        claim_namespace: "default".into(),
        claim_resources: vec![ClaimResource {
            cdi_devices: vec![CdiDevice { name: format!("k8s.gpu.nvidia.com/claim={uid}") }],
            driver_name: DRIVER.into(),
            pool_name: "node-a".into(),
            device_name: format!("gpu-{uid}"),
            share_id: Some("share".into()),
        }],
    };
    let expected =
        [pod_with("other", vec![], vec![claim("u2")]), pod_with("a", vec![], vec![claim("u1")])];
    assert_eq!(list(&kubelet).await, expected);
}

#[tokio::test]
async fn before_1_34_neither_claims_nor_single_pods_are_known() {
    let (_root, kubelet, _double) = start_both(Options { release: 33, ..options() }).await;
    kubelet.prepare_pod(DRIVER, "a", &claims(&["u1"])).await.unwrap();
    assert_eq!(list(&kubelet).await, [pod_with("a", vec![], vec![])]);
    assert_eq!(get(&kubelet, "a").await, Err("PodResources API Get method disabled".into()));
}

#[tokio::test]
async fn podresources_can_fail_or_be_absent() {
    let (_root, kubelet) = start(options());
    kubelet.fail_pod_resources(Some("rejected by rate limit"));
    let refused = client(&kubelet).await.list(ListPodResourcesRequest {}).await.unwrap_err();
    assert_eq!(refused.message(), "rejected by rate limit");
    kubelet.fail_pod_resources(None);
    kubelet.restart().await.unwrap();
    assert_eq!(list(&kubelet).await, []);

    let (_root, without) = start(Options { pod_resources: false, ..options() });
    assert!(!without.pod_resources_socket().exists());
}
