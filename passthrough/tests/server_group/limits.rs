//! What a client may lend, and how much of it.

use std::fs::File;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nvme_vfio_user::message::DmaAccess;
use nvme_vfio_user::{Client, ClientOptions};
use serde_json::json;

use crate::place::Place;

const ONE: &str = r#"
[[client]]
name = "vm-a"
uid = [UID]
limits = { memory = "1MiB", mappings = 3 }
[[client.namespace]]
nsid = 1
source = [{ nsid = 1, start = 0, blocks = 1000 }]
allow = ["read"]
"#;

fn memory(bytes: u64, sealed: bool) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"lent", flags).unwrap());
    file.set_len(bytes).unwrap();
    if sealed {
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    }
    file
}

fn lend(client: &Client, iova: u64, bytes: u64, sealed: bool) -> bool {
    let file = memory(bytes, sealed);
    let lent = client.dma_map(iova, bytes, DmaAccess::all(), Some((file.as_fd(), 0)));
    lent.is_ok()
}

#[test]
fn memory_is_taken_as_far_as_the_policy_allows_and_no_further() {
    let place = Place::new("emulated:size=64M", ONE);
    let serving = place.serve();
    let connect = || Client::connect(&place.socket("vm-a"), &ClientOptions::default()).unwrap();

    let client = connect();
    assert!(!lend(&client, 0x10_0000, 4096, false), "it could be cut");
    place.until_told(
        "memory-refused",
        &[("client", json!("vm-a")), ("bytes", json!(4096))],
    );
    assert!(lend(&client, 0x10_0000, 4096, true));
    assert!(
        !lend(&client, 0x100_0000, 1 << 20, true),
        "more than a mebibyte together"
    );
    assert!(lend(&client, 0x100_0000, (1 << 20) - 4096, true));
    drop(client);

    let client = connect();
    for index in 0..3 {
        assert!(lend(&client, 0x10_0000 + index * 4096, 4096, true));
    }
    assert!(!lend(&client, 0x20_0000, 4096, true), "the fourth mapping");
    client.dma_unmap(0x10_0000, 4096).unwrap();
    assert!(lend(&client, 0x20_0000, 4096, true));
    drop(client);
    serving.finish().unwrap();
}
