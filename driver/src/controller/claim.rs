//! One controller per transport: a second would take the first one's queues away while their owners ring them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;
use crate::transport::Transport;

/// Where the transports are on which controllers of this process run.
static CLAIMED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A transport that is one controller's, until this is dropped.
#[derive(Debug)]
pub(super) struct Claim(usize);

impl Claim {
    pub(super) fn new(transport: &Arc<dyn Transport>) -> Result<Self, Error> {
        // No other has the same address while the controller holds this one.
        let place = Arc::as_ptr(transport).addr();
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.contains(&place) {
            let address = transport.name();
            return Err(Error::AlreadyOpen { address });
        }
        claimed.push(place);
        Ok(Self(place))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|place| *place != self.0);
    }
}
