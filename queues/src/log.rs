//! Log pages (Base Specification 2.0, 5.16.1).
//!
//! Read them in place from the bytes that the controller returned:
//! `SmartLog::ref_from_bytes(bytes)` (zerocopy's [`FromBytes`]).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::identify::Ascii;
use crate::opcode::{AdminOpcode, NvmOpcode};
use crate::status::Status;

bitflags! {
    /// Critical Warning of the SMART log (byte 0).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CriticalWarning: u8 {
        /// The available spare has fallen below the threshold.
        const AVAILABLE_SPARE = 1 << 0;
        /// A temperature is beyond a threshold.
        const TEMPERATURE = 1 << 1;
        /// Reliability is degraded by media or internal errors.
        const RELIABILITY_DEGRADED = 1 << 2;
        /// All media is in read only mode.
        const READ_ONLY = 1 << 3;
        /// The volatile memory backup device has failed.
        const VOLATILE_BACKUP_FAILED = 1 << 4;
        /// The Persistent Memory Region is read only or unreliable.
        const PMR_UNRELIABLE = 1 << 5;
        const _ = !0;
    }
}

/// SMART / Health Information, log 02h (5.16.1.3).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// Critical Warning, see [`critical_warning`](Self::critical_warning).
    pub critical_warning: u8,
    /// Composite Temperature in kelvins.
    pub temperature: U16,
    /// Available Spare, percent.
    pub avail_spare: u8,
    /// Available Spare Threshold, percent.
    pub spare_thresh: u8,
    /// Percentage Used, 0..=255; may exceed 100.
    pub percent_used: u8,
    /// Endurance Group Critical Warning Summary.
    pub endu_grp_crit_warn_sumry: u8,
    /// Reserved.
    pub rsvd7: [u8; 25],
    /// Data Units Read, in thousands of 512 bytes, rounded up.
    pub data_units_read: U128,
    /// Data Units Written, in thousands of 512 bytes, rounded up.
    pub data_units_written: U128,
    /// Host Read Commands.
    pub host_read_commands: U128,
    /// Host Write Commands.
    pub host_write_commands: U128,
    /// Controller Busy Time, in minutes.
    pub controller_busy_time: U128,
    /// Power Cycles.
    pub power_cycles: U128,
    /// Power On Hours.
    pub power_on_hours: U128,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and Data Integrity Errors.
    pub media_errors: U128,
    /// Number of Error Information Log Entries over the controller's life.
    pub num_err_log_entries: U128,
    /// Warning Composite Temperature Time, in minutes.
    pub warning_temp_time: U32,
    /// Critical Composite Temperature Time, in minutes.
    pub critical_comp_time: U32,
    /// Temperature Sensors 1 to 8 in kelvins, 0 where there is none.
    pub temperature_sensor: [U16; 8],
    /// Thermal Management Temperature 1 Transition Count.
    pub thm_temp1_trans_count: U32,
    /// Thermal Management Temperature 2 Transition Count.
    pub thm_temp2_trans_count: U32,
    /// Total Time For Thermal Management Temperature 1, in seconds.
    pub thm_temp1_total_time: U32,
    /// Total Time For Thermal Management Temperature 2, in seconds.
    pub thm_temp2_total_time: U32,
    /// Reserved.
    pub rsvd232: [u8; 280],
}

const _: () = assert!(size_of::<SmartLog>() == 512);

/// Kelvins of 0 degrees Celsius, as the logs round it.
const CELSIUS_ZERO: i32 = 273;

/// Degrees Celsius of a temperature in kelvins; `None` for 0, which means not reported.
#[must_use]
pub fn celsius(kelvins: u16) -> Option<i32> {
    (kelvins != 0).then(|| i32::from(kelvins) - CELSIUS_ZERO)
}

impl SmartLog {
    /// The bits of Critical Warning; reserved ones are kept.
    #[must_use]
    pub fn critical_warning(&self) -> CriticalWarning {
        CriticalWarning::from_bits_retain(self.critical_warning)
    }

    /// Composite Temperature in degrees Celsius; `None` when not reported.
    #[must_use]
    pub fn celsius(&self) -> Option<i32> {
        celsius(self.temperature.get())
    }

    /// The temperature sensors there are: their number (1 to 8) and degrees Celsius.
    pub fn sensors_celsius(&self) -> impl Iterator<Item = (usize, i32)> + '_ {
        self.temperature_sensor
            .iter()
            .enumerate()
            .filter_map(|(index, kelvins)| Some((index + 1, celsius(kelvins.get())?)))
    }
}

/// One entry of Error Information, log 01h (5.16.1.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// Error Count, unique over the controller's life; 0 for an entry that holds nothing.
    pub error_count: U64,
    /// Submission Queue ID.
    pub sqid: U16,
    /// Command ID.
    pub cmdid: U16,
    /// Status field in bits 15:1, phase tag in bit 0; see [`status`](Self::status).
    pub status_field: U16,
    /// Parameter Error Location: byte in bits 7:0, bit in 10:8; FFFFh where it does not apply.
    pub parm_error_location: U16,
    /// The first LBA that failed.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Vendor Specific Information Available: the log page that has it, 0 for none.
    pub vs: u8,
    /// Transport Type.
    pub trtype: u8,
    /// Reserved.
    pub rsvd30: [u8; 2],
    /// Command Specific Information.
    pub cs: U64,
    /// Transport Type Specific Information.
    pub trtype_spec_info: U16,
    /// Reserved.
    pub rsvd42: [u8; 22],
}

const _: () = assert!(size_of::<ErrorLogEntry>() == 64);

impl ErrorLogEntry {
    /// Whether the entry tells of an error.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.error_count.get() != 0
    }

    /// The status that the command completed with.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_status_word(self.status_field.get())
    }
}

/// Firmware Slot Information, log 03h (5.16.1.4).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// Active Firmware Info: running slot in bits 2:0, slot of the next reset in bits 6:4.
    pub afi: u8,
    /// Reserved.
    pub rsvd1: [u8; 7],
    /// Firmware Revision for Slot 1 to 7, ASCII, zero for an empty slot.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub rsvd64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlotLog>() == 512);

impl FirmwareSlotLog {
    /// The slot that the running firmware was loaded from, 1..=7; `None` for 0.
    #[must_use]
    pub fn active_slot(&self) -> Option<u8> {
        slot(self.afi & 0b111)
    }

    /// The slot that the next Controller Level Reset activates, 1..=7; `None` when not told.
    #[must_use]
    pub fn next_slot(&self) -> Option<u8> {
        slot(self.afi >> 4 & 0b111)
    }

    /// The revision in slot 1..=7; `None` for another number or an empty slot.
    #[must_use]
    pub fn revision(&self, slot: u8) -> Option<Ascii<'_>> {
        let frs = self.frs.get(usize::from(slot).checked_sub(1)?)?;
        frs.iter().any(|byte| *byte != 0).then(|| Ascii::new(frs))
    }
}

fn slot(number: u8) -> Option<u8> {
    (number != 0).then_some(number)
}

/// What a command does (one dword of the Commands Supported and Effects log).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CommandEffects(pub u32);

impl CommandEffects {
    /// CSUPP: the command is supported.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        self.0 & 1 != 0
    }

    /// LBCC: it may change logical block content.
    #[must_use]
    pub const fn changes_content(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// NCC: it may change a namespace's capabilities.
    #[must_use]
    pub const fn changes_namespace(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// NIC: it may change how many namespaces there are.
    #[must_use]
    pub const fn changes_namespace_inventory(self) -> bool {
        self.0 & 1 << 3 != 0
    }

    /// CCC: it may change the controller's capabilities.
    #[must_use]
    pub const fn changes_controller(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// CSE (bits 18:16): 0 no restriction, 1 no other command to the same namespace, 2 no other
    /// command at all; the rest is reserved.
    #[must_use]
    pub const fn submission_restriction(self) -> u8 {
        (self.0 >> 16 & 0b111) as u8
    }

    /// USS (bit 19): it takes a UUID Index.
    #[must_use]
    pub const fn takes_uuid_index(self) -> bool {
        self.0 & 1 << 19 != 0
    }
}

/// Commands Supported and Effects, log 05h (5.16.1.6).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EffectsLog {
    /// By admin opcode.
    pub acs: [U32; 256],
    /// By I/O opcode.
    pub iocs: [U32; 256],
    /// Reserved.
    pub rsvd2048: [u8; 2048],
}

const _: () = assert!(size_of::<EffectsLog>() == 4096);

impl EffectsLog {
    /// What an admin command does.
    #[must_use]
    pub fn admin(&self, opcode: AdminOpcode) -> CommandEffects {
        effects(&self.acs, opcode.0)
    }

    /// What an I/O command does.
    #[must_use]
    pub fn io(&self, opcode: NvmOpcode) -> CommandEffects {
        effects(&self.iocs, opcode.0)
    }
}

fn effects(table: &[U32; 256], opcode: u8) -> CommandEffects {
    CommandEffects(
        table
            .get(usize::from(opcode))
            .map_or(0, |effects| effects.get()),
    )
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn smart_log_positions() {
        for (offset, expected) in [
            (offset_of!(SmartLog, critical_warning), 0),
            (offset_of!(SmartLog, temperature), 1),
            (offset_of!(SmartLog, avail_spare), 3),
            (offset_of!(SmartLog, spare_thresh), 4),
            (offset_of!(SmartLog, percent_used), 5),
            (offset_of!(SmartLog, endu_grp_crit_warn_sumry), 6),
            (offset_of!(SmartLog, data_units_read), 32),
            (offset_of!(SmartLog, data_units_written), 48),
            (offset_of!(SmartLog, host_read_commands), 64),
            (offset_of!(SmartLog, host_write_commands), 80),
            (offset_of!(SmartLog, controller_busy_time), 96),
            (offset_of!(SmartLog, power_cycles), 112),
            (offset_of!(SmartLog, power_on_hours), 128),
            (offset_of!(SmartLog, unsafe_shutdowns), 144),
            (offset_of!(SmartLog, media_errors), 160),
            (offset_of!(SmartLog, num_err_log_entries), 176),
            (offset_of!(SmartLog, warning_temp_time), 192),
            (offset_of!(SmartLog, critical_comp_time), 196),
            (offset_of!(SmartLog, temperature_sensor), 200),
            (offset_of!(SmartLog, thm_temp1_trans_count), 216),
            (offset_of!(SmartLog, thm_temp2_trans_count), 220),
            (offset_of!(SmartLog, thm_temp1_total_time), 224),
            (offset_of!(SmartLog, thm_temp2_total_time), 228),
        ] {
            assert_eq!(offset, expected);
        }
    }

    #[test]
    fn smart_log_reads() {
        let mut bytes = [0u8; 512];
        bytes[0] = 0x83;
        bytes[1..3].copy_from_slice(&323u16.to_le_bytes());
        bytes[32..48].copy_from_slice(&(u128::MAX - 1).to_le_bytes());
        bytes[202..204].copy_from_slice(&273u16.to_le_bytes());
        let log = SmartLog::ref_from_bytes(&bytes).unwrap();
        let warning = log.critical_warning();
        assert!(warning.contains(CriticalWarning::AVAILABLE_SPARE | CriticalWarning::TEMPERATURE));
        assert_eq!(warning.bits(), 0x83);
        assert_eq!(log.celsius(), Some(50));
        assert_eq!(log.data_units_read.get(), u128::MAX - 1);
        assert_eq!(log.sensors_celsius().collect::<Vec<_>>(), [(2, 0)]);
        assert_eq!(celsius(0), None);
        assert_eq!(celsius(u16::MAX), Some(65_262));
    }

    #[test]
    fn error_log_positions() {
        for (offset, expected) in [
            (offset_of!(ErrorLogEntry, sqid), 8),
            (offset_of!(ErrorLogEntry, cmdid), 10),
            (offset_of!(ErrorLogEntry, status_field), 12),
            (offset_of!(ErrorLogEntry, parm_error_location), 14),
            (offset_of!(ErrorLogEntry, lba), 16),
            (offset_of!(ErrorLogEntry, nsid), 24),
            (offset_of!(ErrorLogEntry, vs), 28),
            (offset_of!(ErrorLogEntry, trtype), 29),
            (offset_of!(ErrorLogEntry, cs), 32),
            (offset_of!(ErrorLogEntry, trtype_spec_info), 40),
        ] {
            assert_eq!(offset, expected);
        }
        let mut entry = ErrorLogEntry::new_zeroed();
        assert!(!entry.is_valid());
        entry.error_count = U64::new(1);
        entry.status_field = U16::new(0x8005);
        assert!(entry.is_valid());
        assert!(entry.status().is(Status::INVALID_FIELD) && entry.status().dnr());
    }

    #[test]
    fn firmware_slots() {
        let mut log = FirmwareSlotLog::new_zeroed();
        assert_eq!((log.active_slot(), log.next_slot()), (None, None));
        assert!(log.revision(1).is_none());
        log.afi = 0xaf;
        log.frs[6] = *b"1.0\x07    ";
        assert_eq!((log.active_slot(), log.next_slot()), (Some(7), Some(2)));
        assert_eq!(log.revision(7).unwrap().to_string(), r"1.0\x07");
        assert!(log.revision(0).is_none());
        assert!(log.revision(8).is_none());
        assert_eq!(offset_of!(FirmwareSlotLog, frs), 8);
    }

    #[test]
    fn effects_of_each_opcode() {
        let mut log = EffectsLog::new_zeroed();
        log.acs[0x80] = U32::new(0x000a_001f);
        log.iocs[0xff] = U32::new(2);
        let format = log.admin(AdminOpcode::FORMAT_NVM);
        assert!(format.is_supported() && format.changes_content() && format.changes_namespace());
        assert!(format.changes_namespace_inventory() && format.changes_controller());
        assert_eq!(format.submission_restriction(), 2);
        assert!(format.takes_uuid_index());
        assert!(log.io(NvmOpcode(0xff)).changes_content());
        assert!(!log.io(NvmOpcode(0xff)).is_supported());
        assert_eq!(offset_of!(EffectsLog, iocs), 1024);
    }
}
