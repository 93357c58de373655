//! HTTP requests to the store and back.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State as Shared};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::faults::Effect;
use super::kinds::Kind;
use super::refusal::Refusal;
use super::selector::Selector;
use super::store::{Part, Preconditions, Store};
use super::watch::{self, Watch};
use super::{Request, State, discovery, lock};

type Params = BTreeMap<String, String>;

/// Serves until the runtime is shut down.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new().fallback(handle).with_state(state);
    axum::serve(listener, router).await
}

async fn handle(
    Shared(state): Shared<Arc<State>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path_and_query().map_or(uri.path(), |both| both.as_str()).to_owned();
    let method_name = method.as_str().to_owned();
    let at = Instant::now();
    lock(&state.requests).push(Request { method: method_name, path: path.clone(), at });
    let effect = {
        let mut faults = lock(&state.faults);
        faults.iter_mut().find_map(|fault| fault.on_request(method.as_str(), &path))
    };
    match &effect {
        Some(Effect::Status(code)) => return refused(&Refusal::injected(*code)),
        Some(Effect::Hang) => std::future::pending().await,
        Some(Effect::Delay(latency)) => tokio::time::sleep(*latency).await,
        Some(Effect::Before(call)) => lock(call)(),
        Some(Effect::After(_)) | None => (),
    }
    let call = Call { state: &state, method, uri: &uri, headers: &headers, body: &body };
    let answer = call.answer().unwrap_or_else(|refusal| refused(&refusal));
    if let Some(Effect::After(call)) = &effect {
        lock(call)();
    }
    answer
}

fn respond(code: u16, body: impl Into<Body>) -> Response {
    let response = Response::builder().status(code);
    let response = response.header(header::CONTENT_TYPE, "application/json");
    response.body(body.into()).unwrap_or_default()
}

fn refused(refusal: &Refusal) -> Response {
    respond(refusal.code, refusal.status().to_string())
}

/// Removes what matches; the objects as they were.
pub(super) fn delete_collection(
    store: &mut Store,
    kind: &Kind,
    namespace: Option<&str>,
    selector: &Selector,
    dry_run: bool,
) -> Result<Vec<Arc<Value>>, Refusal> {
    let found = store.list(kind, namespace, selector);
    for object in &found {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let place = (text("namespace"), text("name"));
        store.delete(kind, place, &Preconditions::default(), dry_run)?;
    }
    Ok(found)
}

/// What a path of an API group leads to.
struct Place<'u> {
    kind: &'static Kind,
    namespace: Option<&'u str>,
    name: Option<&'u str>,
    part: Part,
}

impl<'u> Place<'u> {
    /// Of `/api/v1/…` and `/apis/<group>/<version>/…`.
    fn of(path: &'u str) -> Option<Self> {
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        let (group, version, rest) = match &steps[..] {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, plural, ..] if *plural != "status" => {
                (Some(*namespace), &rest[2..])
            }
            rest => (None, rest),
        };
        let kind = Kind::at(group, version, rest.first()?)?;
        let (name, part) = match &rest[1..] {
            [] => (None, Part::Main),
            [name] => (Some(*name), Part::Main),
            [name, "status"] if kind.status => (Some(*name), Part::Status),
            _ => return None,
        };
        let placed =
            namespace.is_some() == kind.namespaced || (namespace.is_none() && name.is_none());
        placed.then_some(Self { kind, namespace, name, part })
    }
}

struct Call<'a> {
    state: &'a Arc<State>,
    method: Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    body: &'a [u8],
}

impl Call<'_> {
    fn answer(&self) -> Result<Response, Refusal> {
        let path = self.uri.path();
        if self.method == Method::GET
            && let Some(document) = discovery::document(self.state.release, self.state.dra(), path)
        {
            return Ok(respond(200, document.to_string()));
        }
        let evicted = path.strip_suffix("/eviction").and_then(Place::of);
        if let Some(Place { kind: Kind { kind: "Pod", .. }, namespace, name: Some(name), .. }) =
            evicted
            && self.method == Method::POST
        {
            return self.evict((namespace.unwrap_or_default(), name));
        }
        let place = Place::of(path).ok_or_else(Refusal::no_such_path)?;
        let params = Query::<Params>::try_from_uri(self.uri)
            .map_err(|e| Refusal::bad_request(e.to_string()))?
            .0;
        match (place.name, &self.method) {
            (None, &Method::GET) => self.read_collection(&place, &params),
            (None, &Method::POST) => self.create(&place, &params),
            (None, &Method::DELETE) => self.delete_collection(&place, &params),
            (Some(name), &Method::GET) => {
                let namespace = place.namespace.unwrap_or_default();
                let object = self.state.read(|s| s.get(place.kind, namespace, name))?;
                Ok(respond(200, object.to_string()))
            }
            (Some(name), &Method::PUT) => self.replace(&place, name, &params),
            (Some(name), &Method::PATCH) => self.patch(&place, name, &params),
            (Some(name), &Method::DELETE) => self.delete(&place, name, &params),
            _ => Err(Refusal::new(405, "MethodNotAllowed", "the method is not allowed here")),
        }
    }

    fn json(&self) -> Result<Value, Refusal> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(self.body).map_err(|e| Refusal::bad_request(e.to_string()))
    }

    fn read_collection(&self, place: &Place<'_>, params: &Params) -> Result<Response, Refusal> {
        let selector = selector(place.kind, params)?;
        if matches!(params.get("watch").map(String::as_str), Some("1" | "true")) {
            return self.watch(place, selector, params);
        }
        let (objects, revision) =
            self.state.read(|s| (s.list(place.kind, place.namespace, &selector), s.revision()));
        Ok(respond(200, list(place.kind, &objects, revision).to_string()))
    }

    fn watch(
        &self,
        place: &Place<'_>,
        selector: Selector,
        params: &Params,
    ) -> Result<Response, Refusal> {
        let number = |name: &str| params.get(name).and_then(|text| text.parse::<u64>().ok());
        let revision = params.get("resourceVersion").filter(|text| !text.is_empty());
        let from = match revision.map(|text| text.parse::<u64>()) {
            None => None,
            Some(Ok(0)) => None,
            Some(Ok(revision)) => Some(revision),
            Some(Err(_)) => return Err(Refusal::bad_request("invalid resource version")),
        };
        let watch = Watch {
            kind: place.kind,
            namespace: place.namespace.map(str::to_owned),
            selector,
            from,
            initial_events_end: params.get("sendInitialEvents").is_some_and(|v| v == "true"),
            timeout: Duration::from_secs(number("timeoutSeconds").unwrap_or(1800)),
        };
        let lines = watch::lines(self.state.clone(), watch);
        Ok(respond(200, Body::from_stream(lines)))
    }

    fn create(&self, place: &Place<'_>, params: &Params) -> Result<Response, Refusal> {
        let object = self.json()?;
        let namespace = place.namespace.unwrap_or_default();
        let dry_run = dry_run(params)?;
        let made = self.state.write(|s| s.create(place.kind, namespace, object, dry_run))?;
        Ok(respond(201, made.to_string()))
    }

    fn replace(&self, place: &Place<'_>, name: &str, params: &Params) -> Result<Response, Refusal> {
        let (object, dry_run) = (self.json()?, dry_run(params)?);
        let at = (place.namespace.unwrap_or_default(), name);
        let put = self.state.write(|s| s.update(place.kind, at, place.part, object, dry_run))?;
        Ok(respond(200, put.to_string()))
    }

    fn patch(&self, place: &Place<'_>, name: &str, params: &Params) -> Result<Response, Refusal> {
        let (patch, dry_run) = (self.json()?, dry_run(params)?);
        let format = self.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let apply = match format.unwrap_or_default() {
            "application/apply-patch+yaml" => true,
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => false,
            other => {
                let why = format!("the body of the request was in an unknown format: {other}");
                return Err(Refusal::new(415, "UnsupportedMediaType", why));
            }
        };
        let at = (place.namespace.unwrap_or_default(), name);
        let (code, object) = self.state.write(|s| match s.get(place.kind, at.0, at.1) {
            Err(missing) if !apply || place.part == Part::Status => Err(missing),
            Err(_) => Ok((201, s.create(place.kind, at.0, patch, dry_run)?)),
            Ok(old) => {
                let mut new = (*old).clone();
                merge(&mut new, patch);
                Ok((200, s.update(place.kind, at, place.part, new, dry_run)?))
            }
        })?;
        Ok(respond(code, object.to_string()))
    }

    fn delete(&self, place: &Place<'_>, name: &str, params: &Params) -> Result<Response, Refusal> {
        let options = self.json()?;
        let text = |pointer| options.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let demands = Preconditions {
            uid: text("/preconditions/uid"),
            revision: text("/preconditions/resourceVersion"),
        };
        let dry_run = dry_run(params)? || options["dryRun"] == json!(["All"]);
        let at = (place.namespace.unwrap_or_default(), name);
        let gone = self.state.write(|s| s.delete(place.kind, at, &demands, dry_run))?;
        Ok(respond(200, gone.to_string()))
    }

    /// There are no disruption budgets: one that does not allow it is a fault of 429.
    fn evict(&self, at: (&str, &str)) -> Result<Response, Refusal> {
        let eviction = self.json()?;
        let text = |pointer| eviction.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        if text("/metadata/name").as_deref() != Some(at.1) {
            return Err(Refusal::bad_request("name in URL does not match name in Eviction object"));
        }
        let demands = Preconditions {
            uid: text("/deleteOptions/preconditions/uid"),
            revision: text("/deleteOptions/preconditions/resourceVersion"),
        };
        let pods = Kind::at("", "v1", "pods").ok_or_else(Refusal::no_such_path)?;
        self.state.write(|s| s.delete(pods, at, &demands, false))?;
        let success =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
        Ok(respond(201, success.to_string()))
    }

    fn delete_collection(&self, place: &Place<'_>, params: &Params) -> Result<Response, Refusal> {
        let dry_run = dry_run(params)? || self.json()?["dryRun"] == json!(["All"]);
        let selector = selector(place.kind, params)?;
        let (gone, revision) = self.state.write(|s| {
            let gone = delete_collection(s, place.kind, place.namespace, &selector, dry_run)?;
            Ok((gone, s.revision()))
        })?;
        Ok(respond(200, list(place.kind, &gone, revision).to_string()))
    }
}

fn selector(kind: &Kind, params: &Params) -> Result<Selector, Refusal> {
    Selector::parse(kind, params.get("fieldSelector").map_or("", String::as_str))
}

fn dry_run(params: &Params) -> Result<bool, Refusal> {
    match params.get("dryRun").map(String::as_str) {
        None => Ok(false),
        Some("All") => Ok(true),
        Some(other) => Err(Refusal::bad_request(format!("invalid dryRun {other:?}: want `All`"))),
    }
}

/// A list, whose items have no `kind`, as the real server's.
fn list(kind: &Kind, objects: &[Arc<Value>], revision: u64) -> Value {
    let items: Vec<Value> = objects.iter().map(|object| without_kind(object)).collect();
    json!({
        "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
        "metadata": {"resourceVersion": revision.to_string()}, "items": items,
    })
}

fn without_kind(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    object
}

/// A JSON merge patch (RFC 7386): maps merge, null removes, all else replaces. Lists are replaced
/// under the other patch types too, where the real server merges some of them by key.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(&key);
        } else {
            merge(map.entry(key).or_insert(Value::Null), value);
        }
    }
}
