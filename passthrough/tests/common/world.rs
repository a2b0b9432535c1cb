//! A device that is lent to several clients, in one process and without threads: who steps what decides the order of everything.
#![allow(unsafe_code)] // Lends clients' memory, which outlives what it is lent to.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nvme_vfio::transport::EmulatedTransport;
use nvme_vfio::{Controller, Options};
use nvme_vfio_dma::{Iova, MapRegion, Memory, SharedMemory};
use nvme_vfio_emulator::{Emulator, served_domain};
use nvme_vfio_passthrough::audit::ClientAudit;
use nvme_vfio_passthrough::policy::{
    Budget, ControllerFacts, GroupPolicy, PolicyFile, ResolvedClient, ResolvedPolicy,
};
use nvme_vfio_passthrough::{
    Ceilings, Client as Who, Clock, Decoder, Gate, Holder, Identity, Isolated, LentNamespaceConfig,
    Slice, VirtualConfig, VirtualController,
};
use nvme_vfio_queues::FeatureId;
use nvme_vfio_queues::command::{Cns, Identify, LogPageId};
use nvme_vfio_queues::features::Select;

use super::client::Client;
use super::judge::{BLOCK, Breach, Grant, Judge, Piece};
use super::learned::{self, MARK, NOBODY};
use super::medium::Medium;
use super::memory::PAGE;
use super::{command, with_blocks, with_prps};

/// A client, its virtual controller, and its memory.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) name: String,
    /// Its virtual controller.
    pub(crate) emulator: Arc<Emulator>,
    loans: Vec<SharedMemory>,
    pub(crate) client: Client,
    /// Texts that nobody else may learn.
    pub(crate) secrets: Vec<Vec<u8>>,
}

/// A device and those whom it is lent to.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seats: Vec<Seat>,
    pub(crate) judge: Judge,
    pub(crate) medium: Medium,
    pub(crate) controller: Controller,
    pub(crate) device: Arc<Emulator>,
    pub(crate) clock: Clock,
}

/// What a client may send that reaches the device, by the words of the policy.
fn opcodes(allow: &[&str]) -> Vec<u8> {
    let of = |word: &&str| match *word {
        "flush" => 0x00,
        "write" => 0x01,
        "read" => 0x02,
        "poison" => 0x04,
        "compare" => 0x05,
        "write-zeroes" => 0x08,
        "deallocate" => 0x09,
        "verify" => 0x0c,
        "copy" => 0x19,
        other => panic!("{other}"),
    };
    allow.iter().map(of).collect()
}

/// One client of a policy.
#[derive(Clone, Debug)]
pub(crate) struct Lent {
    pub(crate) name: &'static str,
    /// By identifier: pieces, and what may be done to them.
    pub(crate) namespaces: Vec<(u32, Vec<Piece>, Vec<&'static str>)>,
    pub(crate) bounce: bool,
    /// More keys of the client, as the policy has them.
    pub(crate) more: &'static str,
}

impl Lent {
    fn text(&self) -> String {
        let mut text = format!(
            "[[client]]\nname = \"{}\"\nuid = [0]\nisolation = \"{}\"\n{}\n",
            self.name,
            if self.bounce { "bounce" } else { "shared" },
            self.more
        );
        for (nsid, pieces, allow) in &self.namespaces {
            let source: Vec<_> = pieces
                .iter()
                .map(|piece| {
                    format!(
                        "{{ nsid = {}, start = {}, blocks = {} }}",
                        piece.nsid, piece.first, piece.blocks
                    )
                })
                .collect();
            text += &format!(
                "[[client.namespace]]\nnsid = {nsid}\nsource = [{}]\nallow = {allow:?}\n",
                source.join(", ")
            );
        }
        text
    }

    /// What the judge is told.
    fn grant(&self) -> Grant {
        let namespaces: Vec<_> = self
            .namespaces
            .iter()
            .map(|(nsid, pieces, _)| (*nsid, pieces.as_slice()))
            .collect();
        let all: Vec<_> = self
            .namespaces
            .iter()
            .flat_map(|(_, _, allow)| opcodes(allow))
            .collect();
        Grant::new(self.name, &namespaces, &all)
    }
}

impl World {
    /// A device of this configuration, lent to these clients.
    pub(crate) fn new(config: &str, lent: &[Lent]) -> World {
        let medium = Medium::default();
        let device =
            Emulator::with_backend(config.parse().expect("a configuration"), medium.backend())
                .expect("a controller");
        let transport = Arc::new(EmulatedTransport::stepped(Arc::clone(&device)));
        let controller =
            Controller::with_transport(transport, Options::default()).expect("a controller");
        let text: String = lent.iter().map(Lent::text).collect();
        let text = format!(
            "controller = [\"emulated:{config}\"]\ndirectory = \"sockets\"\naudit = {{ path = \"audit.jsonl\" }}\n{text}"
        );
        let file = PolicyFile::parse(&text, Path::new("/nowhere")).expect("a policy");
        let facts = ControllerFacts::read(&controller).expect("facts");
        let resolved = file
            .resolve(&[facts], &Budget::default())
            .expect("a policy that fits");
        plant(&medium, lent);
        let mut world = World {
            seats: Vec::new(),
            judge: Judge::new(&device, medium.clone()),
            medium,
            controller,
            device,
            clock: Clock::default(),
        };
        let policy = Arc::new(GroupPolicy::new(&resolved));
        for (index, one) in lent.iter().enumerate() {
            world.seat(one, &resolved, index, &policy);
        }
        world.judge.rebase();
        world
    }

    fn seat(
        &mut self,
        lent: &Lent,
        resolved: &ResolvedPolicy,
        index: usize,
        policy: &Arc<GroupPolicy>,
    ) {
        let client = &resolved.clients[index];
        let handler = self.handler(client, policy);
        let emulator = virtual_controller(client, handler);
        let mut guest = Client::new(Arc::clone(&emulator), 1 << 32);
        let before = self.judge.mappings();
        let loans = if lent.bounce {
            for run in &guest.memory.runs {
                super::memory::lend(&emulator.iommu(), &guest.memory, *run, run.guest);
            }
            Vec::new()
        } else {
            lend(&self.controller, &emulator, &guest)
        };
        let number = self.judge.know(lent.grant(), &before);
        assert_eq!(number, index);
        let mut step = self.stepper(&emulator);
        guest.start(&mut step);
        // Only its own commands are under way now, and show which queues it has.
        self.judge.rebase();
        let data = guest.page(super::client::pages::DATA);
        for (nsid, pieces, allow) in &lent.namespaces {
            // Of each piece, as each may be of another controller.
            let opcode = if allow.contains(&"read") { 0x02 } else { 0x01 };
            let mut first = 0;
            for piece in pieces {
                let one = with_prps(with_blocks(command(opcode, *nsid), first, 1), data, 0);
                assert_eq!(guest.run(1, one, &mut step).status, 0);
                first += piece.blocks;
            }
        }
        assert!(self.judge.learn_queues(index) > 0);
        let mut secrets = vec![
            lent.name.as_bytes().to_vec(),
            client.names.serial.clone().into_bytes(),
        ];
        secrets.push(client.names.subnqn.clone().into_bytes());
        for namespace in &client.namespaces {
            secrets.push(namespace.names.nguid.to_vec());
        }
        drop(step);
        self.seats.push(Seat {
            name: lent.name.to_owned(),
            emulator,
            loans,
            client: guest,
            secrets,
        });
    }

    fn handler(&self, client: &ResolvedClient, policy: &Arc<GroupPolicy>) -> VirtualController {
        let who = Who {
            id: client.id,
            name: client.policy.name.as_str().into(),
            identity: Identity::default(),
        };
        let audit = ClientAudit::detached(&client.policy.name);
        let gate = Gate::new(Arc::clone(policy), who, Decoder::new(), audit);
        let namespaces = client
            .namespaces
            .iter()
            .map(|namespace| LentNamespaceConfig {
                nsid: namespace.nsid,
                slices: namespace
                    .extents
                    .iter()
                    .map(|extent| Slice {
                        target: 0,
                        nsid: extent.nsid,
                        start: extent.first,
                        blocks: extent.blocks,
                    })
                    .collect(),
            })
            .collect();
        let config = VirtualConfig {
            controllers: vec![self.controller.clone()],
            namespaces,
            ceilings: Ceilings {
                outstanding: client.limits.outstanding,
                operations: None,
                bandwidth: None,
            },
            isolated: match client.policy.isolation {
                nvme_vfio_passthrough::policy::Isolation::Bounce => Isolated::Bounce,
                nvme_vfio_passthrough::policy::Isolation::Shared => Isolated::Shared,
            },
            timeout: Duration::from_secs(3600),
            mender: None,
            max_transfer: 128 << 10,
            holder: Holder::default(),
            clock: self.clock.clone(),
        };
        VirtualController::new(config, gate).expect("a virtual controller")
    }

    /// What moves a virtual controller and the device a little.
    pub(crate) fn stepper(&self, emulator: &Arc<Emulator>) -> impl FnMut() + use<> {
        let (emulator, device) = (Arc::clone(emulator), Arc::clone(&self.device));
        move || {
            emulator.step();
            device.step();
        }
    }

    /// Everything that can be asked of the device and that no client may change.
    pub(crate) fn device_state(&mut self) -> Vec<(String, Vec<u8>)> {
        let mut state = Vec::new();
        let mut push = |what: String, data: Result<Vec<u8>, nvme_vfio::Error>| {
            let data = data.unwrap_or_else(|error| error.to_string().into_bytes());
            state.push((what, data));
        };
        let device = &self.controller;
        for cns in [Cns::CONTROLLER, Cns::ACTIVE_NAMESPACE_LIST] {
            push(format!("{cns}"), device.identify_raw(Identify::new(cns, 0)));
        }
        for nsid in 1..=8 {
            for cns in [Cns::NAMESPACE, Cns::NAMESPACE_DESCRIPTORS] {
                let mut data = device.identify_raw(Identify::new(cns, nsid));
                // NUSE follows what the clients write and let go of.
                if let (Cns::NAMESPACE, Ok(data)) = (cns, &mut data) {
                    data[16..24].fill(0);
                }
                push(format!("{cns} {nsid}"), data);
            }
        }
        for fid in (0x01..=0x1f).chain(0x80..=0x84) {
            for nsid in [0, 1, 2] {
                let value = device.feature(FeatureId(fid), Select::Current, nsid);
                push(
                    format!("feature {fid:#x} of {nsid}"),
                    value.map(|value| value.to_le_bytes().to_vec()),
                );
            }
        }
        for lid in [
            LogPageId::FIRMWARE_SLOT,
            LogPageId::CHANGED_NAMESPACE_LIST,
            LogPageId::COMMANDS_SUPPORTED_AND_EFFECTS,
        ] {
            push(format!("{lid}"), device.log_page(lid, u32::MAX, 512));
        }
        let mut smart = device.log_page(LogPageId::SMART_HEALTH, u32::MAX, 512);
        if let Ok(data) = &mut smart {
            // What was read and written, how many commands, and how many errors, those of blocks that their client poisoned among them.
            data[32..96].fill(0);
            data[160..192].fill(0);
        }
        push("health".to_owned(), smart);
        state.push((
            "CC".to_owned(),
            self.device.register_read(0x14, 4).to_le_bytes().to_vec(),
        ));
        state.push((
            "CSTS".to_owned(),
            self.device.register_read(0x1c, 4).to_le_bytes().to_vec(),
        ));
        // What the judge has seen of this was its own doing.
        drop(self.judge.look(&[]));
        state
    }

    /// Everything that one client can see of its controller, and its whole memory.
    pub(crate) fn seat_state(&mut self, index: usize) -> Vec<(String, Vec<u8>)> {
        let mut step = self.stepper(&self.seats[index].emulator);
        super::state::state(&mut self.seats[index].client, &mut step)
    }

    /// Looks through what a client was given for what it must not learn: blocks of others.
    pub(crate) fn learned(&self, index: usize) -> Vec<Breach> {
        learned::marks(
            &self.seats[index].client,
            index as u32,
            self.seats.len() as u32,
        )
    }

    /// As [`learned`](World::learned), for names and identifiers of others.
    pub(crate) fn learned_texts(&self, index: usize) -> Vec<Breach> {
        let seats = self.seats.iter().enumerate();
        let secrets: Vec<_> = seats
            .filter(|(other, _)| *other != index)
            .flat_map(|(other, seat)| seat.secrets.iter().map(move |secret| (other, &secret[..])))
            .collect();
        learned::texts(&self.seats[index].client, &secrets)
    }
}

/// Marks every block of the medium with whose it is.
fn plant(medium: &Medium, lent: &[Lent]) {
    let mut contents = medium.lock();
    for (nsid, bytes) in &mut contents.namespaces {
        for (lba, block) in bytes.chunks_mut(BLOCK as usize).enumerate() {
            let holds = |lent: &Lent| lent.grant().holds(*nsid, lba as u64, 1);
            let owner = lent
                .iter()
                .position(holds)
                .map_or(NOBODY, |owner| owner as u32);
            for word in block.chunks_mut(4) {
                word.copy_from_slice(&(MARK | owner).to_le_bytes());
            }
        }
    }
}

/// Maps all of a client's memory for its virtual controller and for the real one.
fn lend(controller: &Controller, emulator: &Emulator, guest: &Client) -> Vec<SharedMemory> {
    let mut loans = Vec::new();
    for run in &guest.memory.runs {
        let pointer = guest.memory.pointer(*run);
        // SAFETY: the seat keeps the memory for longer than the loan, and everybody reaches it by atomics or raw copies only.
        let memory = unsafe { Memory::from_raw_parts(pointer, run.length, PAGE) };
        let loan = controller
            .address_space()
            .map(memory, run.access)
            .expect("a loan");
        let region = MapRegion {
            pointer,
            length: run.length,
            descriptor: None,
            access: run.access,
        };
        // SAFETY: as above; the virtual controller is not stepped any more when the memory goes.
        unsafe {
            emulator
                .iommu()
                .map_lent(&region, Iova(run.guest), Some(loan.iova()))
        }
        .expect("a free address");
        loans.push(loan);
    }
    loans
}

/// The front end of a client's virtual controller.
fn virtual_controller(client: &ResolvedClient, handler: VirtualController) -> Arc<Emulator> {
    let nsids: Vec<_> = client
        .namespaces
        .iter()
        .map(|namespace| {
            format!(
                "{}/{}/{}",
                namespace.nsid,
                namespace.blocks << namespace.block_shift,
                1 << namespace.block_shift
            )
        })
        .collect();
    let config = format!(
        "nsids={},queues=4,serial={},backend=null,stepped",
        nsids.join(":"),
        client.names.serial
    );
    let config = config.parse().expect("a configuration");
    Emulator::with_handler(config, Box::new(handler), served_domain(64))
        .expect("a virtual controller")
}
