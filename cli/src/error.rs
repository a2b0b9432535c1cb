//! What went wrong, what to type next, and the exit status it ends in.

use std::io;

use serde::Serialize;

/// The exit status of success.
pub const EXIT_DONE: u8 = 0;
/// The controller's answer was an error status, or would have been.
pub const EXIT_COMMAND: u8 = 1;
/// Wrong usage, or a wrong file.
pub const EXIT_USAGE: u8 = 2;
/// The environment forbids it.
pub const EXIT_ENVIRONMENT: u8 = 3;
/// A timeout, a reset, or data that differs.
pub const EXIT_TIMEOUT: u8 = 4;

macro_rules! kinds {
    ($( $(#[doc = $doc:literal])* $name:ident = $word:literal, $status:expr; )*) => {
        /// The kind of an error: a stable word for scripts, and the exit status that goes with it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $( $(#[doc = $doc])* $name, )* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word that stands in JSON.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $( Self::$name => $word, )* }
            }

            /// The exit status.
            #[must_use]
            pub const fn exit_status(self) -> u8 {
                match self { $( Self::$name => $status, )* }
            }
        }
    };
}

kinds! {
    /// The controller completed a command with an error status.
    Command = "command", EXIT_COMMAND;
    /// The gate that commands pass has refused one; the controller was not asked.
    Refused = "refused", EXIT_COMMAND;
    /// A range of logical blocks that reaches past the end of the namespace, found before the controller was asked.
    LbaOutOfRange = "lba-out-of-range", EXIT_COMMAND;
    /// No such namespace, or none is active.
    NoNamespace = "no-namespace", EXIT_COMMAND;
    /// An option or argument that is unknown, malformed, missing or contradicts another.
    Usage = "usage", EXIT_USAGE;
    /// A buffer that is smaller than the data it must hold.
    BufferTooSmall = "buffer-too-small", EXIT_USAGE;
    /// A file that cannot be read or written, or holds less than was asked for.
    File = "file", EXIT_USAGE;
    /// Something that this version or this controller does not do.
    Unsupported = "unsupported", EXIT_USAGE;
    /// No such PCI function, group or user.
    NotFound = "not-found", EXIT_ENVIRONMENT;
    /// The function is not bound to vfio-pci.
    NotBound = "not-bound", EXIT_ENVIRONMENT;
    /// The IOMMU group is not viable.
    NotViable = "not-viable", EXIT_ENVIRONMENT;
    /// Something else holds the group or the device.
    Busy = "busy", EXIT_ENVIRONMENT;
    /// A node or a file in sysfs may not be opened by this user.
    Permission = "permission", EXIT_ENVIRONMENT;
    /// RLIMIT_MEMLOCK is too low.
    Memlock = "memlock", EXIT_ENVIRONMENT;
    /// The kernel takes no more DMA mappings.
    DmaEntryLimit = "dma-entry-limit", EXIT_ENVIRONMENT;
    /// No IOMMU, or VFIO is missing.
    NoIommu = "no-iommu", EXIT_ENVIRONMENT;
    /// The device holds data that would be destroyed.
    HoldsData = "holds-data", EXIT_ENVIRONMENT;
    /// The device is gone.
    Gone = "gone", EXIT_ENVIRONMENT;
    /// `doctor` found a fault.
    Fault = "fault", EXIT_ENVIRONMENT;
    /// Anything else that the operating system refused.
    Environment = "environment", EXIT_ENVIRONMENT;
    /// Something did not happen within its deadline.
    Timeout = "timeout", EXIT_TIMEOUT;
    /// The controller was reset under a command, or failed.
    Reset = "reset", EXIT_TIMEOUT;
}

/// An error as the user sees it: what was tried and what came back, and what to type next.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: String,
    remedy: Option<String>,
    /// Shown as it is instead of `error: message`: clap's own usage errors.
    rendered: Option<String>,
    nvme_status: Option<NvmeStatus>,
}

/// The status field of the completion queue entry behind an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NvmeStatus {
    /// Status code type.
    pub sct: u8,
    /// Status code.
    pub sc: u8,
    /// The specification's name, with the numbers.
    pub name: String,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    kind: &'static str,
    message: &'a str,
    remedy: Option<&'a str>,
    status: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    nvme_status: Option<&'a NvmeStatus>,
}

impl Error {
    /// An error without a remedy.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            remedy: None,
            rendered: None,
            nvme_status: None,
        }
    }

    /// Adds what to type next.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Adds the controller's answer.
    #[must_use]
    pub fn nvme_status(mut self, status: NvmeStatus) -> Self {
        self.nvme_status = Some(status);
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn context(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// A usage error with a remedy.
    pub fn usage(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message).remedy(remedy)
    }

    /// An error of a file named by the user.
    pub fn file(doing: impl std::fmt::Display, error: &io::Error) -> Self {
        Self::new(Kind::File, format!("{doing}: {error}"))
    }

    /// What kind it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// What to type next.
    #[must_use]
    pub fn remedy_text(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// The exit status.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        self.kind.exit_status()
    }

    /// The text for standard error, without the last line feed.
    #[must_use]
    pub fn render(&self, json: bool) -> String {
        if json {
            let body = Body {
                kind: self.kind.word(),
                message: &self.message,
                remedy: self.remedy.as_deref(),
                status: self.exit_status(),
                nvme_status: self.nvme_status.as_ref(),
            };
            // INVARIANT: strings and small integers always serialise.
            return serde_json::to_string(&Envelope { error: body }).unwrap_or_default();
        }
        if let Some(rendered) = &self.rendered {
            return rendered.trim_end().to_owned();
        }
        match &self.remedy {
            Some(remedy) => format!("error: {}\n{remedy}", self.message),
            None => format!("error: {}", self.message),
        }
    }
}

impl From<clap::Error> for Error {
    fn from(error: clap::Error) -> Self {
        let rendered = error.render().to_string();
        let mut message = String::new();
        // clap's text is the error, a blank line, hints and the usage.
        for line in rendered.lines().take_while(|line| !line.is_empty()) {
            if !message.is_empty() {
                message.push(' ');
            }
            message.push_str(line.trim().trim_start_matches("error: "));
        }
        let remedy = rendered
            .lines()
            .find_map(|line| line.trim().strip_prefix("tip: ").map(str::to_owned))
            .unwrap_or_else(|| "Run: nvme-vfio --help".to_owned());
        Self {
            kind: Kind::Usage,
            message,
            remedy: Some(remedy),
            rendered: Some(rendered),
            nvme_status: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_promised_keys() {
        let error = Error::new(Kind::NotViable, "IOMMU group 14 is not viable")
            .remedy("Run: nvme-vfio bind 0000:05:00.1");
        let value: serde_json::Value = serde_json::from_str(&error.render(true)).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"error": {
                "kind": "not-viable",
                "message": "IOMMU group 14 is not viable",
                "remedy": "Run: nvme-vfio bind 0000:05:00.1",
                "status": 3,
            }})
        );
    }

    #[test]
    fn without_a_remedy_the_key_stays() {
        let value: serde_json::Value =
            serde_json::from_str(&Error::new(Kind::Timeout, "no answer").render(true)).unwrap();
        assert!(value["error"]["remedy"].is_null());
        assert_eq!(value["error"]["status"], 4);
    }

    #[test]
    fn words_are_distinct_and_statuses_in_range() {
        let mut words: Vec<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Kind::ALL.len());
        assert!(
            Kind::ALL
                .iter()
                .all(|kind| (EXIT_COMMAND..=EXIT_TIMEOUT).contains(&kind.exit_status()))
        );
    }

    #[test]
    fn plain_text_ends_with_the_remedy() {
        let error = Error::usage("no such thing", "Run: nvme-vfio list").context("reading");
        assert_eq!(
            error.render(false),
            "error: reading: no such thing\nRun: nvme-vfio list"
        );
    }
}
