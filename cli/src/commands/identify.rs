//! `id-ctrl`, `id-ns` and `list-ns`.

use nvme_vfio_queues::command::{Cns, Identify};
use serde::Serialize;

use crate::{
    args::{Format, IdCtrlArgs, IdNsArgs, ListNsArgs, RawFormat},
    decode::{identify_controller, identify_namespace},
    error::{Error, Kind},
    output::{print_json, print_text, to_stdout},
    session::Session,
};

pub(super) fn controller(args: &IdCtrlArgs) -> Result<(), Error> {
    let session = Session::open(&args.address)?;
    let data = session
        .controller
        .identify_raw(Identify::new(Cns::CONTROLLER, 0))?;
    match args.output.format() {
        RawFormat::Binary => to_stdout(|out| out.write_all(&data)),
        RawFormat::Json => print_json(&identify_controller::json(&data)),
        RawFormat::Normal => print_text(&identify_controller::text(
            &data,
            args.output.human_readable,
            args.vendor_specific,
        )),
    }
}

pub(super) fn namespace(args: &IdNsArgs) -> Result<(), Error> {
    let session = Session::open(&args.address)?;
    let nsid = session.nsid(args.namespace_id)?;
    // Identify for an allocated namespace answers also for one that is not attached.
    let cns = if args.force {
        Cns::ALLOCATED_NAMESPACE
    } else {
        Cns::NAMESPACE
    };
    let data = session.controller.identify_raw(Identify::new(cns, nsid))?;
    if data.iter().all(|&byte| byte == 0) {
        return Err(Error::new(
            Kind::NoNamespace,
            format!("{}: namespace {nsid} is not active", session.address),
        )
        .remedy(format!("Run: nvme-vfio list-ns {}", session.address)));
    }
    match args.output.format() {
        RawFormat::Binary => to_stdout(|out| out.write_all(&data)),
        RawFormat::Json => print_json(&identify_namespace::json(&data)),
        RawFormat::Normal => print_text(&identify_namespace::text(
            nsid,
            &data,
            args.output.human_readable,
            args.vendor_specific,
        )),
    }
}

#[derive(Serialize)]
struct NamespaceList {
    nsid_list: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    nsid: u32,
}

pub(super) fn list(args: &ListNsArgs) -> Result<(), Error> {
    let session = Session::open(&args.address)?;
    // The list holds the identifiers above the one that is asked with.
    let after = args.namespace_id.unwrap_or(1).saturating_sub(1);
    let nsids = match (args.csi, args.all) {
        (None, false) => session.controller.namespaces_after(after)?,
        (None, true) => listed_after(
            &session,
            Identify::new(Cns::ALLOCATED_NAMESPACE_LIST, after),
        )?,
        (Some(csi), all) => {
            let cns = if all {
                Cns::IO_COMMAND_SET_ALLOCATED_NAMESPACE_LIST
            } else {
                Cns::IO_COMMAND_SET_ACTIVE_NAMESPACE_LIST
            };
            let of_set = Identify {
                csi,
                ..Identify::new(cns, after)
            };
            listed_after(&session, of_set)?
        }
    };
    match args.output.output_format {
        Format::Json => print_json(&NamespaceList {
            nsid_list: nsids.into_iter().map(|nsid| Entry { nsid }).collect(),
        }),
        Format::Normal => print_text(
            &nsids
                .iter()
                .enumerate()
                .map(|(index, nsid)| format!("[{index:4}]:{nsid:#x}\n"))
                .collect::<String>(),
        ),
    }
}

/// A list of namespaces; one page of 1024, as nvme-cli shows.
fn listed_after(session: &Session, list: Identify) -> Result<Vec<u32>, Error> {
    let data = session.controller.identify_raw(list)?;
    let (entries, _) = data.as_chunks::<4>();
    Ok(entries
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .take_while(|nsid| *nsid != 0)
        .collect())
}
