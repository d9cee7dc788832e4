//! Where connections go, for many orders of coming and going.

use proptest::prelude::*;

use super::*;

fn load(open: usize, busy: f32) -> Load {
    Load { open, busy }
}

#[test]
fn whoever_has_clearly_less_to_do_gets_it() {
    let table: &[(&str, usize, &[Load], usize)] = &[
        ("alone", 0, &[load(9, 1.0)], 0),
        ("nothing anywhere", 1, &[load(0, 0.0), load(0, 0.0)], 1),
        ("one idle", 0, &[load(1, 0.0), load(0, 0.0)], 1),
        ("one idle of three, the third full", 0, &[load(1, 0.0), load(0, 0.0), load(100, 0.5)], 1),
        ("even", 0, &[load(2, 0.1), load(2, 0.1)], 0),
        ("one fewer of three", 0, &[load(2, 0.1), load(1, 0.1)], 1),
        ("one fewer of many", 0, &[load(21, 0.1), load(20, 0.1)], 0),
        ("a tenth fewer of many", 0, &[load(220, 0.1), load(180, 0.1)], 1),
        ("the time differs little", 0, &[load(10, 0.6), load(10, 0.4)], 0),
        ("an elephant here, mice there", 0, &[load(1, 1.0), load(3, 0.1)], 1),
        ("mice here, an elephant there", 0, &[load(3, 0.1), load(1, 1.0)], 0),
        ("everybody has more", 2, &[load(5, 0.9), load(4, 0.9), load(3, 0.9)], 2),
        ("the least of several", 0, &[load(9, 0.5), load(4, 0.5), load(2, 0.5), load(3, 0.5)], 2),
        ("the next of equals", 1, &[load(0, 0.0), load(4, 0.0), load(0, 0.0)], 2),
    ];
    for (what, own, loads, expect) in table {
        assert_eq!(choose(*own, loads, OF_A_CONNECTION), *expect, "{what}");
    }
}

#[test]
fn a_tunnel_goes_where_there_is_anything_less() {
    assert_eq!(choose(0, &[load(203, 0.2), load(202, 0.3)], OF_A_TUNNEL), 1);
    assert_eq!(choose(0, &[load(202, 0.2), load(202, 0.3)], OF_A_TUNNEL), 0);
}

/// What `count` connections come to, each accepted by a worker that the kernel chose.
fn placed(workers: usize, accepted_by: impl IntoIterator<Item = usize>) -> Vec<Load> {
    let mut loads = vec![Load::default(); workers];
    for own in accepted_by {
        let chosen = choose(own % workers, &loads, OF_A_CONNECTION);
        loads[chosen].open += 1;
    }
    loads
}

#[test]
fn all_by_one_worker_is_shared() {
    for workers in [1, 2, 4, 8] {
        for count in [1, 4, 32, 512] {
            let loads = placed(workers, std::iter::repeat_n(0, count));
            let most = loads.iter().map(|load| load.open).max().unwrap();
            let share = count.div_ceil(workers);
            assert!(most <= share + share / 8, "{count} on {workers}: {loads:?}");
        }
    }
}

proptest! {
    #[test]
    fn nobody_has_more_than_a_share_while_another_idles(
        workers in 1usize..9,
        accepted_by in prop::collection::vec(0usize..8, 1..600),
    ) {
        let count = accepted_by.len();
        let loads = placed(workers, accepted_by);
        let most = loads.iter().map(|load| load.open).max().unwrap_or(0);
        let least = loads.iter().map(|load| load.open).min().unwrap_or(0);
        prop_assert!(most <= least + 1 + count / 8, "{loads:?}");
        prop_assert!(least > 0 || most <= 1, "{loads:?}");
    }

    #[test]
    fn a_hand_over_always_helps(
        loads in prop::collection::vec((0usize..2000, 0f32..=1.0).prop_map(|(open, busy)| load(open, busy)), 1..9),
        own in 0usize..8,
        margin in prop::sample::select(vec![OF_A_CONNECTION, OF_A_TUNNEL]),
    ) {
        let own = own % loads.len();
        let chosen = choose(own, &loads, margin);
        let (from, to) = (loads[own], loads[chosen]);
        prop_assert!(chosen == own || to.open < from.open || to.busy + NOISE < from.busy);
        // Nor does it come back.
        let mut after = loads.clone();
        after[chosen].open += 1;
        let again = choose(chosen, &after, margin);
        prop_assert!(chosen == own || again != own, "{loads:?}: {own}, {chosen}, {again}");
    }

    #[test]
    fn equals_keep_what_they_accept(workers in 1usize..9, open in 0usize..1000, busy in 0f32..=1.0, own in 0usize..8) {
        let own = own % workers;
        prop_assert_eq!(choose(own, &vec![load(open, busy); workers], OF_A_TUNNEL), own);
    }
}

#[test]
fn what_is_over_counts_no_more() {
    let spread = Spread::over(2);
    let (a, b) = (spread.count(0), spread.count(1));
    let c = spread.count(1);
    assert_eq!(spread.open().collect::<Vec<_>>(), [1, 2]);
    drop((a, b));
    assert_eq!(spread.open().collect::<Vec<_>>(), [0, 1]);
    let mut registry = Registry::default();
    spread.register(&mut registry);
    let page = aquifer_runtime::metrics::encode(&registry);
    for line in ["aquifer_worker_open{worker=\"1\"} 1\n", "aquifer_worker_handed_over_total{worker=\"0\"} 0\n"] {
        assert!(page.contains(line), "{page}");
    }
    drop(c);
}
