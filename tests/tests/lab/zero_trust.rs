//! `examples/zero-trust`: "the frontend may talk to payments only" is true for every destination of the mesh.

use std::time::Duration;

use anyhow::Result;
use aquifer_lab::LabOptions;

use crate::harness::{eventually, get, lab};

const BANK: &str = include_str!("../../../examples/zero-trust/10-bank.yaml");
const POLICIES: &str = include_str!("../../../examples/zero-trust/20-policies.yaml");
const PODS: [&str; 4] = ["frontend", "payments", "reports", "audit"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pairs_by_service_and_by_pod_address() -> Result<()> {
    let lab = lab(LabOptions::default()).await?;
    lab.apply(BANK).await?;
    lab.wait_namespace_ready("bank").await?;
    lab.wait_enrolled("bank", true).await?;
    let mut urls = Vec::new();
    for name in PODS {
        let pod = lab.pod("bank", name).await?;
        urls.push((name, format!("http://{name}/")));
        urls.push((name, format!("http://{}:8080/", pod.ipv4())));
        urls.push((name, format!("http://[{}]:8080/", pod.ipv6().expect("dual stack"))));
    }
    // Without policies everybody reaches everybody: the refusals below are the policies' work.
    for (name, url) in &urls {
        eventually(&format!("frontend reaches {name} at {url}"), Duration::from_secs(2), async || {
            Ok(get(&lab, "bank", "frontend", url).await?.ok())
        })
        .await?;
    }
    lab.apply(POLICIES).await?;
    eventually("the policies hold", Duration::from_secs(1), async || {
        let refused = !get(&lab, "bank", "reports", "http://payments/").await?.ok()
            && !get(&lab, "bank", "reports", "http://audit/").await?.ok();
        Ok(refused && get(&lab, "bank", "frontend", "http://payments/").await?.ok())
    })
    .await?;
    for from in PODS {
        for (to, url) in &urls {
            let own_address = from == *to && !url.contains(&format!("//{to}"));
            if own_address {
                continue; // A pod that calls its own address never leaves its loopback.
            }
            let allowed = from == "frontend" && *to == "payments";
            // Each of the policies may be the last that a proxy hears of.
            let what = format!("{from} → {to} at {url}: {}", if allowed { "allowed" } else { "refused" });
            let judged = async || Ok(get(&lab, "bank", from, url).await?.ok() == allowed);
            eventually(&what, Duration::from_secs(1), judged).await?;
        }
    }
    Ok(())
}
