//! Serial number, NQN and identifiers of what a client sees: always the same for the same place in a policy.

use sha2::{Digest, Sha256};

/// What a client's virtual controller is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerNames {
    /// Serial Number (SN), 20 characters.
    pub serial: String,
    /// NVM Subsystem NVMe Qualified Name (SUBNQN), of the form with a UUID.
    pub subnqn: String,
}

/// What a client's namespace is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceNames {
    /// Namespace Globally Unique Identifier (NGUID), most significant byte first, with a locally administered company number.
    pub nguid: [u8; 16],
    /// Namespace UUID, version 8.
    pub uuid: [u8; 16],
}

/// Bytes 8 to 10 of an NGUID are a company number. This bit of the first says that it is locally administered, the one below that it is a group's.
const LOCAL: u8 = 0x02;
const GROUP: u8 = 0x01;

/// SHA-256 over parts, each with its length before it, so that no two lists of parts are alike.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn first<const N: usize>(digest: [u8; 32]) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, from) in bytes.iter_mut().zip(digest) {
        *byte = from;
    }
    bytes
}

/// A UUID of version 8 (RFC 9562) from a digest.
fn uuid(digest: [u8; 32]) -> [u8; 16] {
    let mut bytes: [u8; 16] = first(digest);
    bytes[6] = bytes[6] & 0x0f | 0x80; // INVARIANT: 16 bytes
    bytes[8] = bytes[8] & 0x3f | 0x80; // INVARIANT: 16 bytes
    bytes
}

/// A UUID as text.
#[must_use]
pub fn uuid_text(uuid: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The names of a client's controller.
pub(super) fn controller(group: &str, client: &str) -> ControllerNames {
    let of = |what: &[u8]| digest(&[b"nvme-vfio", what, group.as_bytes(), client.as_bytes()]);
    let serial: [u8; 10] = first(of(b"serial"));
    ControllerNames {
        serial: serial.iter().map(|byte| format!("{byte:02X}")).collect(),
        subnqn: format!(
            "nqn.2014-08.org.nvmexpress:uuid:{}",
            uuid_text(uuid(of(b"subsystem")))
        ),
    }
}

/// The names of a client's namespace.
pub(super) fn namespace(group: &str, client: &str, nsid: u32) -> NamespaceNames {
    let of = |what: &[u8]| {
        digest(&[
            b"nvme-vfio",
            what,
            group.as_bytes(),
            client.as_bytes(),
            &nsid.to_le_bytes(),
        ])
    };
    let mut nguid: [u8; 16] = first(of(b"nguid"));
    nguid[8] = nguid[8] & !GROUP | LOCAL; // INVARIANT: 16 bytes
    NamespaceNames {
        nguid,
        uuid: uuid(of(b"uuid")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_never_change() {
        // What guests have put into their boot configurations: not to be changed by a release.
        let names = controller("0000:01:00.0", "vm-a");
        assert_eq!(names.serial, "834FA15BA6BBF45F61A5");
        assert_eq!(
            names.subnqn,
            "nqn.2014-08.org.nvmexpress:uuid:cd4bd112-3933-8b2b-8e7c-9d6f86614e12"
        );
        let names = namespace("0000:01:00.0", "vm-a", 1);
        assert_eq!(
            uuid_text(names.nguid),
            "39ee28c4-e8e9-9674-96fa-a2a882756bc8"
        );
        assert_eq!(
            uuid_text(names.uuid),
            "588d3eda-c8b3-85ef-95c3-c72272df1849"
        );
    }

    #[test]
    fn every_place_has_its_own() {
        let mut seen = HashSet::new();
        for group in ["0000:01:00.0", "0000:01:00.1", "emulated"] {
            for client in ["a", "b", "0000:01:00.0a", "vm-a"] {
                let names = controller(group, client);
                assert_eq!(names.serial.len(), 20);
                assert!(names.serial.bytes().all(|byte| byte.is_ascii_graphic()));
                assert!(names.subnqn.len() < 224);
                assert!(seen.insert(names.serial) && seen.insert(names.subnqn));
                for nsid in 1..=3 {
                    let names = namespace(group, client, nsid);
                    assert_eq!(names.nguid[8] & 0x03, LOCAL);
                    assert_eq!((names.uuid[6] >> 4, names.uuid[8] >> 6), (8, 2));
                    assert!(seen.insert(uuid_text(names.nguid)));
                    assert!(seen.insert(uuid_text(names.uuid)));
                }
            }
        }
    }
}
