//! Says what a device did that it should not have done for a client.
//!
//! The judge reads the device's trace and its medium. What a command at the device reaches is worked out here once more, from its 16 dwords alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nvme_vfio_emulator::{DmaDirection, Emulator, Trace, TraceEvent, TracePurpose, TraceRecord};

use super::Dwords;
use super::medium::{How, Medium, Touch};

pub(crate) const BLOCK: u64 = 512;

/// Blocks of a real namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) nsid: u32,
    pub(crate) first: u64,
    pub(crate) blocks: u64,
}

/// What a client was granted, as the judge was told.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) name: &'static str,
    /// By the client's namespace identifier, in the client's order.
    pub(crate) namespaces: BTreeMap<u32, Vec<Piece>>,
    /// Opcodes on an I/O queue that may reach the device for this client.
    pub(crate) opcodes: BTreeSet<u8>,
}

impl Grant {
    pub(crate) fn new(name: &'static str, namespaces: &[(u32, &[Piece])], opcodes: &[u8]) -> Grant {
        Grant {
            name,
            namespaces: namespaces
                .iter()
                .map(|(nsid, pieces)| (*nsid, pieces.to_vec()))
                .collect(),
            opcodes: opcodes.iter().copied().collect(),
        }
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.namespaces.values().flatten()
    }

    /// Whether every one of the blocks is the client's. Pieces that adjoin count as one.
    pub(crate) fn holds(&self, nsid: u32, first: u64, blocks: u64) -> bool {
        let Some(end) = first.checked_add(blocks) else {
            return false;
        };
        let mut at = first;
        while at < end {
            let Some(piece) = self.pieces().find(|piece| {
                piece.nsid == nsid && (piece.first..piece.first + piece.blocks).contains(&at)
            }) else {
                return false;
            };
            at = piece.first + piece.blocks;
        }
        true
    }

    /// Blocks of one of the client's namespaces.
    pub(crate) fn blocks(&self, nsid: u32) -> u64 {
        self.namespaces[&nsid]
            .iter()
            .map(|piece| piece.blocks)
            .sum()
    }
}

/// What is known of a client beside its grant.
#[derive(Debug)]
struct Known {
    grant: Grant,
    /// Its submission queues at the device.
    queues: BTreeSet<u16>,
    /// Where the device sees its memory.
    lent: Vec<(u64, u64)>,
}

/// Something that should not have happened.
pub(crate) type Breach = String;

/// Watches one device.
#[derive(Debug)]
pub(crate) struct Judge {
    device: Arc<Emulator>,
    /// `None` where nobody looks any more.
    trace: Option<Trace>,
    medium: Medium,
    clients: Vec<Known>,
    baseline: BTreeMap<u32, Vec<u8>>,
    /// Commands of clients that the device got, by opcode.
    pub(crate) seen: BTreeMap<u8, u64>,
}

/// What a block command says that it touches.
pub(crate) fn reach(entry: &Dwords) -> Vec<(u32, u64, u64, How)> {
    let nsid = entry[1];
    let first = u64::from(entry[11]) << 32 | u64::from(entry[10]);
    let blocks = u64::from(entry[12] & 0xffff) + 1;
    match entry[0] as u8 {
        0x02 | 0x05 | 0x0c => vec![(nsid, first, blocks, How::Read)],
        0x01 | 0x04 | 0x08 => vec![(nsid, first, blocks, How::Changed)],
        // What their lists name is seen at the medium; a copy's length too.
        0x19 => vec![(nsid, first, 1, How::Changed)],
        _ => Vec::new(),
    }
}

/// Bits of an entry that a server which rebuilds it never sets, for opcodes that may pass.
fn strange_bits(entry: &Dwords) -> Option<&'static str> {
    let opcode = entry[0] as u8;
    let control = match opcode {
        0x01 | 0x02 | 0x05 | 0x0c => 0xc000_0000,
        0x04 => 0,
        0x08 => 0xc200_0000,
        0x19 => 0xc000_0000,
        _ => 0,
    };
    let twelve = match opcode {
        0x00 | 0x09 => 0,
        0x19 => 0xff | control,
        _ => 0xffff | control,
    };
    if entry[0] & 0xff00 != 0 {
        return Some("FUSE, PSDT or reserved bits of CDW0");
    }
    if entry[2] != 0 || entry[3] != 0 {
        return Some("CDW2 or CDW3");
    }
    if entry[4] != 0 || entry[5] != 0 {
        return Some("the metadata pointer");
    }
    if entry[12] & !twelve != 0 {
        return Some("CDW12");
    }
    if opcode == 0x09 && (entry[10] & !0xff != 0 || entry[11] & !0x7 != 0) {
        return Some("CDW10 or CDW11 of Dataset Management");
    }
    (entry[13] != 0 || entry[14] != 0 || entry[15] != 0).then_some("CDW13 to CDW15")
}

impl Judge {
    /// Watches a device from now on. What its medium holds is what it shall hold.
    pub(crate) fn new(device: &Arc<Emulator>, medium: Medium) -> Judge {
        let trace = device.trace(1 << 20);
        assert!(trace.is_some(), "nobody else traces the device");
        let mut judge = Judge {
            device: Arc::clone(device),
            trace,
            medium,
            clients: Vec::new(),
            baseline: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        judge.rebase();
        judge
    }

    /// Takes the medium as it is for what it shall be, and forgets what was recorded.
    pub(crate) fn rebase(&mut self) {
        let mut contents = self.medium.lock();
        contents.touches.clear();
        contents.flushes.clear();
        contents.managed.clear();
        self.baseline = contents.namespaces.clone();
        drop(contents);
        drop(self.records());
    }

    fn records(&self) -> Vec<TraceRecord> {
        self.trace.as_ref().map(Trace::take).unwrap_or_default()
    }

    /// Looks no more at what the device does, which then does it faster. The medium is still watched.
    pub(crate) fn close_eyes(&mut self) {
        self.trace = None;
    }

    /// Mappings of the device that are there now.
    pub(crate) fn mappings(&self) -> Vec<(u64, u64)> {
        let mappings = self.device.iommu().mappings();
        mappings
            .iter()
            .map(|(iova, length)| (iova.0, *length as u64))
            .collect()
    }

    /// Makes a client known; the mappings that are there now and were not `before` are its memory. Its number.
    pub(crate) fn know(&mut self, grant: Grant, before: &[(u64, u64)]) -> usize {
        let mut lent = self.mappings();
        lent.retain(|mapping| !before.contains(mapping));
        self.clients.push(Known {
            grant,
            queues: BTreeSet::new(),
            lent,
        });
        self.clients.len() - 1
    }

    /// Where the device sees memory of a client.
    pub(crate) fn lent(&self, client: usize) -> &[(u64, u64)] {
        &self.clients[client].lent
    }

    pub(crate) fn grant(&self, client: usize) -> &Grant {
        &self.clients[client].grant
    }

    /// These opcodes may come to the device for a client, too.
    pub(crate) fn also(&mut self, client: usize, opcodes: &[u8]) {
        self.clients[client].grant.opcodes.extend(opcodes);
    }

    /// Everything that this client alone has just done shows which queues are its own.
    pub(crate) fn learn_queues(&mut self, client: usize) -> usize {
        for record in self.records() {
            if let TraceEvent::Command { sqid: 1.., .. } = record.event {
                let TraceEvent::Command { sqid, .. } = record.event else {
                    continue;
                };
                for (other, known) in self.clients.iter().enumerate() {
                    assert!(
                        other == client || !known.queues.contains(&sqid),
                        "clients {other} and {client} share queue {sqid}"
                    );
                }
                self.clients[client].queues.insert(sqid);
            }
        }
        self.clients[client].queues.len()
    }

    /// Looks at everything since the last look, while these clients alone did anything.
    pub(crate) fn look(&mut self, acting: &[usize]) -> Vec<Breach> {
        let mut breaches = Vec::new();
        let records = self.records();
        if self.trace.as_ref().is_some_and(|trace| trace.lost() > 0) {
            breaches.push("the trace has lost records, so that nothing is known".to_owned());
        }
        for record in records {
            self.record(acting, &record, &mut breaches);
        }
        let mut contents = self.medium.lock();
        let touches = std::mem::take(&mut contents.touches);
        let flushes = std::mem::take(&mut contents.flushes);
        let managed = std::mem::take(&mut contents.managed);
        drop(contents);
        for touch in touches {
            self.touch(acting, touch, &mut breaches);
        }
        for nsid in flushes {
            let own = acting.iter().any(|client| {
                self.clients[*client]
                    .grant
                    .pieces()
                    .any(|piece| piece.nsid == nsid)
            });
            if !own {
                breaches.push(format!("namespace {nsid} was flushed"));
            }
        }
        for (what, nsid) in managed {
            breaches.push(format!("namespace {nsid} was {what}"));
        }
        breaches
    }

    fn touch(&self, acting: &[usize], touch: Touch, breaches: &mut Vec<Breach>) {
        let Touch {
            nsid,
            first,
            length,
            how,
        } = touch;
        let held = acting.iter().any(|client| {
            self.clients[*client].grant.holds(
                nsid,
                first / BLOCK,
                (first + length).div_ceil(BLOCK) - first / BLOCK,
            )
        });
        if !held && length > 0 {
            breaches.push(format!(
                "{how:?}: namespace {nsid}, blocks {} to {}",
                first / BLOCK,
                (first + length) / BLOCK
            ));
        }
    }

    fn record(&mut self, acting: &[usize], record: &TraceRecord, breaches: &mut Vec<Breach>) {
        match &record.event {
            TraceEvent::Command {
                sqid: 0, opcode, ..
            } => {
                // What a server may ask for by itself at any time: Get Log Page, Identify, Abort, Get Features, Async Event Request.
                let own = [0x02, 0x06, 0x08, 0x0a, 0x0c].contains(opcode);
                breaches.extend((!own).then(|| format!("admin command {:x?}", record.event)));
            }
            TraceEvent::Command { sqid, dwords, .. } => {
                self.io(acting, *sqid, dwords, breaches);
            }
            TraceEvent::Dma {
                iova,
                length,
                direction,
                purpose,
            } => self.dma(acting, (*iova, *length), *direction, *purpose, breaches),
            TraceEvent::IommuFault { .. }
            | TraceEvent::RegisterWrite { .. }
            | TraceEvent::ConfigWrite { .. }
            | TraceEvent::Fatal { .. }
            | TraceEvent::Reset { .. } => breaches.push(format!("{:x?}", record.event)),
            _ => {}
        }
    }

    fn io(&mut self, acting: &[usize], sqid: u16, dwords: &Dwords, breaches: &mut Vec<Breach>) {
        let (opcode, nsid) = (dwords[0] as u8, dwords[1]);
        *self.seen.entry(opcode).or_default() += 1;
        let Some(client) = acting
            .iter()
            .map(|client| &self.clients[*client])
            .find(|known| known.queues.contains(&sqid))
        else {
            return breaches.push(format!("queue {sqid} of somebody else: {dwords:x?}"));
        };
        if !client.grant.opcodes.contains(&opcode) {
            return breaches.push(format!(
                "a command of a class that never passes: {dwords:x?}"
            ));
        }
        if !client.grant.pieces().any(|piece| piece.nsid == nsid) {
            breaches.push(format!("namespace {nsid}: {dwords:x?}"));
        }
        for (nsid, first, blocks, how) in reach(dwords) {
            if !client.grant.holds(nsid, first, blocks) {
                breaches.push(format!(
                    "{how:?}: namespace {nsid}, {blocks} blocks from {first}: {dwords:x?}"
                ));
            }
        }
        if let Some(what) = strange_bits(dwords) {
            breaches.push(format!("{what} set: {dwords:x?}"));
        }
    }

    fn dma(
        &self,
        acting: &[usize],
        (iova, length): (u64, u64),
        direction: DmaDirection,
        purpose: TracePurpose,
        breaches: &mut Vec<Breach>,
    ) {
        let meets = |known: &Known| {
            known
                .lent
                .iter()
                .any(|(first, bytes)| iova < first + bytes && first < &(iova + length))
        };
        let inside = |known: &Known| {
            known
                .lent
                .iter()
                .any(|(first, bytes)| iova >= *first && iova + length <= first + bytes)
        };
        for (number, known) in self.clients.iter().enumerate() {
            if !meets(known) {
                continue;
            }
            let own = match purpose {
                TracePurpose::Data { sqid, .. } => {
                    acting.contains(&number) && known.queues.contains(&sqid) && inside(known)
                }
                // Rings and lists are the server's.
                _ => false,
            };
            if !own {
                breaches.push(format!(
                    "{direction:?} {iova:#x}+{length:#x} for {purpose:?}: memory of {}",
                    known.grant.name
                ));
            }
        }
    }

    /// Compares everything outside of the slices of the clients that acted with what it was.
    pub(crate) fn compare_media(&self, acting: &[usize]) -> Vec<Breach> {
        let mut breaches = Vec::new();
        let contents = self.medium.lock();
        let names = |namespaces: &BTreeMap<u32, Vec<u8>>| {
            namespaces
                .iter()
                .map(|(nsid, bytes)| (*nsid, bytes.len()))
                .collect::<Vec<_>>()
        };
        if names(&contents.namespaces) != names(&self.baseline) {
            breaches.push("namespaces came, went or changed their size".to_owned());
            return breaches;
        }
        for (nsid, bytes) in &contents.namespaces {
            let was = &self.baseline[nsid];
            // Runs outside of every slice are compared whole.
            let mut pieces: Vec<_> = acting
                .iter()
                .flat_map(|client| self.clients[*client].grant.pieces())
                .filter(|piece| piece.nsid == *nsid)
                .map(|piece| (piece.first * BLOCK, (piece.first + piece.blocks) * BLOCK))
                .collect();
            pieces.sort_unstable();
            pieces.push((bytes.len() as u64, bytes.len() as u64));
            let mut at = 0;
            for (first, end) in pieces {
                let outside = at as usize..(first as usize).max(at as usize);
                if bytes[outside.clone()] != was[outside.clone()] {
                    let lba = outside
                        .clone()
                        .find(|at| bytes[*at] != was[*at])
                        .map(|at| at as u64 / BLOCK);
                    breaches.push(format!(
                        "namespace {nsid}: block {lba:?} outside of the slice has changed"
                    ));
                }
                at = end;
            }
        }
        breaches
    }
}
