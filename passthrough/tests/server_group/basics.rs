//! Two clients, each with its own blocks.

use std::time::Duration;

use crate::place::{Place, check, fill};

#[test]
fn two_clients_have_each_its_own_blocks_and_nothing_else() {
    let place = Place::two_halves();
    let serving = place.serve();
    let (a, b) = (place.open("vm-a"), place.open("vm-b"));
    assert_eq!(a.namespaces().unwrap(), [1]);
    assert_eq!(b.namespaces().unwrap(), [7]);
    assert_eq!(a.namespace(1).unwrap().blocks(), 2000);
    assert_eq!(b.namespace(7).unwrap().blocks(), 3000);
    assert_ne!(
        a.identify().serial_number().to_string(),
        b.identify().serial_number().to_string()
    );
    fill(&a, 1);
    fill(&b, 100);
    check(&a, 1);
    check(&b, 100);
    drop((a, b));
    let summary = serving.finish().unwrap();
    assert!(summary.commands > 1000, "{summary:?}");
    assert_eq!(summary.commands, summary.completions);
    assert!(!place.socket("vm-a").exists());
    assert!(summary.time < Duration::from_secs(60));
}

#[test]
fn what_a_client_leaves_it_finds_again() {
    let place = Place::two_halves();
    let serving = place.serve();
    let a = place.open("vm-a");
    fill(&a, 5);
    drop(a);
    let a = place.open("vm-a");
    check(&a, 5);
    drop(a);
    serving.finish().unwrap();
}
