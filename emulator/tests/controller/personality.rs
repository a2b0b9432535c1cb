//! What a controller is called, and what it does not offer.

use nvme_vfio_emulator::{Config, Emulator, Names, NamespaceConfig, NamespaceNames, Offers};

use crate::host::{Host, command, u16_at, with};

fn host(config: Config) -> Host {
    let mut host = Host::of(Emulator::new(config).unwrap());
    host.enable();
    host.create_queue(1, 16);
    host
}

/// Two namespaces: one with names of its own.
fn named() -> Config {
    let one = |nsid| NamespaceConfig {
        nsid,
        size: 1 << 20,
        lba: 512,
    };
    let names = NamespaceNames {
        eui64: None,
        nguid: Some(*b"0123456789abcdef"),
        uuid: Some([0x77; 16]),
    };
    Config {
        namespaces: vec![one(1), one(2)],
        names: Names {
            subnqn: Some("nqn.2014-08.org.nvmexpress:uuid:x".into()),
            cntlid: 0x102,
            namespaces: [(1, names)].into(),
        },
        ..Config::default()
    }
}

#[test]
fn names_are_what_they_are_given() {
    let mut host = host(named());
    let (_, page) = host.identify(1, 0);
    assert_eq!(u16_at(&page, 78), 0x102);
    assert_eq!(&page[768..802], b"nqn.2014-08.org.nvmexpress:uuid:x\0");
    let (_, page) = host.identify(0, 1);
    assert_eq!(&page[104..120], b"0123456789abcdef");
    assert_eq!(page[120..128], [0; 8]);
    let (_, page) = host.identify(3, 1);
    assert_eq!(&page[..20], b"\x02\x10\0\x000123456789abcdef");
    assert_eq!(page[20..24], [3, 16, 0, 0]);
    assert_eq!(page[24..40], [0x77; 16]);
    assert_eq!(page[40..48], [4, 1, 0, 0, 0, 0, 0, 0]);
    // The other has those that follow from the serial number.
    let (_, page) = host.identify(3, 2);
    assert_eq!(page[..2], [1, 8]);
    assert_eq!(page[12..14], [2, 16]);
    let (_, page) = host.identify(0x13, 0);
    assert_eq!((u16_at(&page, 0), u16_at(&page, 2)), (1, 0x102));
    let (_, page) = host.identify(0x12, 1);
    assert_eq!((u16_at(&page, 0), u16_at(&page, 2)), (1, 0x102));
}

#[test]
fn a_namespace_that_is_created_anew_is_another() {
    let mut host = host(named());
    let mut delete = command(0x0d, 1);
    delete[10] = 1;
    host.admin(delete);
    let mut data = vec![0; 4096];
    for offset in [0, 8] {
        data[offset..offset + 2].copy_from_slice(&2048u16.to_le_bytes());
    }
    let created = host.run_with(0, command(0x0d, 0), &data);
    assert_eq!((created.status, created.result), (0, 1));
    let (_, page) = host.identify(0x11, 1);
    assert_ne!(&page[104..120], b"0123456789abcdef");
}

#[test]
fn names_that_cannot_be_are_refused() {
    let with = |change: fn(&mut Config)| {
        let mut config = named();
        change(&mut config);
        config.check()
    };
    assert!(with(|_| {}).is_ok());
    assert!(with(|config| config.names.cntlid = 0xffef).is_ok());
    assert!(with(|config| config.names.cntlid = 0xfff0).is_err());
    assert!(with(|config| config.names.subnqn = Some("iqn.x".into())).is_err());
    assert!(with(|config| config.names.subnqn = Some("nqn.\0".into())).is_err());
    let long = |config: &mut Config| config.names.subnqn = Some(format!("nqn.{}", "x".repeat(220)));
    assert!(with(long).is_err());
    assert!(with(|config| config.offers = Offers::NAMESPACE_ZEROES).is_err());
}

#[test]
fn what_is_not_offered_is_not_told_of_and_not_done() {
    let all = [
        (Offers::FORMAT, 0, 0x80),
        (Offers::FIRMWARE, 0, 0x10),
        (Offers::FIRMWARE, 0, 0x11),
        (Offers::NAMESPACE_MANAGEMENT, 0, 0x0d),
        (Offers::NAMESPACE_MANAGEMENT, 0, 0x15),
        (Offers::SHADOW_DOORBELLS, 0, 0x7c),
        (Offers::COMPARE, 1, 0x05),
        (Offers::WRITE_UNCORRECTABLE, 1, 0x04),
        (Offers::DATASET_MANAGEMENT, 1, 0x09),
        (Offers::WRITE_ZEROES, 1, 0x08),
        (Offers::VERIFY, 1, 0x0c),
        (Offers::COPY, 1, 0x19),
    ];
    let mut nothing = host(Config {
        offers: Offers::empty(),
        ..Config::default()
    });
    let mut usual = host(Config::default());
    let (_, page) = nothing.identify(1, 0);
    assert_eq!(
        (u16_at(&page, 256), u16_at(&page, 520)),
        (0, 0),
        "OACS and ONCS"
    );
    assert_eq!((page[260], page[524], u16_at(&page, 534)), (3, 0, 0));
    let (_, effects) = nothing.log(5, 4096, 0, 0);
    for (offer, qid, opcode) in all {
        for bits in [0, 1 << 8, 1 << 14] {
            let mut entry = command(opcode, 1);
            entry[0] |= bits;
            assert_eq!(nothing.refused(qid, entry), 0x001, "{opcode:02x}");
        }
        let place = usize::from(qid) * 1024 + usize::from(opcode) * 4;
        assert_eq!(effects[place], 0, "{opcode:02x}");
        // With it, it is there.
        let mut without = host(Config {
            offers: Offers::all() - offer - Offers::NAMESPACE_ZEROES,
            ..Config::default()
        });
        assert_eq!(without.refused(qid, command(opcode, 1)), 0x001);
        let entry = usual.run(qid, command(opcode, 1));
        assert_ne!(entry.status, 0x001, "{opcode:02x}");
        assert_ne!(usual.log(5, 4096, 0, 0).1[place], 0, "{opcode:02x}");
        if opcode == 0x0d || opcode == 0x80 {
            usual = host(Config::default());
        }
    }
    // What is always there.
    for opcode in [0x00, 0x02] {
        assert_ne!(nothing.run(1, command(opcode, 1)).status, 0x001);
    }
    // Features: the timestamp, and those that are saved.
    assert_eq!(nothing.refused(0, with(command(0x0a, 0), 10, 0x0e)), 0x002);
    assert_eq!(nothing.refused(0, with(command(0x0a, 0), 10, 0x104)), 0x002);
    assert_eq!(
        nothing.refused(0, with(command(0x09, 0), 10, 1 << 31 | 4)),
        0x10d
    );
    usual.admin(with(command(0x0a, 0), 10, 0x104));
    // The whole namespace.
    let mut zeroes = host(Config {
        offers: Offers::all() - Offers::NAMESPACE_ZEROES,
        ..Config::default()
    });
    assert_eq!(
        zeroes.refused(1, with(command(0x08, 1), 12, 1 << 23)),
        0x002
    );
    assert_eq!(zeroes.run(1, command(0x08, 1)).status, 0);
}
