//! How clients' eventfds are signalled.

use std::io::{self, Write as _};

use nvme_vfio_user::Eventfd;

/// Makes what signals them, before anybody can connect and use up the system's room for it.
pub(super) fn prepare() {
    if let Err(errno) = Eventfd::prepare() {
        let _ = writeln!(
            io::stderr(),
            "warning: no asynchronous I/O ({errno}): each eventfd of a client takes a thread. Where fs.aio-nr is near fs.aio-max-nr, run: sysctl fs.aio-max-nr=1048576"
        );
    }
}
