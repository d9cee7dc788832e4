//! Section 6: certificates asked for and kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};

use crate::peer::hpack;
use crate::peer::istiod::CaMode;
use crate::peer::pki::{self, Ca};
use crate::peer::tunnel::Client;
use crate::peer::until;
use crate::peer::world::{App, Pod, Stage, TOKEN, World};

/// A stage with a local and a remote pod.
fn pods(stage: &Stage) -> Result<(Pod, Pod)> {
    Ok((stage.local(2, "here")?, stage.remote(3, "there")?))
}

async fn world(stage: Stage, here: &Pod, there: &Pod) -> Result<World> {
    World::start(stage, &[here], &[here.workload.resource(), there.workload.resource()]).await
}

/// 6.1: what is asked: CSR, validity, the impersonated identity and nothing else; the same headers as xDS and the CA's own.
#[tokio::test(flavor = "multi_thread")]
async fn request_form() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("CA_HEADER_x-other", "of the ca");
    let (here, there) = pods(&stage)?;
    let world = world(stage, &here, &there).await?;
    let request = world.stage.istiod.asked(&here.identity(), 1).await?;
    assert_eq!(request.fields.numbers(), [1, 3, 4]);
    assert_eq!(request.seconds, 86_400);
    assert_eq!(request.metadata, serde_json::json!({"ImpersonatedIdentity": here.identity()}));
    let value = |name| hpack::value(&request.headers, name);
    assert_eq!(value("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(value("clusterid"), Some("Kubernetes"));
    assert_eq!(value("x-other"), Some("of the ca"));
    Ok(())
}

/// 6.1: the CSR: P-256 with SHA-256, one URI name, empty subject.
#[tokio::test(flavor = "multi_thread")]
async fn csr_form() -> Result<()> {
    let stage = Stage::set()?;
    let (here, there) = pods(&stage)?;
    let world = world(stage, &here, &there).await?;
    let request = world.stage.istiod.asked(&here.identity(), 1).await?;
    ensure!(request.csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{}", request.csr);
    let pem = x509_parser::pem::parse_x509_pem(request.csr.as_bytes())?.1;
    let (_, csr) = X509CertificationRequest::from_der(&pem.contents)?;
    let info = &csr.certification_request_info;
    assert_eq!(info.subject.iter().count(), 0, "an empty subject");
    assert_eq!(csr.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2", "ecdsa-with-SHA256");
    let curve = info.subject_pki.algorithm.parameters.as_ref().context("a curve")?.as_oid()?;
    assert_eq!(curve.to_id_string(), "1.2.840.10045.3.1.7", "P-256");
    let mut names = Vec::new();
    for extension in csr.requested_extensions().context("extensions")? {
        if let ParsedExtension::SubjectAlternativeName(found) = extension {
            names.extend(found.general_names.iter().cloned());
        }
    }
    let identity = here.identity();
    assert_eq!(names, [GeneralName::URI(&identity)]);
    Ok(())
}

/// 6.2, 9: SECRET_TTL is what is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn secret_ttl() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("SECRET_TTL", "90m");
    let (here, there) = pods(&stage)?;
    let world = world(stage, &here, &there).await?;
    assert_eq!(world.stage.istiod.asked(&here.identity(), 1).await?.seconds, 5400);
    Ok(())
}

/// 6.2: certificates are fetched ahead for HBONE workloads of this node, and for no others.
#[tokio::test(flavor = "multi_thread")]
async fn prefetch() -> Result<()> {
    let stage = Stage::set()?;
    let (here, there) = pods(&stage)?;
    let mut plain = here.clone();
    plain.workload.name = "plain".into();
    plain.workload.service_account = "sa-plain".into();
    plain.workload.addresses.clear();
    plain.workload.tunnel_protocol = 0;
    let resources = [here.workload.resource(), there.workload.resource(), plain.workload.resource()];
    // Nobody is enrolled: knowing of the workload suffices.
    let mut world = World::start(stage, &[], &resources).await?;
    world.stage.istiod.asked(&here.identity(), 1).await?;
    // One that is heard of later is asked for later than anything that was known before.
    let mut later = here.clone();
    later.workload.name = "later".into();
    later.workload.service_account = "sa-later".into();
    later.workload.addresses.clear();
    world.push(&[later.workload.resource()]).await?;
    world.stage.istiod.asked(&later.identity(), 1).await?;
    let asked: Vec<String> = world.stage.istiod.ca_requests().iter().map(|r| r.identity().to_owned()).collect();
    assert_eq!(asked, [here.identity(), later.identity()]);
    Ok(())
}

/// 9: an address of the CA without scheme is taken as https.
#[tokio::test(flavor = "multi_thread")]
async fn address_without_scheme() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("CA_ADDRESS", "localhost:15012");
    let (here, there) = pods(&stage)?;
    let world = world(stage, &here, &there).await?;
    world.stage.istiod.asked(&here.identity(), 1).await?;
    Ok(())
}

/// Whether a handshake with the local pod succeeds.
async fn serves(world: &World, from: &Pod, to: &Pod) -> bool {
    match world.dial(from, to).await {
        Ok(client) => client.connect(&to.at(8080).to_string(), &[]).await.is_ok(),
        Err(_) => false,
    }
}

/// 6.1, trap 6: such an answer is worth nothing; when the CA mends itself the pod is served.
async fn bad_answer(mode: CaMode) -> Result<()> {
    let stage = Stage::set()?;
    let (here, there) = pods(&stage)?;
    stage.istiod.ca_mode(mode);
    let world = world(stage, &here, &there).await?;
    let _app = App::start(&here.netns, here.at(8080))?;
    world.stage.istiod.asked(&here.identity(), 1).await?;
    ensure!(!serves(&world, &there, &here).await, "served with a bad answer");
    world.stage.istiod.ca_mode(CaMode::Issue { seconds: 86_400 });
    until("the pod served", async || Ok(serves(&world, &there, &here).await)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_without_roots() -> Result<()> {
    bad_answer(CaMode::LeafOnly).await
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_for_another_identity() -> Result<()> {
    bad_answer(CaMode::OtherIdentity("spiffe://cluster.local/ns/app/sa/other")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_is_tried_again() -> Result<()> {
    bad_answer(CaMode::Refuse(16, "unauthenticated")).await
}

/// 6.1: the last element may hold many roots; all of them are trusted.
#[tokio::test(flavor = "multi_thread")]
async fn answer_with_two_roots() -> Result<()> {
    let stage = Stage::set()?;
    stage.istiod.ca_mode(CaMode::TwoRoots);
    let (here, there) = pods(&stage)?;
    let world = world(stage, &here, &there).await?;
    let _app = App::start(&here.netns, here.at(8080))?;
    world.stage.istiod.asked(&here.identity(), 1).await?;
    until("the pod served", async || Ok(serves(&world, &there, &here).await)).await
}

/// 6.2: renewed half way through the window of validity, and the new certificate is shown.
#[tokio::test(flavor = "multi_thread")]
async fn renewal_at_half_time() -> Result<()> {
    let stage = Stage::set()?;
    // Two seconds back and eighteen ahead: half way is eight seconds after the issue.
    stage.istiod.ca_mode(CaMode::Issue { seconds: 18 });
    let (here, there) = pods(&stage)?;
    let begin = Instant::now();
    let world = world(stage, &here, &there).await?;
    world.stage.istiod.asked(&here.identity(), 1).await?;
    let before = world.dial(&there, &here).await?.peer;
    world.stage.istiod.ca_mode(CaMode::Issue { seconds: 86_400 });
    world.stage.istiod.asked(&here.identity(), 2).await?;
    let took = begin.elapsed();
    ensure!((Duration::from_secs(6)..Duration::from_secs(40)).contains(&took), "renewed after {took:?}");
    until("the new certificate", async || Ok(world.dial(&there, &here).await?.peer != before)).await
}

/// 6.2, trap 37: a failed renewal leaves the valid certificate in use.
#[tokio::test(flavor = "multi_thread")]
async fn failure_keeps_a_valid_certificate() -> Result<()> {
    let stage = Stage::set()?;
    // Two seconds back and thirty ahead: half way is fourteen seconds after the issue, the end sixteen later.
    stage.istiod.ca_mode(CaMode::Issue { seconds: 30 });
    let (here, there) = pods(&stage)?;
    let world = world(stage, &here, &there).await?;
    let _app = App::start(&here.netns, here.at(8080))?;
    world.stage.istiod.asked(&here.identity(), 1).await?;
    world.stage.istiod.ca_mode(CaMode::Refuse(14, "away"));
    world.stage.istiod.asked(&here.identity(), 2).await?;
    ensure!(serves(&world, &there, &here).await, "not served after a failed renewal");
    world.ready().await
}

/// 6.2, trap 37: without a certificate callers get the cached error at once, and the CA is asked at its backoff's pace.
#[tokio::test(flavor = "multi_thread")]
async fn errors_are_cached() -> Result<()> {
    let stage = Stage::set()?;
    stage.istiod.ca_mode(CaMode::Refuse(16, "no"));
    let (here, there) = pods(&stage)?;
    let begin = Instant::now();
    let world = world(stage, &here, &there).await?;
    world.stage.istiod.asked(&here.identity(), 1).await?;
    for _ in 0..20 {
        ensure!(!serves(&world, &there, &here).await);
    }
    let asked = world.stage.istiod.ca_requests().len();
    let took = begin.elapsed();
    // About 1 s, then about 2 s, then about 4 s between attempts, less a fifth.
    let allowed = 2 + [0.8, 2.4, 5.6, 12.0, 24.0].iter().filter(|at| took.as_secs_f64() + 1.0 > **at).count();
    ensure!(asked <= allowed, "asked {asked} times in {took:?}");
    Ok(())
}

/// 6.2: certificates for many identities are fetched side by side, but never more than eight at once.
#[tokio::test(flavor = "multi_thread")]
async fn at_most_eight_at_once() -> Result<()> {
    let stage = Stage::set()?;
    stage.istiod.ca_mode(CaMode::Held);
    let (here, _) = pods(&stage)?;
    let resources: Vec<_> = (0..20)
        .map(|n| {
            let mut workload = here.workload.clone();
            workload.name = format!("w{n}");
            workload.service_account = format!("sa{n}");
            workload.addresses.clear();
            workload.resource()
        })
        .collect();
    let world = World::start(stage, &[], &resources).await?;
    let istiod = &world.stage.istiod;
    until("eight requests", async || Ok(istiod.ca_requests().len() >= 8)).await?;
    // Whoever is beyond them has to wait until one is answered.
    for asked in 9..=20 {
        istiod.release();
        until("one more", async || Ok(istiod.ca_requests().len() >= asked)).await?;
    }
    assert_eq!(istiod.most_held(), 8);
    Ok(())
}

/// 3.1, 6.1: a peer of another root is refused until the CA's answer names that root.
#[tokio::test(flavor = "multi_thread")]
async fn roots_come_from_the_answer() -> Result<()> {
    let stage = Stage::set()?;
    let other = Arc::new(Ca::new()?);
    stage.istiod.sign_with(Arc::clone(&other));
    let (here, there) = pods(&stage)?;
    let world = world(stage, &here, &there).await?;
    let _app = App::start(&here.netns, here.at(8080))?;
    world.stage.istiod.asked(&here.identity(), 1).await?;
    // The root file verifies the control plane only.
    ensure!(!serves(&world, &there, &here).await, "a certificate of the root file's authority was trusted");
    let own = other.workload(&there.identity())?;
    let client = Client::dial(&there.netns, here.at(15008), Some(own)).await?;
    assert_eq!(client.status(&here.at(8080).to_string()).await?, "200");
    assert_eq!(pki::uris(&client.peer[0])?, [here.identity()]);
    Ok(())
}
