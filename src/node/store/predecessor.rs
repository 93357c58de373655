//! What NVIDIA's DRA driver left on this node: its checkpoint, and a CDI file for each claim.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{Error, Result, SPEC_MODE, Store, encode_spec, is_uid, names, remove, write_atomic};
use crate::{
    model::cdi::{self, Spec},
    node::lock,
};

/// Its files, and ours that take their place.
#[derive(Clone, Debug)]
pub struct Predecessor {
    directory: PathBuf,
    store: Store,
}

impl Predecessor {
    /// `directory` is the driver's own below the kubelet's plugins.
    pub fn new(directory: &Path, store: Store) -> Self {
        Self { directory: directory.to_owned(), store }
    }

    /// Where its checkpoint is while that is not taken over.
    pub fn checkpoint(&self) -> PathBuf {
        self.directory.join("checkpoint.json")
    }

    /// The checkpoint's content; `None` where there is none.
    pub fn read_checkpoint(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.checkpoint()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Takes the lock under which it prepares claims; `None` while it is at that.
    pub fn lock(&self) -> io::Result<Option<File>> {
        lock::try_lock(&self.directory.join("pu.lock"))
    }

    /// The claims that have a CDI file of its, in order.
    pub fn spec_uids(&self) -> Result<Vec<String>> {
        let names = names(&self.store.cdi)?;
        let uids = names.iter().filter_map(|name| cdi::claim_of_predecessors_file(name));
        Ok(uids.filter(|uid| is_uid(uid)).map(str::to_owned).collect())
    }

    /// Puts our CDI file in the place of its. Both name the same devices, which no runtime would find
    /// while two files did; so its file gets our content first and then our name. At every moment
    /// there is one file.
    pub fn replace_spec(&self, uid: &str, spec: &Spec) -> Result<()> {
        let (theirs, ours) = (self.spec_path(uid), self.store.spec_path(uid)?);
        write_atomic(&theirs, &encode_spec(&ours, spec)?, SPEC_MODE)?;
        fs::rename(&theirs, &ours).map_err(Error::file("rename", &theirs))
    }

    /// Removes its CDI file for a claim, if there is one.
    pub fn remove_spec(&self, uid: &str) -> Result<()> {
        remove(&self.spec_path(uid))
    }

    /// Renames the checkpoint: it is taken over once.
    pub fn set_aside(&self) -> Result<()> {
        let path = self.checkpoint();
        fs::rename(&path, path.with_extension("json.adopted-by-kerf"))
            .map_err(Error::file("rename", &path))
    }

    fn spec_path(&self, uid: &str) -> PathBuf {
        self.store.cdi.join(cdi::predecessors_file_name(uid))
    }
}
