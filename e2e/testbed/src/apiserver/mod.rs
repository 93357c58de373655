//! A stand-in for the API server: real HTTP, so that real clients talk to it, over objects in memory.
//!
//! It answers as the real one does where a node agent can tell: revisions, conflicts, watches, dry
//! runs, the validation of `resource.k8s.io`, and the silent dropping of fields whose gate is off. It
//! knows neither users nor permissions, and has no controllers: nothing is collected as garbage.

mod canonical;
mod claim_limits;
mod discovery;
mod dropped;
mod faults;
mod gates;
mod http;
mod kinds;
mod names;
mod refusal;
mod rules;
mod selector;
mod slice_limits;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub use faults::Fault;
pub use gates::{Gate, Gates, Release};
pub use refusal::{FieldError, Refusal};

use kinds::Kind;
use rules::Rules;
use selector::Selector;
use store::{Part, Preconditions, Store};

/// Which API server to be.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// The release that it says it is, whose limits it keeps.
    pub release: Release,
    /// Which optional fields it keeps.
    pub gates: Gates,
}

impl ApiOptions {
    /// A release with the gates that it has on by default.
    pub fn of(release: Release) -> Self {
        Self { release, gates: Gates::of(release) }
    }
}

impl Default for ApiOptions {
    fn default() -> Self {
        Self::of((1, 37))
    }
}

/// A request that came over HTTP.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `PUT`, ….
    pub method: String,
    /// Path and query, as sent.
    pub path: String,
    /// When it came.
    pub at: Instant,
}

/// A running server; ends, with all its connections, when the last clone is dropped.
#[derive(Clone)]
pub struct ApiServer {
    state: Arc<State>,
    running: Arc<Running>,
}

struct Running {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct State {
    release: Release,
    /// Whether claims and slices are served.
    dra: AtomicBool,
    store: Mutex<Store>,
    /// The newest revision, and how often watches were closed: what watches wait for.
    news: tokio::sync::watch::Sender<(u64, u64)>,
    requests: Mutex<Vec<Request>>,
    faults: Mutex<Vec<Fault>>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn dra(&self) -> bool {
        self.dra.load(Ordering::SeqCst)
    }

    fn read<T>(&self, work: impl FnOnce(&Store) -> T) -> T {
        work(&lock(&self.store))
    }

    fn write<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = lock(&self.store);
        let result = work(&mut store);
        self.news.send_modify(|news| news.0 = store.revision());
        result
    }
}

/// An object type of Kubernetes.
pub trait Object:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Send + 'static
{
}

impl<T> Object for T where
    T: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Send + 'static
{
}

impl ApiServer {
    /// Begins to listen on a free port of 127.0.0.1, on a thread of its own, with the namespaces
    /// `default` and `kube-system`.
    pub async fn start(options: ApiOptions) -> anyhow::Result<Self> {
        let ApiOptions { release, gates } = options;
        let mut store = Store::new(Rules { release, gates });
        for name in ["default", "kube-system"] {
            let namespace = json!({"metadata": {"name": name}, "status": {"phase": "Active"}});
            store.create(kind("v1", "Namespace")?, "", namespace, false)?;
        }
        let news = tokio::sync::watch::Sender::new((store.revision(), 0));
        let state = Arc::new(State {
            release,
            dra: AtomicBool::new(release >= (1, 34)),
            store: Mutex::new(store),
            news,
            requests: Mutex::default(),
            faults: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("apiserver")
            .enable_all()
            .build()?;
        runtime.spawn(http::serve(listener, state.clone()));
        let running = Arc::new(Running { address, runtime: Some(runtime) });
        Ok(Self { state, running })
    }

    /// Serves claims and slices from now on, as a server does that was upgraded.
    pub fn serve_dra(&self) {
        self.state.dra.store(true, Ordering::SeqCst);
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.running.address)
    }

    /// Writes a kubeconfig that leads here, without credentials.
    pub fn write_kubeconfig(&self, path: &Path) -> anyhow::Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "testbed",
            "clusters": [{"name": "testbed", "cluster": {"server": self.url()}}],
            "users": [{"name": "testbed", "user": {}}],
            "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "testbed"}}],
        });
        let mut file = std::fs::File::create(path)
            .with_context(|| format!("cannot create `{}`", path.display()))?;
        file.write_all(config.to_string().as_bytes())?;
        Ok(())
    }

    /// A client of the caller's runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn client(&self) -> kube::Client {
        let uri = self.url().parse().expect("an address makes a URL");
        kube::Client::try_from(kube::Config::new(uri)).expect("plain HTTP needs no credentials")
    }

    /// All requests that came over HTTP, in order; the methods below are none.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state.requests).clone()
    }

    /// How many requests of a method had a text in their path and query.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let requests = lock(&self.state.requests);
        requests.iter().filter(|r| r.method == method && r.path.contains(path)).count()
    }

    /// Requests that change something: neither reads nor dry runs.
    pub fn writes(&self) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|r| r.method != "GET" && !r.path.contains("dryRun=All"));
        requests
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        lock(&self.state.requests).clear();
    }

    /// Has something befall requests over HTTP. The first fault that matches a request is the one.
    pub fn inject(&self, fault: Fault) {
        lock(&self.state.faults).push(fault);
    }

    /// Takes back all faults.
    pub fn clear_faults(&self) {
        lock(&self.state.faults).clear();
    }

    /// Ends all watches, as a restart of the server would.
    pub fn close_watches(&self) {
        self.state.news.send_modify(|news| news.1 += 1);
    }

    /// Forgets what happened: a watch that asks for older changes gets 410.
    pub fn compact(&self) {
        lock(&self.state.store).compact();
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.state.read(Store::revision)
    }

    /// Waits until the objects are as wanted, looking again after each change.
    pub async fn wait_until(&self, mut wanted: impl FnMut(&Self) -> bool) {
        let mut news = self.state.news.subscribe();
        loop {
            news.mark_unchanged();
            if wanted(self) || news.changed().await.is_err() {
                return;
            }
        }
    }

    /// POST. A namespaced object without a namespace goes to `default`.
    pub fn create<T: Object>(&self, object: &T) -> Result<T, Refusal> {
        let kind = of::<T>()?;
        let value = to_value(object)?;
        from_value(&*self.state.write(|s| s.create(kind, namespace_of(object), value, false))?)
    }

    /// GET; the namespace of a cluster-wide kind is not looked at.
    pub fn get<T: Object>(&self, namespace: &str, name: &str) -> Result<T, Refusal> {
        let kind = of::<T>()?;
        from_value(&*self.state.read(|s| s.get(kind, namespace, name))?)
    }

    /// All objects of a type in all namespaces, in the order of namespace and name.
    pub fn list<T: Object>(&self) -> Vec<T> {
        let Ok(kind) = of::<T>() else { return Vec::new() };
        let found = self.state.read(|s| s.list(kind, None, &Selector::default()));
        found.iter().filter_map(|object| from_value(object).ok()).collect()
    }

    /// PUT; a stale `resourceVersion` is a conflict, none means "whatever is there".
    pub fn update<T: Object>(&self, object: &T) -> Result<T, Refusal> {
        self.put(object, Part::Main)
    }

    /// PUT of `/status`.
    pub fn update_status<T: Object>(&self, object: &T) -> Result<T, Refusal> {
        self.put(object, Part::Status)
    }

    fn put<T: Object>(&self, object: &T, part: Part) -> Result<T, Refusal> {
        let kind = of::<T>()?;
        let value = to_value(object)?;
        let name = object.metadata().name.as_deref().unwrap_or_default();
        let place = (namespace_of(object), name);
        from_value(&*self.state.write(|s| s.update(kind, place, part, value, false))?)
    }

    /// DELETE: gone at once, or marked where the object has finalizers.
    pub fn delete<T: Object>(&self, namespace: &str, name: &str) -> Result<(), Refusal> {
        let kind = of::<T>()?;
        let demands = Preconditions::default();
        self.state.write(|s| s.delete(kind, (namespace, name), &demands, false)).map(drop)
    }

    /// DELETE of all objects that match a field selector, such as `spec.nodeName=n1`; how many.
    pub fn delete_all<T: Object>(&self, selector: &str) -> Result<usize, Refusal> {
        let kind = of::<T>()?;
        let selector = Selector::parse(kind, selector)?;
        let gone =
            self.state.write(|s| http::delete_collection(s, kind, None, &selector, false))?;
        Ok(gone.len())
    }

    /// Creates an object of any served kind, or replaces all but the status of what is there.
    pub fn apply(&self, object: Value) -> Result<Value, Refusal> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let kind = kind(text("apiVersion"), text("kind"))?;
        let metadata = &object["metadata"];
        let namespace = metadata["namespace"].as_str().unwrap_or("default").to_owned();
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        let place = (namespace.as_str(), name.as_str());
        let stored = self.state.write(|s| match s.get(kind, place.0, place.1) {
            Ok(_) => s.update(kind, place, Part::Main, object, false),
            Err(_) => s.create(kind, place.0, object, false),
        })?;
        Ok((*stored).clone())
    }
}

fn kind(api_version: &str, kind: &str) -> Result<&'static Kind, Refusal> {
    Kind::named(api_version, kind).ok_or_else(|| {
        let message = format!("no matches for kind \"{kind}\" in version \"{api_version}\"");
        Refusal::bad_request(message)
    })
}

fn of<T: Object>() -> Result<&'static Kind, Refusal> {
    kind(T::API_VERSION, T::KIND)
}

fn namespace_of<T: Object>(object: &T) -> &str {
    object.metadata().namespace.as_deref().unwrap_or("default")
}

fn to_value<T: Serialize>(object: &T) -> Result<Value, Refusal> {
    serde_json::to_value(object).map_err(|e| Refusal::bad_request(e.to_string()))
}

fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, Refusal> {
    T::deserialize(value).map_err(|e| Refusal::bad_request(e.to_string()))
}
