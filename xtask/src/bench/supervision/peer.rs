//! The supervisors of Debian, each set up as its documentation has it.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    CHILDREN,
    contender::{Behaviour, Programs, Started, errors_path},
    namespaces::Namespaces,
    records::{BEGIN, Records},
};
use crate::failure::{Failure, While as _};

/// How long a peer may take to begin.
const BEGIN_MAX: Duration = Duration::from_secs(10);

/// A supervisor from Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// One `s6-supervise` for each child.
    S6,
    /// One `runsv` for each child.
    Runit,
    /// One `supervise` for each child.
    Daemontools,
    /// One Python process.
    Supervisord,
}

impl Peer {
    /// As people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::S6 => "s6",
            Self::Runit => "runit",
            Self::Daemontools => "daemontools",
            Self::Supervisord => "supervisord",
        }
    }

    /// Whether it lets a second pass before it starts a child again, however long that one ran.
    pub(super) fn paces_restarts(self) -> bool {
        match self {
            Self::S6 | Self::Supervisord => true,
            Self::Runit | Self::Daemontools => false,
        }
    }

    /// Starts it with all children.
    pub(super) fn start(
        self,
        programs: &Programs,
        directory: &Path,
        behaviour: Behaviour,
    ) -> Result<Started, Failure> {
        let records = records_path(directory);
        let file = File::options().create(true).append(true).open(&records);
        let file = file.while_doing(records.display())?;
        let errors = File::create(errors_path(directory)).while_doing("a peer's standard error")?;
        let services = directory.join("services");
        for number in 0..CHILDREN {
            write_script(
                &services.join(format!("sv{number}")),
                number,
                &programs.child,
                &records,
                behaviour,
            )?;
        }
        // What counts as its begin is the moment before its own program is loaded.
        let child = programs.child.display().to_string();
        let mut words = vec![child, BEGIN.to_owned(), "exec".to_owned()];
        words.extend(self.words(&services)?);
        let bin = programs.unpacked.join("usr/bin");
        let variables = [
            ("PATH", format!("{}:/usr/bin:/bin", bin.display())),
            ("PYTHONPATH", programs.unpacked.join("usr/lib/python3/dist-packages").display().to_string()),
        ];
        let namespaces = Namespaces::start(&words, &variables, file, errors)?;
        let mut records = Records::file(File::open(&records).while_doing(records.display())?);
        let begun = records.wait("a peer's begin", BEGIN_MAX, |record| record.name == BEGIN)?.nanos;
        Ok(Started { namespaces, records, begun, control: None })
    }

    fn words(self, services: &Path) -> Result<Vec<String>, Failure> {
        let directory = services.display().to_string();
        let words: &[&str] = match self {
            Self::S6 => &["s6-svscan", "-c", "500", &directory],
            Self::Runit => &["runsvdir", &directory],
            Self::Daemontools => &["svscan", &directory],
            Self::Supervisord => {
                let config = services.join("supervisord.conf");
                fs::write(&config, supervisord_config(services)).while_doing(config.display())?;
                return Ok(["/usr/bin/python3", "-m", "supervisor.supervisord", "-c"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([config.display().to_string()])
                    .collect());
            }
        };
        Ok(words.iter().map(|word| (*word).to_owned()).collect())
    }
}

/// What a service directory of s6, runit or daemontools holds; supervisord runs the same.
fn write_script(
    service: &Path,
    number: usize,
    child: &Path,
    records: &Path,
    behaviour: Behaviour,
) -> Result<(), Failure> {
    fs::create_dir_all(service).while_doing(service.display())?;
    let script = service.join("run");
    let text = format!(
        "#!/bin/sh\nexec {} {number} {} >>{}\n",
        child.display(),
        behaviour.word(),
        records.display()
    );
    fs::write(&script, text).while_doing(script.display())?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).while_doing(script.display())
}

/// `startsecs=0` counts every start as a success, after which it starts again with no backoff.
fn supervisord_config(services: &Path) -> String {
    let directory = services.display();
    let mut config = format!(
        "[supervisord]\nnodaemon=true\nuser=root\nminfds=4096\nlogfile=/dev/null\nlogfile_maxbytes=0\n\
         pidfile={directory}/pid\n"
    );
    for number in 0..CHILDREN {
        // Writing to a String cannot fail.
        write!(
            config,
            "[program:c{number}]\ncommand={directory}/sv{number}/run\nautorestart=true\nstartsecs=0\n\
             stdout_logfile=NONE\nstderr_logfile=NONE\n"
        )
        .ok();
    }
    config
}

fn records_path(directory: &Path) -> PathBuf {
    directory.join("records")
}

/// How many children have recorded their start.
pub(super) fn starts(directory: &Path) -> Result<usize, Failure> {
    let file = File::open(records_path(directory)).while_doing("the children's records")?;
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    Ok(lines.filter(|line| line.starts_with(|first: char| first.is_ascii_digit())).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_of_a_peer_appends_its_records_to_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let service = directory.path().join("sv7");
        write_script(&service, 7, Path::new("/c"), Path::new("/r"), Behaviour::Fail).unwrap();
        let script = fs::read_to_string(service.join("run")).unwrap();
        assert_eq!(script, "#!/bin/sh\nexec /c 7 fail >>/r\n");
        fs::write(records_path(directory.path()), "begin 1\n7 2\nnoise\n7 3\n").unwrap();
        assert_eq!(starts(directory.path()).unwrap(), 2);
    }
}
