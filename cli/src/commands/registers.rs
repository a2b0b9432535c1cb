//! `show-regs`.

use crate::{
    args::{Format, ShowRegsArgs},
    decode::registers::{REGISTERS, json, text},
    error::Error,
    output::{print_json, print_text},
    session::Session,
};

pub(super) fn run(args: &ShowRegsArgs) -> Result<(), Error> {
    let session = Session::open(&args.address)?;
    let transport = session.controller.transport();
    let values: Vec<_> = REGISTERS
        .iter()
        .map(|register| {
            let offset = register.offset as usize;
            let value = if register.size == 8 {
                transport.read64(offset)
            } else {
                u64::from(transport.read32(offset))
            };
            (*register, value)
        })
        .collect();
    match args.output_format {
        Format::Json => print_json(&json(&values)),
        Format::Normal => print_text(&text(&values, args.human_readable)),
    }
}
