//! Questions before something is destroyed.

use std::io::{self, BufRead, IsTerminal, Write};

use nvme_vfio_passthrough::{Access, Class, Direction, Extent, Needs, Persistence, Scope};

use crate::{
    decode::text,
    error::{Error, Kind},
    guard,
    session::Session,
};

/// Asks before a command that destroys something; without a terminal, refuses it.
///
/// Writes are asked for where the namespace holds something that is recognised, as the command `write` does; everything else that leaves a lasting effect is always
/// asked for.
pub(crate) fn ask(session: &Session, nsid: u32, needs: &Needs) -> Result<(), Error> {
    if !lasts(needs) {
        return Ok(());
    }
    if let Some(extent) = needs.extents.iter().find(|extent| changes(extent))
        && let Ok(namespace) = session.controller.namespace(extent.nsid)
    {
        return guard::ask(session, &namespace, &doing(needs));
    }
    let identify = session.controller.identify();
    let whose = format!(
        "{} ({}, serial {})",
        session.address,
        text(&identify.mn),
        text(&identify.sn)
    );
    let words = format!("{} on {}{whose}", doing(needs), reach(needs, nsid));
    let refused = Error::new(Kind::HoldsData, format!("{words} {}", consequence(needs)))
        .remedy("Add --force to do it");
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refused);
    }
    eprint!("{refused}.\nType yes to go on: ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer) {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        _ => Err(refused),
    }
}

/// Whether the effect outlives the controller's next reset, and is more than that a log was read.
fn lasts(needs: &Needs) -> bool {
    let reads = needs.direction == Direction::FromController && needs.class == Class::Owner;
    needs.persistence >= Persistence::Media && !reads
}

/// Whether the blocks of an extent are other ones afterwards.
fn changes(extent: &Extent) -> bool {
    !matches!(extent.access, Access::Read | Access::Probe | Access::Hint)
}

/// What is being done, as a participle.
fn doing(needs: &Needs) -> String {
    match needs.extents.iter().find(|extent| changes(extent)) {
        Some(extent) => format!(
            "{} of {} block{} from LBA {}",
            needs.name,
            extent.blocks,
            if extent.blocks == 1 { "" } else { "s" },
            extent.first
        ),
        None if needs.detail.is_empty() => needs.name.to_owned(),
        None => format!("{} ({})", needs.name, needs.detail),
    }
}

fn reach(needs: &Needs, nsid: u32) -> String {
    match needs.scope {
        Scope::Namespace => format!("namespace {nsid} of "),
        Scope::AllNamespaces => "all namespaces of ".to_owned(),
        Scope::Subsystem => "the whole subsystem of ".to_owned(),
        _ => String::new(),
    }
}

fn consequence(needs: &Needs) -> &'static str {
    match (needs.class, needs.persistence) {
        (Class::Format, _) => "would destroy all that is there",
        (Class::Vendor, _) => "is a vendor's command, of which nothing is known",
        (_, Persistence::Permanent) => "cannot be undone",
        _ => "has an effect that lasts",
    }
}

#[cfg(test)]
mod tests {
    use nvme_vfio::Options;

    use super::*;

    fn needs(class: Class, persistence: Persistence) -> Needs {
        Needs {
            name: "Some Command",
            class,
            direction: Direction::None,
            length: Some(0),
            extents: Vec::new(),
            scope: Scope::Namespace,
            persistence,
            detail: "",
        }
    }

    #[test]
    fn only_what_lasts_is_asked_for() {
        assert!(lasts(&needs(Class::Format, Persistence::Permanent)));
        assert!(lasts(&needs(Class::Vendor, Persistence::Permanent)));
        assert!(!lasts(&needs(Class::Owner, Persistence::UntilReset)));
        assert!(!lasts(&needs(Class::Information, Persistence::None)));
        let log = Needs {
            direction: Direction::FromController,
            ..needs(Class::Owner, Persistence::Media)
        };
        assert!(!lasts(&log));
    }

    #[test]
    fn a_question_names_the_drive_and_what_happens() {
        let session = Session::open_with("emulated:size=16M", Options::default()).unwrap();
        let error = ask(&session, 1, &needs(Class::Format, Persistence::Permanent)).unwrap_err();
        let message = error.to_string();
        for part in [
            "Some Command",
            "namespace 1",
            "emulated",
            "serial",
            "destroy",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(error.kind(), Kind::HoldsData);
        // Nothing is on that namespace, so a write needs no answer.
        let write = Needs {
            extents: vec![Extent {
                nsid: 1,
                first: 0,
                blocks: 1,
                access: Access::Write,
            }],
            ..needs(Class::Write, Persistence::Media)
        };
        ask(&session, 1, &write).unwrap();
    }
}
