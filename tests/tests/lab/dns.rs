//! Names in the mesh: answered by the proxy where it knows them, by the cluster's resolver (dnsmasq) where not, and to
//! the application as without a mesh.

use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_lab::{Component, ExecOutput, Lab, LabOptions};

use crate::harness::{counted, enrol, eventually, get, meshed_shop, service_ips, shop};

/// A world outside: a host that a Service's address stands for, and records of other types.
fn options() -> LabOptions {
    LabOptions::default()
        .dns_record("log-queries")
        .dns_record("host-record=www.example.test,198.19.0.12")
        .dns_record("host-record=six.example.test,fd00:19::c")
        .dns_record("cname=alias.example.test,www.example.test")
        .dns_record("txt-record=text.example.test,hello")
        .dns_record(format!("txt-record=long.example.test{}", format!(",{}", "t".repeat(230)).repeat(4)))
        .dns_record("mx-host=example.test,mail.example.test,10")
        .dns_record("srv-host=_http._tcp.orders.shop.svc.cluster.local,orders.shop.svc.cluster.local,80")
        .dns_record("dns-rr=odd.example.test,4711,01:02:03")
}

/// `www.example.test` is a Service on an address of our choice, whose own name nobody uses.
const WWW: &str = "
apiVersion: v1
kind: Service
metadata: { name: elsewhere, namespace: shop }
spec:
  clusterIP: 198.19.0.12
  clusterIPs: [198.19.0.12]
  selector: { app: orders }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
";

async fn run(lab: &Lab, pod: &str, args: &[&str]) -> Result<ExecOutput> {
    Ok(lab.exec("shop", pod, args).await?)
}

/// What `dig` prints in short. It asks again after 15 s, or a machine that is slow would have counted too much.
async fn dig(lab: &Lab, pod: &str, args: &[&str]) -> Result<String> {
    let output = run(lab, pod, &[&["dig", "+noall", "+answer", "+nottlid", "+time=15"], args].concat()).await?;
    let mut lines: Vec<&str> = output.stdout.lines().filter(|line| !line.starts_with(';')).collect();
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

/// How the C library and dig see these names: addresses and failures, not who said so.
async fn view(lab: &Lab, pod: &str) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    for name in [
        "orders",
        "orders.shop",
        "orders.shop.svc",
        "orders.shop.svc.cluster.local",
        "orders.shop.svc.cluster.local.",
        "ORDERS.Shop",
        "client.outside",
        "kube-dns.kube-system",
        "www.example.test",
        "alias.example.test",
        "six.example.test",
        "nobody",
        "nobody.shop",
        "nobody.example.test",
    ] {
        for database in ["ahostsv4", "ahostsv6"] {
            let output = run(lab, pod, &["getent", database, name]).await?;
            let addresses =
                output.stdout.lines().filter(|line| line.contains("STREAM")).map(|line| line.split(' ').next());
            let mut addresses: Vec<&str> = addresses.flatten().collect();
            addresses.sort_unstable();
            seen.push(format!("{database} {name}: {addresses:?} {}", output.code));
        }
    }
    for args in [
        &["text.example.test", "TXT"][..],
        &["+noedns", "long.example.test", "TXT"],
        &["+tcp", "long.example.test", "TXT"],
        &["+tcp", "text.example.test", "TXT"],
        &["example.test", "MX"],
        &["_http._tcp.orders.shop.svc.cluster.local", "SRV"],
        &["odd.example.test", "TYPE4711"],
        &["-x", "198.19.0.10"],
        &["-x", "192.0.2.1"],
        &["alias.example.test", "A"],
        &["version.bind", "CH", "TXT"],
    ] {
        seen.push(format!("{args:?}: {}", dig(lab, pod, args).await?));
    }
    Ok(seen)
}

/// The resolver's own words about a name.
async fn resolver_lines(lab: &Lab, text: &str) -> Result<Vec<String>> {
    let pods = lab.status().await?.pods;
    let pod = pods.iter().find(|pod| pod.name.starts_with("kube-dns-")).context("the resolver's pod")?;
    let log = lab.logs("kube-system", &pod.name).await?;
    Ok(log.lines().filter(|line| line.contains("query[") && line.contains(text)).map(str::to_owned).collect())
}

async fn count(lab: &Lab, name: &str, labels: &[&str]) -> Result<f64> {
    Ok(lab.metric(Component::ztunnel("node1"), name, labels).await?)
}

/// Waits until so many are counted, and not more: an answer may be there before it is counted.
async fn counts(lab: &Lab, name: &str, labels: &[&str], expected: f64) -> Result<()> {
    counted(lab, &Component::ztunnel("node1"), name, labels, |found| found >= expected).await?;
    assert_eq!(count(lab, name, labels).await?, expected, "{name} {labels:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_see_the_same_names_as_without_the_mesh() -> Result<()> {
    let lab = shop(options()).await?;
    lab.apply(WWW).await?;
    eventually("the Service of our choice answers", Duration::from_secs(1), async || {
        Ok(get(&lab, "shop", "web", "http://www.example.test/").await?.ok())
    })
    .await?;
    let plain = view(&lab, "web").await?;
    let known = |seen: &[String], text: &str| seen.iter().any(|line| line.contains(text));
    assert!(known(&plain, "ahostsv4 www.example.test: [\"198.19.0.12\"] 0"), "{plain:#?}");
    assert!(known(&plain, "ahostsv4 nobody.example.test: [] 2"), "{plain:#?}");
    let long = plain.iter().filter(|line| line.contains("long.example.test")).map(String::len).min();
    assert!(long > Some(900), "a long answer needs TCP: {plain:#?}");
    enrol(&lab, "shop").await?;
    let meshed = view(&lab, "web").await?;
    for (plain, meshed) in plain.iter().zip(&meshed) {
        assert_eq!(plain, meshed);
    }

    for url in
        ["http://orders/", "http://orders.shop/", "http://orders.shop.svc.cluster.local/", "http://www.example.test/"]
    {
        let answer = get(&lab, "shop", "web", url).await?;
        assert!(answer.ok(), "{url}: {answer:?}");
    }
    lab.down().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_names_stay_in_the_mesh_and_others_go_out_as_the_pod() -> Result<()> {
    let lab = meshed_shop(options()).await?;
    let (web, orders) = (lab.pods("shop", "web").await?, service_ips(&lab, "shop", "orders").await?);
    let before = resolver_lines(&lab, "orders").await?;
    let tcp = ["request_protocol=\"tcp\"", "source_canonical_service=\"web\""];
    let udp = ["request_protocol=\"udp\"", "source_canonical_service=\"web\""];
    let requests = "istio_dns_requests_total";
    let upstream = "istio_dns_upstream_requests_total";
    assert_eq!(count(&lab, upstream, &udp).await?, 0.0);

    let text = run(&lab, "web", &["dig", "+time=15", "orders.shop.svc.cluster.local"]).await?.stdout;
    assert!(text.contains("flags: qr aa rd ra;") && text.contains("udp: 1232"), "{text}");
    let v4 = orders.iter().find(|ip| ip.is_ipv4()).context("an IPv4 address")?;
    assert!(text.contains(&format!("orders.shop.svc.cluster.local. 30 IN\tA\t{v4}")), "{text}");
    let by_tcp =
        run(&lab, "web", &["dig", "+tcp", "+time=15", "+short", "orders.shop.svc.cluster.local"]).await?.stdout;
    assert_eq!(by_tcp.trim(), v4.to_string());
    // The search list is walked by us, so that the first question is the last.
    let short = run(&lab, "web", &["dig", "+search", "+time=15", "+short", "orders.shop"]).await?.stdout;
    assert_eq!(short.lines().collect::<Vec<_>>(), ["orders.shop.", &v4.to_string()]);
    // Whatever server the application names, the node's answers.
    let elsewhere =
        run(&lab, "web", &["dig", "+time=15", "+short", "@192.0.2.53", "orders.shop.svc.cluster.local"]).await?.stdout;
    assert_eq!(elsewhere.trim(), v4.to_string());
    for transport in ["+notcp", "+tcp"] {
        let args = ["dig", transport, "+time=15", "+short", "@fd00:19::53", "orders.shop.svc.cluster.local"];
        assert_eq!(run(&lab, "web", &args).await?.stdout.trim(), v4.to_string(), "over IPv6");
    }
    counts(&lab, requests, &udp, 4.0).await?;
    counts(&lab, requests, &tcp, 2.0).await?;
    assert_eq!(count(&lab, upstream, &["source_canonical_service=\"web\""]).await?, 0.0);
    assert_eq!(resolver_lines(&lab, "orders").await?, before, "a known name left the mesh");

    assert_eq!(dig(&lab, "web", &["+short", "www.example.test"]).await?, "198.19.0.12");
    assert_eq!(dig(&lab, "web", &["+short", "+tcp", "text.example.test", "TXT"]).await?, "\"hello\"");
    counts(&lab, upstream, &[&udp[..], &["request_query_type=\"a\""]].concat(), 1.0).await?;
    counts(&lab, upstream, &[&tcp[..], &["request_query_type=\"txt\""]].concat(), 1.0).await?;
    counts(&lab, "istio_dns_upstream_request_duration_seconds_count", &udp, 1.0).await?;
    assert_eq!(count(&lab, "istio_dns_upstream_failures_total", &[]).await?, 0.0);
    let mut asked = Vec::new();
    eventually("the resolver tells of the question", Duration::from_secs(1), async || {
        asked = resolver_lines(&lab, "www.example.test").await?;
        Ok(!asked.is_empty())
    })
    .await?;
    let own = format!("from {}", web[0].ips[0]);
    assert!(asked.len() == 1 && asked[0].ends_with(&own), "asked by the pod itself: {asked:?}");
    lab.down().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_opt_out_and_may_lack_an_ipv6_loopback() -> Result<()> {
    let lab = meshed_shop(options()).await?;
    let pod = |name: &str, annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name}, namespace: shop, annotations: {{ {annotation} }} }}\n\
             spec: {{ nodeName: node1, terminationGracePeriodSeconds: 1, containers: [{{ name: sleep, image: busybox, command: [sleep, infinity] }}] }}"
        )
    };
    lab.apply(&pod("out", "ambient.istio.io/dns-capture: \"false\"")).await?;
    lab.apply(&pod("lame", "lab.aquifer.io/no-ipv6-loopback: \"true\"")).await?;
    lab.apply(&pod("four", "lab.aquifer.io/no-ipv6: \"true\"")).await?;
    lab.wait_status("all three are in the mesh", Duration::from_secs(30), |status| {
        let is_in = |name: &&str| {
            let mut pods = status.pods.iter().filter(|pod| pod.namespace == "shop");
            pods.any(|pod| pod.name == **name && pod.redirection.as_deref() == Some("enabled"))
        };
        ["out", "lame", "four"].iter().all(is_in).then_some(())
    })
    .await?;
    let v4 = service_ips(&lab, "shop", "orders").await?.into_iter().find(|ip| ip.is_ipv4()).context("IPv4")?;
    let authoritative = async |pod: &str| -> Result<bool> {
        let text = run(&lab, pod, &["dig", "+time=15", "orders.shop.svc.cluster.local"]).await?.stdout;
        assert!(text.contains(&v4.to_string()), "{pod}: {text}");
        Ok(text.contains(" 30 IN\tA\t"))
    };
    assert!(!authoritative("out").await?, "the resolver answers");
    assert!(get(&lab, "shop", "out", "http://orders/").await?.ok(), "and its traffic is in the mesh all the same");
    assert_eq!(count(&lab, "istio_dns_requests_total", &["source_canonical_service=\"out\""]).await?, 0.0);
    eventually("the resolver tells of the question", Duration::from_secs(1), async || {
        Ok(!resolver_lines(&lab, "orders.shop.svc.cluster.local").await?.is_empty())
    })
    .await?;
    for pod in ["lame", "four"] {
        assert!(authoritative(pod).await?, "{pod}: the proxy answers");
        let label = format!("source_canonical_service=\"{pod}\"");
        counts(&lab, "istio_dns_requests_total", &[&label], 1.0).await?;
    }
    lab.down().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_answered_while_the_proxy_is_replaced_and_after_it_was_killed() -> Result<()> {
    let lab = meshed_shop(options()).await?;
    let script = "while :; do for n in orders www.example.test; do getent ahostsv4 $n >/dev/null && echo ok || echo lost; done; done";
    let asking = lab.spawn("shop", "web", &["sh", "-c", script])?;
    for _ in 0..3 {
        lab.replace_ztunnel("node1").await?;
    }
    let output = asking.kill().await?;
    let (good, lost) = (output.stdout.matches("ok").count(), output.stdout.matches("lost").count());
    println!("{good} names found, {lost} not");
    assert!(good > 20 && lost == 0, "{good} found, {lost} lost");

    let node = Component::ztunnel("node1");
    lab.kill(node.clone(), 9).await?;
    lab.start_component(node.clone()).await?;
    eventually("names are answered by the successor", Duration::from_secs(2), async || {
        Ok(run(&lab, "web", &["dig", "+short", "+tries=1", "+time=1", "orders.shop.svc.cluster.local"]).await?.ok())
    })
    .await?;
    lab.down().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lab_without_a_resolver_has_its_names_in_files() -> Result<()> {
    let lab = meshed_shop(LabOptions { dns: false, ..LabOptions::default() }).await?;
    assert!(get(&lab, "shop", "web", "http://orders/").await?.ok());
    let unknown = run(&lab, "web", &["getent", "ahostsv4", "nobody.example.test"]).await?;
    assert_eq!((unknown.code, unknown.stdout.as_str()), (2, ""));
    lab.down().await?;
    Ok(())
}
