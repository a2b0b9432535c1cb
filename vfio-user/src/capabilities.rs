//! What both sides tell each other when they connect, as JSON inside VERSION.

use serde_json::{Map, Value, json};
use thiserror::Error;

/// What one side can take, in numbers that the other must keep to. The default is what the protocol assumes of a side that says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Descriptors that it can receive with one message.
    pub max_msg_fds: u32,
    /// Most bytes that one message may read or write, not zero.
    pub max_data_xfer_size: u32,
    /// DMA mappings that can be there at once.
    pub max_dma_maps: u32,
    /// Page sizes of DMA mappings, as a bitmap: bit 12 is 4 KiB. Not zero.
    pub pgsizes: u64,
    /// Whether REGION_WRITE_MULTI is understood.
    pub write_multiple: bool,
    /// Whether requests of the server can go over a socket of their own. Never offered here; it is refused in a server's answer.
    pub twin_socket: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: 1 << 20,
            max_dma_maps: 65535,
            pgsizes: 4096,
            write_multiple: false,
            twin_socket: false,
        }
    }
}

/// Why the text in VERSION tells no capabilities.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CapabilitiesError {
    /// Not JSON in UTF-8, or nested too deep.
    #[error("the capabilities are not JSON")]
    Json(#[from] serde_json::Error),
    /// A value of another type than the protocol gives it, or a number that cannot be.
    #[error("{key} is not {expected}")]
    Type {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
    },
}

impl Capabilities {
    /// Reads the text of VERSION; empty text is a side that says nothing. Keys that are not known are ignored, and numbers too large for a field
    /// count as the largest that fits.
    ///
    /// # Errors
    /// See [`CapabilitiesError`].
    pub fn parse(text: &[u8]) -> Result<Self, CapabilitiesError> {
        let mut found = Self::default();
        if text.is_empty() {
            return Ok(found);
        }
        let Value::Object(outer) = serde_json::from_slice(text)? else {
            return Err(object("the text"));
        };
        let capabilities = match outer.get("capabilities") {
            None => return Ok(found),
            Some(Value::Object(capabilities)) => capabilities,
            Some(_) => return Err(object("capabilities")),
        };
        let limit =
            |key| number(capabilities, key).map(|n| n.map(|n| n.try_into().unwrap_or(u32::MAX)));
        if let Some(count) = limit("max_msg_fds")? {
            found.max_msg_fds = count;
        }
        if let Some(size) = limit("max_data_xfer_size")? {
            found.max_data_xfer_size = size;
        }
        if let Some(count) = limit("max_dma_maps")? {
            found.max_dma_maps = count;
        }
        if let Some(sizes) = number(capabilities, "pgsizes")? {
            found.pgsizes = sizes;
        }
        found.write_multiple = boolean(capabilities, "write_multiple")?;
        found.twin_socket = match capabilities.get("twin_socket") {
            None => false,
            Some(Value::Object(twin)) => boolean(twin, "supported")?,
            Some(_) => return Err(object("twin_socket")),
        };
        if found.max_data_xfer_size == 0 || found.pgsizes == 0 {
            let zero = |key| CapabilitiesError::Type {
                key,
                expected: "more than zero",
            };
            return Err(zero(if found.pgsizes == 0 {
                "pgsizes"
            } else {
                "max_data_xfer_size"
            }));
        }
        Ok(found)
    }

    /// The text for VERSION.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut capabilities = json!({
            "max_msg_fds": self.max_msg_fds,
            "max_data_xfer_size": self.max_data_xfer_size,
            "max_dma_maps": self.max_dma_maps,
            "pgsizes": self.pgsizes,
            "write_multiple": self.write_multiple,
        });
        if self.twin_socket
            && let Some(capabilities) = capabilities.as_object_mut()
        {
            capabilities.insert("twin_socket".to_owned(), json!({ "supported": true }));
        }
        json!({ "capabilities": capabilities }).to_string()
    }
}

fn object(key: &'static str) -> CapabilitiesError {
    CapabilitiesError::Type {
        key,
        expected: "an object",
    }
}

fn number(map: &Map<String, Value>, key: &'static str) -> Result<Option<u64>, CapabilitiesError> {
    map.get(key)
        .map(|value| {
            value.as_u64().ok_or(CapabilitiesError::Type {
                key,
                expected: "a whole number of zero or more",
            })
        })
        .transpose()
}

fn boolean(map: &Map<String, Value>, key: &'static str) -> Result<bool, CapabilitiesError> {
    map.get(key).map_or(Ok(false), |value| {
        value.as_bool().ok_or(CapabilitiesError::Type {
            key,
            expected: "true or false",
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn silence_means_the_protocols_defaults() {
        for text in [
            "",
            "{}",
            r#"{"capabilities":{}}"#,
            r#"{"capabilities":{"new":[1]},"x":1}"#,
        ] {
            let found = Capabilities::parse(text.as_bytes()).unwrap();
            assert_eq!(found, Capabilities::default());
        }
        let default = Capabilities::default();
        assert_eq!(default.max_msg_fds, 1);
        assert_eq!(default.max_data_xfer_size, 1_048_576);
        assert_eq!(default.max_dma_maps, 65535);
        assert_eq!(default.pgsizes, 4096);
    }

    #[test]
    fn what_other_programs_send_is_read() {
        // The shape that QEMU sends, with a key that this version does not know.
        let text = br#"{"capabilities": {"migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "max_msg_fds": 8, "max_data_xfer_size": 1048576, "pgsizes": 4096, "max_dma_maps": 65535, "write_multiple": true}}"#;
        let found = Capabilities::parse(text).unwrap();
        assert_eq!(found.max_msg_fds, 8);
        assert!(found.write_multiple);
        assert!(!found.twin_socket);
    }

    #[test]
    fn wrong_types_and_impossible_numbers_are_refused() {
        for capabilities in [
            r#""max_msg_fds": "8""#,
            r#""max_msg_fds": -1"#,
            r#""max_msg_fds": 1.5"#,
            r#""max_data_xfer_size": 0"#,
            r#""max_data_xfer_size": []"#,
            r#""max_dma_maps": null"#,
            r#""pgsizes": 0"#,
            r#""pgsizes": true"#,
            r#""write_multiple": 1"#,
            r#""twin_socket": true"#,
            r#""twin_socket": {"supported": "yes"}"#,
        ] {
            let text = format!(r#"{{"capabilities":{{{capabilities}}}}}"#);
            assert!(Capabilities::parse(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["[]", "1", "{", r#"{"capabilities":[]}"#, "{}{}"] {
            assert!(Capabilities::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Capabilities::parse(b"{\"capabilities\":{\"\xff\":1}}").is_err());
        let deep = "[".repeat(10_000);
        assert!(Capabilities::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn huge_numbers_are_the_largest_that_fit() {
        let found =
            Capabilities::parse(br#"{"capabilities":{"max_msg_fds":18446744073709551615}}"#);
        assert_eq!(found.unwrap().max_msg_fds, u32::MAX);
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        #[test]
        fn what_is_told_is_understood(
            max_msg_fds: u32, max_data_xfer_size in 1u32.., max_dma_maps: u32, pgsizes in 1u64.., write_multiple: bool, twin_socket: bool,
        ) {
            let told = Capabilities { max_msg_fds, max_data_xfer_size, max_dma_maps, pgsizes, write_multiple, twin_socket };
            prop_assert_eq!(Capabilities::parse(told.to_json().as_bytes()).unwrap(), told);
        }

        #[test]
        fn junk_is_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Capabilities::parse(&text);
        }
    }
}
