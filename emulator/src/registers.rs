//! The controller registers at the start of BAR 0 (NVMe base specification 2.0, 3.1.4).

use crate::config::Config;

const CAP: u32 = 0x00;
const VS: u32 = 0x08;
const INTMS: u32 = 0x0c;
const INTMC: u32 = 0x10;
const CC: u32 = 0x14;
const CSTS: u32 = 0x1c;
const AQA: u32 = 0x24;
const ASQ: u32 = 0x28;
const ACQ: u32 = 0x30;
const CRTO: u32 = 0x68;

/// Version 2.0.0.
pub(crate) const VERSION: u32 = 0x0002_0000;

/// CSTS.RDY: the controller takes commands.
pub(crate) const RDY: u32 = 1 << 0;
/// CSTS.CFS: Controller Fatal Status.
pub(crate) const CFS: u32 = 1 << 1;
/// CSTS.SHST, bits 3:2.
pub(crate) const SHST: u32 = 0b11 << 2;
/// CSTS.SHST: shutdown processing occurring.
pub(crate) const SHST_OCCURRING: u32 = 0b01 << 2;
/// CC.SHN: normal shutdown notification.
pub(crate) const NORMAL_SHUTDOWN: u32 = 0b01;
/// CSTS.SHST: shutdown processing complete.
pub(crate) const SHST_COMPLETE: u32 = 0b10 << 2;

/// The value of CC, field by field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Configuration(pub(crate) u32);

impl Configuration {
    /// Bits that the specification defines without CRIME, which CAP.CRMS does not offer.
    const DEFINED: u32 = 0x00ff_fff1;
    /// What may change while the controller is enabled: EN, SHN, IOSQES, IOCQES.
    const CHANGEABLE: u32 = 0x00ff_c001;

    pub(crate) fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    pub(crate) fn css(self) -> u32 {
        self.0 >> 4 & 0b111
    }

    pub(crate) fn mps(self) -> u32 {
        self.0 >> 7 & 0xf
    }

    pub(crate) fn ams(self) -> u32 {
        self.0 >> 11 & 0b111
    }

    /// Shutdown notification: 01b normal, 10b abrupt.
    pub(crate) fn shn(self) -> u32 {
        self.0 >> 14 & 0b11
    }

    pub(crate) fn iosqes(self) -> u32 {
        self.0 >> 16 & 0xf
    }

    pub(crate) fn iocqes(self) -> u32 {
        self.0 >> 20 & 0xf
    }
}

/// What a register write asks the controller to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// CC was written.
    Configuration {
        before: Configuration,
        now: Configuration,
    },
}

/// The register file: values, and which of them software can write when.
#[derive(Debug)]
pub(crate) struct Registers {
    cap: u64,
    /// What CAP reads instead, by a fault.
    bent_cap: Option<u64>,
    crto: u32,
    interrupt_mask: u32,
    pub(crate) cc: Configuration,
    pub(crate) csts: u32,
    pub(crate) aqa: u32,
    pub(crate) asq: u64,
    pub(crate) acq: u64,
}

impl Registers {
    pub(crate) fn new(config: &Config) -> Registers {
        let mqes = u64::from(config.mqes.saturating_sub(1)) & 0xffff;
        let cap = mqes
            | 1 << 16 // CQR: queues are physically contiguous
            | u64::from(config.to) << 24
            | u64::from(config.dstrd) << 32
            | 1 << 37 // CSS: the NVM command set
            | u64::from(config.mpsmin) << 48
            | u64::from(config.mpsmax) << 52
            | 1 << 59; // CRMS: ready with media
        Registers {
            cap,
            bent_cap: None,
            crto: u32::from(config.to),
            interrupt_mask: 0,
            cc: Configuration(0),
            csts: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
        }
    }

    /// What a controller reset leaves: everything but AQA, ASQ and ACQ starts anew.
    pub(crate) fn reset(&mut self) {
        self.interrupt_mask = 0;
        self.csts = 0;
    }

    /// A function-level reset leaves nothing.
    pub(crate) fn function_reset(&mut self) {
        self.reset();
        self.cc = Configuration(0);
        (self.aqa, self.asq, self.acq) = (0, 0, 0);
    }

    /// CAP reads this from now on; `None` for the truth.
    pub(crate) fn bend_cap(&mut self, cap: Option<u64>) {
        self.bent_cap = cap;
    }

    fn cap(&self) -> u64 {
        self.bent_cap.unwrap_or(self.cap)
    }

    fn read32(&self, offset: u32) -> u32 {
        match offset {
            CAP => self.cap() as u32,
            0x04 => (self.cap() >> 32) as u32,
            VS => VERSION,
            INTMS | INTMC => self.interrupt_mask,
            CC => self.cc.0,
            CSTS => self.csts,
            AQA => self.aqa,
            ASQ => self.asq as u32,
            0x2c => (self.asq >> 32) as u32,
            ACQ => self.acq as u32,
            0x34 => (self.acq >> 32) as u32,
            CRTO => self.crto,
            // NSSR, BPINFO, CMBLOC and the rest belong to what CAP does not offer.
            _ => 0,
        }
    }

    /// Reads 4 or 8 bytes; other sizes and misaligned offsets read 0.
    pub(crate) fn read(&self, offset: u32, bytes: usize) -> u64 {
        match bytes {
            4 if offset.is_multiple_of(4) => u64::from(self.read32(offset)),
            8 if offset.is_multiple_of(4) => {
                u64::from(self.read32(offset))
                    | u64::from(self.read32(offset.saturating_add(4))) << 32
            }
            _ => 0,
        }
    }

    fn write32(&mut self, offset: u32, value: u32) -> Effect {
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        let disabled = !self.cc.enabled();
        match offset {
            INTMS => self.interrupt_mask |= value,
            INTMC => self.interrupt_mask &= !value,
            CC => {
                let before = self.cc;
                let mut new = value & Configuration::DEFINED;
                if before.enabled() && new & 1 != 0 {
                    new = before.0 & !Configuration::CHANGEABLE | new & Configuration::CHANGEABLE;
                }
                self.cc = Configuration(new);
                return Effect::Configuration {
                    before,
                    now: self.cc,
                };
            }
            // The admin queue cannot move while it is in use.
            AQA if disabled => self.aqa = value & 0x0fff_0fff,
            ASQ if disabled => self.asq = low(self.asq),
            0x2c if disabled => self.asq = high(self.asq),
            ACQ if disabled => self.acq = low(self.acq),
            0x34 if disabled => self.acq = high(self.acq),
            _ => tracing::debug!(
                offset,
                value,
                "write to a read-only or locked register is ignored"
            ),
        }
        Effect::Nothing
    }

    /// Writes 4 or 8 bytes; other sizes and misaligned offsets are ignored.
    pub(crate) fn write(&mut self, offset: u32, bytes: usize, value: u64) -> Effect {
        match bytes {
            4 if offset.is_multiple_of(4) => self.write32(offset, value as u32),
            8 if offset.is_multiple_of(4) => {
                let first = self.write32(offset, value as u32);
                let second = self.write32(offset.saturating_add(4), (value >> 32) as u32);
                if first == Effect::Nothing {
                    second
                } else {
                    first
                }
            }
            _ => Effect::Nothing,
        }
    }
}
