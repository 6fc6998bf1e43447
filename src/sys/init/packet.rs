//! What comes from the supervisor, in memory that goes back to the kernel.

use std::{
    ffi::{c_char, c_void},
    mem::MaybeUninit,
    os::fd::RawFd,
    ptr,
};

use nix::errno::Errno;

use super::{SOCKET, command::Texts, wire::Request};

/// A descriptor that is closed when dropped, if it is one. `OwnedFd` panics for a number that is none, and
/// what a panic needs would double what every init has in memory.
#[derive(Debug)]
pub(super) struct Descriptor(pub(super) RawFd);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it touches no memory, and nobody else has this descriptor.
        unsafe { libc::close(self.0) };
    }
}

/// Memory of the kernel's own, which goes back to it: a heap would stay. It is zeroed.
pub(super) struct Mapping {
    start: *mut c_void,
    bytes: usize,
}

impl Mapping {
    pub(super) fn new(bytes: usize) -> nix::Result<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory at a place of the kernel's choice is nobody else's.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        if start == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Self { start, bytes }) }
    }

    /// The whole of it, as a stack.
    pub(super) fn items(&mut self) -> &mut [u128] {
        // SAFETY: it is this value's own and zeroed; a page is aligned for anything.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.bytes / size_of::<u128>()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the memory is this value's own, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

/// Memory for one packet, and for pointers to as many words as it can have.
pub(super) struct Packet {
    memory: Mapping,
    pointers: usize,
    length: usize,
}

impl Packet {
    /// Memory for a packet of `length` bytes.
    pub(super) fn new(length: usize) -> nix::Result<Self> {
        // Each word has its NUL, so that there are no more words than bytes; one pointer is the last, null.
        let pointers = length.saturating_add(1);
        let bytes = pointers.saturating_mul(size_of::<*const c_char>()).saturating_add(length);
        Ok(Self { memory: Mapping::new(bytes)?, pointers, length })
    }

    /// Both parts: the pointers, which are aligned as the start of a page is, and the packet behind them.
    fn parts(&mut self) -> (&mut [*const c_char], &mut [u8]) {
        let start = self.memory.start.cast::<*const c_char>();
        // SAFETY: there is room for them at the start, and zeroes are null pointers.
        let pointers = unsafe { std::slice::from_raw_parts_mut(start, self.pointers) };
        // SAFETY: this is where they end.
        let behind = unsafe { start.add(self.pointers) };
        // SAFETY: there is room for so many bytes behind them, and the kernel has zeroed them.
        (pointers, unsafe { std::slice::from_raw_parts_mut(behind.cast(), self.length) })
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.parts().1
    }

    /// The words that the packet ends with, each with its NUL.
    pub(super) fn words(&mut self) -> Texts<'_> {
        let (pointers, packet) = self.parts();
        if let Some(Request::Run { words, .. }) = Request::decode(packet) {
            let words = words.split_inclusive(|byte| *byte == 0);
            pointers.iter_mut().zip(words).for_each(|(pointer, word)| *pointer = word.as_ptr().cast());
        }
        // SAFETY: there are fewer words than pointers, so that a null one is left; the words are in the
        // memory that is borrowed as long as the list is used.
        unsafe { Texts::new(pointers.as_ptr()) }
    }

    /// Reads it, and the descriptor that comes with it.
    pub(super) fn receive(&mut self) -> nix::Result<Option<Descriptor>> {
        /// Room for one descriptor behind its header, aligned as that must be: `CMSG_SPACE(4)`.
        const SPACE_WORDS: usize = 3;
        let mut space = [0_u64; SPACE_WORDS];
        let packet = self.bytes();
        let mut part = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
        let mut message = MaybeUninit::<libc::msghdr>::zeroed();
        // SAFETY: all-zero bytes are a valid `msghdr`: no parts, no room for anything.
        let message = unsafe { message.assume_init_mut() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        // Its type is not the same in every C library.
        message.msg_controllen = size_of_val(&space) as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the message points to memory of this function's and the caller's that may be written.
        Errno::result(unsafe { libc::recvmsg(SOCKET, message, flags) })?;
        // SAFETY: the message is as the kernel has left it.
        let header = unsafe { libc::CMSG_FIRSTHDR(message) };
        // SAFETY: null, or within `space`, which is aligned for it.
        let Some(descriptors) = (unsafe { header.as_ref() }) else { return Ok(None) };
        if (descriptors.cmsg_level, descriptors.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            return Ok(None);
        }
        // SAFETY: the header is the kernel's own.
        let data = unsafe { libc::CMSG_DATA(header) }.cast::<[u8; size_of::<RawFd>()]>();
        // SAFETY: behind a header of this kind there is at least one descriptor.
        let descriptor = RawFd::from_ne_bytes(unsafe { data.read() });
        Ok(Some(Descriptor(descriptor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::init::wire;

    #[test]
    fn the_words_of_a_command_are_found_in_its_packet_and_nothing_in_any_other() {
        let words = |bytes: &[u8]| {
            let mut packet = Packet::new(bytes.len()).unwrap();
            packet.bytes().copy_from_slice(bytes);
            packet.words().iter().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words(&wire::run(1, ["sh", "", "-c"]).unwrap()), ["sh", "", "-c"]);
        // As many words as a packet can have.
        let many = vec![""; wire::PACKET_MAX - wire::HEAD];
        assert_eq!(words(&wire::run(1, many.iter().copied()).unwrap()), many);
        assert!(words(&wire::cancel(1)).is_empty());
        assert!(words(b"r\0\0\0\x01no end").is_empty());
    }
}
