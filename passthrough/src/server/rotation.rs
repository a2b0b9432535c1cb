//! Whose turn it is: everybody with work once in each round, and those without now and then. A state machine without clients of its own.

/// Rounds without work after which a client is looked at less often.
const COOLING: u32 = 1024;
/// In one of so many rounds, while others work.
const SELDOM: u32 = 8;

/// The order in which virtual controllers have their turns.
///
/// In each round every client that had work lately has one turn, bounded in commands, so a client with one command waits at most one round for others
/// whatever their depth. Who goes first changes from round to round. A client without work for long costs the others one look in eight rounds.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// Rounds since each client had work.
    quiet: Vec<u32>,
    round: u32,
}

impl Rotation {
    pub(crate) fn new(clients: usize) -> Rotation {
        Rotation {
            quiet: vec![0; clients],
            round: 0,
        }
    }

    /// Has `turn` give each client its turn that has one in this round; it says whether there was work. Whether there was any.
    ///
    /// `all`: everybody is looked at, since there is time.
    #[inline]
    pub(crate) fn round(&mut self, all: bool, mut turn: impl FnMut(usize) -> bool) -> bool {
        let clients = self.quiet.len();
        self.round = self.round.wrapping_add(1);
        let first = match clients {
            0 => return false,
            clients => self.round as usize % clients,
        };
        let mut worked = false;
        for index in (first..clients).chain(0..first) {
            let Some(quiet) = self.quiet.get_mut(index) else {
                continue;
            };
            let due =
                *quiet < COOLING || self.round.wrapping_add(index as u32).is_multiple_of(SELDOM);
            if !due && !all {
                continue;
            }
            if turn(index) {
                *quiet = 0;
                worked = true;
            } else {
                *quiet = quiet.saturating_add(1);
            }
        }
        worked
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_client_with_one_command_waits_at_most_one_round_for_deep_ones() {
        let mut rotation = Rotation::new(3);
        let mut commands = [1_000_000u64, 1_000_000, 0];
        for round in 0..10_000 {
            if round % 7 == 0 {
                commands[2] = 1;
            }
            rotation.round(false, |client| {
                let done = commands[client].min(32);
                commands[client] -= done;
                done > 0
            });
            assert_eq!(commands[2], 0, "round {round}");
        }
        assert_eq!(commands[0], commands[1], "both have had as many turns");
    }

    #[test]
    fn who_goes_first_changes() {
        let mut rotation = Rotation::new(4);
        let mut firsts = [0; 4];
        for _ in 0..400 {
            let mut first = None;
            rotation.round(false, |client| {
                first.get_or_insert(client);
                true
            });
            firsts[first.unwrap()] += 1;
        }
        assert_eq!(firsts, [100; 4]);
    }

    #[test]
    fn the_quiet_cost_the_others_little() {
        let mut rotation = Rotation::new(16);
        for _ in 0..=COOLING {
            rotation.round(false, |client| client == 0);
        }
        let mut looks = [0; 16];
        for _ in 0..800 {
            rotation.round(false, |client| {
                looks[client] += 1;
                client == 0
            });
        }
        assert_eq!(looks[0], 800);
        assert!(looks[1..].iter().all(|looks| *looks == 100), "{looks:?}");
    }

    #[test]
    fn with_time_left_everybody_is_looked_at() {
        let mut rotation = Rotation::new(5);
        for _ in 0..=COOLING {
            rotation.round(false, |_| false);
        }
        let mut looks = 0;
        assert!(!rotation.round(true, |_| {
            looks += 1;
            false
        }));
        assert_eq!(looks, 5);
    }

    #[test]
    fn a_server_without_clients_has_no_rounds() {
        assert!(!Rotation::new(0).round(true, |_| true));
    }

    proptest! {
        #![proptest_config(nvme_vfio_seeded::seeded(256))]

        /// However work comes: nobody with work waits for more than eight rounds, and nobody has two turns in one.
        #[test]
        fn nobody_starves(clients in 1..20usize, work in prop::collection::vec((0..20usize, 0..2000u32), 1..12)) {
            let mut rotation = Rotation::new(clients);
            let mut waiting = vec![None; clients];
            let mut round = 0u32;
            for (client, rounds) in work {
                if let Some(waiting) = waiting.get_mut(client) {
                    waiting.get_or_insert(round);
                }
                for _ in 0..rounds {
                    let mut turns = vec![0; clients];
                    rotation.round(false, |client| {
                        turns[client] += 1;
                        waiting[client].take().is_some()
                    });
                    prop_assert!(turns.iter().all(|turns| *turns <= 1));
                    round += 1;
                    for since in waiting.iter().flatten() {
                        prop_assert!(round - since < SELDOM, "waits for {} rounds", round - since);
                    }
                }
            }
        }
    }
}
