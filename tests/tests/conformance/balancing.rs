//! Section 3.8: which endpoint of a service is called.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use crate::peer::net;
use crate::peer::wds::{ADDRESS, Service, Workload};
use crate::peer::world::{App, Pod, Stage, World, greeted};

/// So many that none of three is missed by chance, in all test runs that there will ever be.
const CALLS: usize = 80;

const REGION: u64 = 1;
const ZONE: u64 = 2;
const SUBZONE: u64 = 3;
const NODE: u64 = 4;
const CLUSTER: u64 = 5;
const NETWORK: u64 = 6;

const STRICT: u64 = 1;
const FAILOVER: u64 = 2;

/// The caller in eu/eu-1/rack-0 on node-a, and plain endpoints `a`, `b`, `c` (198.18.1.4 to 6).
struct Case {
    world: World,
    here: Pod,
    pods: Vec<Pod>,
    _apps: Vec<App>,
}

fn web() -> Service {
    Service {
        name: "web".into(),
        namespace: "app".into(),
        hostname: "web.example".into(),
        addresses: vec![net::vip(1)],
        ports: vec![(80, 8080)],
        ..Service::default()
    }
}

impl Case {
    async fn start() -> Result<Self> {
        let stage = Stage::set()?;
        let mut here = stage.local(2, "here")?;
        here.workload.locality = ["eu", "eu-1", "rack-0"];
        let mut pods = Vec::new();
        for (number, name) in [(4, "a"), (5, "b"), (6, "c")] {
            let mut pod = stage.remote(number, name)?;
            pod.workload.tunnel_protocol = 0;
            pod.workload.services = vec![("app/web.example".into(), vec![(80, 8080)])];
            pods.push(pod);
        }
        let world = World::start(stage, &[&here], &[here.workload.resource(), web().resource()]).await?;
        let apps = pods.iter().map(|pod| App::named(&pod.netns, pod.at(8080), &pod.workload.name));
        let _apps = apps.collect::<Result<_>>()?;
        Ok(Self { world, here, pods, _apps })
    }

    /// Who answers, out of many calls, with the endpoints changed like this and the service like that.
    async fn answers(&mut self, change: impl Fn(&str, &mut Workload), service: Service) -> Result<String> {
        let mut resources = vec![service.resource()];
        for pod in &self.pods {
            let mut workload = pod.workload.clone();
            change(&pod.workload.name, &mut workload);
            resources.push(workload.resource());
        }
        self.world.ads.accepted(ADDRESS, &resources, &[]).await?;
        let mut names = BTreeSet::new();
        for _ in 0..CALLS {
            names.insert(greeted(&self.here.netns, (net::vip(1), 80).into()).await?.unwrap_or_else(|| "-".into()));
        }
        Ok(names.into_iter().collect::<Vec<_>>().join(" "))
    }
}

/// 3.8: unhealthy endpoints are left out unless the service allows all; and trap 28: they come back when it does.
#[tokio::test(flavor = "multi_thread")]
async fn health() -> Result<()> {
    let mut case = Case::start().await?;
    let sick = |name: &str, workload: &mut Workload| workload.unhealthy = name != "b";
    assert_eq!(case.answers(|_, _| {}, web()).await?, "a b c");
    assert_eq!(case.answers(sick, web()).await?, "b");
    assert_eq!(case.answers(|_, workload| workload.unhealthy = true, web()).await?, "-");
    assert_eq!(case.answers(sick, Service { allow_all: true, ..web() }).await?, "a b c");
    // The service alone changes: endpoints that were left out before are there again.
    case.answers(sick, web()).await?;
    case.world.push(&[Service { allow_all: true, ..web() }.resource()]).await?;
    let mut names = BTreeSet::new();
    for _ in 0..CALLS {
        names.extend(greeted(&case.here.netns, (net::vip(1), 80).into()).await?);
    }
    assert_eq!(names.len(), 3, "{names:?}");
    Ok(())
}

/// 3.8: capacity weighs; 0 is never chosen; all 0 is nobody.
#[tokio::test(flavor = "multi_thread")]
async fn capacity() -> Result<()> {
    let mut case = Case::start().await?;
    let zero_for = |zero: &'static str| {
        move |name: &str, workload: &mut Workload| workload.capacity = Some(u64::from(!zero.contains(name)))
    };
    assert_eq!(case.answers(zero_for("ac"), web()).await?, "b");
    assert_eq!(case.answers(zero_for("a"), web()).await?, "b c");
    assert_eq!(case.answers(zero_for("abc"), web()).await?, "-");
    assert_eq!(case.answers(|_, workload| workload.capacity = None, web()).await?, "a b c");
    // A billion to one: the heavy one has all that are seen.
    let heavy = |name: &str, workload: &mut Workload| workload.capacity = Some(if name == "c" { 1 << 30 } else { 1 });
    assert_eq!(case.answers(heavy, web()).await?, "c");
    Ok(())
}

/// 3.8: an endpoint without the port is left out.
#[tokio::test(flavor = "multi_thread")]
async fn missing_port() -> Result<()> {
    let mut case = Case::start().await?;
    let change = |name: &str, workload: &mut Workload| {
        if name == "a" {
            workload.services = vec![("app/web.example".into(), vec![(81, 8081)])];
        }
    };
    // With port 0 in the service the endpoint's own list has to know it.
    assert_eq!(case.answers(change, Service { ports: vec![(80, 0)], ..web() }).await?, "b c");
    Ok(())
}

/// a: nothing in common but the region; b: region and zone; c: all of it, and the node.
fn placed(name: &str, workload: &mut Workload) {
    workload.locality = match name {
        "a" => ["eu", "eu-2", "rack-0"],
        "b" => ["eu", "eu-1", "rack-9"],
        _ => ["eu", "eu-1", "rack-0"],
    };
    if name == "c" {
        workload.node = "node-a".into();
    }
}

/// 3.8: STRICT: every scope must match; each compares its own value only.
#[tokio::test(flavor = "multi_thread")]
async fn strict() -> Result<()> {
    let mut case = Case::start().await?;
    for (scopes, expected) in [
        (vec![REGION], "a b c"),
        (vec![REGION, ZONE], "b c"),
        (vec![REGION, ZONE, SUBZONE], "c"),
        (vec![NODE], "c"),
        (vec![SUBZONE], "a c"),
        (vec![NETWORK], "a b c"),
        (vec![CLUSTER], "a b c"),
    ] {
        let service = Service { mode: STRICT, routing_preference: scopes.clone(), ..web() };
        assert_eq!(case.answers(placed, service).await?, expected, "{scopes:?}");
    }
    // Nobody matches: nobody is called.
    let service = Service { mode: STRICT, routing_preference: vec![NODE], ..web() };
    assert_eq!(case.answers(|_, workload| workload.node = "node-z".into(), service).await?, "-");
    Ok(())
}

/// 3.8: FAILOVER: the group with the most leading scopes in common; counting stops at the first mismatch.
#[tokio::test(flavor = "multi_thread")]
async fn failover() -> Result<()> {
    let mut case = Case::start().await?;
    let failover = |scopes: &[u64]| Service { mode: FAILOVER, routing_preference: scopes.to_vec(), ..web() };
    for (scopes, expected) in [
        (vec![REGION], "a b c"),
        (vec![REGION, ZONE], "b c"),
        (vec![NETWORK, REGION, ZONE], "b c"),
        (vec![NETWORK, REGION, ZONE, SUBZONE, NODE], "c"),
        (vec![ZONE, SUBZONE], "c"),
        (vec![SUBZONE, ZONE], "c"),
    ] {
        assert_eq!(case.answers(placed, failover(&scopes)).await?, expected, "{scopes:?}");
    }
    // The best group is out of order: the next takes over.
    let c_is_sick = |name: &str, workload: &mut Workload| {
        placed(name, workload);
        workload.unhealthy = name == "c";
    };
    assert_eq!(case.answers(c_is_sick, failover(&[REGION, ZONE, SUBZONE])).await?, "b");
    // Nobody matches any scope: all are as good.
    let far = |_: &str, workload: &mut Workload| workload.locality = ["us", "us-1", "x"];
    assert_eq!(case.answers(far, failover(&[REGION, ZONE])).await?, "a b c");
    // The zone's name alone counts: a zone of that name in another region does not come before the region.
    let crossed = |name: &str, workload: &mut Workload| {
        workload.locality = if name == "a" { ["us", "eu-1", "rack-0"] } else { ["eu", "eu-7", "x"] };
    };
    assert_eq!(case.answers(crossed, failover(&[REGION, ZONE, SUBZONE])).await?, "b c");
    Ok(())
}

/// 3.8: no mode: all of them, wherever they are.
#[tokio::test(flavor = "multi_thread")]
async fn unspecified() -> Result<()> {
    let mut case = Case::start().await?;
    let service = Service { routing_preference: vec![REGION, ZONE, SUBZONE, NODE], ..web() };
    assert_eq!(case.answers(placed, service).await?, "a b c");
    Ok(())
}

/// Trap 30: of two workloads with one address the pod in the mesh counts, and removing one leaves the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_workloads_with_one_address() -> Result<()> {
    let mut case = Case::start().await?;
    let pod = case.pods.first().context("a pod")?.workload.clone();
    let entry = Workload { name: "entry".into(), ..pod.clone() };
    case.world.push(&[pod.resource(), entry.resource()]).await?;
    case.world.remove(ADDRESS, &[entry.uid()]).await?;
    let dump = case.world.config_dump().await?.to_string();
    assert!(dump.contains(&pod.uid()) && !dump.contains(&entry.uid()));
    let answer = greeted(&case.here.netns, (net::ipv4(4), 8080).into()).await?;
    assert_eq!(answer.as_deref(), Some("a"));
    case.world.ztunnel.lines(&["\taccess\t", "dst.workload=\"a\""], 1).await?;
    Ok(())
}
