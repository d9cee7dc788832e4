use std::net::Ipv4Addr;

use aquifer_core::identity::Identity;
use aquifer_core::state::Update;
use aquifer_proto::security::Action;
use futures_util::FutureExt;

use super::*;
use crate::testing::{namespace_policy, pod, policy, workload};

fn view() -> View {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    View { src: addr, original_dst: None, actual_dst: addr, protocol: "HBONE" }
}

fn judged(destination: &Arc<Workload>, from: &str) -> Connection {
    Connection {
        destination: destination.clone(),
        identity: Some(Identity::new("cluster.local", from, "sa")),
        source_ip: Ipv4Addr::new(10, 0, 0, 9).into(),
        destination_addr: SocketAddr::from(([10, 0, 0, 1], 80)),
    }
}

fn state(updates: impl IntoIterator<Item = Update>) -> MeshState {
    let mut state = MeshState::default();
    updates.into_iter().for_each(|u| state.apply(u));
    state
}

#[test]
fn a_new_policy_cuts_those_whom_it_denies_and_nobody_else() {
    let web = workload(pod("shop", "web", [10, 0, 0, 1]));
    let table = ConnTable::default();
    let uid = PodUid::new("1");
    let good = table.open_inbound(&uid, view(), judged(&web, "good"));
    let bad = table.open_inbound(&uid, view(), judged(&web, "bad"));
    let outbound = table.open_outbound(&uid, view());
    let before = state([Update::Workload(web.clone())]);
    assert!(good.authorize(&before, false).is_ok() && bad.authorize(&before, false).is_ok());
    assert_eq!(table.reauthorize(&before, true), 0);

    let deny = policy(&namespace_policy("shop", "no-bad", Action::Deny, &["bad"]));
    let after = state([Update::Workload(web), Update::Policy(deny)]);
    assert_eq!(table.reauthorize(&after, false), 0, "no policy changed, it was said");
    assert_eq!(table.reauthorize(&after, true), 1);
    assert_eq!(table.reauthorize(&after, true), 0, "a connection is cut once");
    let failure = bad.cut().now_or_never().expect("cut");
    assert_eq!(failure.reason, Reason::PolicyChanged);
    assert_eq!(failure.message, "connection closed due to policy change");
    assert_eq!(failure.policy.as_deref(), Some("shop/no-bad"));
    assert!(good.cut().now_or_never().is_none() && outbound.cut().now_or_never().is_none());
}

#[test]
fn a_connection_that_is_registered_but_not_judged_yet_is_cut_too() {
    let web = workload(pod("shop", "web", [10, 0, 0, 1]));
    let table = ConnTable::default();
    let allow = policy(&namespace_policy("shop", "only-good", Action::Allow, &["good"]));
    let after = state([Update::Workload(web.clone()), Update::Policy(allow)]);
    let guard = table.open_inbound(&PodUid::new("1"), view(), judged(&web, "bad"));
    assert_eq!(table.reauthorize(&after, true), 0, "it was not in yet");
    let failure = guard.cut().now_or_never().unwrap();
    assert_eq!((failure.reason, failure.policy.as_deref()), (Reason::PolicyNotAllowed, Some("shop/only-good")));
}

#[test]
fn a_changed_workload_is_judged_without_a_changed_policy() {
    let selector = |named: bool| {
        let mut web = pod("shop", "web", [10, 0, 0, 1]);
        if named {
            web.authorization_policies = vec!["shop/selected".into()];
        }
        workload(web)
    };
    let mut selected = namespace_policy("shop", "selected", Action::Deny, &["bad"]);
    selected.scope = aquifer_proto::security::Scope::WorkloadSelector as i32;
    let selected = policy(&selected);
    let table = ConnTable::default();
    let guard = table.open_inbound(&PodUid::new("1"), view(), judged(&selector(false), "bad"));
    let before = state([Update::Workload(selector(false)), Update::Policy(selected.clone())]);
    assert!(guard.authorize(&before, false).is_ok());
    assert_eq!(table.reauthorize(&before, false), 0);
    // Health alone is no reason to judge again.
    let mut ill = pod("shop", "web", [10, 0, 0, 1]);
    ill.status = aquifer_proto::workload::WorkloadStatus::Unhealthy as i32;
    assert_eq!(table.reauthorize(&state([Update::Workload(workload(ill))]), false), 0);

    let after = state([Update::Workload(selector(true)), Update::Policy(selected)]);
    assert_eq!(table.reauthorize(&after, false), 1);
    assert_eq!(guard.cut().now_or_never().unwrap().reason, Reason::PolicyChanged);
}

#[test]
fn a_missing_policy_denies_with_its_own_reason() {
    let mut web = pod("shop", "web", [10, 0, 0, 1]);
    web.authorization_policies = vec!["shop/yet-to-come".into()];
    let web = workload(web);
    let table = ConnTable::default();
    let guard = table.open_inbound(&PodUid::new("1"), view(), judged(&web, "good"));
    let Refusal { failure, pending } = guard.authorize(&state([Update::Workload(web.clone())]), false).unwrap_err();
    assert!(!pending, "nobody said that it may come");
    assert_eq!((failure.reason, failure.policy.as_deref()), (Reason::PolicyUnknown, Some("shop/yet-to-come")));
}

#[test]
fn a_workload_that_is_gone_keeps_its_connections() {
    let web = workload(pod("shop", "web", [10, 0, 0, 1]));
    let table = ConnTable::default();
    let _guard = table.open_inbound(&PodUid::new("1"), view(), judged(&web, "good"));
    assert_eq!(table.reauthorize(&MeshState::default(), true), 0);
}

#[test]
fn the_dump_lists_by_pod_and_direction_and_guards_leave() {
    let web = workload(pod("shop", "web", [10, 0, 0, 1]));
    let table = ConnTable::default();
    let (one, two) = (PodUid::new("1"), PodUid::new("2"));
    let inbound = table.open_inbound(&one, view(), judged(&web, "good"));
    let outbound = table.open_outbound(&one, view());
    let other = table.open_outbound(&two, view());
    let counts = |table: &ConnTable| -> Vec<(String, usize, usize)> {
        table.dump().into_iter().map(|(uid, c)| (uid.to_string(), c.inbound.len(), c.outbound.len())).collect()
    };
    assert_eq!(counts(&table), [("1".into(), 1, 1), ("2".into(), 0, 1)]);
    drop((inbound, other));
    assert_eq!(counts(&table), [("1".into(), 0, 1)]);
    drop(outbound);
    assert!(table.is_empty());
}

/// An authority with a list of its own.
struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    roots: Arc<rustls::RootCertStore>,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(issuer.as_ref().der().clone()).unwrap();
        Self { issuer, roots: Arc::new(roots) }
    }

    fn issue(&self, serial: u64) -> Arc<PeerCertificate> {
        let mut params = rcgen::CertificateParams::default();
        params.serial_number = Some(serial.into());
        let leaf = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &self.issuer).unwrap();
        Arc::new(PeerCertificate::new(vec![leaf.der().clone()], self.roots.clone()))
    }

    fn revoke(&self, revocations: &Revocations, serials: &[u64]) {
        let now = time::OffsetDateTime::now_utc();
        let params = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: now + time::Duration::DAY,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| rcgen::RevokedCertParams {
                    serial_number: (*serial).into(),
                    revocation_time: now,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).unwrap();
        let lists = aquifer_tls::crl::parse(list.der()).unwrap();
        revocations.publish(lists.into_iter().map(|(list, _)| list).collect());
    }
}

#[test]
fn a_list_cuts_connections_of_both_directions_and_tunnels_by_their_peers() {
    let (ca, revocations, table) = (Authority::new(), Revocations::new(), ConnTable::default());
    let web = workload(pod("shop", "web", [10, 0, 0, 1]));
    let uid = PodUid::new("1");
    let (bad, good, server) = (ca.issue(1), ca.issue(2), ca.issue(3));
    let ends = [Cancel::new(), Cancel::new()];
    let _tunnels = [table.open_tunnel(bad.clone(), ends[0].clone()), table.open_tunnel(good.clone(), ends[1].clone())];
    let open = |certificate: &Arc<PeerCertificate>| {
        let guard = table.open_inbound(&uid, view(), judged(&web, "good"));
        guard.bind(certificate.clone(), &revocations).unwrap();
        guard
    };
    let (first, second, other) = (open(&bad), open(&bad), open(&good));
    let outbound = table.open_outbound(&uid, view());
    outbound.bind(server.clone(), &revocations).unwrap();
    let plain = table.open_inbound(&uid, view(), judged(&web, "good"));

    ca.revoke(&revocations, &[77]);
    assert_eq!(table.cut_revoked(&revocations), 0, "somebody else");
    ca.revoke(&revocations, &[1, 77]);
    assert_eq!(table.cut_revoked(&revocations), 2);
    for guard in [&first, &second] {
        assert_eq!(guard.cut().now_or_never().expect("cut").reason.response_flag(), "CERT_REVOKED");
    }
    assert!(ends[0].is_forced() && !ends[1].is_forced());
    assert!([&other, &outbound, &plain].iter().all(|guard| guard.cut().now_or_never().is_none()));
    ca.revoke(&revocations, &[1, 3]);
    assert_eq!(table.cut_revoked(&revocations), 1, "those that are cut already don't count again");
    assert_eq!(outbound.cut().now_or_never().unwrap().reason, Reason::CertificateRevoked);
    // A stream that comes on a tunnel that is just about to go.
    let late = table.open_inbound(&uid, view(), judged(&web, "good"));
    assert_eq!(late.bind(bad, &revocations).unwrap_err().reason, Reason::CertificateRevoked);
}

#[test]
fn a_pods_end_cuts_its_connections_and_the_end_of_all_the_rest() {
    let web = workload(pod("shop", "web", [10, 0, 0, 1]));
    let table = ConnTable::default();
    let (one, other) = (PodUid::new("1"), PodUid::new("2"));
    let ends = [table.open_inbound(&one, view(), judged(&web, "a")), table.open_outbound(&one, view())];
    let stays = table.open_outbound(&other, view());
    table.cut_all(Some(&one), &Failure::new(Reason::PodRemoved, "gone"));
    for end in &ends {
        assert_eq!(end.cut().now_or_never().unwrap().reason, Reason::PodRemoved);
    }
    assert!(stays.cut().now_or_never().is_none());
    table.cut_all(None, &Failure::new(Reason::Shutdown, "over"));
    assert_eq!(stays.cut().now_or_never().unwrap().reason, Reason::Shutdown);
    assert_eq!(ends[0].cut().now_or_never().unwrap().reason, Reason::PodRemoved, "the first reason is the reason");
}
