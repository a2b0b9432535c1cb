//! Firmware Image Download and Firmware Commit.

use crate::host::*;

/// Downloads a piece that begins at a dword.
fn download(host: &mut Host, offset: u32, piece: &[u8]) -> u16 {
    let entry = with(command(0x11, 0), 10, piece.len() as u32 / 4 - 1);
    host.run_with(0, with(entry, 11, offset), piece).status
}

fn commit(host: &mut Host, action: u32, slot: u32) -> u16 {
    host.run(0, with(command(0x10, 0), 10, action << 3 | slot))
        .status
}

fn image(revision: &str) -> Vec<u8> {
    let mut image = revision.as_bytes().to_vec();
    image.resize(64, 0xee);
    image
}

/// Active slot, next slot, revisions.
fn slots(host: &mut Host) -> (u8, u8, [String; 3]) {
    let (status, log) = host.log(3, 512, 0, 0);
    assert_eq!(status, 0);
    let revision = |slot: usize| {
        let text = &log[8 * slot..][..8];
        String::from_utf8_lossy(text)
            .trim_matches(['\0', ' '])
            .into()
    };
    (log[0] & 7, log[0] >> 4, [1, 2, 3].map(revision))
}

fn running(host: &mut Host) -> String {
    let (_, page) = host.identify(1, 0);
    String::from_utf8_lossy(&page[64..72]).trim().into()
}

fn reset(host: &mut Host) {
    host.write(CC, 0);
    host.enable();
}

#[test]
fn images_are_committed_and_activated() {
    let mut host = Host::enabled("firmware=built-in");
    assert_eq!(running(&mut host), "built-in");
    let told = |revisions: [&str; 3]| revisions.map(String::from);
    // In pieces, in any order.
    let new = image("new-2   ");
    assert_eq!(download(&mut host, 8, &new[32..]), 0);
    assert_eq!(download(&mut host, 0, &new[..4]), 0);
    assert_eq!(download(&mut host, 1, &new[4..32]), 0);
    assert_eq!(commit(&mut host, 0, 2), 0);
    assert_eq!(
        slots(&mut host),
        (1, 0, told(["built-in", "new-2", ""])),
        "kept, not active"
    );
    reset(&mut host);
    assert_eq!(running(&mut host), "built-in");
    assert_eq!(commit(&mut host, 2, 2), 0);
    assert_eq!(slots(&mut host).1, 2, "active after a reset");
    assert_eq!(running(&mut host), "built-in");
    reset(&mut host);
    assert_eq!(running(&mut host), "new-2");
    assert_eq!(slots(&mut host).0, 2);
    assert_eq!(commit(&mut host, 3, 1), 0, "at once");
    assert_eq!(running(&mut host), "built-in");
    // The controller chooses the empty slot.
    assert_eq!(download(&mut host, 0, &image("third   ")), 0);
    assert_eq!(commit(&mut host, 1, 0), 0);
    assert_eq!(
        slots(&mut host),
        (1, 3, told(["built-in", "new-2", "third"]))
    );
    host.emulator.reset();
    host.emulator.config_write(4, &[6, 0]);
    host.enable();
    assert_eq!(running(&mut host), "third");
}

#[test]
fn downloads_and_commits_are_checked() {
    let mut host = Host::enabled("mdts=1");
    let good = image("good    ");
    assert_eq!(commit(&mut host, 0, 2), 0x107, "nothing was downloaded");
    assert_eq!(download(&mut host, 0, &good), 0);
    assert_eq!(download(&mut host, 0, &good[..4]), 0x114, "overlaps");
    assert_eq!(download(&mut host, 15, &good[..8]), 0x114);
    assert_eq!(download(&mut host, 17, &good[..4]), 0);
    assert_eq!(commit(&mut host, 0, 2), 0x107, "a gap");
    assert_eq!(download(&mut host, 1, &good), 0);
    assert_eq!(commit(&mut host, 0, 2), 0x107, "the beginning is missing");
    assert_eq!(download(&mut host, 0, &good[..4]), 0);
    assert_eq!(commit(&mut host, 0, 2), 0x107, "too short");
    assert_eq!(download(&mut host, 0, &image("b\u{7f}d     ")), 0);
    assert_eq!(commit(&mut host, 0, 2), 0x107, "not printable");
    for (action, slot, status) in [
        (0, 1, 0x106),
        (1, 1, 0x106),
        (0, 4, 0x106),
        (2, 0, 0x106),
        (3, 1, 0x106),
        (3, 7, 0x106),
        (2, 2, 0x107),
        (4, 2, 0x002),
        (5, 2, 0x002),
        (6, 2, 0x002),
        (7, 2, 0x002),
    ] {
        assert_eq!(download(&mut host, 0, &good), 0);
        assert_eq!(commit(&mut host, action, slot), status, "{action} {slot}");
        reset(&mut host);
    }
    assert_eq!(commit(&mut host, 3, 0), 0x106, "no image and no slot");
    assert_eq!(commit(&mut host, 3, 3), 0x107, "no image in the slot");
    assert_eq!(download(&mut host, 0, &good), 0);
    reset(&mut host);
    assert_eq!(commit(&mut host, 0, 2), 0x107, "a reset forgets it");
    let far = with(with(command(0x11, 0), 10, 0), 11, u32::MAX);
    assert_eq!(host.refused(0, far), 0x002);
    let more_than_mdts = with(command(0x11, 0), 10, 8192 / 4);
    assert_eq!(host.refused(0, more_than_mdts), 0x002);
    assert_eq!(host.refused(0, with(command(0x11, 0), 10, u32::MAX)), 0x002);
    let nowhere = with_prps(with(command(0x11, 0), 10, 15), 0x7000_0000, 0);
    assert_eq!(host.refused(0, nowhere), 0x004);
    assert_eq!(commit(&mut host, 0, 2), 0x107, "nothing came");
    for piece in 0..1024 {
        assert_eq!(download(&mut host, piece * 2, &good[..4]), 0);
    }
    assert_eq!(
        download(&mut host, 5000, &good[..4]),
        0x002,
        "too scattered"
    );
    assert_eq!(commit(&mut host, 0, 2), 0x107);
    assert_eq!(download(&mut host, 0, &good), 0);
    assert_eq!(commit(&mut host, 0, 2), 0);
}

#[test]
fn activation_at_once_takes_the_downloaded_image_first() {
    let mut host = Host::enabled("firmware=built-in");
    assert_eq!(download(&mut host, 0, &image("old     ")), 0);
    assert_eq!(commit(&mut host, 0, 2), 0);
    assert_eq!(download(&mut host, 0, &image("new     ")), 0);
    assert_eq!(commit(&mut host, 3, 2), 0);
    assert_eq!(running(&mut host), "new");
    assert_eq!(commit(&mut host, 0, 3), 0x107, "it is used up");
    assert_eq!(download(&mut host, 0, &image("third   ")), 0);
    assert_eq!(commit(&mut host, 3, 0), 0, "the controller chooses");
    assert_eq!(running(&mut host), "third");
    assert_eq!(slots(&mut host).0, 3);
}
