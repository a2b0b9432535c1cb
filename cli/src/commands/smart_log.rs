//! `smart-log`.

use nvme_vfio_queues::command::LogPageId;

use crate::{
    args::{RawFormat, SmartLogArgs},
    decode::smart,
    error::Error,
    output::{print_json, print_text, to_stdout},
    session::Session,
};

/// The controller's own log, whatever the namespace.
const ALL_NAMESPACES: u32 = u32::MAX;

pub(super) fn run(args: &SmartLogArgs) -> Result<(), Error> {
    let session = Session::open(&args.address)?;
    let nsid = args.namespace_id.unwrap_or(ALL_NAMESPACES);
    let data = session
        .controller
        .log_page(LogPageId::SMART_HEALTH, nsid, smart::SIZE)?;
    match args.output.format() {
        RawFormat::Binary => to_stdout(|out| out.write_all(&data)),
        RawFormat::Json => print_json(&smart::json(&data, args.output.human_readable)),
        RawFormat::Normal => print_text(&smart::text(
            &session.address.to_string(),
            nsid,
            &data,
            args.output.human_readable,
        )),
    }
}
