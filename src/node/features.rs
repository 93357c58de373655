//! A feature file of Node Feature Discovery (NFD), whose daemon makes labels of the node of it.

use std::{collections::BTreeMap, fs, path::Path};

use super::store::{self, Error};

/// NFD may run as another user.
const MODE: u32 = 0o644;

/// Makes the file say these labels, one a line in the order of their names, unless it does. NFD sees the
/// old file or the new one. Whether it was written is the answer.
///
/// # Errors
/// The file cannot be replaced. Its directory is NFD's and is not made: in a container it would be there
/// for nobody else.
pub fn write(path: &Path, labels: &BTreeMap<String, String>) -> Result<bool, Error> {
    let text: String = labels.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(false);
    }
    store::write_atomic(path, text.as_bytes(), MODE)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn a_file_is_written_when_it_says_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gfd");
        let eight = labels(&[("nvidia.com/gpu.count", "8"), ("nvidia.com/cuda.driver.rev", "")]);
        assert!(write(&path, &eight).unwrap());
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "nvidia.com/cuda.driver.rev=\nnvidia.com/gpu.count=8\n"
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(!write(&path, &eight).unwrap());

        let seven = labels(&[("nvidia.com/gpu.count", "7")]);
        assert!(write(&path, &seven).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "nvidia.com/gpu.count=7\n");
        fs::remove_file(&path).unwrap();
        assert!(write(&path, &seven).unwrap());
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("features.d/gfd");
        let error = write(&path, &labels(&[])).unwrap_err().to_string();
        assert_eq!(error, format!("cannot write `{}`", path.display()));
        assert!(!dir.path().join("features.d").exists());
    }
}
