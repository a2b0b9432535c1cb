//! What the author of a policy should know, as far as the file alone shows it.

use super::plain::{ClientPolicy, Isolation, Mode, NamespacePolicy, PolicyFile};
use super::resolve::Warning;
use super::slices;
use crate::command::ClassSet;

/// Pairs of shared slices that are told one by one.
const MEETINGS: usize = 32;

/// What each of these classes needs beside itself: to compare, verify or copy blocks is to learn of them, and a copy writes.
const NEEDS: [(ClassSet, &str, ClassSet, &str); 4] = [
    (ClassSet::COMPARE, "compare", ClassSet::READ, "read"),
    (ClassSet::VERIFY, "verify", ClassSet::READ, "read"),
    (ClassSet::COPY, "copy", ClassSet::READ, "read"),
    (ClassSet::COPY, "copy", ClassSet::WRITE, "write"),
];

impl PolicyFile {
    /// What the author of the policy should know, as far as the file alone shows it.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let ways = [
            ("foreign-policy", &self.foreign, "decides who is lent what"),
            (
                "foreign-directory",
                &self.foreign_directory,
                "can put a socket of his own in the place of a client's",
            ),
        ];
        for (kind, foreign, what) in ways {
            let Some(foreign) = foreign else { continue };
            warnings.push(Warning {
                kind,
                client: None,
                nsid: None,
                text: format!(
                    "{foreign}: whoever may change it {what}. Root is refused to serve it so. To have it to yourself, run: {}",
                    foreign.remedy()
                ),
            });
        }
        for client in &self.clients {
            of_client(client, &mut warnings);
        }
        let all = slices::of(self, |controller, nsid| (controller << 32) | nsid as usize);
        for (one, other) in slices::meetings(&all, MEETINGS) {
            let Some((first, end)) = one.common(&other) else {
                continue;
            };
            let name = |client: usize| self.clients.get(client).map_or("", |one| &one.name);
            let last = match end {
                u64::MAX => "the end".to_owned(),
                end => (end - 1).to_string(),
            };
            warnings.push(Warning {
                kind: "shared-blocks",
                client: None,
                nsid: None,
                text: format!(
                    "blocks {first} to {last} of namespace {} are \"{}\"'s and \"{}\"'s: what one writes the other sees, and nothing orders their writes",
                    one.source.nsid,
                    name(one.client),
                    name(other.client)
                ),
            });
        }
        warnings
    }
}

fn of_client(client: &ClientPolicy, warnings: &mut Vec<Warning>) {
    let mut warn = |kind, nsid: Option<u32>, text: String| {
        warnings.push(Warning {
            kind,
            client: Some(client.name.clone()),
            nsid,
            text,
        });
    };
    if client.mode == Mode::Observe {
        warn(
            "observe",
            None,
            "it is only observed: on the blocks of its slices it may use every class of block commands, granted or not".to_owned(),
        );
    }
    if client.unsealed_memory {
        warn(
            "unsealed-memory",
            None,
            "memory is taken that it can truncate while the device uses it; a truncation ends its session".to_owned(),
        );
    }
    if client.uid.contains(&0) && client.uid.len() > 1 {
        warn(
            "root-among-others",
            None,
            "user 0 may connect beside others, and who connects first holds the controller"
                .to_owned(),
        );
    }
    if client.isolation == Isolation::Shared {
        warn(
            "shared-memory",
            None,
            "its memory is lent to the device, whose one address space all clients share: the IOMMU keeps the device to what is lent, and only the server keeps one client's commands out of another's memory. isolation = \"bounce\" lends none of it".to_owned(),
        );
    }
    for namespace in &client.namespaces {
        of_namespace(namespace, &mut warn);
    }
}

fn of_namespace(
    namespace: &NamespacePolicy,
    warn: &mut impl FnMut(&'static str, Option<u32>, String),
) {
    for (class, word, needed, other) in NEEDS {
        if namespace.allow.contains(class) && !namespace.allow.contains(needed) {
            warn(
                "never-used",
                Some(namespace.nsid),
                format!(
                    "\"{word}\" is granted without \"{other}\", which it needs too: every such command is refused"
                ),
            );
        }
    }
}
