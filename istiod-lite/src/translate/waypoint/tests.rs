use std::sync::Arc;

use aquifer_proto::workload::gateway_address::Destination;
use aquifer_proto::workload::{GatewayAddress, NamespacedHostname};

use super::{Allowed, Asker, Binding, Key, Traffic, Waypoint, Wish, bind, never_bound};
use crate::translate::labels::{LabelSet, Labels, Selector};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn waypoint((namespace, name): &Key) -> Option<Arc<Waypoint>> {
    let (traffic, allowed) = match &**name {
        "wp" => ("service", Allowed::Same),
        "open" => ("service", Allowed::All),
        "some" => ("service", Allowed::Selected(Selector::of_labels(labels(&[("team", "shop")])))),
        "all" => ("all", Allowed::Same),
        "wl" => ("workload", Allowed::Same),
        "nobody" => ("none", Allowed::Same),
        _ => return None,
    };
    let hostname = NamespacedHostname { namespace: (**namespace).to_owned(), hostname: (**name).to_owned() };
    Some(Arc::new(Waypoint {
        key: (namespace.clone(), name.clone()),
        address: GatewayAddress { destination: Some(Destination::Hostname(hostname)), hbone_mtls_port: 15008 },
        traffic: traffic.to_owned(),
        allowed,
        tunnel: None,
        accounts: Default::default(),
    }))
}

const USE: &str = "istio.io/use-waypoint";
const OF: &str = "istio.io/use-waypoint-namespace";
const CANARY: &str = "istio.io/use-waypoint-canary";
const WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
const INGRESS: &str = "istio.io/ingress-use-waypoint";

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// The binding of an object of namespace `shop`. Labels and annotations are one list; their keys differ.
fn bound(traffic: Traffic, object: Pairs<'_>, namespace: Pairs<'_>, private: bool) -> Binding {
    let own: Arc<str> = "shop".into();
    let wish = |pairs| Wish::of(&LabelSet::from(&labels(pairs)), Some(&labels(pairs)), &own);
    let asker = Asker {
        traffic,
        namespace: "shop",
        namespace_labels: &LabelSet::from(&labels(namespace)),
        inherited: &wish(namespace),
        wish: &wish(object),
        private,
    };
    bind(asker, &waypoint)
}

/// The waypoint's name, or why there is none.
fn outcome(binding: &Binding) -> String {
    match (&binding.waypoint, &binding.refused) {
        (Some(waypoint), _) => format!("{}/{}", waypoint.key.0, waypoint.key.1),
        (None, Some(refusal)) => refusal.reason.to_owned(),
        (None, None) => "-".to_owned(),
    }
}

#[test]
fn who_is_bound_to_what() {
    // Object, namespace, what a service gets, what a workload gets.
    let cases: &[(Pairs<'_>, Pairs<'_>, &str, &str)] = &[
        (&[], &[], "-", "-"),
        (&[(USE, "wp")], &[], "shop/wp", "UnsupportedTrafficType"),
        (&[], &[(USE, "wp")], "shop/wp", "-"),
        (&[(USE, "none")], &[(USE, "wp")], "-", "-"),
        (&[(USE, "all")], &[(USE, "wp")], "shop/all", "shop/all"),
        (&[(USE, "wl")], &[], "UnsupportedTrafficType", "shop/wl"),
        (&[], &[(USE, "wl")], "UnsupportedTrafficType", "shop/wl"),
        (&[(USE, "nobody")], &[], "UnsupportedTrafficType", "UnsupportedTrafficType"),
        (&[(USE, "absent")], &[], "WaypointIsNotReady", "WaypointIsNotReady"),
        // Its own word counts, though the namespace's could be had.
        (&[(USE, "absent")], &[(USE, "wp")], "WaypointIsNotReady", "WaypointIsNotReady"),
        (&[(USE, "wp"), (OF, "infra")], &[], "AttachmentDenied", "AttachmentDenied"),
        (&[(USE, "open"), (OF, "infra")], &[], "infra/open", "UnsupportedTrafficType"),
        (&[], &[(USE, "open"), (OF, "infra")], "infra/open", "-"),
        (&[(USE, "some"), (OF, "infra")], &[], "AttachmentDenied", "AttachmentDenied"),
        (&[(USE, "some"), (OF, "infra")], &[("team", "shop")], "infra/some", "UnsupportedTrafficType"),
        (&[(OF, "infra")], &[(USE, "wp")], "shop/wp", "-"),
    ];
    for (object, namespace, service, workload) in cases {
        let found = [Traffic::Service, Traffic::Workload].map(|of| outcome(&bound(of, object, namespace, false)));
        assert_eq!(found, [*service, *workload], "{object:?} in {namespace:?}");
    }
    let private = bound(Traffic::Service, &[(USE, "open"), (OF, "infra")], &[], true);
    assert_eq!(outcome(&private), "CrossNamespaceWaypointForbidden");
}

#[test]
fn canaries() {
    let primary = ("shop/wp", 100);
    // Object, namespace, the shares, why there are none.
    type Case<'a> = (Pairs<'a>, Pairs<'a>, Option<(&'a str, u32)>, Option<&'a str>);
    let cases: &[Case<'_>] = &[
        (&[(USE, "wp"), (CANARY, "all"), (WEIGHT, "25")], &[], Some(("shop/all", 25)), None),
        (&[(USE, "wp"), (CANARY, "all"), (WEIGHT, "0")], &[], Some(("shop/all", 0)), None),
        (&[(USE, "wp"), (CANARY, "all"), (WEIGHT, "100")], &[], Some(("shop/all", 100)), None),
        (&[(USE, "wp"), (CANARY, "all")], &[], Some(("shop/all", 0)), None),
        (&[(USE, "wp"), (CANARY, "all"), (WEIGHT, "101")], &[], None, Some("CanaryInvalidWeight")),
        (&[(USE, "wp"), (CANARY, "all"), (WEIGHT, "-1")], &[], None, Some("CanaryInvalidWeight")),
        (&[(USE, "wp"), (CANARY, "wp"), (WEIGHT, "10")], &[], None, Some("CanarySameAsPrimary")),
        (&[(USE, "wp"), (CANARY, "absent")], &[], None, Some("WaypointIsNotReady")),
        (&[(USE, "wp"), (CANARY, "wl")], &[], None, Some("UnsupportedTrafficType")),
        (&[(USE, "wp"), (CANARY, "none")], &[], None, None),
        (&[(USE, "wp"), (CANARY, "")], &[], None, None),
        // Inherited together with the waypoint, and only then.
        (&[], &[(USE, "wp"), (CANARY, "all"), (WEIGHT, "5")], Some(("shop/all", 5)), None),
        (&[(WEIGHT, "7")], &[(USE, "wp"), (CANARY, "all"), (WEIGHT, "5")], Some(("shop/all", 7)), None),
        (&[(CANARY, "none")], &[(USE, "wp"), (CANARY, "all")], None, None),
        (&[(CANARY, "all"), (WEIGHT, "9")], &[(USE, "wp")], Some(("shop/all", 9)), None),
        (&[(USE, "wp")], &[(USE, "all"), (CANARY, "open"), (WEIGHT, "5")], None, None),
    ];
    for (object, namespace, canary, refused) in cases {
        let binding = bound(Traffic::Service, object, namespace, false);
        assert_eq!(outcome(&binding), primary.0, "{object:?} {namespace:?}: the waypoint stays");
        let found = binding.canary.as_ref().map(|(at, weight)| (format!("{}/{}", at.key.0, at.key.1), *weight));
        assert_eq!(found, canary.map(|(name, weight)| (name.to_owned(), weight)), "{object:?} {namespace:?}");
        assert_eq!(binding.refused.as_ref().map(|refusal| refusal.reason), *refused, "{object:?} {namespace:?}");
        let sum: u32 = binding.weighted().iter().map(|share| share.weight).sum();
        assert_eq!(sum, if canary.is_some() { primary.1 } else { 0 });
    }
}

#[test]
fn ingress_goes_through_the_waypoint_where_it_is_said() {
    let cases: &[(Pairs<'_>, Pairs<'_>, Option<bool>)] = &[
        (&[], &[], None),
        (&[(INGRESS, "true")], &[], Some(true)),
        (&[(INGRESS, "false")], &[(INGRESS, "true")], Some(false)),
        (&[], &[(INGRESS, "true")], Some(true)),
        (&[(INGRESS, "eurt")], &[], Some(false)),
    ];
    for (object, namespace, expect) in cases {
        let object: Vec<_> = object.iter().copied().chain([(USE, "wp")]).collect();
        assert_eq!(bound(Traffic::Service, &object, namespace, false).ingress, *expect, "{object:?} {namespace:?}");
    }
    assert!(!bound(Traffic::Service, &[(INGRESS, "true")], &[], false).ingress_too(), "without one there is none");
}

#[test]
fn gateways_have_no_waypoint() {
    let of = |controller: &str| never_bound(&LabelSet::from(&labels(&[("gateway.istio.io/managed", controller)])));
    assert!(of("istio.io-mesh-controller") && of("istio.io-eastwest-controller"));
    assert!(!of("istio.io-gateway-controller"));
}
