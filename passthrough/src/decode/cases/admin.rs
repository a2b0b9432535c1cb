//! Cases of what a virtual controller answers, and of information.

use super::{BOTH, CLIENT, Cases, OWNER, command};
use crate::command::{Access, Class, Persistence, Scope};
use crate::reason::Reason;

pub(crate) static DELETE_QUEUE: Cases = Cases::Passes {
    legitimate: &[command("queue 1", CLIENT, &[(10, 1)]).passes(Class::Virtual)],
    reach: &[command("a queue of its own", CLIENT, &[(10, 1)])
        .reaches(Scope::VirtualController, Persistence::None)],
    attacks: &[
        command("a queue of the driver", OWNER, &[(10, 1)]).refused(Reason::NeverPasses),
        command("beyond the identifier", BOTH, &[(10, 1 << 16)]).refused(Reason::ReservedBit),
        command("an address", BOTH, &[(6, 0x1000), (10, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static CREATE_SUBMISSION_QUEUE: Cases = Cases::Passes {
    legitimate: &[command(
        "of 256 entries",
        CLIENT,
        &[(6, 0x1000), (10, 0x00ff_0001), (11, 0x0001_0005)],
    )
    .passes(Class::Virtual)],
    reach: &[command("a queue of its own", CLIENT, &[(10, 1), (11, 1)])
        .reaches(Scope::VirtualController, Persistence::None)],
    attacks: &[
        command(
            "an address for the controller",
            OWNER,
            &[(6, 0x1000), (10, 1), (11, 1)],
        )
        .refused(Reason::NeverPasses),
        command("a reserved bit", CLIENT, &[(11, 9)]).refused(Reason::ReservedBit),
        command("a namespace", CLIENT, &[(1, 1), (10, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static CREATE_COMPLETION_QUEUE: Cases = Cases::Passes {
    legitimate: &[command(
        "with interrupts",
        CLIENT,
        &[(6, 0x1000), (10, 0x00ff_0001), (11, 0x0001_0003)],
    )
    .passes(Class::Virtual)],
    reach: &[command("a queue of its own", CLIENT, &[(10, 1), (11, 1)])
        .reaches(Scope::VirtualController, Persistence::None)],
    attacks: &[
        command(
            "an address for the controller",
            OWNER,
            &[(6, 0x1000), (10, 1), (11, 1)],
        )
        .refused(Reason::NeverPasses),
        command("a reserved bit", CLIENT, &[(11, 5)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static ABORT: Cases = Cases::Passes {
    legitimate: &[command("its own", CLIENT, &[(10, 0x0007_0001)]).passes(Class::Virtual)],
    reach: &[command(
        "what the virtual controller holds",
        CLIENT,
        &[(10, 0x0007_0001)],
    )
    .reaches(Scope::VirtualController, Persistence::None)],
    attacks: &[
        command("the driver's", OWNER, &[(10, 0x0007_0001)]).refused(Reason::NeverPasses),
        command("a reserved word", CLIENT, &[(11, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static ASYNCHRONOUS_EVENT_REQUEST: Cases = Cases::Passes {
    legitimate: &[command("one", CLIENT, &[]).passes(Class::Virtual)],
    reach: &[command("waits at the virtual controller", CLIENT, &[])
        .reaches(Scope::VirtualController, Persistence::None)],
    attacks: &[
        command("a slot of the driver", OWNER, &[]).refused(Reason::NeverPasses),
        command("a reserved word", CLIENT, &[(10, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static DOORBELL_BUFFER_CONFIG: Cases = Cases::Passes {
    legitimate: &[command("two pages", CLIENT, &[(6, 0x1000), (8, 0x2000)]).passes(Class::Virtual)],
    reach: &[
        command("doorbells of its own", CLIENT, &[(6, 0x1000), (8, 0x2000)])
            .reaches(Scope::VirtualController, Persistence::None),
    ],
    attacks: &[
        command(
            "addresses for the controller",
            OWNER,
            &[(6, 0x1000), (8, 0x2000)],
        )
        .refused(Reason::NeverPasses),
        command("a reserved word", CLIENT, &[(10, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static IDENTIFY: Cases = Cases::Passes {
    legitimate: &[
        command("controller", CLIENT, &[(1, 0), (10, 1)]).receives(Class::Virtual, 4096),
        command("namespace", CLIENT, &[]).receives(Class::Virtual, 4096),
        command("descriptors", CLIENT, &[(10, 3)]).receives(Class::Virtual, 4096),
        command("of a command set", CLIENT, &[(10, 5), (11, 2 << 24)])
            .receives(Class::Virtual, 4096),
        command("what all namespaces share", CLIENT, &[(1, u32::MAX)])
            .receives(Class::Virtual, 4096),
        command("controller", OWNER, &[(1, 0), (10, 1)]).receives(Class::Information, 4096),
        command("controllers", OWNER, &[(10, 0x0005_0012)]).receives(Class::Information, 4096),
    ],
    reach: &[
        command("itself", CLIENT, &[(10, 1)]).reaches(Scope::VirtualController, Persistence::None),
        command("the controller", OWNER, &[(10, 1)]).reaches(Scope::Controller, Persistence::None),
    ],
    attacks: &[
        command("a structure that nobody defines", BOTH, &[(10, 0x7f)])
            .refused(Reason::IllegalValue),
        command("a vendor's structure", BOTH, &[(10, 0xc0)]).refused(Reason::IllegalValue),
        command("a reserved bit", BOTH, &[(10, 1 << 8)]).refused(Reason::ReservedBit),
        command("a reserved word", BOTH, &[(12, 1)]).refused(Reason::ReservedBit),
    ],
};

const RETAIN: u32 = 1 << 15;

pub(crate) static GET_LOG_PAGE: Cases = Cases::Passes {
    legitimate: &[
        command("health", CLIENT, &[(10, 127 << 16 | 2)]).receives(Class::Virtual, 512),
        command("any", CLIENT, &[(10, 0xc1)]).receives(Class::Virtual, 4),
        command("health", OWNER, &[(10, 127 << 16 | RETAIN | 2)]).receives(Class::Information, 512),
        command(
            "all that a length can say",
            OWNER,
            &[(10, 0xffff << 16 | 2), (11, 0xffff)],
        )
        .receives(Class::Information, 1 << 34),
        command("telemetry as it is", OWNER, &[(10, 127 << 16 | 7)])
            .receives(Class::Information, 512),
        command(
            "telemetry, taken anew",
            OWNER,
            &[(10, 127 << 16 | 1 << 8 | 7)],
        )
        .receives(Class::Owner, 512),
        command(
            "telemetry as it is, with a wider LSP",
            OWNER,
            &[(10, 2 << 8 | 7)],
        )
        .receives(Class::Information, 4),
        command("a vendor's", OWNER, &[(10, 3 << 16 | 0xca)]).receives(Class::Vendor, 16),
    ],
    reach: &[
        command("its own", CLIENT, &[(10, 2)]).reaches(Scope::VirtualController, Persistence::None),
        command("retaining the event", OWNER, &[(10, RETAIN | 2)])
            .reaches(Scope::Controller, Persistence::None),
        command("clearing the event", OWNER, &[(10, 2)])
            .reaches(Scope::Controller, Persistence::UntilReset),
        command("consuming the list", OWNER, &[(10, RETAIN | 4)])
            .reaches(Scope::Controller, Persistence::Media),
        command("a snapshot", OWNER, &[(10, RETAIN | 1 << 8 | 7)])
            .reaches(Scope::Controller, Persistence::Media),
    ],
    attacks: &[
        command("a page that nobody defines", OWNER, &[(10, 0x7f)]).refused(Reason::LogNotOffered),
        command("a reserved bit", BOTH, &[(14, 1 << 22)]).refused(Reason::ReservedBit),
        command("a reserved word", BOTH, &[(15, 1)]).refused(Reason::ReservedBit),
    ],
};

pub(crate) static GET_FEATURES: Cases = Cases::Passes {
    legitimate: &[
        command("number of queues", CLIENT, &[(10, 7)]).passes(Class::Virtual),
        command("write cache", CLIENT, &[(10, 6)]).passes(Class::Virtual),
        command("time", CLIENT, &[(10, 0x0e)]).receives(Class::Virtual, 8),
        command("what the time can do", CLIENT, &[(10, 0x30e)]).passes(Class::Virtual),
        command("power state", OWNER, &[(10, 2)]).passes(Class::Information),
        command("host identifier", OWNER, &[(10, 0x81)]).receives(Class::Information, 8),
        command("long host identifier", OWNER, &[(10, 0x81), (11, 1)])
            .receives(Class::Information, 16),
        command("power transitions", OWNER, &[(10, 0x0c)]).receives(Class::Information, 256),
    ],
    reach: &[
        command("its own", CLIENT, &[(10, 7)]).reaches(Scope::VirtualController, Persistence::None),
        command("the controller's", OWNER, &[(10, 7)])
            .reaches(Scope::Controller, Persistence::None),
    ],
    attacks: &[
        command("host memory", CLIENT, &[(10, 0x0d)]).refused(Reason::FeatureNotOffered),
        command("who the host is", CLIENT, &[(10, 0x81)]).refused(Reason::FeatureNotOffered),
        command("reservations", CLIENT, &[(10, 0x83)]).refused(Reason::FeatureNotOffered),
        command("one that nobody defines", BOTH, &[(10, 0x70)]).refused(Reason::FeatureNotOffered),
        command("a vendor's", BOTH, &[(10, 0xc0)]).refused(Reason::FeatureNotOffered),
        command("a value that is not there", BOTH, &[(10, 0x407)]).refused(Reason::IllegalValue),
        command("a reserved bit", BOTH, &[(10, 1 << 31 | 7)]).refused(Reason::ReservedBit),
    ],
};

const SAVE: u32 = 1 << 31;

pub(crate) static SET_FEATURES: Cases = Cases::Passes {
    legitimate: &[
        command(
            "number of queues",
            CLIENT,
            &[(1, 0), (10, 7), (11, 0x0003_0003)],
        )
        .passes(Class::Virtual),
        command("coalescing", CLIENT, &[(1, 0), (10, 8), (11, 0x0102)]).passes(Class::Virtual),
        command("events", CLIENT, &[(1, 0), (10, 0x0b), (11, 0x1ff)]).passes(Class::Virtual),
        command("time", CLIENT, &[(1, 0), (10, 0x0e)]).sends(Class::Virtual, 8),
        command("host behavior", CLIENT, &[(1, 0), (10, 0x16)]).sends(Class::Virtual, 512),
        command(
            "the write cache, on as it is",
            CLIENT,
            &[(1, 0), (10, 6), (11, 1)],
        )
        .passes(Class::Virtual),
        command("the write cache, off", CLIENT, &[(1, 0), (10, 6)]).passes(Class::Owner),
        command("power state", OWNER, &[(1, 0), (10, 2), (11, 3)]).passes(Class::Owner),
        command("power transitions", OWNER, &[(1, 0), (10, 0x0c), (11, 1)])
            .sends(Class::Owner, 256),
        command(
            "long host identifier",
            OWNER,
            &[(1, 0), (10, 0x81), (11, 1)],
        )
        .sends(Class::Owner, 16),
        command("write protection", OWNER, &[(10, 0x84), (11, 1)]).passes(Class::Owner),
    ],
    reach: &[
        command("its own", CLIENT, &[(1, 0), (10, 8)])
            .reaches(Scope::VirtualController, Persistence::UntilReset),
        command("the cache of all", CLIENT, &[(1, 0), (10, 6)])
            .reaches(Scope::Controller, Persistence::UntilReset),
        command("the controller's", OWNER, &[(1, 0), (10, 2)])
            .reaches(Scope::Controller, Persistence::UntilReset),
        command("saved", OWNER, &[(1, 0), (10, SAVE | 2)])
            .reaches(Scope::Controller, Persistence::Media),
        command("one namespace's", OWNER, &[(10, 5)])
            .reaches(Scope::Namespace, Persistence::UntilReset),
        command("all namespaces'", OWNER, &[(1, u32::MAX), (10, 5)])
            .reaches(Scope::AllNamespaces, Persistence::UntilReset),
        command("protected for good", OWNER, &[(10, 0x84), (11, 3)])
            .reaches(Scope::Namespace, Persistence::Permanent),
        command("the host's identity", OWNER, &[(1, 0), (10, 0x81)])
            .reaches(Scope::Subsystem, Persistence::UntilReset),
    ],
    attacks: &[
        command(
            "host memory, by addresses",
            BOTH,
            &[(1, 0), (10, 0x0d), (11, 1), (12, 1), (13, 0x1000), (15, 1)],
        )
        .refused(Reason::FeatureNotOffered),
        command("a data queue", BOTH, &[(1, 0), (10, 0x21)]).refused(Reason::FeatureNotOffered),
        command("command sets", BOTH, &[(1, 0), (10, 0x19)]).refused(Reason::FeatureNotOffered),
        command("one that nobody defines", BOTH, &[(1, 0), (10, 0x70)])
            .refused(Reason::FeatureNotOffered),
        command("a vendor's", BOTH, &[(1, 0), (10, 0xc0)]).refused(Reason::FeatureNotOffered),
        command("the driver's queues", OWNER, &[(1, 0), (10, 7)])
            .refused(Reason::FeatureNotOffered),
        command("the driver's events", OWNER, &[(1, 0), (10, 0x0b)])
            .refused(Reason::FeatureNotOffered),
        command("to outlive the client", CLIENT, &[(1, 0), (10, SAVE | 8)])
            .refused(Reason::NotSaveable),
        command(
            "a word that it does not have",
            BOTH,
            &[(1, 0), (10, 8), (12, 1)],
        )
        .refused(Reason::ReservedBit),
        command(
            "a bit that it does not have",
            BOTH,
            &[(1, 0), (10, 6), (11, 2)],
        )
        .refused(Reason::ReservedBit),
        command("of another namespace", OWNER, &[(1, 2), (10, 0x84)])
            .refused(Reason::NamespaceNotGranted),
        command(
            "of a namespace, where it is the controller's",
            OWNER,
            &[(10, 2)],
        )
        .refused(Reason::IllegalValue),
        command("another kind of protection", OWNER, &[(10, 0x84), (11, 4)])
            .refused(Reason::IllegalValue),
    ],
};

pub(crate) static GET_LBA_STATUS: Cases = Cases::Passes {
    legitimate: &[
        command("a page of it", BOTH, &[(12, 1023), (13, 0x1100_0008)])
            .receives(Class::BlockStatus, 4096),
        command("to the end", BOTH, &[(12, 3), (13, 0x1000_0000)]).receives(Class::BlockStatus, 16),
    ],
    reach: &[
        command("eight blocks", BOTH, &[(10, 992), (13, 0x0200_0008)])
            .touches(Persistence::None, &[(992, 8, Access::Probe)]),
        command("to the end", BOTH, &[(10, 10), (13, 0x1000_0000)])
            .touches(Persistence::None, &[(10, 990, Access::Probe)]),
    ],
    attacks: &[
        command("past the end", BOTH, &[(10, 993), (13, 0x0200_0008)]).refused(Reason::OutOfRange),
        command(
            "from past the end to the end",
            BOTH,
            &[(10, 1000), (13, 0x0200_0000)],
        )
        .refused(Reason::OutOfRange),
        command(
            "a sum that wraps",
            BOTH,
            &[(10, u32::MAX), (11, u32::MAX), (13, 0x0200_0002)],
        )
        .refused(Reason::OutOfRange),
        command(
            "more than the limit",
            BOTH,
            &[(12, 1 << 18), (13, 0x0200_0008)],
        )
        .refused(Reason::TooLong),
        command(
            "all that a length can say",
            BOTH,
            &[(12, u32::MAX), (13, 0x0200_0008)],
        )
        .refused(Reason::TooLong),
        command("an action that nobody defines", BOTH, &[(13, 8)]).refused(Reason::IllegalValue),
        command("another namespace", BOTH, &[(1, 2), (13, 0x0200_0008)])
            .refused(Reason::NamespaceNotGranted),
        command("all namespaces", BOTH, &[(1, u32::MAX), (13, 0x0200_0008)])
            .refused(Reason::AllNamespaces),
        command("a reserved bit", BOTH, &[(13, 0x0201_0008)]).refused(Reason::ReservedBit),
    ],
};
