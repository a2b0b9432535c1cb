//! A controller that moves no data and works only when it is told to.

use std::error::Error;
use std::sync::Arc;

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Buffer, Controller, IoQueue, Namespace, Options, QueueOptions};
use nvme_vfio_emulator::Emulator;

/// An emulated controller with the null back end, and a queue on it, stepped by whoever measures.
#[derive(Debug)]
pub struct Rig {
    /// The controller's own half.
    pub emulator: Arc<Emulator>,
    /// The driver's half.
    pub controller: Controller,
    /// Its namespace.
    pub namespace: Namespace,
    /// A queue of the depth that was asked for.
    pub queue: IoQueue,
}

impl Rig {
    /// With a queue of `depth` commands.
    ///
    /// # Errors
    /// As [`Controller::open`].
    pub fn new(options: QueueOptions) -> Result<Self, Box<dyn Error>> {
        let emulator = Emulator::new("size=1G,lba=4096,backend=null,stepped=on".parse()?)?;
        let transport = Arc::new(EmulatedTransport::stepped(Arc::clone(&emulator)));
        let controller = Controller::with_transport(transport, Options::default())?;
        let namespace = controller.only_namespace()?;
        let queue = controller.io_queue(options)?;
        Ok(Self {
            emulator,
            controller,
            namespace,
            queue,
        })
    }

    /// As many buffers of 4 KiB as the queue has slots.
    ///
    /// # Errors
    /// As [`Controller::allocate`].
    pub fn buffers(&self) -> Result<Vec<Buffer>, Box<dyn Error>> {
        Ok((0..self.queue.depth())
            .map(|_| self.controller.allocate(4096))
            .collect::<Result<_, _>>()?)
    }
}
