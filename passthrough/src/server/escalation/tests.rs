use proptest::prelude::*;

use super::*;

struct Queue {
    now: Instant,
    escalation: Escalation,
    overdue: usize,
    lost: bool,
    distrusted: bool,
}

impl Queue {
    fn new(overdue: usize) -> Queue {
        let now = Instant::now();
        let need = match overdue {
            0 => Need::Rebuild,
            count => Need::Overdue((0..count as u64).collect()),
        };
        Queue {
            now,
            escalation: Escalation::new(&need, now, Times::default()),
            overdue,
            lost: need == Need::Rebuild,
            distrusted: false,
        }
    }

    fn next(&mut self) -> Action {
        self.escalation.next(Seen {
            now: self.now,
            overdue: self.overdue,
            lost: self.lost,
            distrusted: self.distrusted,
        })
    }

    fn after(&mut self, time: Duration) -> Action {
        self.now += time;
        self.next()
    }

    /// Does what is said next, and tells what it was.
    fn act(&mut self, how: Done) -> Action {
        let action = self.next();
        if how == Done::Well {
            match action {
                Action::DeleteQueue | Action::ResetController => {
                    (self.overdue, self.lost) = (0, true);
                }
                Action::Rebuild => (self.lost, self.distrusted) = (false, false),
                _ => {}
            }
        }
        if !matches!(action, Action::Wait | Action::Return { .. }) {
            self.escalation.done(how, self.now);
        }
        action
    }
}

use Done::{Failed, Gone, Well};

#[test]
fn commands_that_end_by_themselves_cost_nothing() {
    let mut queue = Queue::new(3);
    queue.overdue = 0;
    assert_eq!(queue.next(), Action::Return { usable: true });
    assert_eq!(queue.escalation.step(), Step::Waited);
}

#[test]
fn what_is_overdue_is_aborted_and_the_others_go_on() {
    let mut queue = Queue::new(2);
    assert_eq!(queue.act(Well), Action::CheckStatus);
    assert_eq!(queue.act(Well), Action::Abort);
    assert_eq!(queue.next(), Action::Wait);
    queue.overdue = 0;
    assert_eq!(queue.next(), Action::Return { usable: true });
    assert_eq!(queue.escalation.step(), Step::Aborted);
}

#[test]
fn what_no_abort_ends_loses_its_queue_and_nobody_elses() {
    let mut queue = Queue::new(1);
    assert_eq!(queue.act(Well), Action::CheckStatus);
    assert_eq!(queue.act(Well), Action::Abort);
    assert_eq!(queue.after(Duration::from_millis(999)), Action::Wait);
    queue.now += Duration::from_millis(1);
    assert_eq!(queue.act(Well), Action::DeleteQueue);
    assert_eq!(queue.act(Well), Action::Rebuild);
    assert_eq!(queue.next(), Action::Return { usable: true });
    assert_eq!(queue.escalation.step(), Step::QueueDeleted);
}

#[test]
fn a_queue_that_cannot_be_deleted_costs_a_reset() {
    let mut queue = Queue::new(1);
    queue.act(Well);
    queue.act(Well);
    queue.now += Times::default().abort_grace;
    assert_eq!(queue.act(Failed), Action::DeleteQueue);
    assert_eq!(queue.act(Well), Action::ResetController);
    assert_eq!(queue.act(Well), Action::Rebuild);
    assert_eq!(queue.next(), Action::Return { usable: true });
    assert_eq!(queue.escalation.step(), Step::ControllerReset);
}

#[test]
fn an_admin_queue_that_does_not_answer_is_not_asked_again() {
    let mut queue = Queue::new(1);
    assert_eq!(queue.act(Well), Action::CheckStatus);
    assert_eq!(queue.act(Failed), Action::Abort);
    assert_eq!(queue.act(Failed), Action::ResetController);
    assert_eq!(queue.next(), Action::Return { usable: false });
    assert_eq!(queue.escalation.step(), Step::GivenUp);
}

#[test]
fn a_controller_that_has_failed_is_asked_for_nothing_but_a_reset() {
    let mut queue = Queue::new(1);
    assert_eq!(queue.act(Failed), Action::CheckStatus);
    assert_eq!(queue.act(Well), Action::ResetController);
}

#[test]
fn a_controller_that_answers_for_what_it_was_not_asked_is_reset() {
    let mut queue = Queue::new(1);
    queue.distrusted = true;
    assert_eq!(queue.act(Well), Action::ResetController);
    assert_eq!(queue.act(Well), Action::Rebuild);
    assert_eq!(queue.next(), Action::Return { usable: true });
}

#[test]
fn the_reset_of_somebody_else_is_as_good() {
    let mut queue = Queue::new(5);
    queue.lost = true;
    assert_eq!(queue.act(Well), Action::Rebuild);
    assert_eq!(queue.next(), Action::Return { usable: true });
    assert_eq!(queue.escalation.step(), Step::Waited);
}

#[test]
fn a_queue_that_is_not_made_anew_is_tried_again_and_then_costs_one_reset() {
    let mut queue = Queue::new(0);
    for _ in 0..=REBUILDS {
        assert_eq!(queue.act(Failed), Action::Rebuild);
        assert_ne!(queue.next(), Action::Rebuild, "not at once again");
        queue.now += Times::default().rebuild_again;
    }
    assert_eq!(queue.act(Well), Action::ResetController);
    for _ in 0..=REBUILDS {
        assert_eq!(queue.act(Failed), Action::Rebuild);
        queue.now += Times::default().rebuild_again;
    }
    assert_eq!(queue.next(), Action::Return { usable: false });
}

#[test]
fn a_controller_that_is_gone_is_given_up_at_once() {
    let mut queue = Queue::new(1);
    assert_eq!(queue.act(Gone), Action::CheckStatus);
    assert_eq!(queue.next(), Action::Return { usable: false });
    assert_eq!(queue.escalation.step(), Step::GivenUp);
}

proptest! {
    #![proptest_config(nvme_vfio_seeded::seeded(256))]

    /// Whatever succeeds or fails, ends or hangs: it comes to an end in bounded time, its steps only widen, and a queue is given back for use only when nothing overdue is in it.
    #[test]
    fn every_way_ends(
        overdue in 0..6usize,
        script in prop::collection::vec((0..8u8, 0..3u8, 0..400u64), 64),
    ) {
        let mut queue = Queue::new(overdue);
        let began = queue.now;
        let mut reached = Step::Waited;
        let (mut resets, mut turns) = (0, script.iter().cycle());
        let usable = loop {
            let &(how, ends, time) = turns.next().unwrap();
            queue.now += Duration::from_millis(time + 1);
            queue.overdue = queue.overdue.saturating_sub(usize::from(ends == 0));
            prop_assert!(queue.now - began < Duration::from_secs(60), "no end");
            let how = match how { 0 => Gone, 1..4 => Failed, _ => Well };
            match queue.act(how) {
                Action::Return { usable } => break usable,
                Action::ResetController => resets += 1,
                _ => {}
            }
            prop_assert!(queue.escalation.step() >= reached);
            reached = queue.escalation.step();
        };
        prop_assert!(resets <= 1);
        if usable {
            prop_assert_eq!(queue.overdue, 0);
            prop_assert!(!queue.lost);
        } else {
            prop_assert_eq!(queue.escalation.step(), Step::GivenUp);
        }
    }
}
