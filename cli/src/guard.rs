//! Between a command that writes and a drive that holds something.

use std::io::{self, BufRead, IsTerminal, Write};

use nvme_vfio::{Buffer, IoQueue, Namespace, QueueOptions};

use crate::{
    bench::signature::{HEAD, TAIL, Window, recognise},
    error::{Error, Kind},
    session::Session,
};

/// What the namespace holds, as far as it is recognised; in words with an article.
///
/// # Errors
/// Where the controller cannot read it.
pub fn contents(session: &Session, namespace: &Namespace) -> Result<Vec<&'static str>, Error> {
    let mut queue = session.controller.io_queue(QueueOptions::with_depth(1))?;
    let bytes = namespace.bytes();
    let mut windows = vec![window(session, &mut queue, namespace, 0, HEAD.min(bytes))?];
    if bytes > HEAD {
        windows.push(window(
            session,
            &mut queue,
            namespace,
            bytes.saturating_sub(TAIL).max(HEAD),
            TAIL.min(bytes - HEAD),
        )?);
    }
    Ok(recognise(&windows, bytes))
}

/// Reads the whole blocks around `length` bytes from `offset` on.
fn window(
    session: &Session,
    queue: &mut IoQueue,
    namespace: &Namespace,
    offset: u64,
    length: u64,
) -> Result<Window, Error> {
    let block = u64::from(namespace.block_size());
    let first = offset / block;
    let last = (offset + length).div_ceil(block).min(namespace.blocks());
    let bytes = usize::try_from((last - first) * block).unwrap_or(usize::MAX);
    let buffer: Buffer = session.controller.allocate(bytes)?;
    let buffer = queue
        .read_blocking(namespace, first, buffer)
        .map_err(|error| Error::from(error).context("looking at what the namespace holds"))?;
    Ok(Window {
        offset: first * block,
        bytes: buffer.to_vec(),
    })
}

fn holds(session: &Session, namespace: &Namespace, doing: &str, found: &[&str]) -> Error {
    Error::new(
        Kind::HoldsData,
        format!(
            "{doing} on {} would destroy what it holds: {}",
            whose(session, namespace),
            found.join(", ")
        ),
    )
    .remedy("Add --force to destroy it")
}

/// The namespace with its controller's model and serial number.
fn whose(session: &Session, namespace: &Namespace) -> String {
    let identify = session.controller.identify();
    let text = crate::decode::text;
    format!(
        "namespace {} of {} ({}, serial {})",
        namespace.id(),
        session.address,
        text(&identify.mn),
        text(&identify.sn)
    )
}

/// Refuses a namespace that holds a file system or partition table.
///
/// # Errors
/// [`Kind::HoldsData`], which names what was found.
pub fn refuse(session: &Session, namespace: &Namespace, doing: &str) -> Result<(), Error> {
    let found = contents(session, namespace)?;
    if found.is_empty() {
        Ok(())
    } else {
        Err(holds(session, namespace, doing, &found))
    }
}

/// Asks before something is written to a namespace that holds a file system or partition table; without a terminal, refuses.
///
/// # Errors
/// [`Kind::HoldsData`] where the answer is not yes, or nobody can be asked.
pub fn ask(session: &Session, namespace: &Namespace, doing: &str) -> Result<(), Error> {
    let found = contents(session, namespace)?;
    if found.is_empty() {
        return Ok(());
    }
    let refused = holds(session, namespace, doing, &found);
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refused);
    }
    eprint!("{refused}.\nType yes to go on: ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer) {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        _ => Err(refused),
    }
}
