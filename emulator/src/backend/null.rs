//! The back end that moves no data.

use std::io;

use super::{Backend, BackendCompletion, Immediate, Outcome, Request};
use crate::iommu::{DeviceMemory, Segment};

/// Completes everything at once and moves nothing: reads leave the buffer as it is. For measuring all that is around the data.
#[derive(Debug, Default)]
pub struct NullBackend {
    done: Vec<BackendCompletion>,
}

impl Backend for NullBackend {
    fn submit(&mut self, requests: &[Request], _segments: &[Segment], _memory: &DeviceMemory<'_>) {
        self.done
            .extend(requests.iter().map(|request| BackendCompletion {
                tag: request.tag,
                outcome: Outcome::Done,
            }));
    }

    fn poll(&mut self, _memory: &DeviceMemory<'_>, completions: &mut Vec<BackendCompletion>) {
        completions.append(&mut self.done);
    }

    fn create(&mut self, _namespace: u32, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn erase(&mut self, _namespace: u32) -> io::Result<()> {
        Ok(())
    }

    fn is_immediate(&self) -> bool {
        true
    }

    fn immediate(&mut self, _commands: &mut [Immediate], _memory: &DeviceMemory<'_>) -> bool {
        true
    }

    fn reset(&mut self) {
        self.done.clear();
    }
}
