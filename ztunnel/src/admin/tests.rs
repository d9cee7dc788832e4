use super::*;

#[test]
fn base64_is_the_standard_one() {
    for (text, expect) in
        [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy"), ("\u{ff}~", "w79+")]
    {
        assert_eq!(base64(text.as_bytes()), expect, "{text}");
    }
}

/// The keys of an object, sorted.
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// `istioctl ztunnel-config` reads a text, and nothing at all of a dump that has something else there.
#[tokio::test]
async fn how_a_certificate_stands_is_one_text() {
    let none = CertManager::without_authority(Default::default());
    let identity = aquifer_core::identity::Identity::new("cluster.local", "amb", "web");
    for (certs, expect) in [(CertManager::new(), "Initializing"), (none, "Unavailable: no certificate for spiffe://")] {
        certs.want(&identity);
        let dump = certificates(&certs);
        let state = dump[0]["state"].as_str().unwrap_or_else(|| panic!("{dump}"));
        assert!(state.starts_with(expect), "{state}");
    }
}

#[tokio::test]
async fn the_dump_has_the_recorded_keys() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/recordings/ztunnel/config_dump.json");
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();

    let env: aquifer_runtime::env::MapEnv = [("NODE_NAME", "node1")].into();
    let around = crate::config::Surroundings { mesh_file: None, cpus: 1, file_exists: |_| false };
    let config = Arc::new(Config::read(&env, &around).unwrap());
    let (mut writer, state) = aquifer_core::store::store();
    let web = crate::testing::workload(crate::testing::pod("amb", "web", [10, 0, 0, 1]));
    writer.update(|state| state.apply(aquifer_core::state::Update::Workload(web.clone())));
    let certs = CertManager::new();
    certs.want(&web.identity());
    let netns = crate::inpod::netns::Netns::current().unwrap();
    let upstream = crate::dns::upstream::Upstream::new(Vec::new(), netns, config.proxy.tcp, 1);
    let shared = crate::proxy::pod::Shared {
        config: config.proxy.clone(),
        state: state.clone(),
        published: tokio::sync::watch::channel(0).1,
        certs: certs.clone(),
        tracker: aquifer_runtime::Tracker::new(),
        server: Default::default(),
        pool: Default::default(),
        warned_unspoofed: false.into(),
        dns: None,
        names: crate::dns::lookup::Resolver::new(upstream, None, true),
        on_demand: None,
    };
    let workers = Workers::start(1, shared.into(), Arc::default(), aquifer_runtime::Cancel::new()).unwrap();
    let pods = PodView::default();
    let info =
        crate::inpod::zds::WorkloadInfo { name: "web".into(), namespace: "amb".into(), service_account: "web".into() };
    let uid = crate::inpod::zds::PodUid::new("2318cafb");
    pods.lock().insert(uid, (info, crate::inpod::driver::Phase::Up));
    let dump = Pages { state, pods, workers, certs, config }.dump().await.unwrap();

    assert_eq!(keys(&dump), keys(&recorded));
    assert_eq!(keys(&dump["certificates"][0]), keys(&recorded["certificates"][0]));
    assert_eq!(dump["certificates"][0]["identity"], "spiffe://cluster.local/ns/amb/sa/web");
    let pod = &dump["workloadState"]["2318cafb"];
    let expect = &recorded["workloadState"]["2318cafb-21de-48b3-bdf1-6f11268aee76"];
    assert_eq!((keys(pod), &pod["state"]), (keys(expect), &expect["state"]));
    assert_eq!(pod["connections"], expect["connections"]);
    assert_eq!(keys(&pod["info"]), keys(&expect["info"]));
    // What isn't here: the DNS resolver's settings, and those without effect.
    let missing: Vec<&str> =
        keys(&recorded["config"]).into_iter().filter(|key| dump["config"].get(key).is_none()).collect();
    assert_eq!(
        missing,
        [
            "caRootCert",
            "crlPath",
            "dnsResolverCfg",
            "dnsResolverOpts",
            "fakeCa",
            "fakeSelfInbound",
            "proxyArgs",
            "proxyWorkloadInformation",
            "socks5Addr",
            "xdsRootCert"
        ]
    );
}
