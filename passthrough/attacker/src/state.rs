//! All that a client can see of its controller.

use crate::client::{Client, pages};
use crate::memory::PAGE;
use crate::{Dwords, command, with, with_blocks, with_prps};

const BLOCK: u64 = 512;
/// Blocks that are read at once.
const READ: u64 = DATA_PAGES as u64 * PAGE as u64 / BLOCK;
const DATA_PAGES: usize = pages::DATA_END - pages::DATA;
/// What only grows by being asked, in the SMART / Health log: data and commands read and written; and what grows by itself: the hours that it is on.
const GROWS: [std::ops::Range<usize>; 2] = [32..96, 128..144];

/// Everything that a client can ask of its controller without changing it, and its whole memory, each with its name. Nothing else may be in flight.
///
/// # Panics
/// When a command does not end.
#[must_use]
pub fn state(client: &mut Client, step: &mut dyn FnMut()) -> Vec<(String, Vec<u8>)> {
    let mut state = Vec::new();
    let data = client.page(pages::DATA);
    let words = client.memory.snapshot();
    let words = words[pages::GUARD * PAGE / 8..].iter();
    let memory = words.flat_map(|word| word.to_le_bytes()).collect();
    state.push(("memory".to_owned(), memory));
    // All together, each with a page of its own.
    let before = client.memory.read(data, DATA_PAGES * PAGE);
    client.memory.fill(data, DATA_PAGES * PAGE, 0);
    let mut asked = Vec::new();
    let mut ask = |what: String, mut entry: Dwords| {
        assert!(asked.len() < DATA_PAGES);
        let page = data + (asked.len() * PAGE) as u64;
        if entry[0] != 0x0a {
            entry = with_prps(entry, page, 0);
        }
        asked.push((what, page, client.push(0, entry)));
    };
    for (cns, nsid) in [(1, 0), (2, 0), (0, 1), (0, 2), (3, 1), (3, 2)] {
        ask(
            format!("identify {cns:#x} {nsid}"),
            with(command(0x06, nsid), 10, cns),
        );
    }
    for lid in [1, 2, 3, 5] {
        let dwords = if lid == 1 { 15 } else { 127 };
        ask(
            format!("log {lid}"),
            with(command(0x02, u32::MAX), 10, dwords << 16 | 1 << 15 | lid),
        );
    }
    for fid in [0x01, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b] {
        ask(format!("feature {fid:#x}"), with(command(0x0a, 0), 10, fid));
    }
    client.ring(0);
    let done = client.drain(0, step);
    for (what, page, cid) in asked {
        let done = done.iter().find(|done| done.cid == cid);
        let done = done.unwrap_or_else(|| panic!("{what} does not end"));
        let mut answer = client.memory.read(page, PAGE);
        answer.extend(done.status.to_le_bytes());
        answer.extend(done.result.to_le_bytes());
        state.push((what, answer));
    }
    client.memory.write(data, &before);
    for (what, register) in [("CC", 0x14), ("CSTS", 0x1c), ("AQA", 0x24), ("ASQ", 0x28)] {
        let value = client.register(register);
        state.push((what.to_owned(), value.to_le_bytes().to_vec()));
    }
    state
}

/// As [`state`], and every block of the client's namespaces (identifier and blocks), but without what grows by that.
///
/// # Panics
/// When a command does not end, or a block cannot be read.
#[must_use]
pub fn state_and_blocks(
    client: &mut Client,
    step: &mut dyn FnMut(),
    namespaces: &[(u32, u64)],
) -> Vec<(String, Vec<u8>)> {
    let mut all = state(client, step);
    for (what, answer) in &mut all {
        if what == "log 2" {
            for range in GROWS {
                answer[range].fill(0);
            }
        }
    }
    let (data, list) = (client.page(pages::DATA), client.page(pages::LISTS));
    let bytes = (READ * BLOCK) as usize;
    let before = client.memory.read(data, bytes);
    let lists = client.memory.read(list, PAGE);
    for (index, page) in (1..bytes as u64 / PAGE as u64).enumerate() {
        let address = data + page * PAGE as u64;
        client.memory.store(list + index as u64 * 8, address);
    }
    for (nsid, blocks) in namespaces {
        let mut held = Vec::new();
        for first in (0..*blocks).step_by(READ as usize) {
            let now = READ.min(blocks - first);
            client.memory.fill(data, bytes, 0);
            let second = if now * BLOCK <= 2 * PAGE as u64 {
                data + PAGE as u64
            } else {
                list
            };
            let entry = with_prps(
                with_blocks(command(0x02, *nsid), first, now as u32),
                data,
                second,
            );
            let done = client.run(1, entry, step);
            assert_eq!(done.status, 0, "block {first} of namespace {nsid}");
            held.extend(client.memory.read(data, (now * BLOCK) as usize));
        }
        all.push((format!("blocks of namespace {nsid}"), held));
    }
    client.memory.write(data, &before);
    client.memory.write(list, &lists);
    all
}

/// What differs between two states, in words.
#[must_use]
pub fn differences(before: &[(String, Vec<u8>)], after: &[(String, Vec<u8>)]) -> String {
    let pairs = before.iter().zip(after);
    let differ = pairs.filter(|(one, two)| one != two);
    let words: Vec<_> = differ
        .map(|((what, one), (_, two))| {
            let at = one.iter().zip(two).position(|(one, two)| one != two);
            format!("{what} from byte {at:?}")
        })
        .collect();
    words.join(", ")
}
