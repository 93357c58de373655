//! Procfs: device numbers, MIG capabilities, the boot, processes.

use std::{fs, path::PathBuf, time::Duration};

use super::{Error, Host, if_there};
use crate::model::strict::OneLine;

impl Host {
    /// Identifies this boot of the machine.
    pub fn boot_id(&self) -> Result<String, Error> {
        let path = self.proc_root.join("sys/kernel/random/boot_id");
        let text = fs::read_to_string(&path).map_err(Error::read(&path))?;
        match text.trim() {
            "" => Err(Error::Silent { path, what: "which boot this is".to_owned() }),
            id => Ok(id.to_owned()),
        }
    }

    /// What a process is called, while it runs. It chose that itself, and procfs gives its bytes as they are: here
    /// they are one line that moves no cursor.
    pub fn process_name(&self, pid: u32) -> Option<String> {
        let name = fs::read(self.proc_root.join(format!("{pid}/comm"))).ok()?;
        let name = String::from_utf8_lossy(&name);
        Some(OneLine(name.trim_end()).to_string()).filter(|name| !name.is_empty())
    }

    /// How long the machine has been up.
    pub fn uptime(&self) -> Option<Duration> {
        let text = self.proc_file("uptime").ok()??;
        Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok()
    }

    /// The release of the running kernel, as `uname -r` prints it.
    pub(super) fn kernel_release(&self) -> Result<Option<String>, Error> {
        let text = self.proc_file("sys/kernel/osrelease")?;
        Ok(text.map(|text| text.trim().to_owned()).filter(|release| !release.is_empty()))
    }

    /// The character devices that the kernel has drivers for.
    pub(super) fn majors(&self) -> Result<Majors, Error> {
        let path = self.devices_path();
        let text = fs::read_to_string(&path).map_err(Error::read(&path))?;
        Ok(Majors::parse(&text))
    }

    pub(super) fn devices_path(&self) -> PathBuf {
        self.proc_root.join("devices")
    }

    /// The text of a file below procfs; `None` where there is none.
    pub(super) fn proc_file(&self, path: &str) -> Result<Option<String>, Error> {
        let path = self.proc_root.join(path);
        if_there(fs::read_to_string(&path)).map_err(Error::read(path))
    }
}

/// Major numbers of character devices, by the name of their driver.
pub(super) struct Majors(Vec<(String, u32)>);

impl Majors {
    fn parse(text: &str) -> Self {
        let characters =
            text.lines().skip_while(|line| line.trim() != "Character devices:").skip(1);
        let lines = characters.take_while(|line| !line.trim_end().ends_with(':'));
        Self(lines.filter_map(Self::line).collect())
    }

    fn line(line: &str) -> Option<(String, u32)> {
        let (major, name) = line.trim().split_once(' ')?;
        Some((name.trim().to_owned(), major.parse().ok()?))
    }

    /// The major number of the first of these names that is there.
    pub(super) fn of(&self, names: &[&str]) -> Option<u32> {
        let mut names = names.iter();
        names.find_map(|name| {
            self.0.iter().find(|(found, _)| found == name).map(|&(_, major)| major)
        })
    }
}

/// The number behind `key` in lines of `key: number`, as the NVIDIA driver writes its files.
pub(super) fn field(text: &str, key: &str) -> Option<u32> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(found, _)| found.trim() == key)?.1.trim().parse().ok()
}
