//! The cases of every row.

use super::super::cases::{Cases, Command, GEOMETRY};
use super::super::request::View;
use super::super::table::{Row, Rule};
use super::{Decoder, VIEWS, decoder, entry, geometry, rows};
use crate::command::{Class, CommandSet, DecodedCommand, Geometry, QueueKind, Scope};
use crate::reason::{Reason, Refusal};

fn run(
    queue: QueueKind,
    row: &Row,
    command: &Command,
    check: impl Fn(Result<DecodedCommand<'_>, Refusal>, &str),
) {
    assert!(!command.views.is_empty());
    for view in command.views {
        let entry = entry(row, command);
        let list = command.list.concat();
        let (opcode, name) = (row.opcode, row.name);
        let what = format!(
            "{queue:?} {opcode:02x}h {name}: {} ({view:?})",
            command.what
        );
        let mut decoder = decoder(*view);
        check(
            decoder.decode(queue, geometry(&entry), &entry, &list),
            &what,
        );
    }
}

/// What has to pass, does.
fn passed<'a>(result: Result<DecodedCommand<'a>, Refusal>, what: &str) -> DecodedCommand<'a> {
    result.unwrap_or_else(|refusal| panic!("{what}: {refusal:?}"))
}

#[test]
fn every_row_lets_its_uses_pass() {
    for (queue, row) in rows() {
        let Cases::Passes { legitimate, .. } = row.cases else {
            continue;
        };
        assert!(!legitimate.is_empty(), "{}", row.name);
        for case in *legitimate {
            run(queue, row, &case.command, |result, what| {
                let decoded = passed(result, what);
                assert_eq!(decoded.class, case.class, "{what}");
                assert_eq!(decoded.direction, case.direction, "{what}");
                assert_eq!(decoded.length, case.length, "{what}");
                assert_eq!(decoded.name, row.name, "{what}");
            });
        }
    }
}

#[test]
fn every_row_reaches_what_it_says() {
    for (queue, row) in rows() {
        let Cases::Passes { reach, .. } = row.cases else {
            continue;
        };
        assert!(!reach.is_empty(), "{}", row.name);
        for case in *reach {
            run(queue, row, &case.command, |result, what| {
                let decoded = passed(result, what);
                let extents: Vec<_> = decoded
                    .extents
                    .iter()
                    .map(|extent| (extent.first, extent.blocks, extent.access))
                    .collect();
                assert_eq!(extents, case.extents, "{what}");
                let own = |extent: &crate::Extent| extent.nsid == 1;
                assert!(decoded.extents.iter().all(own), "{what}");
                assert_eq!(decoded.scope, case.scope, "{what}");
                assert_eq!(decoded.persistence, case.persistence, "{what}");
            });
        }
    }
}

#[test]
fn every_row_refuses_its_attacks() {
    for (queue, row) in rows() {
        let Cases::Passes { attacks, .. } = row.cases else {
            continue;
        };
        assert!(!attacks.is_empty(), "{}", row.name);
        for case in *attacks {
            run(queue, row, &case.command, |result, what| {
                let refusal = result.err().unwrap_or_else(|| panic!("{what}: passes"));
                assert_eq!(refusal.reason, case.reason, "{what}");
                assert_eq!(refusal.status, case.reason.status(), "{what}");
            });
        }
    }
}

/// Whatever its words say.
#[test]
fn commands_that_never_pass_do_not() {
    for (queue, row) in rows() {
        let Cases::Refused(reason) = row.cases else {
            assert!(
                !matches!(row.rule, Rule::Never | Rule::Unknown),
                "{}",
                row.name
            );
            continue;
        };
        let opcode = match row.rule {
            Rule::Unknown => 0x03,
            _ => u32::from(row.opcode),
        };
        for view in VIEWS {
            for filler in [0, 1, u32::MAX] {
                let mut entry = [filler; 16];
                entry[0] = filler & !0xff | opcode;
                let mut decoder = decoder(view);
                let result = decoder.decode(queue, Some(&GEOMETRY), &entry, &[]);
                assert_eq!(result.unwrap_err().reason, *reason, "{}", row.name);
            }
        }
    }
}

/// A command reaches more than blocks and virtual controllers only by classes that say so.
#[test]
fn scopes_fit_classes() {
    for (queue, row) in rows() {
        let Cases::Passes {
            legitimate, reach, ..
        } = row.cases
        else {
            continue;
        };
        let legitimate = legitimate.iter().map(|case| &case.command);
        for command in legitimate.chain(reach.iter().map(|case| &case.command)) {
            run(queue, row, command, |result, what| {
                let decoded = passed(result, what);
                let blocks = !decoded.extents.is_empty();
                let fits = match decoded.class {
                    Class::Virtual => decoded.scope == Scope::VirtualController && !blocks,
                    Class::Read
                    | Class::Write
                    | Class::Compare
                    | Class::WriteZeroes
                    | Class::Deallocate
                    | Class::Verify
                    | Class::Copy
                    | Class::Poison
                    | Class::BlockStatus => decoded.scope == Scope::Extents && blocks,
                    Class::Flush
                    | Class::Format
                    | Class::Firmware
                    | Class::Security
                    | Class::NamespaceManagement
                    | Class::Information
                    | Class::Owner
                    | Class::Vendor => {
                        !matches!(decoded.scope, Scope::Extents | Scope::VirtualController)
                            && !blocks
                    }
                };
                assert!(fits, "{what}: {decoded:?}");
                // Commands on blocks are made anew: nothing of their words is left.
                assert!(!blocks || decoded.operands == [0; 8], "{what}");
            });
        }
    }
}

#[test]
fn formatting_one_namespace_reaches_all_where_the_controller_says_so() {
    let scope = |attributes, erase: u32| {
        let mut entry = [0; 16];
        (entry[0], entry[1], entry[10]) = (0x80, 1, erase << 9);
        let mut decoder = Decoder::new().with_format_attributes(attributes);
        let decoded = decoder.decode(QueueKind::Admin, Some(&GEOMETRY), &entry, &[]);
        decoded.unwrap().scope
    };
    assert_eq!(scope(0b000, 0), Scope::Namespace);
    assert_eq!(scope(0b001, 0), Scope::AllNamespaces);
    assert_eq!(scope(0b010, 0), Scope::Namespace);
    assert_eq!(scope(0b010, 1), Scope::AllNamespaces);
    assert_eq!(scope(0b100, 2), Scope::Namespace);
}

#[test]
fn other_command_sets_have_no_decoder() {
    let zoned = Geometry {
        command_set: CommandSet(2),
        ..GEOMETRY
    };
    for view in VIEWS {
        for opcode in 0..=u8::MAX {
            let mut entry = [0; 16];
            (entry[0], entry[1]) = (u32::from(opcode), 1);
            let mut decoder = decoder(view);
            let result = decoder.decode(QueueKind::Io, Some(&zoned), &entry, &[]);
            let vendor = view == View::Owner && opcode >= 0x80;
            assert_eq!(result.is_ok(), vendor, "{opcode:02x}h");
        }
        for opcode in [0x00, 0x02, 0x19] {
            let mut entry = [0; 16];
            (entry[0], entry[1]) = (opcode, 1);
            let mut decoder = decoder(view);
            let result = decoder.decode(QueueKind::Io, Some(&zoned), &entry, &[]);
            assert_eq!(result.unwrap_err().reason, Reason::UnknownCommandSet);
        }
    }
}

#[test]
fn a_block_size_beyond_reason_is_no_shift() {
    let wide = Geometry {
        block_shift: 64,
        ..GEOMETRY
    };
    let mut entry = [0; 16];
    (entry[0], entry[1]) = (0x02, 1);
    let mut decoder = Decoder::new();
    let result = decoder.decode(QueueKind::Io, Some(&wide), &entry, &[]);
    assert_eq!(result.unwrap_err().reason, Reason::Unavailable);
}
