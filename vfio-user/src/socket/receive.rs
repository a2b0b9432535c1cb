//! recvmsg(2) with descriptors.
#![allow(unsafe_code)] // the kernel's control messages are walked by pointer, and each descriptor in them becomes owned

use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

use super::{MAX_DESCRIPTORS, SocketError};

/// What there was to receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, more than none.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The peer has closed the connection, and nothing is left.
    End,
}

/// Room for the control message of the most descriptors, aligned as its header must be.
#[repr(C, align(16))]
struct Control([u8; 1056]);

pub(super) fn receive(
    socket: &OwnedFd,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    limit: usize,
) -> Result<Received, SocketError> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_NOSIGNAL;
    if limit == 0 {
        return receive_bytes(socket, buffer, flags);
    }
    let mut control = Control([0; 1056]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero bytes are a msghdr: numbers and null pointers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // Always room for all that can come, whatever the limit: the kernel itself would close what there is no room for, and have this thread wait for that.
    // SAFETY: arithmetic only: CMSG_SPACE(4 * 253), 1032 bytes, which the buffer has.
    message.msg_controllen =
        unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as u32) } as _;
    // SAFETY: the header names a buffer and a control buffer that are this function's alone for the call, with their lengths.
    let Some(received) = (unsafe { call(socket, &mut message, flags)? }) else {
        return Ok(Received::Nothing);
    };
    // Owned before anything is judged, so that none stays open.
    // SAFETY: the kernel has filled in the header and the control buffer, which are still alive.
    unsafe { take(&message, descriptors) };
    if descriptors.len() > limit {
        return Err(SocketError::TooManyDescriptors { limit });
    }
    // There was room for all that can come: what is missing is not the peer's doing.
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(SocketError::DescriptorsLost);
    }
    Ok(outcome(received, buffer))
}

/// Receives bytes that have no descriptors beside them.
fn receive_bytes(
    socket: &OwnedFd,
    buffer: &mut [u8],
    flags: libc::c_int,
) -> Result<Received, SocketError> {
    let Some((seen, told)) = without_control(socket, buffer, flags | libc::MSG_PEEK)? else {
        return Ok(Received::Nothing);
    };
    // Without room for any, the kernel says so of descriptors. It has kept them: it was a look. (It says so too of those beside bytes that follow at once.)
    if told & libc::MSG_CTRUNC != 0 {
        return Err(SocketError::TooManyDescriptors { limit: 0 });
    }
    if seen == 0 {
        return Ok(outcome(seen, buffer));
    }
    // No more than what was looked at. Nobody else receives from this end.
    let seen = buffer.get_mut(..seen).unwrap_or_default();
    let received = without_control(socket, seen, flags)?;
    Ok(received.map_or(Received::Nothing, |(received, _)| outcome(received, seen)))
}

/// What recvmsg(2) receives without room for descriptors: how many bytes, and its flags. `None` where there is nothing yet.
fn without_control(
    socket: &OwnedFd,
    buffer: &mut [u8],
    flags: libc::c_int,
) -> Result<Option<(usize, libc::c_int)>, SocketError> {
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero bytes are a msghdr: numbers and null pointers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    // SAFETY: the header names a buffer that is this function's alone for the call, with its length, and no control buffer.
    let received = unsafe { call(socket, &mut message, flags)? };
    Ok(received.map(|received| (received, message.msg_flags)))
}

const fn outcome(received: usize, buffer: &[u8]) -> Received {
    if received > 0 {
        Received::Bytes(received)
    } else if buffer.is_empty() {
        Received::Nothing
    } else {
        Received::End
    }
}

/// recvmsg(2); `None` where there is nothing yet.
///
/// # Safety
/// `message` names memory that may be written.
unsafe fn call(
    socket: &OwnedFd,
    message: &mut libc::msghdr,
    flags: libc::c_int,
) -> Result<Option<usize>, SocketError> {
    loop {
        // SAFETY: as the caller promises.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), message, flags) };
        match Errno::result(received) {
            Ok(received) => return Ok(Some(received as usize)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(SocketError::os("receiving")(errno)),
        }
    }
}

/// Makes every descriptor of the message owned.
///
/// # Safety
/// `message` is as recvmsg(2) left it, its control buffer is alive, and this is called once for it.
unsafe fn take(message: &libc::msghdr, descriptors: &mut Vec<OwnedFd>) {
    // SAFETY: the walk stays inside the control buffer, which the kernel filled with whole control messages.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = header.as_ref() {
            if control.cmsg_level == libc::SOL_SOCKET && control.cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(control);
                let head = data.offset_from_unsigned(ptr::from_ref(control).cast());
                let length: usize = control.cmsg_len as _;
                let length = length.saturating_sub(head);
                for index in 0..length / size_of::<RawFd>() {
                    let raw = data
                        .add(index * size_of::<RawFd>())
                        .cast::<[u8; 4]>()
                        .read();
                    descriptors.push(OwnedFd::from_raw_fd(RawFd::from_ne_bytes(raw)));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}
