//! The descriptors of this process, shared out among the clients: what one has the server keep open is not to be missing for the others.

use nix::sys::resource::{Resource, getrlimit};

use super::front;
use super::station::socket_options;
use crate::policy::{ResolvedClient, Warning};

/// Descriptors of a client that wait to be closed, where there are enough: an ordinary client's never do for long.
const MOST: usize = 256;
/// And where there are few. A client that changes more eventfds than that at once is kept waiting for a moment.
const LEAST: usize = 16;
/// What each client's virtual controller and thread have open beside its socket and its connections.
const FRONT: usize = 8;
/// What is opened between now and the first client that is let in, and what the audit and the controllers open for a moment later.
const OWN: usize = 32;
/// How many are open where `/proc` does not tell.
const UNKNOWN: usize = 64;

/// How many descriptors of each client may wait to be closed, and a warning where this process may not have as many open as its clients can make it have.
pub(super) fn share(clients: &[ResolvedClient]) -> (usize, Option<Warning>) {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(limit, _)| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    let open = std::fs::read_dir("/proc/self/fd").map_or(UNKNOWN, Iterator::count);
    let fronts = clients.iter().map(|client| {
        let vectors = usize::from(front::vectors(client));
        socket_options(client, 0).descriptors(vectors) + FRONT
    });
    let taken = OWN + open + fronts.sum::<usize>();
    let share = share_of(limit, taken, clients.len());
    let needed = taken + 2 * share * clients.len();
    let warning = (needed > limit).then(|| Warning {
        kind: "few-descriptors",
        client: None,
        nsid: None,
        text: format!(
            "this process may have {limit} files open, and the clients together can make it open {needed}: one of them can then keep the others from lending memory, and newcomers out. Raise the limit (LimitNOFILE= in the service's unit, or ulimit -n)"
        ),
    });
    (share, warning)
}

/// What is left of `limit`, in equal parts: each client can have its share wait twice, once for what its earlier sessions left and once for the one that is there.
fn share_of(limit: usize, taken: usize, clients: usize) -> usize {
    let left = limit.saturating_sub(taken);
    (left / (2 * clients.max(1))).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_and_within_the_limit() {
        for clients in 1..=64 {
            for limit in [1024, 4096, 20_000, 1 << 20, usize::MAX] {
                let taken = 60 + 420 * clients;
                let share = share_of(limit, taken, clients);
                assert!((LEAST..=MOST).contains(&share));
                assert!(share == LEAST || taken + 2 * share * clients <= limit);
                // No more could be shared out.
                let more = taken + 2 * (share + 1) * clients;
                assert!(share == MOST || more > limit);
            }
        }
        assert_eq!(share_of(0, 500, 0), LEAST);
    }
}
