use std::fs::Permissions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use super::bad_values::BAD;
use super::*;
use crate::command::ClassSet;

#[test]
fn every_key_is_read() {
    let policy = parse(WHOLE).unwrap();
    let addresses: Vec<String> = policy.controllers.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["0000:01:00.0", "0000:01:00.1"]);
    assert_eq!(policy.directory, Path::new("/run/nvme-vfio/13"));
    let audit = AuditPolicy {
        path: "/etc/nvme-vfio/audit.jsonl".into(),
        place: policy.audit.place,
        ring: 2 << 20,
        sample_allowed_io: 7,
    };
    assert_eq!(policy.audit, audit);
    let [a, b] = policy.clients.as_slice() else {
        panic!("{policy:?}")
    };
    assert_eq!(
        (a.name.as_str(), a.uid.as_slice()),
        ("vm-a", &[1000, 1001][..])
    );
    assert_eq!(
        (a.mode, a.isolation, a.unsealed_memory),
        (Mode::Enforce, Isolation::Bounce, true)
    );
    let limits = Limits {
        queues: 3,
        depth: 128,
        outstanding: 100,
        memory: 1 << 30,
        mappings: 32,
        iops: Some(50_000),
        bandwidth: Some(200 << 20),
    };
    assert_eq!(a.limits, limits);
    let one = &a.namespaces[0];
    assert_eq!((one.nsid, one.controller, one.shared), (1, 0, false));
    assert_eq!(one.allow, ClassSet::all() - ClassSet::OPERATOR);
    let blocks: Vec<_> = one
        .source
        .iter()
        .map(|s| (s.nsid, s.start, s.blocks))
        .collect();
    assert_eq!(blocks, [(1, 1000, Some(1000)), (1, 8000, Some(500))]);
    assert_eq!(policy.socket(a), Path::new("/run/nvme-vfio/13/vm-a.sock"));
    // What the second leaves out.
    assert_eq!(
        (b.mode, b.isolation, b.unsealed_memory),
        (Mode::Enforce, Isolation::Shared, false)
    );
    assert_eq!(b.limits, Limits::default());
    assert_eq!(
        (b.namespaces[0].controller, b.namespaces[0].shared),
        (1, false)
    );
    assert!(b.namespaces[0].source[0].is_whole());
}

#[test]
fn what_may_be_left_out_has_its_default() {
    let policy = emulated(
        "[[client]]\nname='a'\nuid=[0]\n[[client.namespace]]\nnsid=1\nsource=[{nsid=1}]\nallow=['read']\n",
    );
    assert_eq!(
        (policy.audit.ring, policy.audit.sample_allowed_io),
        (1 << 20, 1000)
    );
    assert_eq!(policy.clients[0].limits.outstanding, 256);
    assert_eq!(policy.clients[0].namespaces[0].controller, 0);
}

#[test]
fn every_bad_value_is_refused_on_its_line() {
    for (from, to, line, says) in BAD {
        assert!(WHOLE.contains(from), "{from}");
        let text = WHOLE.replacen(from, to, 1);
        let error = match parse(&text) {
            Ok(policy) => panic!("{to} is taken for {from}: {policy:?}"),
            Err(error) => error,
        };
        assert_eq!(error.place().line, *line, "{to}: {error}");
        assert!(
            error.to_string().contains(says),
            "{to}: {error} does not say {says}"
        );
    }
}

#[test]
fn edges_are_taken() {
    for (from, to) in [
        ("\"2MiB\"", "65536"),
        ("\"2MiB\"", "'1GiB'"),
        ("sample-allowed-io = 7", "sample-allowed-io = 0"),
        ("[1000, 1001]", "[0, 4294967294]"),
        ("queues = 3", "queues = 64"),
        ("depth = 128", "depth = 2"),
        ("depth = 128", "depth = 4096"),
        ("outstanding = 100", "outstanding = 4095"),
        ("\"1GiB\"", "'64TiB'"),
        ("\"1GiB\"", "'64KiB'"),
        ("mappings = 32", "mappings = 65535"),
        ("\"200MiB/s\"", "'1TiB/s'"),
        ("nsid = 1\n", "nsid = 1024\n"),
        ("start = 8000", "start = 2000"),
        ("start = 8000", "start = 500"),
        ("start = 8000, blocks = 500", "start = 2000"),
        (
            "start = 8000, blocks = 500",
            "start = 18446744073709551614, blocks = 1",
        ),
        (
            "\"vm-a\"",
            "'012345678901234567890123456789012345678901234567'",
        ),
    ] {
        let text = WHOLE.replacen(from, to, 1);
        assert!(parse(&text).is_ok(), "{to}: {:?}", parse(&text).err());
    }
}

#[test]
fn a_socket_must_have_a_path_that_the_kernel_takes() {
    // "/run/" and 92 letters and "/vm-a.sock" are 107 bytes.
    for (letters, fits) in [(92, true), (93, false)] {
        let directory = format!("\"/run/{}\"", "x".repeat(letters));
        let text = WHOLE.replacen("\"/run/nvme-vfio/13\"", &directory, 1);
        match parse(&text) {
            Ok(policy) => {
                assert!(fits);
                let path = policy.socket(&policy.clients[0]);
                assert_eq!(path.as_os_str().len(), 107);
                std::os::unix::net::SocketAddr::from_pathname(path).unwrap();
            }
            Err(error) => {
                assert!(!fits, "{error}");
                assert_eq!(error.place().line, 6);
                let long = format!("/run/{}/vm-a.sock", "x".repeat(letters));
                assert!(std::os::unix::net::SocketAddr::from_pathname(long).is_err());
            }
        }
    }
}

#[test]
fn slices_of_two_clients_meet_only_where_both_say_so() {
    let two = |one: &str, other: &str| {
        format!(
            "controller=['emulated']\ndirectory='/r'\naudit={{path='a'}}\n\
             [[client]]\nname='a'\nuid=[1]\n[[client.namespace]]\nnsid=1\nallow=['read']\n{one}\n\
             [[client]]\nname='b'\nuid=[1]\n[[client.namespace]]\nnsid=1\nallow=['read']\n{other}\n"
        )
    };
    let slice = |start: u64, blocks: u64, shared: bool| {
        format!("source=[{{nsid=1,start={start},blocks={blocks}}}]\nshared={shared}")
    };
    assert!(parse(&two(&slice(0, 10, false), &slice(10, 10, false))).is_ok());
    assert!(parse(&two(&slice(0, 11, true), &slice(10, 10, true))).is_ok());
    for (one, other) in [(false, false), (false, true), (true, false)] {
        let error = parse(&two(&slice(0, 11, one), &slice(10, 10, other))).unwrap_err();
        let text = error.to_string();
        assert_eq!(
            error.place(),
            Place {
                line: 18,
                column: 9
            },
            "{text}"
        );
        assert!(
            text.contains("blocks 10 to 10 of namespace 1")
                && text.contains("10:9 of client \"a\""),
            "{text}"
        );
        // Whichever stands first in the file.
        assert!(parse(&two(&slice(10, 10, one), &slice(0, 11, other))).is_err());
        let whole = format!("source=[{{nsid=1}}]\nshared={other}");
        assert!(parse(&two(&slice(1 << 60, 1, one), &whole)).is_err());
    }
    let policy = parse(&two(&slice(0, 11, true), &slice(10, 10, true))).unwrap();
    let told: Vec<String> = policy
        .warnings()
        .into_iter()
        .filter(|one| one.kind == "shared-blocks")
        .map(|one| one.text)
        .collect();
    assert_eq!(told.len(), 1);
    assert!(
        told[0].starts_with("blocks 10 to 10 of namespace 1 are \"a\"'s and \"b\"'s"),
        "{told:?}"
    );
}

#[test]
fn operator_classes_are_for_one_client_with_whole_namespaces() {
    let alone = |namespaces: &str| {
        let head = "controller=['01:00.0','01:00.1']\ndirectory='/r'\naudit={path='a'}\n[[client]]\nname='a'\nuid=[1]\n";
        parse(&format!("{head}{namespaces}"))
    };
    let namespace = |nsid: u32, source: &str, allow: &str| {
        format!(
            "[[client.namespace]]\nnsid={nsid}\ncontroller='01:00.0'\nsource={source}\nallow=['{allow}']\n"
        )
    };
    for class in ["format", "firmware", "security", "namespace-management"] {
        assert!(alone(&namespace(1, "[{nsid=1}]", class)).is_ok());
        let both = namespace(1, "[{nsid=1}]", class) + &namespace(2, "[{nsid=2}]", "read");
        assert!(alone(&both).is_ok());
        for (bad, says) in [
            (namespace(1, "[{nsid=1,start=1}]", class), "is a slice"),
            (namespace(1, "[{nsid=1,blocks=5}]", class), "is a slice"),
            (
                namespace(1, "[{nsid=1},{nsid=2}]", class),
                "put together from 2",
            ),
            (namespace(1, "[{nsid=2}]", class), "real numbers"),
            // The other namespaces too, whatever is granted on them.
            (
                both.replace("{nsid=2}", "{nsid=2,blocks=9}"),
                "namespace 2 at 13:6 is a slice",
            ),
            (both.replacen("01:00.0", "01:00.1", 1), "one controller"),
            (
                both.clone()
                    + "[[client]]\nname='b'\nuid=[2]\n"
                    + &namespace(1, "[{nsid=3}]", "read"),
                "there is \"b\" too",
            ),
        ] {
            let error = alone(&bad).unwrap_err();
            assert!(error.to_string().contains(says), "{bad}: {error}");
            assert_eq!(error.place().line, 8, "{error}");
        }
    }
}

#[test]
fn a_file_names_itself_in_its_errors_and_its_paths_are_relative_to_it() {
    let directory = crate::scratch::folder();
    let path = directory.path().join("p.toml");
    std::fs::write(&path, WHOLE.replace("/run/nvme-vfio/13", "sockets")).unwrap();
    let policy = PolicyFile::open(&path).unwrap();
    assert_eq!(policy.audit.path, directory.path().join("audit.jsonl"));
    assert_eq!(policy.directory, directory.path().join("sockets"));
    assert_eq!(policy.file.as_deref(), Some(path.as_path()));
    std::fs::write(&path, WHOLE.replace("depth = 128", "depth = 1")).unwrap();
    let error = PolicyFile::open(&path).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}:14:9: ", path.display())),
        "{error}"
    );
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(matches!(
        PolicyFile::open(&path),
        Err(PolicyError::Read { .. })
    ));
    std::fs::remove_file(&path).unwrap();
    let error = PolicyFile::open(&path).unwrap_err();
    assert!(
        matches!(&error, PolicyError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    );
    assert!(std::error::Error::source(&error).is_some());
    let policy = "controller = ['vfio-user:x.sock']\ndirectory='/r'\naudit={path='/a'}\n[[client]]\nname='a'\nuid=[1]\n[[client.namespace]]\nnsid=1\ncontroller='vfio-user:x.sock'\nsource=[{nsid=1}]\nallow=['read']\n";
    let policy = parse(policy).unwrap();
    assert_eq!(
        policy.controllers[0].to_string(),
        "vfio-user:/etc/nvme-vfio/x.sock"
    );
    assert_eq!(policy.audit.path, Path::new("/a"));
}

#[test]
fn a_group_is_called_by_its_lowest_function_however_it_is_reached() {
    let names = |list: &str| {
        let text = WHOLE.replacen(r#"["0000:01:00.0", "0000:01:00.1"]"#, list, 1);
        let policy = parse(&text).unwrap();
        (
            policy.group_name(),
            policy.controller_names(&policy.clients[0]),
        )
    };
    let first = names("['0000:01:00.0', '0000:01:00.1']");
    assert_eq!(first.0, "0000:01:00.0");
    assert_eq!(names("['01:00.1', 'vfio:01:00.0', '01:00.7']"), first);
}

proptest::proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(256))]

    /// Whatever is cut out, doubled or changed: an error with a place in the text, or a policy.
    #[test]
    fn no_text_is_too_odd(at in 0..WHOLE.len(), length in 0..30usize, with in ".{0,6}") {
        let mut text = WHOLE.to_owned();
        let end = (at + length).min(text.len());
        text.replace_range(at..end, &with);
        if let Err(error) = parse(&text) {
            let place = error.place();
            let lines = text.split('\n').count();
            proptest::prop_assert!((1..=lines).contains(&place.line), "{error}");
            let line = text.split('\n').nth(place.line - 1).unwrap();
            proptest::prop_assert!((1..=line.chars().count() + 1).contains(&place.column), "{error}");
        }
    }
}

#[test]
fn the_policy_in_the_documentation_is_one() {
    let page = include_str!("../../../../docs/policy.md");
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let policy = parse(text).unwrap();
    assert_eq!(policy.clients[0].limits.iops, Some(50_000));
    // What it says of the classes.
    for (word, _) in grantable() {
        assert!(page.contains(&format!("| `{word}` | ")), "{word}");
    }
}

#[test]
fn a_client_has_a_namespace_once_and_two_clients_may_have_the_same_number() {
    let namespace = "[[client.namespace]]\nnsid = 1\ncontroller = '01:00.1'\nsource = [{ nsid = 7 }]\nallow = ['read']\n";
    // Behind the last client, which has namespace 2: the first client has a namespace 1 too.
    assert!(parse(&format!("{WHOLE}{namespace}")).is_ok());
    let again = namespace.replace("nsid = 1\n", "nsid = 2\n");
    let error = parse(&format!("{WHOLE}{again}")).unwrap_err();
    assert_eq!(error.place().line, 38, "{error}");
    assert!(
        error
            .to_string()
            .contains("namespace 2 of client \"vm-b\" is there twice; first at 33:8"),
        "{error}"
    );
}

#[test]
fn a_policy_that_others_may_change_is_told_of_and_root_is_refused_it() {
    let folder = crate::scratch::folder();
    let path = folder.path().canonicalize().unwrap();
    let (file, sockets) = (path.join("policy.toml"), path.join("sockets"));
    let text = WHOLE.replace("/run/nvme-vfio/13", "sockets");
    std::fs::write(&file, text).unwrap();
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    let kinds = |policy: &PolicyFile| -> Vec<_> {
        let all = policy.warnings().into_iter();
        all.map(|one| one.kind)
            .filter(|kind| kind.starts_with("foreign"))
            .collect()
    };
    set(&file, 0o644);
    let policy = PolicyFile::open(&file).unwrap();
    policy.check_foreign().unwrap();
    assert!(kinds(&policy).is_empty());
    let root = nix::unistd::geteuid().is_root();
    for (lax, mode, good) in [(&file, 0o664, 0o644), (&path, 0o775, 0o700)] {
        set(lax, mode);
        let policy = PolicyFile::open(&file).unwrap();
        set(lax, good);
        assert_eq!(policy.foreign.as_ref().unwrap().path, *lax);
        assert_eq!(kinds(&policy)[0], "foreign-policy");
        match policy.check_foreign() {
            Err(error @ PolicyError::Foreign { .. }) if root => {
                let text = error.to_string();
                let words = ["not root's alone", "can be written by others"];
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
                assert_eq!(error.place(), Place { line: 1, column: 1 });
            }
            other => assert!(other.is_ok() && !root, "{other:?}"),
        }
    }
    // Of what is open already the way tells nothing.
    set(&file, 0o666);
    let open = std::fs::File::open(&file).unwrap();
    let name = format!("/proc/self/fd/{}", open.as_raw_fd());
    let policy = PolicyFile::open(Path::new(&name)).unwrap();
    assert_eq!(policy.foreign.as_ref().unwrap().mode, 0o666);
    assert_eq!(policy.check_foreign().is_err(), root);
    set(&file, 0o644);
    // Of the directory it is told; it is refused where it is used.
    std::fs::create_dir(&sockets).unwrap();
    set(&sockets, 0o1777);
    let policy = PolicyFile::open(&file).unwrap();
    policy.check_foreign().unwrap();
    assert_eq!(kinds(&policy), ["foreign-directory"]);
    let warning = &policy.warnings()[0];
    let remedy = format!("chmod go-w {}", sockets.display());
    assert!(warning.text.ends_with(&remedy), "{}", warning.text);
    // A text has no file.
    assert!(kinds(&parse(WHOLE).unwrap()).is_empty());
}

#[test]
fn a_policy_is_not_its_own_audit() {
    let folder = crate::scratch::folder();
    let file = folder.path().join("policy.toml");
    let text = WHOLE.replace("\"audit.jsonl\"", "\"../policy.toml\"");
    let nested = folder.path().join("nested");
    std::fs::create_dir(&nested).unwrap();
    std::fs::write(&file, &text).unwrap();
    // Also by another way.
    let other = nested.join("link.toml");
    std::os::unix::fs::symlink(&file, &other).unwrap();
    let error = PolicyFile::open(&other).unwrap_err();
    assert_eq!(error.place().line, 3);
    assert!(error.to_string().contains("this is the policy"), "{error}");
    // Elsewhere it names another file.
    PolicyFile::open(&file).unwrap();
}
