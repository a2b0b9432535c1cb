//! The front end of a client's virtual controller: what its registers and Identify data say.

use nvme_vfio_emulator::{Config, LbaFormats, Names, NamespaceConfig, NamespaceNames, Offers};

use crate::command::ClassSet;
use crate::policy::ResolvedClient;

/// Bytes of the smallest memory page.
const PAGE: u32 = 4096;
/// The most that one command of a client may move, whatever its controllers allow: what one page of PRP list describes from any offset on.
const MOST_TRANSFER: u32 = 1 << 20;
/// Model Number of all clients' controllers.
const MODEL: &str = "nvme-vfio lent controller";
/// Interrupt vectors beside those of the I/O queues: the admin queue's.
const ADMIN_VECTORS: u16 = 1;

/// Bytes that one command may move (a power of two), where the controllers allow `allowed`: at least a page.
pub(super) fn max_transfer(allowed: Option<usize>) -> u32 {
    let allowed = allowed
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(MOST_TRANSFER)
        .clamp(PAGE, MOST_TRANSFER);
    1 << allowed.ilog2()
}

/// Interrupt vectors: one for each queue.
pub(super) fn vectors(client: &ResolvedClient) -> u16 {
    client.limits.queues.saturating_add(ADMIN_VECTORS)
}

/// What the front end is built of. `max_transfer` is a power of two of at least a page.
pub(super) fn config(client: &ResolvedClient, max_transfer: u32) -> Config {
    let limits = &client.limits;
    let mut sizes: Vec<u32> = client
        .namespaces
        .iter()
        .map(|namespace| 1 << namespace.block_shift)
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    Config {
        namespaces: client
            .namespaces
            .iter()
            .map(|namespace| NamespaceConfig {
                nsid: namespace.nsid,
                size: namespace.blocks << namespace.block_shift,
                lba: 1 << namespace.block_shift,
            })
            .collect(),
        lba_formats: LbaFormats::new(sizes).unwrap_or_default(),
        mdts: (max_transfer / PAGE).ilog2() as u8,
        mqes: u32::from(limits.depth).max(2),
        queues: limits.queues,
        vectors: vectors(client),
        serial: client.names.serial.clone(),
        model: MODEL.to_owned(),
        names: names(client),
        offers: offers(client),
        mappings: limits.mappings,
        ..Config::default()
    }
}

fn names(client: &ResolvedClient) -> Names {
    let namespaces = client.namespaces.iter().map(|namespace| {
        let names = NamespaceNames {
            eui64: None,
            nguid: Some(namespace.names.nguid),
            uuid: Some(namespace.names.uuid),
        };
        (namespace.nsid, names)
    });
    Names {
        subnqn: Some(client.names.subnqn.clone()),
        namespaces: namespaces.collect(),
        ..Names::default()
    }
}

/// The optional commands that the client was granted and the controllers have, and those that the front end has for itself. What reaches further than blocks is
/// never the front end's.
fn offers(client: &ResolvedClient) -> Offers {
    let offered = client
        .namespaces
        .iter()
        .fold(ClassSet::empty(), |all, namespace| all | namespace.offered);
    let granted = [
        (ClassSet::COMPARE, Offers::COMPARE),
        (ClassSet::POISON, Offers::WRITE_UNCORRECTABLE),
        (ClassSet::DEALLOCATE, Offers::DATASET_MANAGEMENT),
        (ClassSet::WRITE_ZEROES, Offers::WRITE_ZEROES),
        (ClassSet::VERIFY, Offers::VERIFY),
        (ClassSet::COPY, Offers::COPY),
    ];
    let own = Offers::SHADOW_DOORBELLS | Offers::TIMESTAMP | Offers::SAVED_FEATURES;
    let granted = granted.iter().filter(|(class, _)| offered.contains(*class));
    granted.fold(own, |all, (_, offer)| all | *offer)
}
