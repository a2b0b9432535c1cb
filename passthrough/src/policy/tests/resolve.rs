use super::*;
use crate::command::{ClassSet, CommandSet};

fn space(nsid: u32, blocks: u64) -> NamespaceFacts {
    NamespaceFacts {
        nsid,
        blocks,
        block_size: 512,
        dlfeat: 1,
        ..NamespaceFacts::default()
    }
}

/// A controller with two namespaces of 1,000 and 500 blocks, which has all optional commands.
fn facts() -> ControllerFacts {
    ControllerFacts {
        model: "M".into(),
        serial: "S".into(),
        subnqn: "nqn.x".into(),
        io_queues: 4,
        queue_entries: 1024,
        oacs: 0xf,
        oncs: 0x1ff,
        namespaces: vec![space(1, 1000), space(2, 500)],
        ..ControllerFacts::default()
    }
}

fn client(name: &str, keys: &str, namespaces: &[&str]) -> String {
    let mut text = format!("[[client]]\nname='{name}'\nuid=[1]\n{keys}\n");
    for namespace in namespaces {
        text += &format!("[[client.namespace]]\n{namespace}\n");
    }
    text
}

fn one(namespace: &str) -> PolicyFile {
    emulated(&client("a", "", &[namespace]))
}

fn resolve(policy: &PolicyFile, facts: ControllerFacts) -> Result<ResolvedPolicy, PolicyError> {
    policy.resolve(&[facts], &Budget::default())
}

/// The error and its line.
fn refused(policy: &PolicyFile, facts: ControllerFacts) -> (String, usize) {
    let error = match resolve(policy, facts) {
        Ok(resolved) => panic!("taken: {resolved:?}"),
        Err(error) => error,
    };
    (error.to_string(), error.place().line)
}

fn kinds(resolved: &ResolvedPolicy) -> Vec<&'static str> {
    resolved
        .warnings
        .iter()
        .map(|warning| warning.kind)
        .collect()
}

#[test]
fn slices_get_their_real_blocks() {
    let policy = one(
        "nsid=3\nsource=[{nsid=1,start=900},{nsid=1,start=0,blocks=10},{nsid=2,start=499,blocks=1}]\nallow=['read']",
    );
    let resolved = resolve(&policy, facts()).unwrap();
    let namespace = &resolved.clients[0].namespaces[0];
    let extents: Vec<_> = namespace
        .extents
        .iter()
        .map(|e| (e.nsid, e.first, e.blocks))
        .collect();
    assert_eq!(extents, [(1, 900, 100), (1, 0, 10), (2, 499, 1)]);
    assert_eq!(
        (namespace.nsid, namespace.blocks, namespace.block_shift),
        (3, 111, 9)
    );
    assert_eq!(
        namespace.names,
        policy.namespace_names(&policy.clients[0], 3)
    );
    assert_eq!(kinds(&resolved), ["shared-memory"]);
}

#[test]
fn what_the_controller_has_not_is_refused() {
    let slice = |source: &str| one(&format!("nsid=1\nsource=[{source}]\nallow=['read']"));
    // The source is on line 10.
    for (source, says) in [
        (
            "{nsid=3}",
            "namespace 3 of emulated does not exist; active are 1, 2",
        ),
        (
            "{nsid=1,start=1000}",
            "blocks 1000 to the end of namespace 1, which has 1000 blocks (0 to 999)",
        ),
        ("{nsid=1,start=999,blocks=2}", "blocks 999 to 1000 of"),
        ("{nsid=1,blocks=1001}", "blocks 0 to 1000 of"),
        (
            "{nsid=1,start=18446744073709551614,blocks=1}",
            "blocks 18446744073709551614 to",
        ),
        (
            "{nsid=2},{nsid=1,start=1,blocks=1000}",
            "blocks 1 to 1000 of",
        ),
    ] {
        let (text, line) = refused(&slice(source), facts());
        assert!(text.contains(says), "{text}");
        assert_eq!(line, 10, "{text}");
    }
    for source in [
        "{nsid=1,start=999}",
        "{nsid=1,start=999,blocks=1}",
        "{nsid=1,blocks=1000}",
    ] {
        assert!(resolve(&slice(source), facts()).is_ok(), "{source}");
    }
    let changed = |change: fn(&mut NamespaceFacts)| {
        let mut facts = facts();
        change(&mut facts.namespaces[0]);
        facts
    };
    for (change, says) in [
        (
            (|n| n.metadata = 8) as fn(&mut NamespaceFacts),
            "8 bytes of metadata",
        ),
        (|n| n.protection = 1, "protection type 1"),
        (|n| n.command_set = CommandSet(2), "command set 2"),
        (|n| n.block_size = 0, "LBA format that cannot be used"),
        (|n| n.block_size = 520, "LBA format that cannot be used"),
        (|n| n.block_size = 1 << 17, "LBA format that cannot be used"),
        (|n| n.blocks = 0, "which has 0 blocks"),
        (|n| n.blocks = u64::MAX, "more than 2^64 bytes"),
    ] {
        let (text, _) = refused(&slice("{nsid=1}"), changed(change));
        assert!(text.contains(says), "{text}");
    }
    let mut none = facts();
    none.namespaces.clear();
    let (text, _) = refused(&slice("{nsid=1}"), none);
    assert!(text.contains("no active namespace"), "{text}");
    assert!(slice("{nsid=1}").resolve(&[], &Budget::default()).is_err());
}

#[test]
fn slices_of_one_namespace_have_blocks_of_one_size() {
    let policy = one("nsid=1\nsource=[{nsid=1},{nsid=2}]\nallow=['read']");
    let mut facts = facts();
    facts.namespaces[1].block_size = 4096;
    let (text, line) = refused(&policy, facts);
    assert!(
        text.contains("namespace 2 has blocks of 4096 bytes and namespace 1 of 512"),
        "{text}"
    );
    assert_eq!(line, 10);
}

#[test]
fn a_copy_stays_within_one_real_namespace() {
    let policy = |source: &str| {
        one(&format!(
            "nsid=1\nsource=[{source}]\nallow=['read','write','copy']"
        ))
    };
    assert!(resolve(&policy("{nsid=1,blocks=5},{nsid=1,start=9}"), facts()).is_ok());
    let (text, line) = refused(&policy("{nsid=1},{nsid=2}"), facts());
    assert!(text.contains("\"copy\" cannot be granted"), "{text}");
    assert_eq!(line, 9);
}

#[test]
fn what_the_controller_has_no_commands_for_is_told() {
    let policy = one("nsid=1\nsource=[{nsid=1}]\nallow=['read','verify','deallocate']");
    let mut facts = facts();
    facts.oncs = 1 << 2;
    let resolved = resolve(&policy, facts).unwrap();
    let warning = resolved
        .warnings
        .iter()
        .find(|w| w.kind == "not-supported")
        .unwrap();
    assert!(
        warning.text.contains("no commands for verify:"),
        "{warning:?}"
    );
    let namespace = &resolved.clients[0].namespaces[0];
    assert_eq!(namespace.offered, ClassSet::READ | ClassSet::DEALLOCATE);
    assert!(namespace.allow.contains(ClassSet::VERIFY));
}

#[test]
fn optional_commands_are_those_of_oncs_and_oacs() {
    for (oncs, oacs, class) in [
        (1, 0, ClassSet::COMPARE),
        (1 << 1, 0, ClassSet::POISON),
        (1 << 2, 0, ClassSet::DEALLOCATE),
        (1 << 3, 0, ClassSet::WRITE_ZEROES),
        (1 << 7, 0, ClassSet::VERIFY),
        (1 << 8, 0, ClassSet::COPY),
        (0, 1, ClassSet::SECURITY),
        (0, 1 << 1, ClassSet::FORMAT),
        (0, 1 << 2, ClassSet::FIRMWARE),
        (0, 1 << 3, ClassSet::NAMESPACE_MANAGEMENT),
    ] {
        let facts = ControllerFacts {
            oncs,
            oacs,
            ..ControllerFacts::default()
        };
        let always = ClassSet::READ | ClassSet::WRITE | ClassSet::FLUSH;
        assert_eq!(facts.classes(), always | class);
    }
}

#[test]
fn devices_that_do_not_forget_are_told() {
    let policy = one("nsid=1\nsource=[{nsid=1}]\nallow=['read']");
    for (dlfeat, told) in [
        (0, true),
        (1, false),
        (2, false),
        (3, true),
        (8, true),
        (9, false),
    ] {
        let mut facts = facts();
        facts.namespaces[0].dlfeat = dlfeat;
        let resolved = resolve(&policy, facts).unwrap();
        assert_eq!(
            kinds(&resolved).contains(&"earlier-data"),
            told,
            "DLFEAT {dlfeat}"
        );
    }
    let mut facts = facts();
    facts.namespaces[0].write_protected = true;
    assert!(kinds(&resolve(&policy, facts).unwrap()).contains(&"write-protected"));
}

#[test]
fn every_client_has_a_queue_on_each_of_its_controllers() {
    let slice =
        |at: u64| format!("nsid=1\nsource=[{{nsid=1,start={at},blocks=1}}]\nallow=['read']");
    let clients = |count: u64| {
        let text: Vec<String> = (0..count)
            .map(|at| client(&format!("c{at}"), "", &[&slice(at)]))
            .collect();
        emulated(&text.concat())
    };
    assert!(resolve(&clients(4), facts()).is_ok());
    let (text, line) = refused(&clients(5), facts());
    assert!(text.contains("has 4 I/O queue pairs"), "{text}");
    assert_eq!(line, 5 + 4 * 8);
}

#[test]
fn fewer_commands_fit_where_queues_are_short() {
    let policy = one("nsid=1\nsource=[{nsid=1}]\nallow=['read']");
    for (entries, outstanding) in [
        (1024, 256),
        (257, 256),
        (256, 255),
        (64, 63),
        (2, 1),
        (1, 1),
    ] {
        let mut facts = facts();
        facts.queue_entries = entries;
        let resolved = resolve(&policy, facts).unwrap();
        assert_eq!(resolved.clients[0].limits.outstanding, outstanding);
        assert_eq!(
            kinds(&resolved).contains(&"fewer-outstanding"),
            outstanding < 256
        );
    }
}

#[test]
fn what_all_clients_may_use_together_is_there() {
    let slice =
        |at: u64| format!("nsid=1\nsource=[{{nsid=1,start={at},blocks=1}}]\nallow=['read']");
    let limits = "limits = { memory = '1GiB', mappings = 10 }";
    let text = client("a", limits, &[&slice(0)]) + &client("b", limits, &[&slice(1)]);
    let policy = emulated(&text);
    let with = |locked_memory, mappings| {
        policy.resolve(
            &[facts()],
            &Budget {
                locked_memory,
                mappings,
            },
        )
    };
    assert!(with(Some(2 << 30), Some(20)).is_ok());
    let error = with(Some((2 << 30) - 1), None).unwrap_err();
    assert!(error.to_string().contains("may lend 2GiB"), "{error}");
    // The client that is one too many.
    assert_eq!(error.place().line, 13);
    let error = with(None, Some(19)).unwrap_err();
    assert!(
        error.to_string().contains("may make 20 mappings"),
        "{error}"
    );
    // What is not lent is not counted.
    let bounced = emulated(&text.replace("name=", "isolation='bounce'\nname="));
    let tight = Budget {
        locked_memory: Some(0),
        mappings: Some(0),
    };
    assert!(bounced.resolve(&[facts()], &tight).is_ok());
}

#[test]
fn operator_classes_reach_no_namespace_that_was_not_granted_them() {
    let granted = |class: &str, others: &[&str]| {
        let first = format!("nsid=1\nsource=[{{nsid=1}}]\nallow=['read','{class}']");
        let mut namespaces = vec![first.as_str()];
        namespaces.extend(others);
        emulated(&client("a", "", &namespaces))
    };
    let with_fna = |fna| ControllerFacts { fna, ..facts() };
    let read = "nsid=2\nsource=[{nsid=2}]\nallow=['read']";
    for (class, fna, alone) in [
        ("format", 0, true),
        ("format", 4, true),
        ("format", 1, false),
        ("format", 2, false),
        ("firmware", 3, true),
        ("security", 0, false),
        ("namespace-management", 0, false),
    ] {
        for others in [&[][..], &[read][..]] {
            let resolved = resolve(&granted(class, others), with_fna(fna));
            match resolved {
                Ok(resolved) => {
                    assert!(alone, "{class} with FNA {fna}");
                    assert!(!resolved.clients[0].formats_all);
                    let firmware = kinds(&resolved).contains(&"firmware-reach");
                    assert_eq!(firmware, class == "firmware");
                }
                Err(error) => {
                    assert!(!alone, "{error}");
                    assert!(
                        error
                            .to_string()
                            .contains("on namespace 2 it is not granted"),
                        "{error}"
                    );
                }
            }
        }
        let all = read.replace("'read'", &format!("'{class}'"));
        let resolved = resolve(&granted(class, &[&all]), with_fna(fna)).unwrap();
        assert_eq!(resolved.clients[0].formats_all, class == "format");
    }
}

#[test]
fn one_medium_behind_two_controllers_is_one() {
    let two = |second: &str| {
        let slice = |at: u32, controller: u32, more: &str| {
            format!(
                "nsid=1\ncontroller='01:00.{controller}'\nsource=[{{nsid=1,start={at},blocks=10}}]\nallow=['read']\n{more}"
            )
        };
        let head = "controller=['01:00.0','01:00.1']\ndirectory='/r'\naudit={path='a'}\n";
        let a = client("a", "", &[&slice(0, 0, second)]);
        parse(&format!(
            "{head}{a}{}",
            client("b", "", &[&slice(5, 1, second)])
        ))
        .unwrap()
    };
    let pair = |change: fn(&mut ControllerFacts)| {
        let mut other = facts();
        change(&mut other);
        [facts(), other]
    };
    let nothing = Budget::default();
    // Two controllers that have nothing to do with each other, or do not share the namespace.
    let apart: fn(&mut ControllerFacts) = |other| other.subnqn = "nqn.y".into();
    let apart = |other: &mut ControllerFacts| {
        apart(other);
        other.serial = "T".into();
    };
    let mut facts_apart = [facts(), facts()];
    apart(&mut facts_apart[1]);
    facts_apart[1].namespaces[0].multi_path = true;
    assert!(two("").resolve(&facts_apart, &nothing).is_ok());
    assert!(two("").resolve(&pair(|_| {}), &nothing).is_ok());
    // The same subsystem, and the namespace is for several controllers.
    let mut shared = pair(|other| other.namespaces[0].multi_path = true);
    let error = two("").resolve(&shared, &nothing).unwrap_err();
    assert!(
        error.to_string().contains("blocks 5 to 9 of namespace 1"),
        "{error}"
    );
    assert!(two("shared=true").resolve(&shared, &nothing).is_ok());
    // Of which it is one namespace only.
    let (one, other) = (&shared[0], &shared[1]);
    assert!(one.same_medium(1, other, 1) && other.same_medium(1, one, 1));
    assert!(!one.same_medium(2, other, 1) && !one.same_medium(1, other, 2));
    assert!(!one.same_medium(2, other, 2) && !one.same_medium(9, other, 9));
    // The same by serial number, without an NQN.
    shared[0].subnqn.clear();
    assert!(two("").resolve(&shared, &nothing).is_err());
    // The same identifier, whatever else they say.
    for set in [
        (|n: &mut NamespaceFacts| n.nguid[3] = 1) as fn(&mut NamespaceFacts),
        |n| n.eui64[7] = 9,
    ] {
        let mut named = facts_apart.clone();
        named[1].namespaces[0].multi_path = false;
        assert!(two("").resolve(&named, &nothing).is_ok());
        set(&mut named[0].namespaces[0]);
        set(&mut named[1].namespaces[0]);
        assert!(two("").resolve(&named, &nothing).is_err());
    }
}

#[test]
fn the_author_is_told_what_a_policy_gives_away() {
    let told = |keys: &str, allow: &str| {
        let namespace = format!("nsid=1\nsource=[{{nsid=1}}]\nallow=[{allow}]");
        let policy = emulated(&client("a", keys, &[&namespace]));
        let mut kinds: Vec<&str> = policy.warnings().iter().map(|one| one.kind).collect();
        kinds.sort_unstable();
        kinds
    };
    let bounce = "isolation='bounce'\n";
    assert!(told(bounce, "'read'").is_empty());
    assert_eq!(told("", "'read'"), ["shared-memory"]);
    assert_eq!(
        told(&format!("{bounce}mode='observe'"), "'read'"),
        ["observe"]
    );
    assert_eq!(
        told(&format!("{bounce}unsealed-memory=true"), "'read'"),
        ["unsealed-memory"]
    );
    assert_eq!(told(bounce, "'compare'"), ["never-used"]);
    assert_eq!(told(bounce, "'verify'"), ["never-used"]);
    assert_eq!(told(bounce, "'copy'"), ["never-used"; 2]);
    assert_eq!(told(bounce, "'copy','read'"), ["never-used"]);
    assert!(told(bounce, "'copy','read','write'").is_empty());
    let root = emulated(
        &client("a", bounce, &["nsid=1\nsource=[{nsid=1}]\nallow=['read']"])
            .replace("[1]", "[0,1]"),
    );
    assert_eq!(root.warnings()[0].kind, "root-among-others");
}

#[test]
fn the_emulated_controller_says_what_it_is() {
    let address: nvme_vfio::Address = "emulated:size=64M,lba=4096".parse().unwrap();
    let controller = nvme_vfio::Controller::open(&address).unwrap();
    let facts = ControllerFacts::read(&controller).unwrap();
    assert_eq!(facts.namespaces.len(), 1);
    let namespace = &facts.namespaces[0];
    assert_eq!(
        (namespace.nsid, namespace.block_size, namespace.blocks),
        (1, 4096, (64 << 20) / 4096)
    );
    assert_eq!(namespace.command_set, CommandSet::NVM);
    assert!(facts.io_queues >= 1 && facts.queue_entries >= 2 && !facts.subnqn.is_empty());
    assert!(resolve(&one("nsid=1\nsource=[{nsid=1}]\nallow=['read']"), facts).is_ok());
}
