use std::net::Ipv4Addr;

use aquifer_core::address::{NamespacedHostname, NetworkAddress};
use aquifer_xds::client::demand::{self, Demands};
use futures_util::FutureExt;

use super::*;

fn start() -> (Arc<OnDemand>, Demands) {
    let (demander, demands) = demand::channel();
    (Arc::new(OnDemand::new(demander, Tracker::new())), demands)
}

fn key(n: u8) -> Key {
    Key::Address(NetworkAddress::new("net", Ipv4Addr::new(198, 19, 0, n).into()))
}

/// Answers the next question, which must be for `name`.
async fn answer(demands: &mut Demands, name: &str) {
    let demand = demands.next().await.unwrap();
    assert_eq!(demand.wanted(), (type_url::ADDRESS, name));
    demand.answer();
}

#[tokio::test(start_paused = true)]
async fn a_key_is_known_once_it_was_answered() {
    let (on_demand, mut demands) = start();
    assert!(!on_demand.is_known(&key(1)));
    let first = key(1);
    let (asked, ()) = tokio::join!(on_demand.ask(&first), answer(&mut demands, "net/198.19.0.1"));
    assert_eq!(asked, Ok(()));
    assert!(on_demand.is_known(&key(1)) && !on_demand.is_known(&key(2)));
    let host = Key::Hostname(NamespacedHostname::new("shop", "web.example"));
    let (asked, ()) = tokio::join!(on_demand.ask(&host), answer(&mut demands, "shop/web.example"));
    assert_eq!(asked, Ok(()));
    assert!(on_demand.is_known(&host));
}

#[tokio::test(start_paused = true)]
async fn silence_is_an_error_after_five_seconds_and_makes_nothing_known() {
    let (on_demand, mut demands) = start();
    let begin = Instant::now();
    assert_eq!(on_demand.ask(&key(1)).await, Err(AskError::Timeout));
    assert_eq!(begin.elapsed(), Duration::from_secs(5));
    assert!(!on_demand.is_known(&key(1)));
    assert!(demands.next().await.is_some());
    drop(demands);
    assert_eq!(on_demand.ask(&key(1)).await, Err(AskError::Closed));
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_is_renewed_by_one_while_all_go_by_it() {
    let (on_demand, mut demands) = start();
    let first = key(1);
    let _ = tokio::join!(on_demand.ask(&first), answer(&mut demands, "net/198.19.0.1"));
    tokio::time::advance(FRESH - Duration::from_millis(1)).await;
    assert!(on_demand.is_known(&key(1)));
    assert!(demands.next().now_or_never().is_none(), "nobody asks yet");
    tokio::time::advance(Duration::from_millis(1)).await;
    for _ in 0..10 {
        assert!(on_demand.is_known(&key(1)), "nobody waits");
    }
    let again = demands.next().await.unwrap();
    assert!(demands.next().now_or_never().is_none(), "one asks");
    // Not even an answer that doesn't come makes anybody wait.
    drop(again);
    tokio::time::advance(FRESH / 2).await;
    assert!(on_demand.is_known(&key(1)));
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded() {
    let (on_demand, mut demands) = start();
    let servant = async {
        while let Some(demand) = demands.next().await {
            demand.answer();
        }
    };
    let asks = async {
        for n in 0..=REMEMBERED {
            let ip = Ipv4Addr::from(0x0a00_0000 + n as u32);
            on_demand.ask(&Key::Address(NetworkAddress::new("", ip.into()))).await.unwrap();
        }
    };
    tokio::select! {
        () = servant => unreachable!(),
        () = asks => {}
    }
    assert!(on_demand.answered.lock().len() <= REMEMBERED);
}
