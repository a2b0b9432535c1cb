//! Every class, under every grant, at the edges of the slice, against a judge written another way.

use super::*;
use crate::client::{Client, ClientId, Identity};
use crate::command::{
    Access, Class, ClassSet, CommandSet, DecodedCommand, Direction, Extent, Flags, Persistence,
    QueueKind, Scope,
};
use crate::reason::Reason;
use crate::verdict::{Policy, Verdict};

const ACCESSES: [Access; 7] = [
    Access::Read,
    Access::Probe,
    Access::Write,
    Access::Zero,
    Access::Deallocate,
    Access::Hint,
    Access::Poison,
];

const SCOPES: [Scope; 6] = [
    Scope::Extents,
    Scope::Namespace,
    Scope::AllNamespaces,
    Scope::VirtualController,
    Scope::Controller,
    Scope::Subsystem,
];

/// Blocks of the client's namespace 3.
const BLOCKS: u64 = 100;

fn client(id: u16) -> Client {
    Client {
        id: ClientId(id),
        name: "a".into(),
        identity: Identity::default(),
    }
}

fn command<'a>(class: Class, nsid: u32, scope: Scope, extents: &'a [Extent]) -> DecodedCommand<'a> {
    DecodedCommand {
        queue: QueueKind::Io,
        opcode: 0,
        name: "a command",
        class,
        direction: Direction::None,
        nsid,
        extents,
        scope,
        persistence: Persistence::None,
        length: 0,
        flags: Flags::empty(),
        selector: 0,
        detail: "",
        operands: [0; 8],
    }
}

fn extent(first: u64, blocks: u64, access: Access) -> Extent {
    Extent {
        nsid: 3,
        first,
        blocks,
        access,
    }
}

/// The policy of one client with namespace 3 of [`BLOCKS`] blocks, and these classes on it.
fn policy(mode: &str, allow: ClassSet) -> GroupPolicy {
    let words: Vec<String> = words(allow)
        .iter()
        .map(|word| format!("'{word}'"))
        .collect();
    let policy = emulated(&format!(
        "[[client]]\nname='a'\nuid=[1]\nmode='{mode}'\n[[client.namespace]]\nnsid=3\nsource=[{{nsid=3}}]\nallow=[{}]\n",
        words.join(",")
    ));
    let facts = ControllerFacts {
        io_queues: 1,
        queue_entries: 1024,
        namespaces: vec![NamespaceFacts {
            nsid: 3,
            command_set: CommandSet::NVM,
            blocks: BLOCKS,
            block_size: 512,
            ..NamespaceFacts::default()
        }],
        ..ControllerFacts::default()
    };
    GroupPolicy::new(&policy.resolve(&[facts], &Budget::default()).unwrap())
}

/// The word that must be in `allow` for blocks to be touched in that way.
fn word_of(access: Access) -> &'static str {
    match access {
        Access::Read | Access::Probe => "read",
        Access::Write => "write",
        Access::Zero => "write-zeroes",
        Access::Deallocate | Access::Hint => "deallocate",
        Access::Poison => "poison",
    }
}

/// What a policy with that `allow` says of a command with one extent on namespace 3, all in words.
fn judged(observe: bool, allow: &[&str], class: Class, scope: Scope, extent: &Extent) -> Verdict {
    let deny = |reason: Reason| Verdict::Deny(reason.refusal());
    let word = match class {
        Class::BlockStatus => "read",
        Class::Virtual if scope == Scope::VirtualController => return Verdict::Allow,
        Class::Virtual | Class::Information | Class::Owner | Class::Vendor => {
            return deny(Reason::OwnerOnly);
        }
        class => grantable().find(|(_, other)| *other == class).unwrap().0,
    };
    if ["format", "firmware", "security", "namespace-management"].contains(&word) {
        return match scope {
            _ if !allow.contains(&word) => deny(Reason::ClassNotGranted),
            Scope::AllNamespaces if !allow.contains(&"format") => deny(Reason::AllNamespaces),
            _ => Verdict::Allow,
        };
    }
    if ![Scope::Extents, Scope::Namespace].contains(&scope) {
        return deny(Reason::OwnerOnly);
    }
    let blocks: Vec<u128> = [extent.first, extent.blocks].map(u128::from).into();
    if blocks[0] + blocks[1] > u128::from(BLOCKS) {
        return deny(Reason::OutOfRange);
    }
    let reason = if !allow.contains(&word) {
        Reason::ClassNotGranted
    } else if !allow.contains(&word_of(extent.access)) {
        Reason::AccessNotGranted
    } else {
        return Verdict::Allow;
    };
    if observe {
        Verdict::Observe(reason.refusal())
    } else {
        deny(reason)
    }
}

#[test]
fn every_class_under_every_grant_at_the_edges() {
    // Each class alone, each missing alone, all, and the pairs of which a command needs both.
    let mut grants: Vec<ClassSet> = ClassSet::all().iter().collect();
    grants.extend(ClassSet::all().iter().map(|one| ClassSet::all() - one));
    grants.push(ClassSet::all());
    grants.push(ClassSet::all() - ClassSet::OPERATOR);
    for one in ClassSet::all().iter() {
        grants.push(one | ClassSet::READ | ClassSet::WRITE);
    }
    let edges = [
        (0, 1),
        (0, BLOCKS),
        (BLOCKS - 1, 1),
        (BLOCKS, 0),
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (BLOCKS + 1, 0),
        (0, BLOCKS + 1),
        (1, BLOCKS),
        (u64::MAX, 1),
        (1, u64::MAX),
        (u64::MAX, u64::MAX),
        (u64::MAX - BLOCKS, BLOCKS + 1),
    ];
    let mut seen = std::collections::HashMap::new();
    for mode in ["enforce", "observe"] {
        for allow in &grants {
            let policy = policy(mode, *allow);
            let allow = words(*allow);
            for class in Class::ALL {
                for scope in SCOPES {
                    for access in ACCESSES {
                        for (first, blocks) in edges {
                            let extents = [extent(first, blocks, access)];
                            let command = command(class, 3, scope, &extents);
                            let verdict = policy.authorize(&command, &client(0));
                            let wanted =
                                judged(mode == "observe", &allow, class, scope, &extents[0]);
                            assert_eq!(verdict, wanted, "{mode} {allow:?} {command:?}");
                            *seen.entry(format!("{verdict:?}")).or_insert(0u32) += 1;
                        }
                    }
                }
            }
        }
    }
    // Every kind of verdict came up.
    assert_eq!(seen.len(), 8, "{seen:?}");
}

#[test]
fn a_namespace_that_is_not_granted_is_none_whatever_the_mode() {
    for mode in ["enforce", "observe"] {
        let policy = policy(mode, ClassSet::all());
        let none = Verdict::Deny(Reason::NamespaceNotGranted.refusal());
        for nsid in [0, 1, 2, 4, 1024, u32::MAX - 1, u32::MAX] {
            for class in Class::ALL {
                let command = command(class, nsid, Scope::Namespace, &[]);
                let verdict = policy.authorize(&command, &client(0));
                let owner = Verdict::Deny(Reason::OwnerOnly.refusal());
                let wanted = match class {
                    Class::Virtual | Class::Information | Class::Owner | Class::Vendor => owner,
                    _ => none,
                };
                assert_eq!(verdict, wanted, "{class:?} on namespace {nsid}");
            }
        }
        // Nor does an extent reach another namespace than the command names.
        let mut there = extent(0, 1, Access::Read);
        there.nsid = 4;
        for extents in [
            [extent(0, 1, Access::Read), there],
            [there, extent(0, 1, Access::Read)],
        ] {
            let command = command(Class::Copy, 3, Scope::Extents, &extents);
            assert_eq!(policy.authorize(&command, &client(0)), none);
        }
    }
}

#[test]
fn every_extent_counts() {
    let read_write_copy = ClassSet::READ | ClassSet::WRITE | ClassSet::COPY;
    let all = policy("enforce", read_write_copy);
    let inside = [
        extent(0, 10, Access::Write),
        extent(90, 5, Access::Read),
        extent(95, 5, Access::Read),
    ];
    let judge = |policy: &GroupPolicy, extents: &[Extent]| {
        policy.authorize(
            &command(Class::Copy, 3, Scope::Extents, extents),
            &client(0),
        )
    };
    assert_eq!(judge(&all, &inside), Verdict::Allow);
    for index in 0..3 {
        let mut extents = inside;
        extents[index].first = 96;
        assert_eq!(
            judge(&all, &extents),
            Verdict::Deny(Reason::OutOfRange.refusal())
        );
        let mut extents = inside;
        extents[index].access = Access::Poison;
        assert_eq!(
            judge(&all, &extents),
            Verdict::Deny(Reason::AccessNotGranted.refusal())
        );
    }
    // Outside comes before everything that observing would forgive.
    let observed = policy("observe", ClassSet::READ);
    let mut extents = inside;
    extents[2].first = 96;
    assert_eq!(
        judge(&observed, &extents),
        Verdict::Deny(Reason::OutOfRange.refusal())
    );
    assert_eq!(
        judge(&observed, &inside),
        Verdict::Observe(Reason::ClassNotGranted.refusal())
    );
}

#[test]
fn a_client_that_the_policy_has_not_may_nothing() {
    let policy = policy("observe", ClassSet::all());
    for class in Class::ALL {
        let command = command(class, 3, Scope::VirtualController, &[]);
        let verdict = policy.authorize(&command, &client(1));
        assert_eq!(
            verdict,
            Verdict::Deny(Reason::ClassNotGranted.refusal()),
            "{class:?}"
        );
    }
}

#[test]
fn commands_of_the_whole_controller_name_no_namespace_or_a_granted_one() {
    let policy = policy("enforce", ClassSet::all());
    let of = |class, nsid, scope| policy.authorize(&command(class, nsid, scope, &[]), &client(0));
    for class in [Class::Format, Class::Firmware, Class::Security] {
        for scope in [Scope::Controller, Scope::Subsystem] {
            assert_eq!(of(class, 0, scope), Verdict::Allow);
            assert_eq!(of(class, 3, scope), Verdict::Allow);
            assert_eq!(
                of(class, 4, scope),
                Verdict::Deny(Reason::NamespaceNotGranted.refusal())
            );
        }
    }
    // One that is being attached has not been granted, as it is not there.
    assert_eq!(
        of(Class::NamespaceManagement, 4, Scope::Subsystem),
        Verdict::Allow
    );
    let deleted = of(Class::NamespaceManagement, 4, Scope::Namespace);
    assert_eq!(
        deleted,
        Verdict::Deny(Reason::NamespaceNotGranted.refusal())
    );
}

#[test]
fn an_operator_class_reaches_no_namespace_on_which_it_was_not_granted() {
    let policy = emulated(
        "[[client]]\nname='a'\nuid=[1]\n\
         [[client.namespace]]\nnsid=3\nsource=[{nsid=3}]\nallow=['read','format']\n\
         [[client.namespace]]\nnsid=4\nsource=[{nsid=4}]\nallow=['read']\n",
    );
    let namespace = |nsid| NamespaceFacts {
        nsid,
        blocks: BLOCKS,
        block_size: 512,
        ..NamespaceFacts::default()
    };
    let facts = ControllerFacts {
        io_queues: 1,
        queue_entries: 64,
        namespaces: vec![namespace(3), namespace(4)],
        ..ControllerFacts::default()
    };
    let policy = GroupPolicy::new(&policy.resolve(&[facts], &Budget::default()).unwrap());
    let of = |nsid, scope| policy.authorize(&command(Class::Format, nsid, scope, &[]), &client(0));
    assert_eq!(of(3, Scope::Namespace), Verdict::Allow);
    let not_granted = Verdict::Deny(Reason::ClassNotGranted.refusal());
    assert_eq!(of(4, Scope::Namespace), not_granted);
    // A format that turns out to be one of all.
    let all = Verdict::Deny(Reason::AllNamespaces.refusal());
    assert_eq!(of(3, Scope::AllNamespaces), all);
}

#[test]
fn the_owner_may_all_that_has_a_decoder() {
    for class in Class::ALL {
        let verdict = OwnerPolicy.authorize(&command(class, 9, Scope::Subsystem, &[]), &client(7));
        let virtual_only = Verdict::Deny(Reason::NeverPasses.refusal());
        assert_eq!(
            verdict,
            if class == Class::Virtual {
                virtual_only
            } else {
                Verdict::Allow
            }
        );
    }
}
