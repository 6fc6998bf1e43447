//! The machine's name and the files that turn names into addresses.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::sys::machine;

/// An enclave's host name. Plugins see their own.
const HOST_NAME: &str = "enclave";

/// What is in the files. There is no DNS in an enclave: names are those of the hosts file.
const FILES: [(&str, &str); 3] = [
    ("/etc/hosts", "127.0.0.1\tlocalhost enclave\n"),
    (
        "/etc/resolv.conf",
        "# There is no DNS in an enclave: names are those of /etc/hosts.\noptions attempts:1 timeout:1\n",
    ),
    ("/etc/hostname", "enclave\n"),
];

/// Names the machine and writes all the files.
pub(super) fn write_all() -> io::Result<()> {
    machine::set_host_name(HOST_NAME)?;
    write(Path::new("/"), |_| true)
}

/// Writes the files that are not there: an image's own are left alone.
pub(super) fn write_missing() -> io::Result<()> {
    write(Path::new("/"), |path| !path.exists())
}

fn write(root: &Path, wanted: impl Fn(&Path) -> bool) -> io::Result<()> {
    for (path, text) in FILES {
        let path: PathBuf = root.join(path.trim_start_matches('/'));
        if !wanted(&path) {
            continue;
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Images bring an /etc/resolv.conf that is a link to nowhere; it must not be followed.
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::write(&path, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_to_nowhere_is_replaced_and_a_file_that_is_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        fs::create_dir(&etc).unwrap();
        symlink("/run/resolvconf/resolv.conf", etc.join("resolv.conf")).unwrap();
        fs::write(etc.join("hosts"), "own").unwrap();
        write(dir.path(), |path| !path.exists()).unwrap();
        assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), "own");
        assert!(fs::read_to_string(etc.join("resolv.conf")).unwrap().contains("no DNS"));
        write(dir.path(), |_| true).unwrap();
        assert!(fs::read_to_string(etc.join("hosts")).unwrap().contains("localhost"));
    }
}
