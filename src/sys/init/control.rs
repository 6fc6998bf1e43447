//! The supervisor's end of the socket to a plugin's init.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair,
};
use tokio::{io::Interest, net::UnixStream};

use super::wire::Report;

/// Longest packet that an init may send; one more byte shows a longer one.
const REPORT_BYTES_MAX: usize = 8;

/// One end. It never blocks.
#[derive(Debug)]
pub struct Control(UnixStream);

impl Control {
    /// Our end, and the init's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self(UnixStream::from_std(ours.into())?), theirs))
    }

    /// The init's next report; none when it has ended.
    pub async fn recv(&self) -> Option<Report> {
        loop {
            match self.0.async_io(Interest::READABLE, || receive(self.0.as_fd())).await {
                Ok(Received::Report(report)) => return Some(report),
                Ok(Received::Nonsense) => {}
                Ok(Received::End) | Err(_) => return None,
            }
        }
    }

    /// The report that is already here, if any: an init that was reaped has said its last.
    pub fn try_recv(&self) -> Option<Report> {
        loop {
            match receive(self.0.as_fd()) {
                Ok(Received::Report(report)) => return Some(report),
                Ok(Received::Nonsense) => {}
                Ok(Received::End) | Err(_) => return None,
            }
        }
    }

    /// Sends a request if there is room, with the descriptor that it is about.
    pub fn send(&self, packet: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(self.0.as_fd(), &[IoSlice::new(packet)], &mut control, flags)?;
        Ok(())
    }
}

enum Received {
    Report(Report),
    /// A packet that no init of ours sends: a plugin got hold of it. It is skipped.
    Nonsense,
    End,
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut packet = [0; REPORT_BYTES_MAX];
    let (_, length) = recv(socket, &mut packet, RecvFlags::DONTWAIT | RecvFlags::TRUNC)?;
    Ok(match packet.get(..length) {
        Some([]) => Received::End,
        Some(packet) => Report::decode(packet).map_or(Received::Nonsense, Received::Report),
        None => Received::Nonsense,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nonsense_is_skipped_and_the_end_is_seen() {
        let (control, theirs) = Control::pair().unwrap();
        let say = |packet: &[u8]| rustix::net::send(&theirs, packet, SendFlags::empty()).unwrap();
        say(b"what?");
        say(&[b'S'; 100]);
        say(&Report::Exited { code: 3 }.encode());
        assert_eq!(control.try_recv(), Some(Report::Exited { code: 3 }));
        assert_eq!(control.try_recv(), None);
        say(&Report::Started.encode());
        drop(theirs);
        assert_eq!(control.recv().await, Some(Report::Started));
        assert_eq!(control.recv().await, None);
    }
}
