use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::client::ClientId;
use crate::command::{Class, CommandSet};
use crate::policy::{Budget, ControllerFacts, NamespaceFacts, OwnerPolicy, PolicyFile};
use crate::reason::Reason;

const GEOMETRY: Geometry = Geometry {
    command_set: CommandSet::NVM,
    blocks: 100,
    block_shift: 9,
    max_transfer: 1 << 20,
    max_blocks: 65_536,
    copy_ranges: 8,
    copy_range_blocks: 16,
    copy_blocks: 64,
};

fn client() -> Client {
    Client {
        id: ClientId(0),
        name: "a".into(),
        identity: Identity::default(),
    }
}

fn gate(mode: &str) -> Gate {
    let policy = format!(
        "controller=['emulated']\ndirectory='/r'\naudit={{path='a'}}\n[[client]]\nname='a'\nuid=[1]\nmode='{mode}'\n[[client.namespace]]\nnsid=1\nsource=[{{nsid=1}}]\nallow=['read','deallocate']\n"
    );
    let facts = ControllerFacts {
        io_queues: 1,
        queue_entries: 64,
        namespaces: vec![NamespaceFacts {
            nsid: 1,
            blocks: 100,
            block_size: 512,
            ..NamespaceFacts::default()
        }],
        ..ControllerFacts::default()
    };
    let policy = PolicyFile::parse(&policy, Path::new("/")).unwrap();
    let resolved = policy.resolve(&[facts], &Budget::default()).unwrap();
    let policy = Arc::new(GroupPolicy::new(&resolved));
    Gate::new(policy, client(), Decoder::new(), ClientAudit::detached("a"))
}

fn entry(opcode: u32, lba: u32, blocks: u32) -> [u32; 16] {
    let mut entry = [0; 16];
    (entry[0], entry[1], entry[10], entry[12]) = (opcode, 1, lba, blocks.wrapping_sub(1));
    entry
}

fn io<'a, P: Policy + ?Sized>(
    gate: &'a mut Gate<P>,
    entry: &[u32; 16],
) -> Result<Passed<'a>, Refusal> {
    gate.check(QueueKind::Io, Some(&GEOMETRY), entry, &[], Instant::now())
}

#[test]
fn what_passes_is_what_was_decoded() {
    let mut gate = gate("enforce");
    let passed = io(&mut gate, &entry(0x02, 92, 8)).unwrap();
    let command = passed.command();
    assert_eq!(
        (command.class, command.nsid, command.length),
        (Class::Read, 1, 4096)
    );
    assert_eq!(
        (command.extents[0].first, command.extents[0].blocks),
        (92, 8)
    );
    assert_eq!(gate.audit.counts().reads, 1);
}

#[test]
fn decoder_and_policy_both_refuse_and_the_audit_has_each_once() {
    let mut gate = gate("enforce");
    let refusals = |gate: &Gate| gate.audit.counts().refused;
    // The decoder: outside, a reserved bit, no opcode.
    assert_eq!(
        io(&mut gate, &entry(0x02, 93, 8)).unwrap_err().reason,
        Reason::OutOfRange
    );
    assert_eq!(refusals(&gate), 1);
    let mut reserved = entry(0x02, 0, 1);
    reserved[12] |= 1 << 16;
    assert!(io(&mut gate, &reserved).is_err());
    assert_eq!(
        io(&mut gate, &entry(0x7b, 0, 1)).unwrap_err().reason,
        Reason::UnknownOpcode
    );
    assert_eq!(refusals(&gate), 3);
    // The policy.
    let refusal = io(&mut gate, &entry(0x01, 0, 1)).unwrap_err();
    assert_eq!(refusal, Reason::ClassNotGranted.refusal());
    assert_eq!(refusals(&gate), 4);
    // Whoever could not ask.
    gate.refused(
        QueueKind::Io,
        &reserved,
        Reason::OutsideMemory.refusal(),
        Instant::now(),
    );
    assert_eq!(refusals(&gate), 5);
    assert_eq!(gate.audit.counts().reads, 0);
}

#[test]
fn observing_lets_a_missing_class_pass_and_nothing_else() {
    let mut gate = gate("observe");
    let mut passed = io(&mut gate, &entry(0x01, 0, 1)).unwrap();
    assert_eq!(passed.command().class, Class::Write);
    let started = passed.take_started().expect("what is observed is recorded");
    assert!(passed.take_started().is_none());
    gate.end(started, Status::SUCCESS, Instant::now());
    assert_eq!(
        io(&mut gate, &entry(0x01, 100, 1)).unwrap_err().reason,
        Reason::OutOfRange
    );
}

#[test]
fn a_list_is_part_of_what_is_decoded() {
    let mut gate = gate("enforce");
    let mut deallocate = entry(0x09, 0, 1);
    (deallocate[10], deallocate[11], deallocate[12]) = (0, 4, 0);
    let list = |first: u64, blocks: u32| {
        let mut list = [0u8; 16];
        list[4..8].copy_from_slice(&blocks.to_le_bytes());
        list[8..].copy_from_slice(&first.to_le_bytes());
        list
    };
    let mut check = |list: &[u8]| {
        let passed = gate.check(
            QueueKind::Io,
            Some(&GEOMETRY),
            &deallocate,
            list,
            Instant::now(),
        );
        passed.map(|passed| passed.command().extents[0].first)
    };
    assert_eq!(check(&list(99, 1)), Ok(99));
    assert_eq!(check(&list(99, 2)), Err(Reason::OutOfRange.refusal()));
    assert_eq!(check(&[]), Err(Reason::RangeList.refusal()));
}

/// Keeps whom it was asked about, and refuses.
#[derive(Debug, Default)]
struct Nosy(Mutex<Vec<(Identity, Class)>>);

impl Policy for Nosy {
    fn authorize(&self, command: &DecodedCommand<'_>, client: &Client) -> Verdict {
        let mut asked = self.0.lock().unwrap();
        asked.push((client.identity, command.class));
        Verdict::Deny(Reason::OwnerOnly.refusal())
    }
}

#[test]
fn any_policy_is_asked_about_whoever_is_connected_now() {
    let nosy = Arc::new(Nosy::default());
    let policy: Arc<dyn Policy> = nosy.clone();
    let mut gate = Gate::new(policy, client(), Decoder::new(), ClientAudit::detached("a"));
    let identity = Identity {
        uid: 7,
        gid: 8,
        pid: 9,
        start_time: 10,
    };
    gate.identify(identity);
    assert_eq!(gate.client().identity, identity);
    assert_eq!(
        io(&mut gate, &entry(0x02, 0, 1)).unwrap_err().reason,
        Reason::OwnerOnly
    );
    // What the decoder refuses no policy is asked about.
    assert!(io(&mut gate, &entry(0x02, 100, 1)).is_err());
    assert_eq!(*nosy.0.lock().unwrap(), [(identity, Class::Read)]);
    gate.replace(Arc::new(OwnerPolicy), Decoder::for_owner());
    assert!(io(&mut gate, &entry(0x02, 0, 1)).is_ok());
}

#[test]
fn what_the_own_controller_answers_passes_and_what_reaches_further_does_not() {
    let mut gate = gate("observe");
    let mut decoder = Decoder::new();
    let (mut answered, mut kept) = (0, 0);
    for opcode in 0..=0xff {
        for choice in (0..16).chain([0x0100, 0x0200, 0x1_0001]) {
            let mut entry = [0; 16];
            (entry[0], entry[10]) = (opcode, choice);
            let now = Instant::now();
            let Ok(command) = decoder.decode(QueueKind::Admin, None, &entry, &[]) else {
                continue;
            };
            let class = command.class;
            let passed = gate.check(QueueKind::Admin, None, &entry, &[], now);
            match class {
                Class::Virtual => {
                    assert!(passed.is_ok(), "{opcode:#04x} {choice:#x}: {passed:?}");
                    answered += 1;
                }
                _ => {
                    assert!(passed.is_err(), "{opcode:#04x} {choice:#x}: {passed:?}");
                    kept += 1;
                }
            }
        }
    }
    assert!(answered > 20 && kept > 5, "{answered} {kept}");
}
