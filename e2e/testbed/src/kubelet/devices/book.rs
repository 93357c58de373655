//! Which connection belongs to which resource, as releases of the kubelet differ in it.
//!
//! What happens when a plugin registers while a stream of an earlier registration still runs, and
//! that stream ends later:
//!
//! * to 1.24 the end counts only if it is that of the resource's newest registration;
//! * from 1.25 to 1.36 the kubelet looks its connection up by resource name, finds the **new** one,
//!   closes it and marks all devices unhealthy: the plugin is lost until it registers again;
//! * from 1.37 on it looks up resource name and socket. Another socket is another plugin, and one
//!   takes over when the other ends. On the same socket the registration is refused ("already
//!   connected"), and the refusal removes both from the book: the end of the old stream then goes
//!   unnoticed, its devices stay healthy, and that socket is refused until the kubelet restarts.
//!
//! From 1.25 on a registration is in the book while it is being connected. If the old stream ends
//! just then, or the connection fails, the book loses one that lives on, whose end goes unnoticed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use kerf::proto::device_plugin::DevicePluginOptions;

use super::plugin::Client;

/// What a connection is looked up by when its stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Itself.
    Connection,
    /// The name of the resource.
    Resource,
    /// The name of the resource and the socket.
    Socket,
}

/// A connected plugin.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) client: Arc<Client>,
    pub(super) options: DevicePluginOptions,
    pub(super) stopped: bool,
}

/// What the end of a stream does to its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its devices are unhealthy from now on.
    Unhealthy,
    /// Nothing: another plugin has taken over, or nobody noticed.
    Nothing,
}

/// The connections of one run of the kubelet.
#[derive(Debug)]
pub(super) struct Book {
    by: By,
    clients: BTreeMap<String, Vec<Arc<Client>>>,
    /// Those that calls go to.
    primary: BTreeMap<String, Endpoint>,
    /// All that are connected, by resource and socket.
    all: BTreeMap<(String, PathBuf), Endpoint>,
}

impl Book {
    pub(super) fn new(release: u32) -> Self {
        let by = match release {
            0..=24 => By::Connection,
            25..=36 => By::Resource,
            _ => By::Socket,
        };
        Self { by, clients: BTreeMap::new(), primary: BTreeMap::new(), all: BTreeMap::new() }
    }

    /// Where calls for a resource go.
    pub(super) fn endpoint(&self, resource: &str) -> Option<&Endpoint> {
        self.primary.get(resource)
    }

    /// A registration that is about to be connected.
    pub(super) fn enter(&mut self, client: Arc<Client>) {
        let clients = self.clients.entry(client.resource.clone()).or_default();
        if self.by == By::Resource {
            clients.clear();
        }
        clients.push(client);
    }

    /// It is connected.
    pub(super) fn connect(
        &mut self,
        client: &Arc<Client>,
        options: DevicePluginOptions,
    ) -> Result<(), String> {
        let endpoint = Endpoint { client: client.clone(), options, stopped: false };
        if self.by == By::Socket {
            let key = key(client);
            if self.all.contains_key(&key) {
                return Err(format!(
                    "device plugin already connected: {}",
                    client.socket.display()
                ));
            }
            self.all.insert(key, endpoint.clone());
        }
        self.primary.insert(client.resource.clone(), endpoint);
        Ok(())
    }

    /// Strikes it out, with whatever else is looked up by the same.
    pub(super) fn strike(&mut self, client: &Client) {
        let by = self.by;
        if let Some(clients) = self.clients.get_mut(&client.resource) {
            clients.retain(|other| !same(by, other, client));
        }
    }

    /// The stream of a connection has ended.
    pub(super) fn end(&mut self, ended: &Client) -> End {
        let clients = self.clients.get(&ended.resource);
        let Some(found) = clients.and_then(|all| all.iter().find(|c| same(self.by, c, ended)))
        else {
            return End::Nothing;
        };
        let found = found.clone();
        self.strike(&found);
        found.close();
        match self.by {
            By::Connection => {
                self.stop_if(&ended.resource, |endpoint| endpoint.client.id == ended.id)
            }
            By::Resource => self.stop_if(&ended.resource, |_| true),
            By::Socket => self.leave(&found),
        }
    }

    /// Removes the stopped endpoints, and returns their resources.
    pub(super) fn expire(&mut self) -> Vec<String> {
        self.primary.extract_if(.., |_, endpoint| endpoint.stopped).map(|(name, _)| name).collect()
    }

    fn stop_if(&mut self, resource: &str, wanted: impl Fn(&Endpoint) -> bool) -> End {
        match self.primary.get_mut(resource) {
            Some(endpoint) if wanted(endpoint) => {
                endpoint.stopped = true;
                End::Unhealthy
            }
            _ => End::Nothing,
        }
    }

    /// Another plugin of the resource takes over, if there is one.
    fn leave(&mut self, left: &Client) -> End {
        if self.all.remove(&key(left)).is_none() {
            return End::Nothing;
        }
        let heir = self.all.iter().find(|((resource, _), _)| *resource == left.resource);
        match heir {
            Some((_, heir)) => {
                self.primary.insert(left.resource.clone(), heir.clone());
                End::Nothing
            }
            None => self.stop_if(&left.resource, |_| true),
        }
    }
}

fn key(client: &Client) -> (String, PathBuf) {
    (client.resource.clone(), client.socket.clone())
}

fn same(by: By, one: &Client, other: &Client) -> bool {
    match by {
        By::Connection => one.id == other.id,
        By::Resource => true,
        By::Socket => one.socket == other.socket,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(id: u64, socket: &str) -> Arc<Client> {
        Arc::new(Client::new(id, socket.into(), &Default::default()))
    }

    fn add(book: &mut Book, client: &Arc<Client>) -> Result<(), String> {
        book.enter(client.clone());
        book.connect(client, DevicePluginOptions::default()).inspect_err(|_| book.strike(client))
    }

    /// Which registration calls go to, and whether it is stopped.
    fn endpoint(book: &Book) -> (u64, bool) {
        book.endpoint("").map(|endpoint| (endpoint.client.id, endpoint.stopped)).unwrap()
    }

    #[test]
    fn the_end_of_an_earlier_stream_counts_as_the_release_has_it() {
        let cases = [
            (24, End::Nothing, (2, false), End::Unhealthy),
            (25, End::Unhealthy, (2, true), End::Nothing),
            (36, End::Unhealthy, (2, true), End::Nothing),
            (37, End::Nothing, (2, false), End::Unhealthy),
        ];
        for (release, first, then, second) in cases {
            let mut book = Book::new(release);
            let (old, new) = (client(1, "a"), client(2, "b"));
            add(&mut book, &old).unwrap();
            add(&mut book, &new).unwrap();
            assert_eq!((book.end(&old), endpoint(&book)), (first, then), "{release}");
            assert_eq!((book.end(&new), endpoint(&book)), (second, (2, true)));
        }
    }

    #[test]
    fn a_newer_stream_that_ends_first_hands_back_from_1_37_on() {
        for (release, end, then) in
            [(36, End::Unhealthy, (2, true)), (37, End::Nothing, (1, false))]
        {
            let mut book = Book::new(release);
            let (old, new) = (client(1, "a"), client(2, "b"));
            add(&mut book, &old).unwrap();
            add(&mut book, &new).unwrap();
            assert_eq!((book.end(&new), endpoint(&book)), (end, then), "{release}");
        }
    }

    #[test]
    fn the_same_socket_twice_is_refused_for_ever_from_1_37_on() {
        let mut book = Book::new(37);
        let old = client(1, "a");
        add(&mut book, &old).unwrap();
        let refused = Err("device plugin already connected: a".to_owned());
        assert_eq!(add(&mut book, &client(2, "a")), refused);
        assert_eq!((book.end(&old), endpoint(&book)), (End::Nothing, (1, false)));
        assert_eq!(add(&mut book, &client(3, "a")), refused);
    }

    #[test]
    fn what_registers_while_the_earlier_stream_ends_is_never_seen_to_end() {
        for release in [25, 36, 37] {
            let mut book = Book::new(release);
            let (old, new) = (client(1, "a"), client(2, "a"));
            add(&mut book, &old).unwrap();
            book.enter(new.clone());
            assert_eq!((book.end(&old), endpoint(&book)), (End::Unhealthy, (1, true)));
            book.connect(&new, DevicePluginOptions::default()).unwrap();
            assert_eq!((book.end(&new), endpoint(&book)), (End::Nothing, (2, false)), "{release}");
        }
    }

    #[test]
    fn only_stopped_endpoints_expire() {
        let mut book = Book::new(37);
        let only = client(1, "a");
        add(&mut book, &only).unwrap();
        assert_eq!(book.expire(), [""; 0]);
        book.end(&only);
        assert_eq!(book.expire(), [""]);
        assert!(book.endpoint("").is_none());
    }
}
