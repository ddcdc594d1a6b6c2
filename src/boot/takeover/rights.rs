//! Descriptors over a Unix socket, and who is at its other end.
//!
//! ```text
//!   send     [byte | fd fd …] [byte | fd …]      each byte carries up to RIGHTS_MAX descriptors (SCM_RIGHTS)
//!   receive  exactly as many as were announced; whatever else comes is closed again, and is an error
//! ```

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Descriptors in one message; the kernel's own bound is 253.
const RIGHTS_MAX: usize = 64;
/// The byte that carries them: a message without data would be none.
const CARRIER: u8 = b'+';
// SAFETY: computes a number.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE((RIGHTS_MAX * size_of::<RawFd>()) as u32) } as usize;

/// Room for the control part of a message, aligned as its header.
#[repr(C, align(16))]
struct ControlPart([u8; CONTROL_BYTES]);

const _: () = assert!(align_of::<ControlPart>() >= align_of::<libc::cmsghdr>());

/// A process at the other end of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Process {
    pub pid: u32,
    pub uid: u32,
}

/// Gives copies of descriptors to whoever reads `stream`.
pub(super) fn send(stream: &UnixStream, descriptors: &[OwnedFd]) -> io::Result<()> {
    descriptors.chunks(RIGHTS_MAX).try_for_each(|some| send_some(stream, some))
}

/// Takes `count` descriptors that the other end sends with [`send`].
pub(super) fn receive(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let wanted = (count - taken.len()).min(RIGHTS_MAX);
        let some = receive_some(stream)?;
        if some.len() != wanted {
            let why = format!("{} descriptors came where {wanted} were announced", some.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        taken.extend(some);
    }
    Ok(taken)
}

/// The process that made the other end, as the kernel knows it.
pub(super) fn process_at(stream: &UnixStream) -> io::Result<Process> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `found` is writable and as long as `bytes` says.
    let failed = unsafe {
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        libc::getsockopt(stream.as_raw_fd(), level, option, (&raw mut found).cast(), &raw mut bytes)
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Process { pid: u32::try_from(found.pid).unwrap_or_default(), uid: found.uid })
}

/// Who this process works for.
pub(super) fn own_uid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// A message head over one byte and a control part. Both outlive its use.
fn head_over(byte: &mut libc::iovec, control: &mut ControlPart, control_bytes: usize) -> libc::msghdr {
    // SAFETY: a plain C structure for which all zeroes is a valid value.
    let mut head: libc::msghdr = unsafe { std::mem::zeroed() };
    head.msg_iov = &raw mut *byte;
    head.msg_iovlen = 1;
    head.msg_control = control.0.as_mut_ptr().cast();
    head.msg_controllen = control_bytes as _;
    head
}

fn send_some(stream: &UnixStream, descriptors: &[OwnedFd]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let bytes = size_of_val(numbers.as_slice());
    let mut carrier = [CARRIER];
    let mut byte = libc::iovec { iov_base: carrier.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = ControlPart([0; CONTROL_BYTES]);
    // SAFETY: computes a number.
    let space = unsafe { libc::CMSG_SPACE(bytes as u32) } as usize;
    let head = head_over(&mut byte, &mut control, space);
    // SAFETY: the control part is aligned and has room for a header and RIGHTS_MAX numbers, of which there are no more.
    unsafe {
        let part = libc::CMSG_FIRSTHDR(&raw const head);
        (*part).cmsg_level = libc::SOL_SOCKET;
        (*part).cmsg_type = libc::SCM_RIGHTS;
        (*part).cmsg_len = libc::CMSG_LEN(bytes as u32) as _;
        std::ptr::copy_nonoverlapping(numbers.as_ptr().cast::<u8>(), libc::CMSG_DATA(part), bytes);
    }
    loop {
        // SAFETY: all that `head` points to is alive in this frame.
        match unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const head, libc::MSG_NOSIGNAL) } {
            1 => return Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

fn receive_some(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut carrier = [0];
    let mut byte = libc::iovec { iov_base: carrier.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = ControlPart([0; CONTROL_BYTES]);
    let mut head = head_over(&mut byte, &mut control, CONTROL_BYTES);
    // SAFETY: all that `head` points to is alive in this frame and writable.
    while unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut head, libc::MSG_CMSG_CLOEXEC) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // Owned before anything is judged: what is not wanted is closed with them.
    let mut taken = Vec::new();
    // SAFETY: the kernel wrote the control part and its length into `head`; the macros stay inside of it, and each number is
    // a descriptor that this process has just been given and that nobody else owns.
    unsafe {
        let mut part = libc::CMSG_FIRSTHDR(&raw const head);
        while !part.is_null() {
            if ((*part).cmsg_level, (*part).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = (*part).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let numbers = libc::CMSG_DATA(part).cast::<RawFd>();
                for at in 0..bytes / size_of::<RawFd>() {
                    taken.push(OwnedFd::from_raw_fd(numbers.add(at).read_unaligned()));
                }
            }
            part = libc::CMSG_NXTHDR(&raw const head, part);
        }
    }
    let odd = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
    match carrier {
        [CARRIER] if head.msg_flags & libc::MSG_CTRUNC != 0 => {
            odd("more descriptors came than fit, or than may be open")
        }
        [CARRIER] => Ok(taken),
        [0] if taken.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => odd("something else came where descriptors were announced"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pipes(count: usize) -> (Vec<io::PipeReader>, Vec<OwnedFd>) {
        (0..count).map(|_| io::pipe().unwrap()).map(|(reader, writer)| (reader, OwnedFd::from(writer))).unzip()
    }

    #[test]
    fn descriptors_arrive_in_order_beside_what_else_is_said() {
        for count in [0, 1, RIGHTS_MAX - 1, RIGHTS_MAX, RIGHTS_MAX + 1, 3 * RIGHTS_MAX] {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            let (mut readers, writers) = pipes(count);
            here.write_all(b"before").unwrap();
            send(&here, &writers).unwrap();
            here.write_all(b"after").unwrap();
            drop(writers);
            let mut text = [0; 6];
            there.read_exact(&mut text).unwrap();
            let taken = receive(&there, count).unwrap();
            for (at, writer) in taken.into_iter().enumerate() {
                // SAFETY: asks for a flag of an open descriptor.
                let flags = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETFD) };
                assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
                io::PipeWriter::from(writer).write_all(&[at as u8]).unwrap();
            }
            for (at, reader) in readers.iter_mut().enumerate() {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes, [at as u8], "every copy is closed: the sender's and the receiver's");
            }
            let mut text = [0; 5];
            there.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"after");
        }
    }

    #[test]
    fn what_was_not_announced_is_an_error_and_closed() {
        for (sent, announced) in [(2, 1), (1, 2), (RIGHTS_MAX + 2, RIGHTS_MAX + 1)] {
            let (here, there) = UnixStream::pair().unwrap();
            let (mut readers, writers) = pipes(sent);
            send(&here, &writers).unwrap();
            drop((writers, here));
            receive(&there, announced).unwrap_err();
            for reader in &mut readers {
                assert_eq!(reader.read(&mut [0]).unwrap(), 0, "nobody holds it any more");
            }
        }
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"words").unwrap();
        assert_eq!(receive(&there, 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(Some(std::time::Duration::from_millis(20))).unwrap();
        assert_eq!(receive(&here, 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(there);
        assert_eq!(receive(&here, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_kernel_says_who_is_there() {
        let (here, _there) = UnixStream::pair().unwrap();
        assert_eq!(process_at(&here).unwrap(), Process { pid: std::process::id(), uid: own_uid() });
    }
}
