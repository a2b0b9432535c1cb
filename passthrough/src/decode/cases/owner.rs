//! Cases of what reaches more than blocks.

use super::{BOTH, CLIENT, Cases, OWNER, command};
use crate::command::{Class, Persistence, Scope};
use crate::reason::Reason;

pub(crate) static NAMESPACE_MANAGEMENT: Cases = Cases::Passes {
    legitimate: &[
        command("create", BOTH, &[(1, 0)]).sends(Class::NamespaceManagement, 4096),
        command("create, zoned", BOTH, &[(1, 0), (11, 2 << 24)])
            .sends(Class::NamespaceManagement, 4096),
        command("delete", BOTH, &[(10, 1)]).passes(Class::NamespaceManagement),
        command("delete all", OWNER, &[(1, u32::MAX), (10, 1)]).passes(Class::NamespaceManagement),
    ],
    reach: &[
        command("create", BOTH, &[(1, 0)]).reaches(Scope::Subsystem, Persistence::Media),
        command("delete", BOTH, &[(10, 1)]).reaches(Scope::Namespace, Persistence::Permanent),
        command("delete all", OWNER, &[(1, u32::MAX), (10, 1)])
            .reaches(Scope::AllNamespaces, Persistence::Permanent),
    ],
    attacks: &[
        command("delete all", CLIENT, &[(1, u32::MAX), (10, 1)]).refused(Reason::AllNamespaces),
        command("delete another", BOTH, &[(1, 2), (10, 1)]).refused(Reason::NamespaceNotGranted),
        command("delete none", BOTH, &[(1, 0), (10, 1)]).refused(Reason::NamespaceNotGranted),
        command("create one with a name", BOTH, &[]).refused(Reason::NamespaceNotGranted),
        command("another action", BOTH, &[(10, 2)]).refused(Reason::IllegalValue),
        command("delete by command set", BOTH, &[(10, 1), (11, 1 << 24)])
            .refused(Reason::IllegalValue),
        command("a reserved bit", BOTH, &[(10, 1 << 4)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static NAMESPACE_ATTACHMENT: Cases = Cases::Passes {
    legitimate: &[
        command("attach one that is not there yet", BOTH, &[(1, 2)])
            .sends(Class::NamespaceManagement, 4096),
        command("detach", BOTH, &[(10, 1)]).sends(Class::NamespaceManagement, 4096),
    ],
    reach: &[
        command("the controllers in its data", BOTH, &[(10, 1)])
            .reaches(Scope::Subsystem, Persistence::Media),
        command("all namespaces", OWNER, &[(1, u32::MAX), (10, 1)])
            .reaches(Scope::Subsystem, Persistence::Media),
    ],
    attacks: &[
        command("detach another", BOTH, &[(1, 2), (10, 1)]).refused(Reason::NamespaceNotGranted),
        command("detach all", CLIENT, &[(1, u32::MAX), (10, 1)]).refused(Reason::AllNamespaces),
        command("attach all", BOTH, &[(1, u32::MAX)]).refused(Reason::AllNamespaces),
        command("none", BOTH, &[(1, 0)]).refused(Reason::NamespaceNotGranted),
        command("another action", BOTH, &[(10, 2)]).refused(Reason::IllegalValue),
        command("a reserved word", BOTH, &[(11, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static FIRMWARE_COMMIT: Cases = Cases::Passes {
    legitimate: &[
        command("replace slot 1", BOTH, &[(10, 1)]).passes(Class::Firmware),
        command("activate slot 2 at once", BOTH, &[(10, 3 << 3 | 2)]).passes(Class::Firmware),
        command("a boot partition", BOTH, &[(10, 1 << 31 | 6 << 3)]).passes(Class::Firmware),
    ],
    reach: &[command("replace", BOTH, &[(10, 1)]).reaches(Scope::Subsystem, Persistence::Media)],
    attacks: &[
        command("another action", BOTH, &[(10, 4 << 3)]).refused(Reason::IllegalValue),
        command("one more", BOTH, &[(10, 5 << 3)]).refused(Reason::IllegalValue),
        command("a namespace", BOTH, &[(1, 1)]).refused(Reason::ReservedBit),
        command("a reserved bit", BOTH, &[(10, 1 << 6)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static FIRMWARE_DOWNLOAD: Cases = Cases::Passes {
    legitimate: &[
        command("a page", BOTH, &[(10, 1023), (11, 1024)]).sends(Class::Firmware, 4096),
        command("all that a length can say", BOTH, &[(10, u32::MAX)])
            .sends(Class::Firmware, 1 << 34),
    ],
    reach: &[command("what is not committed", BOTH, &[(10, 1023)])
        .reaches(Scope::Controller, Persistence::UntilReset)],
    attacks: &[
        command("a reserved word", BOTH, &[(12, 1)]).refused(Reason::ReservedBit),
        command("a namespace", BOTH, &[(1, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static DEVICE_SELF_TEST: Cases = Cases::Passes {
    legitimate: &[
        command("short", BOTH, &[(10, 1)]).passes(Class::Owner),
        command("abort", BOTH, &[(1, 0), (10, 0xf)]).passes(Class::Owner),
    ],
    reach: &[
        command("a namespace", BOTH, &[(10, 1)]).reaches(Scope::Namespace, Persistence::UntilReset),
        command("the controller", BOTH, &[(1, 0), (10, 1)])
            .reaches(Scope::Controller, Persistence::UntilReset),
        command("all namespaces", OWNER, &[(1, u32::MAX), (10, 2)])
            .reaches(Scope::AllNamespaces, Persistence::UntilReset),
    ],
    attacks: &[
        command("all namespaces", CLIENT, &[(1, u32::MAX), (10, 2)]).refused(Reason::AllNamespaces),
        command("another namespace", BOTH, &[(1, 2), (10, 1)]).refused(Reason::NamespaceNotGranted),
        command("another code", BOTH, &[(10, 0)]).refused(Reason::IllegalValue),
        command("a reserved bit", BOTH, &[(10, 1 << 4 | 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static DIRECTIVE_SEND: Cases = Cases::Passes {
    legitimate: &[
        command("enable streams", BOTH, &[(11, 1), (12, 0x101)]).passes(Class::Owner),
        command("release a stream", BOTH, &[(11, 0x0003_0101)]).passes(Class::Owner),
        command("release resources", OWNER, &[(1, u32::MAX), (11, 0x0102)]).passes(Class::Owner),
    ],
    reach: &[
        command("one namespace", BOTH, &[(11, 1), (12, 0x101)])
            .reaches(Scope::Namespace, Persistence::UntilReset),
        command("all", OWNER, &[(1, u32::MAX), (11, 1), (12, 0x100)])
            .reaches(Scope::AllNamespaces, Persistence::UntilReset),
    ],
    attacks: &[
        command("all", CLIENT, &[(1, u32::MAX), (11, 1), (12, 0x100)])
            .refused(Reason::AllNamespaces),
        command("another namespace", BOTH, &[(1, 2), (11, 1)]).refused(Reason::NamespaceNotGranted),
        command("another operation", BOTH, &[(11, 0x0103)]).refused(Reason::IllegalValue),
        command("another directive", BOTH, &[(11, 0x0201)]).refused(Reason::IllegalValue),
        command("with data", BOTH, &[(10, 1), (11, 1), (12, 0x101)]).refused(Reason::IllegalValue),
        command("a pointer", BOTH, &[(6, 0x1000), (11, 1), (12, 0x101)])
            .refused(Reason::ReservedBit),
        command("a reserved bit", BOTH, &[(11, 1), (12, 2)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static DIRECTIVE_RECEIVE: Cases = Cases::Passes {
    legitimate: &[
        command("which there are", BOTH, &[(10, 1023), (11, 1)]).receives(Class::Owner, 4096),
        command("parameters", BOTH, &[(10, 7), (11, 0x0101)]).receives(Class::Owner, 32),
        command("allocate", BOTH, &[(11, 0x0103), (12, 4)]).passes(Class::Owner),
    ],
    reach: &[
        command("which there are", BOTH, &[(11, 1)]).reaches(Scope::Namespace, Persistence::None),
        command("allocate", BOTH, &[(11, 0x0103), (12, 4)])
            .reaches(Scope::Namespace, Persistence::UntilReset),
    ],
    attacks: &[
        command("all", CLIENT, &[(1, u32::MAX), (11, 1)]).refused(Reason::AllNamespaces),
        command("another namespace", BOTH, &[(1, 2), (11, 1)]).refused(Reason::NamespaceNotGranted),
        command("another operation", BOTH, &[(11, 2)]).refused(Reason::IllegalValue),
        command("allocate, with data", BOTH, &[(10, 1), (11, 0x0103)])
            .refused(Reason::IllegalValue),
        command("a reserved bit", BOTH, &[(11, 0x0103), (12, 1 << 16)])
            .refused(Reason::ReservedBit),
    ],
};

pub(crate) static CAPACITY_MANAGEMENT: Cases = Cases::Passes {
    legitimate: &[
        command(
            "create an NVM set",
            BOTH,
            &[(10, 0x0001_0003), (11, 1 << 20)],
        )
        .passes(Class::Owner),
        command("delete an endurance group", BOTH, &[(10, 0x0001_0002)]).passes(Class::Owner),
    ],
    reach: &[
        command("delete an endurance group", BOTH, &[(10, 0x0001_0002)])
            .reaches(Scope::Subsystem, Persistence::Permanent),
    ],
    attacks: &[
        command("another operation", BOTH, &[(10, 5)]).refused(Reason::IllegalValue),
        command("a reserved bit", BOTH, &[(10, 1 << 4)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static FORMAT_NVM: Cases = Cases::Passes {
    legitimate: &[
        command("format 1", BOTH, &[(10, 1)]).passes(Class::Format),
        command("format 0, erased by its key", BOTH, &[(10, 2 << 9)]).passes(Class::Format),
        command(
            "format 17, with protection",
            BOTH,
            &[(10, 1 << 12 | 1 << 8 | 1 << 5 | 1 << 4 | 1)],
        )
        .passes(Class::Format),
        command("all", OWNER, &[(1, u32::MAX)]).passes(Class::Format),
    ],
    reach: &[
        command("maybe all, whatever it names", BOTH, &[])
            .reaches(Scope::AllNamespaces, Persistence::Permanent),
        command("all", OWNER, &[(1, u32::MAX)])
            .reaches(Scope::AllNamespaces, Persistence::Permanent),
    ],
    attacks: &[
        command("all", CLIENT, &[(1, u32::MAX)]).refused(Reason::AllNamespaces),
        command("another namespace", BOTH, &[(1, 2)]).refused(Reason::NamespaceNotGranted),
        command("none", BOTH, &[(1, 0)]).refused(Reason::NamespaceNotGranted),
        command("another way to erase", BOTH, &[(10, 3 << 9)]).refused(Reason::IllegalValue),
        command("a reserved bit", BOTH, &[(10, 1 << 14)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static SECURITY_SEND: Cases = Cases::Passes {
    legitimate: &[
        command("TCG", BOTH, &[(1, 0), (10, 0x0107_fe00), (11, 512)]).sends(Class::Security, 512),
        command("nothing", BOTH, &[(1, 0), (10, 1 << 24)]).passes(Class::Security),
        command("all that a length can say", BOTH, &[(1, 0), (11, u32::MAX)])
            .sends(Class::Security, u32::MAX as u64),
    ],
    reach: &[command(
        "whatever its data says",
        BOTH,
        &[(1, 0), (10, 1 << 24), (11, 512)],
    )
    .reaches(Scope::Subsystem, Persistence::Permanent)],
    attacks: &[
        command("another namespace", BOTH, &[(1, 2)]).refused(Reason::NamespaceNotGranted),
        command("all", CLIENT, &[(1, u32::MAX)]).refused(Reason::AllNamespaces),
        command("a reserved word", BOTH, &[(12, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static SECURITY_RECEIVE: Cases = Cases::Passes {
    legitimate: &[
        command("which protocols", BOTH, &[(1, 0), (11, 512)]).receives(Class::Security, 512)
    ],
    reach: &[
        command("a session", BOTH, &[(1, 0), (10, 1 << 24), (11, 512)])
            .reaches(Scope::Subsystem, Persistence::UntilReset),
    ],
    attacks: &[
        command("another namespace", BOTH, &[(1, 2)]).refused(Reason::NamespaceNotGranted),
        command("all", CLIENT, &[(1, u32::MAX)]).refused(Reason::AllNamespaces),
        command("a reserved word", BOTH, &[(15, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static SANITIZE: Cases = Cases::Passes {
    legitimate: &[
        command("block erase", BOTH, &[(10, 2)]).passes(Class::Owner),
        command("overwrite", BOTH, &[(10, 0x13b), (11, 0xdead_beef)]).passes(Class::Owner),
    ],
    reach: &[
        command("everything", BOTH, &[(10, 2)]).reaches(Scope::Subsystem, Persistence::Permanent)
    ],
    attacks: &[
        command("no action", BOTH, &[]).refused(Reason::IllegalValue),
        command("another action", BOTH, &[(10, 7)]).refused(Reason::IllegalValue),
        command("a namespace", BOTH, &[(1, 1), (10, 2)]).refused(Reason::ReservedBit),
        command("a reserved bit", BOTH, &[(10, 1 << 11 | 2)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static RESERVATION_REGISTER: Cases = Cases::Passes {
    legitimate: &[
        command("register, for good", BOTH, &[(10, 3 << 30)]).sends(Class::Owner, 16),
        command("replace the key", BOTH, &[(10, 2 | 1 << 3)]).sends(Class::Owner, 16),
    ],
    reach: &[command("the host", BOTH, &[]).reaches(Scope::Namespace, Persistence::Media)],
    attacks: &[
        command("another action", BOTH, &[(10, 3)]).refused(Reason::IllegalValue),
        command("another namespace", BOTH, &[(1, 2)]).refused(Reason::NamespaceNotGranted),
        command("all", BOTH, &[(1, u32::MAX)]).refused(Reason::AllNamespaces),
        command("a reserved bit", BOTH, &[(10, 1 << 29)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static RESERVATION_ACQUIRE: Cases = Cases::Passes {
    legitimate: &[command("preempt", BOTH, &[(10, 0x0101)]).sends(Class::Owner, 16)],
    reach: &[command("the host", BOTH, &[]).reaches(Scope::Namespace, Persistence::Media)],
    attacks: &[
        command("another action", BOTH, &[(10, 3)]).refused(Reason::IllegalValue),
        command("another namespace", BOTH, &[(1, 2)]).refused(Reason::NamespaceNotGranted),
        command("a reserved bit", BOTH, &[(10, 1 << 16)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static RESERVATION_RELEASE: Cases = Cases::Passes {
    legitimate: &[command("clear", BOTH, &[(10, 1)]).sends(Class::Owner, 8)],
    reach: &[command("the host", BOTH, &[]).reaches(Scope::Namespace, Persistence::Media)],
    attacks: &[
        command("another action", BOTH, &[(10, 2)]).refused(Reason::IllegalValue),
        command("another namespace", BOTH, &[(1, 2)]).refused(Reason::NamespaceNotGranted),
        command("a reserved bit", BOTH, &[(10, 1 << 4)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static RESERVATION_REPORT: Cases = Cases::Passes {
    legitimate: &[
        command("a page", BOTH, &[(10, 1023), (11, 1)]).receives(Class::Owner, 4096),
        command("all that a length can say", BOTH, &[(10, u32::MAX)])
            .receives(Class::Owner, 1 << 34),
    ],
    reach: &[command("who else", BOTH, &[]).reaches(Scope::Namespace, Persistence::None)],
    attacks: &[
        command("another namespace", BOTH, &[(1, 2)]).refused(Reason::NamespaceNotGranted),
        command("a reserved bit", BOTH, &[(11, 2)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static IO_MANAGEMENT_RECEIVE: Cases = Cases::Passes {
    legitimate: &[command("status", BOTH, &[(10, 1), (11, 1023)]).receives(Class::Owner, 4096)],
    reach: &[command("the handles of all", BOTH, &[(10, 1)])
        .reaches(Scope::Subsystem, Persistence::None)],
    attacks: &[
        command("another operation", BOTH, &[(10, 2)]).refused(Reason::IllegalValue),
        command("another namespace", BOTH, &[(1, 2), (10, 1)]).refused(Reason::NamespaceNotGranted),
        command("a reserved bit", BOTH, &[(10, 1 << 8 | 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static IO_MANAGEMENT_SEND: Cases = Cases::Passes {
    legitimate: &[command("two handles", BOTH, &[(10, 0x0001_0001)]).sends(Class::Owner, 4)],
    reach: &[command("the handles of all", BOTH, &[(10, 1)])
        .reaches(Scope::Subsystem, Persistence::Media)],
    attacks: &[
        command("another operation", BOTH, &[(10, 0)]).refused(Reason::IllegalValue),
        command("another namespace", BOTH, &[(1, 2), (10, 1)]).refused(Reason::NamespaceNotGranted),
        command("a reserved word", BOTH, &[(11, 1), (10, 1)]).refused(Reason::ReservedBit),
    ],
};
