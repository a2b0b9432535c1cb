//! Conformance over vfio-user: each test has a process of its own to serve the emulated controller.
#![allow(clippy::duplicate_mod)] // the same cases twice, with doorbells that are mapped and with doorbells that are sent

mod by_message;
#[path = "../common/mod.rs"]
mod common;
mod mapped;
#[path = "../common/served.rs"]
mod served;

use std::ops::Deref;
use std::sync::Arc;

use nvme_vfio::{Controller, Options};
use served::{Doorbells, ServedProcess};

/// A controller, and the process that serves it, which lives as long.
#[derive(Clone)]
struct Opened {
    controller: Controller,
    _server: Arc<ServedProcess>,
}

impl Deref for Opened {
    type Target = Controller;

    fn deref(&self) -> &Controller {
        &self.controller
    }
}

fn opened(options: Options, doorbells: Doorbells) -> Opened {
    let server = ServedProcess::start("size=64M", doorbells);
    Opened {
        controller: server.open(options).expect("the served controller opens"),
        _server: Arc::new(server),
    }
}

/// Not a test by itself: what `ServedProcess` runs in a process of its own.
#[test]
fn serving_process() {
    served::serve_if_asked();
}
