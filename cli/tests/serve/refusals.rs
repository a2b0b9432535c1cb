//! What a server says that does not start.

use std::os::unix::net::UnixListener;

use super::*;

#[track_caller]
pub(super) fn refused(policy: &str, arguments: &[&str]) -> Value {
    refused_in(folder(policy).path(), arguments)
}

#[track_caller]
fn refused_in(folder: &Path, arguments: &[&str]) -> Value {
    let output = serve(folder, arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let error = text
        .lines()
        .find_map(|line| serde_json::from_str::<Value>(line).ok())
        .unwrap_or_else(|| panic!("no error: {text}"));
    let error = error["error"].clone();
    assert_eq!(
        output.status.code().map(i64::from),
        error["status"].as_i64()
    );
    let remedy = error["remedy"].as_str().unwrap_or_default();
    assert!(!remedy.is_empty(), "without a remedy: {error}");
    error
}

#[track_caller]
fn says(error: &Value, kind: &str, status: i64, words: &[&str]) {
    assert_eq!(
        (&error["kind"], &error["status"]),
        (&kind.into(), &status.into()),
        "{error}"
    );
    let message = error["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
}

#[test]
fn whatever_is_in_the_way_is_told_with_what_to_do() {
    let good = two_clients("emulated:size=64M");

    let empty = tempfile::tempdir().unwrap();
    says(
        &refused_in(empty.path(), &[]),
        "file",
        2,
        &["policy.toml", "No such file"],
    );
    let latin = folder("");
    std::fs::write(latin.path().join("policy.toml"), b"# one\n# \xfc\n").unwrap();
    let error = refused_in(latin.path(), &[]);
    says(&error, "file", 2, &["policy.toml", "line 2 is not UTF-8"]);
    let remedy = error["remedy"].as_str().unwrap();
    assert!(remedy.starts_with("Correct the policy"), "{remedy}");
    says(
        &refused(&good.replace("uid =", "colour = 1\nuid ="), &[]),
        "usage",
        2,
        &["policy.toml:7:1", "colour"],
    );
    says(
        &refused(&good.replace("blocks = 5000 }", "blocks = 500000 }"), &[]),
        "usage",
        2,
        &["policy.toml:", "131072"],
    );
    says(
        &refused(&two_clients("emulated:size=64M,queues=1"), &[]),
        "usage",
        2,
        &["queue"],
    );
    says(
        &refused(
            &good.replace("{ nsid = 1, start = 21000", "{ nsid = 3, start = 21000"),
            &[],
        ),
        "usage",
        2,
        &["namespace 3", "does not exist"],
    );
    says(
        &refused(&good.replace("start = 21000", "start = 20999"), &[]),
        "usage",
        2,
        &["20999"],
    );
    says(
        &refused(&good.replace("emulated:size=64M", "0000:ff:1f.7"), &[]),
        "not-found",
        3,
        &["0000:ff:1f.7"],
    );
    says(
        &refused(
            &good.replace("emulated:size=64M", "emulated:size=wide"),
            &[],
        ),
        "usage",
        2,
        &["wide"],
    );
    says(&refused(&good, &["--cpu", "4095"]), "usage", 2, &["4095"]);

    // Whoever can write the policy could have root serve what he likes.
    let open = folder(&good);
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, mode) in [
        (open.path().join("policy.toml"), 0o664),
        (open.path().to_owned(), 0o777),
    ] {
        set(&path, mode);
        let check = serve(open.path(), &["--check"]).output().unwrap();
        assert!(check.status.success(), "it is explained");
        let report: Value = serde_json::from_slice(&check.stdout).unwrap();
        assert_eq!(report["warnings"][0]["kind"], "foreign-policy", "{report}");
        if geteuid().is_root() {
            let error = refused_in(open.path(), &[]);
            says(
                &error,
                "permission",
                3,
                &["policy.toml", "not root's alone"],
            );
            let remedy = error["remedy"].as_str().unwrap();
            assert!(remedy.contains("chmod go-w"), "{error}");
        }
        set(&path, mode & 0o755);
    }

    let lax = folder(&good);
    let sockets = lax.path().join("sockets");
    std::fs::create_dir(&sockets).unwrap();
    std::fs::set_permissions(&sockets, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = refused_in(lax.path(), &[]);
    says(&error, "permission", 3, &["can be written by others"]);
    assert!(
        error["remedy"].as_str().unwrap().contains("chmod 0711"),
        "{error}"
    );

    let file = folder(&good);
    std::fs::write(file.path().join("sockets"), "").unwrap();
    says(
        &refused_in(file.path(), &[]),
        "file",
        2,
        &["not a directory"],
    );

    let taken = folder(&good);
    std::fs::create_dir_all(taken.path().join("sockets/vm-b.sock")).unwrap();
    says(
        &refused_in(taken.path(), &[]),
        "file",
        2,
        &["vm-b", "not a socket"],
    );
    assert!(
        !taken.path().join("sockets/vm-a.sock").exists(),
        "nothing is left behind"
    );

    let open = folder(&good);
    let audit = open.path().join("audit.jsonl");
    std::fs::write(&audit, "").unwrap();
    std::fs::set_permissions(&audit, std::fs::Permissions::from_mode(0o666)).unwrap();
    says(
        &refused_in(open.path(), &[]),
        "permission",
        3,
        &["audit.jsonl", "written by others"],
    );

    let server = Server::start(&good, &[]);
    says(
        &refused_in(server.folder.path(), &[]),
        "busy",
        3,
        &["another process"],
    );
}

#[test]
fn root_opens_nothing_that_somebody_else_has_a_say_in_not_even_to_explain_a_policy() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can give a file away, and is refused those of others");
        return;
    }
    keep_from_others();
    let place = tempfile::tempdir().unwrap();
    let (own, theirs) = (place.path().join("own"), place.path().join("theirs"));
    std::fs::create_dir(&own).unwrap();
    std::fs::create_dir(&theirs).unwrap();
    let (short, none) = (own.join("short"), own.join("none"));
    std::fs::write(&short, "root's").unwrap();
    for (link, target) in [("to-short", &short), ("to-none", &none)] {
        std::os::unix::fs::symlink(target, theirs.join(link)).unwrap();
    }
    let listener = UnixListener::bind(own.join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::os::unix::fs::symlink(own.join("socket"), theirs.join("to-socket")).unwrap();
    std::os::unix::fs::chown(&theirs, Some(1234), None).unwrap();

    // Refuses, and leaves everything as it was.
    let refuses = |folder: &Path, words: &[&str]| {
        let check = serve(folder, &["--check"]).output().unwrap();
        assert!(check.status.success(), "it is explained: {check:?}");
        let report: Value = serde_json::from_slice(&check.stdout).unwrap();
        let not_asked = report["not_asked"].as_str().unwrap();
        for word in words {
            assert!(not_asked.contains(word), "{word} is not in: {not_asked}");
        }
        let error = refused_in(folder, &[]);
        says(&error, "permission", 3, words);
        assert_eq!(std::fs::read_to_string(&short).unwrap(), "root's");
        assert!(!none.exists(), "a file was made");
        let connected = listener.accept().map_err(|error| error.kind());
        assert_eq!(connected.unwrap_err(), std::io::ErrorKind::WouldBlock);
    };
    let file = |path: &Path| format!("emulated:size=64M,backend=file:{}", path.display());
    let served = |path: &Path| format!("vfio-user:{}", path.display());

    // Whoever owns the directory of a policy writes into it what he likes.
    let foreign = folder("");
    let path = foreign.path().join("policy.toml");
    std::os::unix::fs::chown(foreign.path(), Some(1234), None).unwrap();
    for address in [file(&short), file(&none), served(&own.join("socket"))] {
        std::fs::write(&path, two_clients(&address)).unwrap();
        refuses(foreign.path(), &["policy.toml", "not root's alone"]);
    }
    // And whoever owns the directory of what root's policy names puts links there.
    for address in [
        file(&theirs.join("to-short")),
        file(&theirs.join("to-none")),
        file(&theirs.join("new")),
        served(&theirs.join("to-socket")),
    ] {
        let theirs = theirs.display().to_string();
        refuses(
            folder(&two_clients(&address)).path(),
            &[&theirs, "not root's alone", "owner 1234"],
        );
    }
    assert!(!theirs.join("new").exists(), "a file was made");
    // Of several namespaces each has a file.
    let second = own.join("disk.2");
    std::os::unix::fs::symlink(theirs.join("new"), &second).unwrap();
    let address = format!("{},namespaces=2", file(&own.join("disk")));
    refuses(
        folder(&two_clients(&address)).path(),
        &["disk.2", "not root's alone"],
    );
    assert!(!own.join("disk").exists(), "a file was made");
    // Where others make names, one of them could be first.
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o1777)).unwrap();
    refuses(
        folder(&two_clients(&file(&none))).path(),
        &["none", "not root's alone", "mode 1777"],
    );
    // What is root's alone is opened.
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::start(&two_clients(&file(&none)), &[]);
    server.json("vm-a", "id-ctrl", &[]);
    assert_eq!(std::fs::metadata(&none).unwrap().len(), 64 << 20);
    server.end(Signal::SIGTERM);
}
