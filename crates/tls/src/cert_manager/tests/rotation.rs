//! The root is replaced: at no moment does a handshake between two nodes fail.

use super::*;

/// A CA whose signing key and published roots change.
#[derive(Clone)]
struct RotatingCa(Arc<Rotation>);

struct Rotation {
    old: TestCa,
    new: TestCa,
    step: parking_lot::Mutex<Phase>,
}

/// The order that every rotation keeps: trust first, then sign, then distrust.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Old,
    BothTrusted,
    NewSigns,
    New,
}

impl CaClient for RotatingCa {
    async fn fetch(&self, identity: &Identity) -> Result<CertBundle, CaError> {
        let Rotation { old, new, step } = &*self.0;
        let day = 24 * 3600;
        let phase = *step.lock();
        Ok(match phase {
            Phase::Old => old.bundle_trusting(identity, day, &[old]),
            Phase::BothTrusted => old.bundle_trusting(identity, day, &[old, new]),
            Phase::NewSigns => new.bundle_trusting(identity, day, &[old, new]),
            Phase::New => new.bundle_trusting(identity, day, &[new]),
        })
    }
}

fn node(ca: &RotatingCa, identity: &Identity) -> (CertManager, Cancel) {
    let (manager, cancel) = (CertManager::new(), Cancel::new());
    manager.want(identity);
    let (m, c, end) = (manager.clone(), ca.clone(), cancel.clone());
    Tracker::new().spawn("cert-manager", async move { m.run(c, end).await });
    (manager, cancel)
}

async fn handshake(client: &IdentityConfigs, server: &IdentityConfigs) -> Result<(), std::io::Error> {
    let (near, far) = shake(client.client_config(&[server.identity().clone()]), server.server.clone()).await;
    near.and(far.map(drop))
}

#[tokio::test(start_paused = true)]
async fn a_root_is_rotated_without_a_failed_handshake() {
    // The same name, as istiod's roots have: they are told apart by their keys alone.
    let rotation = Rotation { old: TestCa::new(), new: TestCa::new(), step: Phase::Old.into() };
    let ca = RotatingCa(Arc::new(rotation));
    let (client, _end) = node(&ca, &client_id());
    // The other node renews hours later, so for a while each is a step ahead.
    tokio::time::sleep(5 * HOUR).await;
    let (server, _end) = node(&ca, &server_id());
    let mut handshakes = 0;
    let mut before = client.get(&client_id(), late()).await.unwrap();
    for phase in [Phase::Old, Phase::BothTrusted, Phase::NewSigns, Phase::New] {
        *ca.0.step.lock() = phase;
        let roots = if matches!(phase, Phase::Old | Phase::New) { 1 } else { 2 };
        for hour in 0..14 {
            let (c, s) =
                (client.get(&client_id(), late()).await.unwrap(), server.get(&server_id(), late()).await.unwrap());
            for (a, b) in [(&c, &s), (&s, &c)] {
                let outcome = handshake(a, b).await;
                assert!(outcome.is_ok(), "{phase:?}, hour {hour}: {outcome:?}");
                handshakes += 1;
            }
            tokio::time::sleep(HOUR).await;
        }
        let (c, s) = (client.get(&client_id(), late()).await.unwrap(), server.get(&server_id(), late()).await.unwrap());
        assert_eq!((c.roots().len(), s.roots().len()), (roots, roots), "{phase:?} has arrived everywhere");
        assert!(phase == Phase::Old || c.generation > before.generation);
        if phase == Phase::Old {
            before = c;
        }
    }
    assert_eq!(handshakes, 4 * 14 * 2);
    // The rotation is over: who kept the old certificate is a stranger.
    let now = server.get(&server_id(), late()).await.unwrap();
    assert!(handshake(&before, &now).await.is_err() && handshake(&now, &before).await.is_err());
}

#[tokio::test]
async fn leaves_of_either_root_are_taken_while_both_are_trusted() {
    let (a, b) = (TestCa::named("a"), TestCa::named("b"));
    let options = TlsOptions::default();
    let make = |signer: &TestCa, identity: &Identity, roots: &[&TestCa]| {
        let bundle = signer.bundle_trusting(identity, 3600, roots);
        IdentityConfigs::new(identity.clone(), bundle, 1, &options).unwrap()
    };
    for (client_signer, server_signer) in [(&a, &a), (&a, &b), (&b, &a), (&b, &b)] {
        let client = make(client_signer, &client_id(), &[&a, &b]);
        let server = make(server_signer, &server_id(), &[&b, &a]);
        handshake(&client, &server).await.unwrap();
    }
    // One that trusts a alone takes neither from b.
    let (old, new) = (make(&a, &server_id(), &[&a]), make(&b, &client_id(), &[&a, &b]));
    assert!(handshake(&new, &old).await.is_err());
}
