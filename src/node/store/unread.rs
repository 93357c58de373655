//! What the store has for records that cannot be read: what CDI files say of them, and what was asked
//! meanwhile.

use super::{
    Error, Holder, Path, RECORD_MODE, Record, Result, SetAside, Store, Told, Unread, fs, io, names,
    read_json, read_record, remove, set_aside, write_again,
};
use crate::model::{claim::ClaimRef, holder::Container};

/// What stands in the place of a claim's record that was lost with its directory.
const LOST: &str = r#"{"lost":"its directory was removed while its CDI file was there"}"#;

/// How names of notes end.
const LET_GO: &str = ".let-go";

/// A claim of which only the UID is known.
pub(super) fn of_claim(uid: &str) -> Holder {
    let (namespace, name) = (String::new(), String::new());
    Holder::Claim(ClaimRef { namespace, name, uid: uid.to_owned() })
}

/// A container of which only the device ID is known.
pub(super) fn of_container(id: &str) -> Holder {
    Holder::Container(Container { id: id.to_owned(), resource: String::new(), name: None })
}

impl Store {
    /// What a claim's CDI file says of its devices; absent without one that can be read.
    pub fn told_by_spec(&self, uid: &str) -> Option<Told> {
        let path = self.spec_path(uid).ok()?;
        let spec = read_json(&path).ok()??.ok()?;
        Told::by_spec(uid, &spec)
    }

    /// Reads a record again; `None` if it is not there any more.
    pub fn read_again(&self, unread: &Unread) -> Result<Option<Result<Record, String>>> {
        read_record(&self.record_path(&unread.holder)?, unread.holder.key())
    }

    /// Renames a record that is about nothing that is still there, for a person to see.
    pub fn set_aside(&self, unread: &Unread) -> Result<SetAside> {
        self.forget_let_go(&unread.holder)?;
        let path = set_aside(&self.record_path(&unread.holder)?)?;
        Ok(SetAside { path, reason: unread.reason.clone() })
    }

    /// Notes that a holder lets go, which is done once its record can be read.
    pub fn note_let_go(&self, holder: &Holder) -> Result<()> {
        write_again(&self.let_go_path(holder)?, b"", RECORD_MODE)
    }

    /// Whether that was noted.
    pub fn is_let_go(&self, holder: &Holder) -> Result<bool> {
        let path = self.let_go_path(holder)?;
        path.try_exists().map_err(Error::file("look at", &path))
    }

    /// Forgets the note, if there is one.
    pub fn forget_let_go(&self, holder: &Holder) -> Result<()> {
        remove(&self.let_go_path(holder)?)
    }

    /// Removes notes about records that were taken away: a later record is not meant.
    pub(super) fn remove_stale_notes(&self) -> Result<()> {
        for dir in [&self.claims, &self.containers] {
            for name in names(dir)? {
                let Some(key) = name.strip_suffix(LET_GO) else { continue };
                let record = dir.join(format!("{key}.json"));
                if !record.try_exists().map_err(Error::file("look at", &record))? {
                    remove(&dir.join(&name))?;
                }
            }
        }
        Ok(())
    }

    fn let_go_path(&self, holder: &Holder) -> Result<std::path::PathBuf> {
        let name = format!("{}{LET_GO}", holder.key());
        Ok(self.record_path(holder)?.with_file_name(name))
    }

    /// Makes the directory of claims. Where CDI files of claims are there without it, it was taken away
    /// with their records, and each has one that cannot be read.
    pub(super) fn make_claims(&self) -> Result<()> {
        let there = self.claims.try_exists().map_err(Error::file("look at", &self.claims))?;
        if there {
            return Ok(());
        }
        // By rename, so that no crash leaves a directory without what belongs into it.
        let new = self.claims.with_extension("new");
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("remove", &new)(error));
            }
            _ => {}
        }
        fs::create_dir(&new).map_err(Error::file("make the directory", &new))?;
        for uid in self.spec_uids()? {
            let path = new.join(format!("{uid}.json"));
            write_again(&path, LOST.as_bytes(), RECORD_MODE)?;
        }
        move_to(&new, &self.claims)
    }
}

/// Another agent may have been quicker, which is as good.
fn move_to(new: &Path, place: &Path) -> Result<()> {
    match fs::rename(new, place) {
        Err(_) if place.is_dir() => fs::remove_dir_all(new).map_err(Error::file("remove", new)),
        moved => moved.map_err(Error::file("rename", new)),
    }
}
