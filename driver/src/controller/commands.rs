//! What a controller is asked and told by admin commands.

use nvme_vfio_queues::command::{Cns, GetLogPage, Identify, LogPageId};
use nvme_vfio_queues::features::Select;
use nvme_vfio_queues::identify::{IDENTIFY_BYTES, NamespaceList};
use nvme_vfio_queues::{Command, DataPointer, FeatureId, IdentifyNamespace};
use zerocopy::FromBytes;

use super::{AdminData, Controller};
use crate::Error;
use crate::namespace::Namespace;

/// A controller's list of active namespaces is read in pages of 1,024. One that never ends is cut off here.
const MAX_NAMESPACES: usize = 65_536;

/// The most that is read of a log page at once, in bytes; every controller can transfer that much.
const LOG_CHUNK: usize = 4096;

/// Whether a feature's value is an address, or says that one follows in its data. To set it would let the controller touch
/// memory that this process never lent to it.
fn carries_address(feature: FeatureId) -> bool {
    matches!(feature, FeatureId::HOST_MEMORY_BUFFER | FeatureId(0x21))
}

impl Controller {
    /// Identify (NVMe base 2.0, section 5.17): 4096 bytes.
    ///
    /// # Errors
    /// As the admin commands.
    pub fn identify_raw(&self, what: Identify) -> Result<Vec<u8>, Error> {
        let mut data = vec![0; IDENTIFY_BYTES];
        self.0.admin(
            "Identify",
            what.command(DataPointer::NONE),
            AdminData::FromController(&mut data),
        )?;
        Ok(data)
    }

    /// Identify Namespace data. That of an inactive namespace is all zeros.
    ///
    /// # Errors
    /// As the admin commands.
    pub fn identify_namespace(&self, nsid: u32) -> Result<IdentifyNamespace, Error> {
        let data = self.identify_raw(Identify::new(Cns::NAMESPACE, nsid))?;
        IdentifyNamespace::read_from_bytes(&data).map_err(|_| {
            Error::Length("Identify Namespace data has another length than 4096 bytes".to_owned())
        })
    }

    /// The identifiers of the active namespaces above `after` (0: of all), ascending.
    ///
    /// # Errors
    /// As the admin commands.
    pub fn namespaces_after(&self, after: u32) -> Result<Vec<u32>, Error> {
        let mut found = Vec::new();
        let mut last = after;
        loop {
            let data = self.identify_raw(Identify::new(Cns::ACTIVE_NAMESPACE_LIST, last))?;
            let list = NamespaceList::read_from_bytes(&data).map_err(|_| {
                Error::Length("a namespace list has another length than 4096 bytes".to_owned())
            })?;
            found.extend(list.iter_after(last));
            match found.last() {
                Some(&end) if list.is_full(last) && found.len() < MAX_NAMESPACES => last = end,
                _ => return Ok(found),
            }
        }
    }

    /// The identifiers of the active namespaces, ascending. There may be none.
    ///
    /// # Errors
    /// As the admin commands.
    pub fn namespaces(&self) -> Result<Vec<u32>, Error> {
        self.namespaces_after(0)
    }

    /// The namespace `nsid`, as it is formatted now.
    ///
    /// # Errors
    /// [`Error::Namespace`] where it is not active or its format cannot be used.
    pub fn namespace(&self, nsid: u32) -> Result<Namespace, Error> {
        if nsid == 0 || nsid >= u32::MAX - 1 {
            return Err(Error::Namespace {
                nsid,
                reason: format!("the identifier {nsid:#x} names no single namespace"),
            });
        }
        // Controllers answer for an inactive namespace with zeros, and for one that cannot be with an error.
        match self.identify_namespace(nsid) {
            Ok(identify) => Namespace::new(&self.0, nsid, &identify),
            Err(Error::Status { status, .. }) => Err(Error::Namespace {
                nsid,
                reason: format!("the controller does not know it: {status}"),
            }),
            Err(error) => Err(error),
        }
    }

    /// The only active namespace.
    ///
    /// # Errors
    /// [`Error::Namespace`] where there is none, or more than one.
    pub fn only_namespace(&self) -> Result<Namespace, Error> {
        match self.namespaces()?.as_slice() {
            [nsid] => self.namespace(*nsid),
            [] => Err(Error::Namespace {
                nsid: 0,
                reason: "the controller has no active namespace".to_owned(),
            }),
            several => {
                let list: Vec<String> = several.iter().take(16).map(u32::to_string).collect();
                let more = if several.len() > list.len() {
                    ", …"
                } else {
                    ""
                };
                Err(Error::Namespace {
                    nsid: 0,
                    reason: format!(
                        "the controller has {} active namespaces ({}{more}); name one",
                        several.len(),
                        list.join(", ")
                    ),
                })
            }
        }
    }

    /// The first `length` bytes of a log page, read without clearing the events that announced it.
    ///
    /// # Errors
    /// [`Error::Length`] where `length` is zero or not a multiple of 4; else as the admin commands.
    pub fn log_page(&self, lid: LogPageId, nsid: u32, length: usize) -> Result<Vec<u8>, Error> {
        let mut data = vec![0; length];
        if length == 0 || !length.is_multiple_of(4) {
            return Err(Error::Length(format!(
                "a log page cannot be read for {length} bytes: a positive multiple of 4 is needed"
            )));
        }
        let mut offset = 0;
        for chunk in data.chunks_mut(LOG_CHUNK) {
            let fields = GetLogPage::new(lid, chunk.len() as u32).ok_or_else(|| {
                Error::Length(format!(
                    "a log page cannot be read for {} bytes",
                    chunk.len()
                ))
            })?;
            let length = chunk.len() as u64;
            let command = GetLogPage {
                nsid,
                offset,
                ..fields
            }
            .command(DataPointer::NONE);
            self.0
                .admin("Get Log Page", command, AdminData::FromController(chunk))?;
            offset += length;
        }
        Ok(data)
    }

    /// Get Features: dword 0 of the answer, for a feature whose value is there.
    ///
    /// # Errors
    /// As the admin commands.
    pub fn feature(&self, feature: FeatureId, select: Select, nsid: u32) -> Result<u32, Error> {
        let command = Command::get_features(feature, select, nsid, DataPointer::NONE);
        Ok(self
            .0
            .admin("Get Features", command, AdminData::None)?
            .result())
    }

    /// Set Features, for a feature whose value is in dword 11: dword 0 of the answer. The driver's own features (the number of queues)
    /// and those that carry addresses are refused.
    ///
    /// # Errors
    /// [`Error::Length`] for a feature that is refused; else as the admin commands.
    pub fn set_feature(
        &self,
        feature: FeatureId,
        save: bool,
        nsid: u32,
        value: u32,
    ) -> Result<u32, Error> {
        if carries_address(feature) || feature == FeatureId::NUMBER_OF_QUEUES {
            return Err(Error::Length(format!(
                "{feature} is set by the driver itself or carries an address, and is not set this way"
            )));
        }
        let command = Command::set_features(feature, save, nsid, value, DataPointer::NONE);
        Ok(self
            .0
            .admin("Set Features", command, AdminData::None)?
            .result())
    }
}
