//! The sixteen bytes before every payload.

use std::fmt;

use thiserror::Error;

/// Bytes in a header.
pub const HEADER_LENGTH: usize = 16;

const TYPE: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// What a message is about. Open: a number that the protocol does not have is kept, so that it can be answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Command(pub u16);

macro_rules! commands {
    ($($constant:ident = $value:literal, $direction:literal;)*) => {
        impl Command {
            $(
                #[doc = concat!("VFIO_USER_", stringify!($constant), ", ", $direction, ".")]
                pub const $constant: Self = Self($value);
            )*

            /// Every command of protocol 0.1, in ascending order.
            pub const ALL: &'static [Self] = &[$(Self::$constant),*];

            /// The protocol's name without its prefix; `None` for a number that it does not have.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($constant)),)*
                    _ => None,
                }
            }
        }
    };
}

commands! {
    VERSION = 1, "client to server";
    DMA_MAP = 2, "client to server";
    DMA_UNMAP = 3, "client to server";
    DEVICE_GET_INFO = 4, "client to server";
    DEVICE_GET_REGION_INFO = 5, "client to server";
    DEVICE_GET_REGION_IO_FDS = 6, "client to server";
    DEVICE_GET_IRQ_INFO = 7, "client to server";
    DEVICE_SET_IRQS = 8, "client to server";
    REGION_READ = 9, "client to server";
    REGION_WRITE = 10, "client to server";
    DMA_READ = 11, "server to client";
    DMA_WRITE = 12, "server to client";
    DEVICE_RESET = 13, "client to server";
    REGION_WRITE_MULTI = 15, "client to server";
    DEVICE_FEATURE = 16, "client to server";
    MIG_DATA_READ = 17, "client to server";
    MIG_DATA_WRITE = 18, "client to server";
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "command {}", self.0),
        }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which of the three kinds of message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request.
    Command {
        /// Whether the sender wants no reply. Whether it was done can be told by the reply to a later one.
        no_reply: bool,
    },
    /// The answer to a request that was carried out, with the payload that belongs to it.
    Reply,
    /// The answer to a request that failed, without payload.
    Error {
        /// The errno of the peer's system; zero where it says none.
        errno: u32,
    },
}

/// What is known of every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sender's own number, which the reply repeats. Nothing can be told from it.
    pub id: u16,
    /// What it is about.
    pub command: Command,
    /// Bytes of the payload; on the wire the header's sixteen are counted too.
    pub payload: u32,
    /// Request or reply.
    pub kind: Kind,
}

/// Why sixteen bytes are not a header. Where the next message begins is not known any more: the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Shorter than itself.
    #[error("a message of {0} bytes, which its header alone would not fit")]
    Short(u32),
    /// Flags that are not defined, or that do not belong together.
    #[error("a header with flags {0:#x}")]
    Flags(u32),
    /// An error number in a message that reports no error.
    #[error("a header with error number {0} and no error flag")]
    Errno(u32),
    /// An error reply with a payload.
    #[error("an error reply with {0} bytes of payload")]
    ErrorPayload(u32),
}

impl Header {
    /// A request.
    #[must_use]
    pub const fn request(id: u16, command: Command, payload: u32, no_reply: bool) -> Self {
        Self {
            id,
            command,
            payload,
            kind: Kind::Command { no_reply },
        }
    }

    /// The answer to this request.
    #[must_use]
    pub const fn reply(&self, payload: u32) -> Self {
        Self {
            id: self.id,
            command: self.command,
            payload,
            kind: Kind::Reply,
        }
    }

    /// The answer to this request where it failed.
    #[must_use]
    pub const fn error(&self, errno: u32) -> Self {
        Self {
            id: self.id,
            command: self.command,
            payload: 0,
            kind: Kind::Error { errno },
        }
    }

    /// Whether this is a request that wants a reply.
    #[must_use]
    pub const fn wants_reply(&self) -> bool {
        matches!(self.kind, Kind::Command { no_reply: false })
    }

    /// Reads a header.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn decode(bytes: &[u8; HEADER_LENGTH]) -> Result<Self, HeaderError> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes;
        let length = u32::from_ne_bytes([e, f, g, h]);
        let flags = u32::from_ne_bytes([i, j, k, l]);
        let errno = u32::from_ne_bytes([m, n, o, p]);
        let payload = length
            .checked_sub(HEADER_LENGTH as u32)
            .ok_or(HeaderError::Short(length))?;
        let kind = match (flags & TYPE, flags & !TYPE) {
            (TYPE_COMMAND, rest @ (0 | NO_REPLY)) => Kind::Command {
                no_reply: rest == NO_REPLY,
            },
            (TYPE_REPLY, 0) => Kind::Reply,
            (TYPE_REPLY, ERROR) if payload == 0 => Kind::Error { errno },
            (TYPE_REPLY, ERROR) => return Err(HeaderError::ErrorPayload(payload)),
            _ => return Err(HeaderError::Flags(flags)),
        };
        if errno != 0 && !matches!(kind, Kind::Error { .. }) {
            return Err(HeaderError::Errno(errno));
        }
        Ok(Self {
            id: u16::from_ne_bytes([a, b]),
            command: Command(u16::from_ne_bytes([c, d])),
            payload,
            kind,
        })
    }

    /// The bytes of this header. A payload longer than 2^32 − 17 cannot be said and is cut to that.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LENGTH] {
        let length = self.payload.saturating_add(HEADER_LENGTH as u32);
        let (flags, errno) = match self.kind {
            Kind::Command { no_reply: false } => (TYPE_COMMAND, 0),
            Kind::Command { no_reply: true } => (TYPE_COMMAND | NO_REPLY, 0),
            Kind::Reply => (TYPE_REPLY, 0),
            Kind::Error { errno } => (TYPE_REPLY | ERROR, errno),
        };
        let mut bytes = [0; HEADER_LENGTH];
        let fields = self
            .id
            .to_ne_bytes()
            .into_iter()
            .chain(self.command.0.to_ne_bytes())
            .chain(length.to_ne_bytes())
            .chain(flags.to_ne_bytes())
            .chain(errno.to_ne_bytes());
        for (byte, value) in bytes.iter_mut().zip(fields) {
            *byte = value;
        }
        bytes
    }
}
