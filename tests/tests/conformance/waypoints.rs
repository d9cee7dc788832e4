//! Sections 3.7 and 4.1: which calls go through a waypoint, and how.

use anyhow::{Context, Result};

use crate::outbound::{Case, authority, endpoint_of, service};
use crate::peer::net;
use crate::peer::wds::{Gateway, Service};
use crate::peer::world::{App, Seen, Stage, World, first};

/// 3.7.1, 4.1, trap 15: a service's waypoint is dialled by HBONE whatever its workload says, the authority is the
/// address as called, and the waypoint must be who it is.
async fn through_a_waypoint(gateway: Gateway) -> Result<()> {
    let stage = Stage::set()?;
    let (here, mut there, mut waypoint) =
        (stage.local(2, "here")?, stage.remote(3, "there")?, stage.remote(4, "waypoint")?);
    endpoint_of(&mut there.workload, "web", &[(80, 8080)]);
    endpoint_of(&mut waypoint.workload, "wp", &[(15008, 15008)]);
    waypoint.workload.tunnel_protocol = 0;
    let web = Service { waypoint: Some(gateway), ..service("web", 1) };
    let wp = Service { ports: vec![(15008, 15008)], ..service("wp", 9) };
    let resources = [
        here.workload.resource(),
        there.workload.resource(),
        waypoint.workload.resource(),
        web.resource(),
        wp.resource(),
    ];
    let world = World::start(stage, &[&here], &resources).await?;
    let server = world.serve(&waypoint)?;
    let mut call = here.netns.connect((net::vip(1), 80).into()).await?;
    let mut accepted = server.accept().await?;
    assert_eq!(accepted.identity()?, here.identity());
    let (stream, headers) = accepted.take().await?;
    assert_eq!(authority(&headers), "198.19.0.1:80");
    stream.data(b"x", true);
    assert_eq!(first(&mut call).await?, Seen::Bytes(b"x".to_vec()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn waypoint_by_hostname() -> Result<()> {
    through_a_waypoint(Gateway::Hostname("app", "wp.example", 15008)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn waypoint_by_service_address() -> Result<()> {
    through_a_waypoint(Gateway::Ip(net::vip(9), 15008)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn waypoint_by_workload_address() -> Result<()> {
    through_a_waypoint(Gateway::Ip(net::ipv4(4), 15008)).await
}

/// 3.7.1: a waypoint that cannot be resolved is a failure, never a bypass.
#[tokio::test(flavor = "multi_thread")]
async fn waypoint_that_is_unknown() -> Result<()> {
    for gateway in [Gateway::Hostname("app", "nowhere.example", 15008), Gateway::Ip(net::vip(77), 15008)] {
        let case = Case::vary(|_, there, web| {
            there.tunnel_protocol = 0;
            web.waypoint = Some(gateway.clone());
            Ok(Vec::new())
        })
        .await?;
        let _app = App::start(&case.there.netns, case.there.at(8080))?;
        case.refused((net::vip(1), 80)).await?;
    }
    Ok(())
}

/// 3.7: the waypoint's service must have the port, unless the endpoint has an application tunnel.
#[tokio::test(flavor = "multi_thread")]
async fn waypoint_without_the_port() -> Result<()> {
    let case = Case::vary(|_, there, web| {
        web.waypoint = Some(Gateway::Hostname("app", "wp.example", 15008));
        endpoint_of(there, "wp", &[(80, 80)]);
        Ok(vec![service("wp", 9).resource()])
    })
    .await?;
    case.refused((net::vip(1), 80)).await
}

/// 3.7.1: weighted waypoints go before `waypoint`; with a sum of 0 it is `waypoint`.
#[tokio::test(flavor = "multi_thread")]
async fn weighted_waypoints() -> Result<()> {
    for (weights, expected) in [([0, 100], 5), ([100, 0], 4), ([0, 0], 4)] {
        let stage = Stage::set()?;
        let here = stage.local(2, "here")?;
        let (primary, canary) = (stage.remote(4, "primary")?, stage.remote(5, "canary")?);
        let [to_primary, to_canary] = [4, 5].map(|number| Gateway::Ip(net::ipv4(number), 15008));
        let web = Service {
            waypoint: Some(to_primary.clone()),
            weighted: vec![(to_primary, weights[0]), (to_canary, weights[1])],
            ..service("web", 1)
        };
        let resources =
            [here.workload.resource(), primary.workload.resource(), canary.workload.resource(), web.resource()];
        let world = World::start(stage, &[&here], &resources).await?;
        let server = world.serve(if expected == 4 { &primary } else { &canary })?;
        let mut accepted = None;
        for _ in 0..6 {
            let mut call = here.netns.connect((net::vip(1), 80).into()).await?;
            if accepted.is_none() {
                accepted = Some(server.accept().await?);
            }
            let (stream, _) = accepted.as_mut().context("a connection")?.take().await?;
            stream.data(b"x", true);
            assert_eq!(first(&mut call).await?, Seen::Bytes(b"x".to_vec()), "{weights:?}");
        }
    }
    Ok(())
}

/// 3.7.4: a workload's waypoint serves calls to the pod's address, not those to a service; and the waypoint itself
/// goes directly.
#[tokio::test(flavor = "multi_thread")]
async fn workload_waypoint() -> Result<()> {
    let stage = Stage::set()?;
    let (here, mut there, waypoint) = (stage.local(2, "here")?, stage.remote(3, "there")?, stage.local(4, "waypoint")?);
    endpoint_of(&mut there.workload, "web", &[(80, 8080)]);
    there.workload.waypoint = Some(Gateway::Ip(net::ipv4(4), 15008));
    let resources = [
        here.workload.resource(),
        there.workload.resource(),
        waypoint.workload.resource(),
        service("web", 1).resource(),
    ];
    // The waypoint's own pod is captured, but its 15008 is played by the test.
    let world = World::start(stage, &[&here], &resources).await?;
    let at_waypoint = world.serve(&waypoint)?;
    let at_there = world.serve(&there)?;
    let _call = here.netns.connect(there.at(8080)).await?;
    let (_stream, headers) = at_waypoint.accept().await?.take().await?;
    assert_eq!(authority(&headers), "198.18.1.3:8080");
    let _call = here.netns.connect((net::vip(1), 80).into()).await?;
    let (_stream, headers) = at_there.accept().await?.take().await?;
    assert_eq!(authority(&headers), "198.18.1.3:8080");
    drop((at_waypoint, at_there));
    Ok(())
}

/// 3.7.4: the waypoint itself is not sent to itself.
#[tokio::test(flavor = "multi_thread")]
async fn waypoint_calls_directly() -> Result<()> {
    let stage = Stage::set()?;
    let (here, mut there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    there.workload.waypoint = Some(Gateway::Ip(net::ipv4(2), 15008));
    let world = World::start(stage, &[&here], &[here.workload.resource(), there.workload.resource()]).await?;
    let server = world.serve(&there)?;
    let _call = here.netns.connect(there.at(8080)).await?;
    let (_stream, headers) = server.accept().await?.take().await?;
    assert_eq!(authority(&headers), "198.18.1.3:8080");
    Ok(())
}
