//! What `net` gives up before it carries a byte: it parses what plugins and the host send, and needs no
//! privilege for it. Its sockets come from PID 1.

use std::io;

use enclave_protocol::transport::Host;
use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

/// Who `net` is where it can be anybody. Not `nobody`: images run their processes as 65534 and as 65532, and
/// processes of one user may send each other signals.
const ID: u32 = 65_531;

/// At the start: no way to new privileges, and no way for others to its memory.
pub(super) fn give_up_what_needs_no_host() -> io::Result<()> {
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}

/// Once it knows the host: no longer root. Its capabilities go with the change of the user, since nothing
/// keeps them. A hybrid socket, in tests and demos, is a file that only root may reach; there it stays.
pub(super) fn give_up_root(host: &Host) -> io::Result<()> {
    let is_over_vsock = match host {
        Host::Vsock { .. } => true,
        Host::Unix(_) => false,
    };
    if is_over_vsock && Uid::effective().is_root() {
        let (user, group) = (Uid::from_raw(ID), Gid::from_raw(ID));
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
    }
    Ok(())
}
