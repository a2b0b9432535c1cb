//! `VERSION`: always the first message, and only that.

use serde_json::Value;

use super::{Phase, Session, SessionEnd};
use crate::capabilities::Capabilities;
use crate::device::Errno;
use crate::message::{Command, Kind, Reply, Request, VERSION_MAJOR, VERSION_MINOR, Version};
use crate::socket::Message;

impl Session {
    /// Takes the client's VERSION, answers it and opens the session.
    pub(super) fn negotiate(
        &mut self,
        message: &Message,
        descriptors: usize,
    ) -> Result<(), SessionEnd> {
        let header = message.header;
        let refused = match self.agree(message, descriptors) {
            Ok((minor, text)) => {
                let version = Version {
                    major: VERSION_MAJOR,
                    minor,
                    data: text.as_bytes(),
                };
                self.reply(&header, &Reply::Version(version));
                self.phase = Phase::Open;
                return Ok(());
            }
            Err(refused) => refused,
        };
        let errno = match refused {
            SessionEnd::OtherMajor { .. } => Errno::EPROTONOSUPPORT,
            _ => Errno::EINVAL,
        };
        self.reply_error(&header, errno);
        Err(refused)
    }

    /// The minor version and the capabilities to answer with.
    fn agree(
        &mut self,
        message: &Message,
        descriptors: usize,
    ) -> Result<(u16, String), SessionEnd> {
        let command = message.header.command;
        if command != Command::VERSION {
            return Err(SessionEnd::NotVersion(command));
        }
        // It cannot go without a reply.
        if message.header.kind != (Kind::Command { no_reply: false }) || descriptors > 0 {
            return Err(SessionEnd::BadVersion(
                "flags or descriptors that a version does not have".into(),
            ));
        }
        let Request::Version(proposed) = Request::decode(command, &message.payload)? else {
            return Err(SessionEnd::NotVersion(command));
        };
        if proposed.major != VERSION_MAJOR {
            return Err(SessionEnd::OtherMajor {
                major: proposed.major,
            });
        }
        let client = Capabilities::parse(proposed.data)
            .map_err(|error| SessionEnd::BadVersion(Box::new(error)))?;
        let offered = &self.options.capabilities;
        self.write_multiple = client.write_multiple && offered.write_multiple;
        self.takes_descriptors = client.max_msg_fds > 0;
        self.reader
            .set_max_payload(offered.max_data_xfer_size.saturating_add(Self::HEAD));
        let mut answered = *offered;
        answered.write_multiple = self.write_multiple;
        Ok((
            proposed.minor.min(VERSION_MINOR),
            answer(proposed.data, &answered),
        ))
    }
}

/// Those of the offered capabilities that the client proposed too; none where it proposed nothing. (The protocol wants a subset, and QEMU has no more room than its own text takes.)
fn answer(proposed: &[u8], offered: &Capabilities) -> String {
    let parse = |text: &[u8]| serde_json::from_slice::<Value>(text).ok();
    let (Some(proposed), Some(mut offered)) =
        (parse(proposed), parse(offered.to_json().as_bytes()))
    else {
        return String::new();
    };
    if let Some(Value::Object(capabilities)) = offered.get_mut("capabilities") {
        let known = proposed.get("capabilities");
        capabilities.retain(|key, _| known.is_some_and(|known| known.get(key).is_some()));
    }
    offered.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_only_what_was_proposed() {
        let offered = Capabilities {
            max_msg_fds: 8,
            ..Capabilities::default()
        };
        assert_eq!(answer(b"", &offered), "");
        assert_eq!(answer(b"{}", &offered), r#"{"capabilities":{}}"#);
        assert_eq!(
            answer(br#"{"capabilities":{"max_msg_fds":3,"new":1}}"#, &offered),
            r#"{"capabilities":{"max_msg_fds":8}}"#
        );
    }

    #[test]
    fn is_no_longer_than_what_qemu_has_room_for() {
        let proposed = br#"{"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}"#;
        let offered = super::super::SessionOptions::default().capabilities;
        let answered = answer(proposed, &offered);
        assert!(answered.len() <= proposed.len());
        assert_eq!(
            Capabilities::parse(answered.as_bytes()).expect("understood"),
            offered
        );
    }
}
