//! Section 3.5 over the wire: which policies let whom in. Every case is tried by an HBONE caller
//! (`cluster.local/ns/app/sa/sa-there`, 198.18.1.3, over IPv4) and by a plaintext caller from the same address.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::net;
use crate::peer::tunnel::Client;
use crate::peer::wds::{ADDRESS, AUTHORIZATION, Match, Policy, Rule, Text};
use crate::peer::within;
use crate::peer::world::{App, Pod, Stage, World, greeted, greeting};

struct Case {
    world: World,
    here: Pod,
    there: Pod,
    known: Vec<Policy>,
    _app: App,
    _other: App,
}

/// Who gets in: the HBONE caller, the plaintext caller.
type In = (bool, bool);
const BOTH: In = (true, true);
const NOBODY: In = (false, false);
const MESH: In = (true, false);
const PLAIN: In = (false, true);

impl Case {
    async fn start() -> Result<Self> {
        Self::with_grace(None).await
    }

    /// With AUTHZ_POLICY_GRACE, where time matters.
    async fn with_grace(grace: Option<&str>) -> Result<Self> {
        let mut stage = Stage::set()?;
        if let Some(grace) = grace {
            stage.var("AUTHZ_POLICY_GRACE", grace);
        }
        let (mut here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
        here.workload.policies = vec!["app/named".into()];
        let named = Policy { name: "named".into(), namespace: "app".into(), scope: 2, deny: true, ..Policy::default() };
        let resources = [here.workload.resource(), there.workload.resource(), named.resource()];
        let world = World::start(stage, &[&here], &resources).await?;
        let _app = App::start(&here.netns, here.at(8080))?;
        let _other = App::start(&here.netns, here.at(9090))?;
        Ok(Self { world, here, there, known: vec![named], _app, _other })
    }

    /// Who gets in to the port with these policies in force.
    async fn tried(&mut self, policies: Vec<Policy>, port: u16) -> Result<In> {
        self.world.policies(&self.known, &policies).await?;
        self.known = policies;
        let client = self.world.dial(&self.there, &self.here).await?;
        let mesh = match client.status(&self.here.at(port).to_string()).await?.as_str() {
            "200" => true,
            "401" => false,
            other => anyhow::bail!("status {other}"),
        };
        Ok((mesh, greeted(&self.there.netns, self.here.at(port)).await?.is_some()))
    }
}

/// A DENY without rules under the name that the workload names: in force, and without effect.
fn inert() -> Policy {
    Policy { name: "named".into(), namespace: "app".into(), scope: 2, deny: true, ..Policy::default() }
}

/// An ALLOW or DENY for the destination's namespace.
fn policy(name: &str, deny: bool, rules: Vec<Rule>) -> Policy {
    Policy { name: name.into(), namespace: "app".into(), scope: 1, deny, rules, ..Policy::default() }
}

fn allow(rules: Vec<Rule>) -> Policy {
    policy("allow", false, rules)
}

fn deny(rules: Vec<Rule>) -> Policy {
    policy("deny", true, rules)
}

/// One rule of one clause of one match.
fn one(found: Match) -> Vec<Rule> {
    vec![vec![vec![found]]]
}

const ME: &str = "cluster.local/ns/app/sa/sa-there";

/// 3.5: what the decision is made of.
#[tokio::test(flavor = "multi_thread")]
async fn decision() -> Result<()> {
    let mut case = Case::start().await?;
    let me = || Match { principals: vec![Text::Exact(ME)], ..Match::default() };
    let stranger = || Match { principals: vec![Text::Exact("cluster.local/ns/x/sa/y")], ..Match::default() };
    let dry = |mut policy: Policy| {
        policy.dry_run = true;
        policy
    };
    let global = |mut policy: Policy, namespace: &str| {
        policy.scope = 0;
        policy.namespace = namespace.into();
        policy
    };
    let elsewhere = |mut policy: Policy| {
        policy.namespace = "elsewhere".into();
        policy
    };
    let selector = |mut policy: Policy, name: &str| {
        policy.scope = 2;
        policy.name = name.into();
        policy
    };
    for (what, policies, expected) in [
        ("no policy", vec![], BOTH),
        ("an ALLOW that matches", vec![allow(one(me()))], MESH),
        ("an ALLOW that matches nobody", vec![allow(one(stranger()))], NOBODY),
        ("ALLOW policies are ORed", vec![allow(one(stranger())), policy("second", false, one(me()))], MESH),
        ("a DENY that matches", vec![deny(one(me()))], PLAIN),
        ("a DENY that matches nobody", vec![deny(one(stranger()))], BOTH),
        ("DENY goes first", vec![deny(one(me())), allow(vec![vec![]])], PLAIN),
        ("a dry-run DENY only logs", vec![dry(deny(vec![vec![]]))], BOTH),
        ("a dry-run ALLOW is no ALLOW", vec![dry(allow(one(stranger())))], BOTH),
        ("an ALLOW of all namespaces", vec![global(allow(one(me())), "istio-system")], MESH),
        ("a DENY of all namespaces", vec![global(deny(vec![vec![]]), "istio-system")], NOBODY),
        ("a policy of another namespace", vec![elsewhere(deny(vec![vec![]]))], BOTH),
        ("a policy that the workload names", vec![selector(deny(one(me())), "named")], PLAIN),
        ("a policy that the workload does not name", vec![selector(deny(vec![vec![]]), "other")], BOTH),
    ] {
        let mut policies = policies;
        if !policies.iter().any(|policy| policy.name == "named") {
            policies.push(inert());
        }
        assert_eq!(case.tried(policies, 8080).await?, expected, "{what}");
    }
    Ok(())
}

/// 3.5, trap 11: OR of rules, AND of clauses, OR of matches, AND of fields, OR of values; and each of them empty.
#[tokio::test(flavor = "multi_thread")]
async fn structure() -> Result<()> {
    let mut case = Case::start().await?;
    let me = || Match { principals: vec![Text::Exact(ME)], ..Match::default() };
    let stranger = || Match { principals: vec![Text::Exact("cluster.local/ns/x/sa/y")], ..Match::default() };
    let port = |port| Match { destination_ports: vec![port], ..Match::default() };
    let empty = Match::default;
    for (what, policy, expected) in [
        ("an ALLOW without rules", allow(vec![]), NOBODY),
        ("a DENY without rules", deny(vec![]), BOTH),
        ("a rule without clauses", allow(vec![vec![]]), BOTH),
        ("a rule without clauses, DENY", deny(vec![vec![]]), NOBODY),
        ("a clause without matches", allow(vec![vec![vec![]]]), BOTH),
        ("a match without fields", allow(one(empty())), NOBODY),
        ("a match without fields, DENY", deny(one(empty())), BOTH),
        ("a match without fields beside another", allow(vec![vec![vec![empty(), me()]]]), MESH),
        ("a clause of empty matches beside one that matches", allow(vec![vec![vec![empty()], vec![me()]]]), NOBODY),
        ("rules are ORed", allow(vec![vec![vec![stranger()]], vec![vec![me()]]]), MESH),
        ("clauses are ANDed: one fails", allow(vec![vec![vec![me()], vec![port(1)]]]), NOBODY),
        ("clauses are ANDed: all hold", allow(vec![vec![vec![me()], vec![port(8080)]]]), MESH),
        ("matches are ORed", allow(vec![vec![vec![stranger(), me()]]]), MESH),
        ("fields are ANDed", allow(one(Match { destination_ports: vec![1], ..me() })), NOBODY),
        ("values are ORed", allow(one(Match { destination_ports: vec![1, 8080], ..Match::default() })), BOTH),
    ] {
        assert_eq!(case.tried(vec![inert(), policy], 8080).await?, expected, "{what}");
    }
    Ok(())
}

/// 3.5, trap 12: each field and its negation.
#[tokio::test(flavor = "multi_thread")]
async fn fields() -> Result<()> {
    let mut case = Case::start().await?;
    let of = Match::default;
    let (mine, other) = ((net::ipv4(3), 32), (net::ipv4(4), 32));
    let net24 = (net::ipv4(0), 24);
    let (dest, dest_other) = ((net::ipv4(2), 32), (net::ipv4(9), 32));
    let texts = |text: Text| vec![text];
    for (what, found, expected) in [
        ("principal, exact", Match { principals: texts(Text::Exact(ME)), ..of() }, MESH),
        ("principal, prefix", Match { principals: texts(Text::Prefix("cluster.local/ns/app/")), ..of() }, MESH),
        ("principal, suffix", Match { principals: texts(Text::Suffix("/sa/sa-there")), ..of() }, MESH),
        ("principal, presence", Match { principals: texts(Text::Presence), ..of() }, MESH),
        (
            "principal with spiffe://",
            Match { principals: texts(Text::Exact("spiffe://cluster.local/ns/app/sa/sa-there")), ..of() },
            NOBODY,
        ),
        ("principal, another prefix", Match { principals: texts(Text::Prefix("cluster.local/ns/b")), ..of() }, NOBODY),
        (
            "not principal, presence: plaintext callers alone",
            Match { not_principals: texts(Text::Presence), ..of() },
            PLAIN,
        ),
        ("not principal, exact", Match { not_principals: texts(Text::Exact(ME)), ..of() }, PLAIN),
        ("not principal, another", Match { not_principals: texts(Text::Exact("x")), ..of() }, BOTH),
        ("namespace, exact", Match { namespaces: texts(Text::Exact("app")), ..of() }, MESH),
        ("namespace, prefix", Match { namespaces: texts(Text::Prefix("ap")), ..of() }, MESH),
        ("namespace, suffix", Match { namespaces: texts(Text::Suffix("pp")), ..of() }, MESH),
        ("namespace, presence", Match { namespaces: texts(Text::Presence), ..of() }, MESH),
        ("namespace, another", Match { namespaces: texts(Text::Exact("b")), ..of() }, NOBODY),
        (
            "not namespace: no identity is the empty namespace",
            Match { not_namespaces: texts(Text::Exact("app")), ..of() },
            PLAIN,
        ),
        ("not namespace, presence", Match { not_namespaces: texts(Text::Presence), ..of() }, PLAIN),
        ("service account", Match { service_accounts: vec![("app", "sa-there")], ..of() }, MESH),
        ("service account of another namespace", Match { service_accounts: vec![("b", "sa-there")], ..of() }, NOBODY),
        ("another service account", Match { service_accounts: vec![("app", "sa-x")], ..of() }, NOBODY),
        ("not service account", Match { not_service_accounts: vec![("app", "sa-there")], ..of() }, PLAIN),
        ("source ip", Match { source_ips: vec![mine], ..of() }, BOTH),
        ("source ip, range", Match { source_ips: vec![net24], ..of() }, BOTH),
        ("source ip, another", Match { source_ips: vec![other], ..of() }, NOBODY),
        ("source ip, several", Match { source_ips: vec![other, mine], ..of() }, BOTH),
        ("not source ip", Match { not_source_ips: vec![mine], ..of() }, NOBODY),
        ("not source ip, another", Match { not_source_ips: vec![other], ..of() }, BOTH),
        ("destination ip", Match { destination_ips: vec![dest], ..of() }, BOTH),
        ("destination ip, another", Match { destination_ips: vec![dest_other], ..of() }, NOBODY),
        ("not destination ip", Match { not_destination_ips: vec![dest], ..of() }, NOBODY),
        ("not destination ip, another", Match { not_destination_ips: vec![dest_other], ..of() }, BOTH),
        ("port", Match { destination_ports: vec![8080], ..of() }, BOTH),
        ("port, another", Match { destination_ports: vec![9090], ..of() }, NOBODY),
        ("not port", Match { not_destination_ports: vec![8080], ..of() }, NOBODY),
        ("not port, another", Match { not_destination_ports: vec![9090], ..of() }, BOTH),
        (
            "a value and its negation",
            Match { principals: texts(Text::Presence), not_principals: texts(Text::Exact(ME)), ..of() },
            NOBODY,
        ),
    ] {
        let allowed = case.tried(vec![inert(), allow(one(found.clone()))], 8080).await?;
        assert_eq!(allowed, expected, "ALLOW {what}");
        let denied = case.tried(vec![inert(), deny(one(found))], 8080).await?;
        assert_eq!(denied, (!expected.0, !expected.1), "DENY {what}");
    }
    Ok(())
}

/// 10.5 as section 3.5 applies it: STRICT is a DENY of those without principal, on a port if it is one port's.
#[tokio::test(flavor = "multi_thread")]
async fn strict() -> Result<()> {
    let mut case = Case::start().await?;
    let plaintext = || Match { not_principals: vec![Text::Presence], ..Match::default() };
    let named = |rules| Policy { rules, ..inert() };
    assert_eq!(case.tried(vec![named(one(plaintext()))], 8080).await?, MESH, "STRICT");
    let on_9090 = vec![vec![vec![plaintext()], vec![Match { destination_ports: vec![9090], ..Match::default() }]]];
    assert_eq!(case.tried(vec![named(on_9090.clone())], 8080).await?, BOTH, "another port");
    assert_eq!(case.tried(vec![named(on_9090)], 9090).await?, MESH, "the port");
    Ok(())
}

/// 3.4, 3.5: the port is that of the pod, also where a hostname was addressed.
#[tokio::test(flavor = "multi_thread")]
async fn port_is_the_pods() -> Result<()> {
    let stage = Stage::set()?;
    let (mut here, there) = (stage.local(2, "here")?, stage.remote(3, "there")?);
    here.workload.services = vec![("app/web.example".into(), vec![(80, 8080)])];
    let service = crate::peer::wds::Service {
        name: "web".into(),
        namespace: "app".into(),
        hostname: "web.example".into(),
        addresses: vec![net::vip(1)],
        ports: vec![(80, 8080)],
        ..Default::default()
    };
    let deny = deny(one(Match { destination_ports: vec![8080], ..Match::default() }));
    let resources = [here.workload.resource(), there.workload.resource(), service.resource(), deny.resource()];
    let world = World::start(stage, &[&here], &resources).await?;
    let _app = App::start(&here.netns, here.at(8080))?;
    let client = world.dial(&there, &here).await?;
    assert_eq!(client.status("web.example:80").await?, "401");
    Ok(())
}

/// 3.5: after a push of policies open connections are judged again, and those that fail are cut at once.
#[tokio::test(flavor = "multi_thread")]
async fn open_connections_are_judged_again() -> Result<()> {
    let mut case = Case::start().await?;
    let client = case.world.dial(&case.there, &case.here).await?;
    let (mut stream, _) = client.connect("198.18.1.2:8080", &[]).await?;
    stream.read(10).await?;
    let mut plain = case.there.netns.connect(case.here.at(8080)).await?;
    ensure!(greeting(&mut plain).await?.is_some());
    // Plaintext alone is refused from now on.
    let strict = deny(one(Match { not_principals: vec![Text::Presence], ..Match::default() }));
    case.world.policies(&case.known, &[inert(), strict.clone()]).await?;
    let begin = Instant::now();
    let mut rest = Vec::new();
    let _ = within("the plaintext connection's end", plain.read_to_end(&mut rest)).await?;
    ensure!(begin.elapsed() < Duration::from_secs(10), "cut after {:?}", begin.elapsed());
    stream.data(b"goes on", false);
    while stream.read(1).await?.is_empty() {}
    let everybody = deny(vec![vec![]]);
    case.world.policies(&[inert(), strict], &[inert(), everybody]).await?;
    stream.read_to_end().await.ok();
    case.world.ztunnel.lines(&["\taccess\t", "connection closed due to policy change"], 2).await?;
    Ok(())
}

/// 3.5: what both states of the policies allow is not cut.
#[tokio::test(flavor = "multi_thread")]
async fn allowed_connections_stay() -> Result<()> {
    let mut case = Case::start().await?;
    let client = case.world.dial(&case.there, &case.here).await?;
    let (mut stream, _) = client.connect("198.18.1.2:8080", &[]).await?;
    stream.read(1).await?;
    for n in 0..20 {
        let me = Match { principals: vec![Text::Exact(ME)], ..Match::default() };
        let next = vec![inert(), policy(&format!("allow-{n}"), false, one(me))];
        let before = std::mem::replace(&mut case.known, next.clone());
        // Additions before removals, as a control plane has to order them.
        case.world.policies(&[], &next).await?;
        case.world.policies(&before, &next).await?;
    }
    stream.data(b"still here", true);
    let (bytes, reset) = stream.read_to_end().await?;
    ensure!(bytes.ends_with(b"still here") && reset.is_none());
    Ok(())
}

/// Where we mean to be better than 3.5 and trap 9: a named policy that stays unknown denies.
#[tokio::test(flavor = "multi_thread")]
async fn missing_policy_denies() -> Result<()> {
    let mut case = Case::with_grace(Some("6s")).await?;
    case.world.remove(AUTHORIZATION, &["app/named".into()]).await?;
    let client = case.world.dial(&case.there, &case.here).await?;
    assert_eq!(client.status("198.18.1.2:8080").await?, "401");
    // One that comes when the wait is over is refused at once, and told why.
    let begin = Instant::now();
    assert_eq!(client.status("198.18.1.2:8080").await?, "401");
    ensure!(begin.elapsed() < Duration::from_secs(5), "after {:?}", begin.elapsed());
    case.world.ztunnel.lines(&["\taccess\t", "reason=\"policy_unknown\""], 1).await?;
    case.world.push(&[inert().resource()]).await?;
    assert_eq!(client.status("198.18.1.2:8080").await?, "200");
    Ok(())
}

/// The same: the one that waited is told that too, not that a policy changed.
#[tokio::test(flavor = "multi_thread")]
async fn missing_policy_is_the_reason() -> Result<()> {
    let mut case = Case::start().await?;
    case.world.remove(AUTHORIZATION, &["app/named".into()]).await?;
    let client = case.world.dial(&case.there, &case.here).await?;
    assert_eq!(client.status("198.18.1.2:8080").await?, "401");
    case.world.ztunnel.lines(&["\taccess\t", "reason=\"policy_unknown\""], 1).await?;
    Ok(())
}

/// Trap 9: the real control plane sends Address before Authorization: a policy that comes half a second after the
/// workload that names it cuts nothing and refuses nobody whom it allows.
#[tokio::test(flavor = "multi_thread")]
async fn policy_that_comes_late() -> Result<()> {
    // Long: it is the waiting that is tried here, not how fast this machine is.
    let mut case = Case::with_grace(Some("30s")).await?;
    let client = case.world.dial(&case.there, &case.here).await?;
    let (mut open, _) = client.connect("198.18.1.2:8080", &[]).await?;
    open.read(1).await?;
    let mut workload = case.here.workload.clone();
    workload.policies.push("app/late".into());
    case.world.ads.accepted(ADDRESS, &[workload.resource()], &[]).await?;
    let late = Policy {
        name: "late".into(),
        rules: one(Match { principals: vec![Text::Exact(ME)], ..Match::default() }),
        deny: false,
        ..inert()
    };
    let calls = async {
        let mut statuses = Vec::new();
        for _ in 0..20 {
            statuses.push(client.status("198.18.1.2:8080").await?);
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        Ok::<_, anyhow::Error>(statuses)
    };
    let push = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        case.world.ads.accepted(AUTHORIZATION, &[late.resource()], &[]).await
    };
    let (statuses, pushed) = tokio::join!(calls, push);
    pushed?;
    ensure!(statuses?.iter().all(|status| status == "200"));
    open.data(b"open", true);
    let (bytes, reset) = open.read_to_end().await?;
    ensure!(bytes.ends_with(b"open") && reset.is_none(), "the open connection was cut");
    // The policy is in force: plaintext has no principal.
    ensure!(greeted(&case.there.netns, case.here.at(8080)).await?.is_none());
    Ok(())
}

/// 3.5, where we mean to be safer: a StringMatch without a variant or a CIDR of a wrong length could widen a policy
/// when it is dropped; such a policy is refused by its name, and the others apply.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_policies_are_refused_by_name() -> Result<()> {
    let mut case = Case::start().await?;
    let texts = Match { principals: vec![Text::Nothing, Text::Exact(ME)], ..Match::default() };
    let range = Match { source_ips: vec![(net::ipv4(3), 33)], ..Match::default() };
    for found in [texts, range] {
        let good = deny(one(Match { principals: vec![Text::Exact(ME)], ..Match::default() }));
        let resources = [allow(one(found)).resource(), good.resource()];
        let nack = case.world.ads.push(AUTHORIZATION, &resources, &[]).await?;
        let Err((0, message)) = nack else { anyhow::bail!("{nack:?}") };
        ensure!(message.contains("app/allow") && !message.contains("app/deny"), "{message}");
        let client = case.world.dial(&case.there, &case.here).await?;
        assert_eq!(client.status("198.18.1.2:8080").await?, "401", "the good one applies");
    }
    Ok(())
}

/// Trap 13: behind a waypoint the policy sees the waypoint: its identity and its address.
#[tokio::test(flavor = "multi_thread")]
async fn identity_is_the_tunnels() -> Result<()> {
    let mut case = Case::start().await?;
    let me = Match { principals: vec![Text::Exact(ME)], ..Match::default() };
    case.world.policies(&case.known, &[inert(), allow(one(me))]).await?;
    let own = case.world.stage.ca.workload("spiffe://cluster.local/ns/app/sa/waypoint")?;
    let client = Client::dial(&case.there.netns, case.here.at(15008), Some(own)).await?;
    let forwarded = [("forwarded", "for=\"198.18.1.3:1\""), ("baggage", "k8s.namespace.name=app,k8s.pod.name=there")];
    let (_stream, headers) = client.connect("198.18.1.2:8080", &forwarded).await?;
    assert_eq!(crate::peer::hpack::value(&headers, ":status"), Some("401"));
    Ok(())
}

/// 3.6: over plaintext the same echo, the same source, and no 401 to read: the connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn plaintext_path() -> Result<()> {
    let case = Case::start().await?;
    for to in [case.here.at(8080)] {
        let mut plain = case.there.netns.connect(to).await?;
        assert_eq!(greeting(&mut plain).await?.as_deref(), Some("hello 198.18.1.3"));
        plain.write_all(b"abc").await?;
        plain.shutdown().await?;
        let mut rest = Vec::new();
        within("the echo", plain.read_to_end(&mut rest)).await??;
        assert_eq!(rest, b"abc");
    }
    // 15006 itself is no destination, neither are 15001 and 15008's siblings.
    for port in [15001, 15006] {
        assert_eq!(greeted(&case.there.netns, case.here.at(port)).await?, None, "port {port}");
    }
    Ok(())
}
