//! Numbers out of and into bytes.

use super::DecodeError;

/// Reads a payload from its start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// For a payload that has exactly `length` bytes.
    pub(super) fn exact(payload: &'a [u8], length: usize) -> Result<Self, DecodeError> {
        if payload.len() == length {
            Self::at_least(payload, length)
        } else {
            Err(DecodeError::Length {
                expected: length as u64,
                actual: payload.len(),
            })
        }
    }

    /// For a payload that has a fixed part of `length` bytes, and more.
    pub(super) fn at_least(payload: &'a [u8], length: usize) -> Result<Self, DecodeError> {
        if payload.len() >= length {
            Ok(Self {
                whole: payload.len(),
                rest: payload,
            })
        } else {
            Err(DecodeError::Length {
                expected: length as u64,
                actual: payload.len(),
            })
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (first, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Length {
                expected: (self.whole - self.rest.len() + N) as u64,
                actual: self.whole,
            })?;
        self.rest = rest;
        Ok(*first)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// `argsz`, which must be `least` or more.
    pub(super) fn argsz(&mut self, least: u64) -> Result<u32, DecodeError> {
        let argsz = self.u32()?;
        if u64::from(argsz) < least {
            return Err(DecodeError::ArgumentSize { argsz, least });
        }
        Ok(argsz)
    }

    pub(super) fn zero32(&mut self, field: &'static str) -> Result<(), DecodeError> {
        match self.u32()? {
            0 => Ok(()),
            value => Err(DecodeError::Reserved {
                field,
                value: value.into(),
            }),
        }
    }

    pub(super) fn zero64(&mut self, field: &'static str) -> Result<(), DecodeError> {
        match self.u64()? {
            0 => Ok(()),
            value => Err(DecodeError::Reserved { field, value }),
        }
    }

    /// All that is left.
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// All that is left, which must be `length` bytes.
    pub(super) fn data(self, length: u64) -> Result<&'a [u8], DecodeError> {
        if self.rest.len() as u64 == length {
            return Ok(self.rest);
        }
        Err(DecodeError::Length {
            expected: (self.whole as u64 - self.rest.len() as u64).saturating_add(length),
            actual: self.whole,
        })
    }
}

/// Refuses a range that wraps. One that ends at 2^64 exactly does not.
pub(super) fn check_range(start: u64, length: u64) -> Result<(), DecodeError> {
    if length > 0 && start.checked_add(length - 1).is_none() {
        return Err(DecodeError::Range { start, length });
    }
    Ok(())
}

/// Appends numbers.
pub(super) trait Put {
    fn put16(&mut self, value: u16);
    fn put32(&mut self, value: u32);
    fn put64(&mut self, value: u64);
}

impl Put for Vec<u8> {
    fn put16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_ne_bytes());
    }

    fn put32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_ne_bytes());
    }

    fn put64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_ne_bytes());
    }
}
