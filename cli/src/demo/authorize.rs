//! Step 3: "payments only from orders".

use std::time::{Duration, Instant};

use anyhow::Result;
use aquifer_lab::Component;

use super::client::{self, Open};
use super::{Demo, show};

const POLICY: &str = include_str!("../../../examples/shop/policies/payments-only-from-orders.yaml");
const NAME: &str = "shop/payments-only-from-orders";

pub(super) async fn run(demo: &mut Demo) -> Result<()> {
    let mut open = Open::connect(&demo.lab, "shop", "web", "payments", 80)?;
    open.ask("GET / HTTP/1.1\r\nHost: payments\r\n\r\n", "200 OK").await?;
    demo.claim(open.is_open(), "web has a connection to payments open");
    let mark = demo.log_mark("node2").await?;

    let begin = Instant::now();
    demo.lab.apply(POLICY).await?;
    let cut = demo.within(Duration::from_secs(1), async || Ok(!open.is_open())).await?.map(|_| begin.elapsed());
    demo.claim(cut.is_some(), format!("web's open connection was cut {} after the policy (asked: 1 s)", show(cut)));

    let orders = client::get(&demo.lab, "shop", "orders", "http://payments/").await?;
    demo.claim(orders.ok(), format!("orders → payments: {}", orders.status));
    let web = client::get(&demo.lab, "shop", "web", "http://payments/").await?;
    demo.claim(!web.ok(), format!("web → payments: refused (curl exit {}, status {})", web.exit, web.status));

    let quoted = format!("policy=\"{NAME}\"");
    let lines = demo.access_lines_appear("node2", mark, &["reason=", &quoted]).await?;
    let reason = lines
        .last()
        .and_then(|line| line.split("reason=").nth(1))
        .map(|rest| rest.split(' ').next().unwrap_or(""))
        .unwrap_or("");
    demo.claim(!lines.is_empty(), format!("the log says why: reason={reason} {quoted}"));
    let mut counted = 0.0;
    demo.within(Duration::from_secs(1), async || {
        let proxy = Component::ztunnel("node2");
        counted = demo.lab.metric(proxy, "aquifer_connections_refused_total", &[&quoted]).await?;
        Ok(counted >= 1.0)
    })
    .await?;
    demo.claim(counted >= 1.0, format!("and the metrics: aquifer_connections_refused_total{{{quoted}}} {counted}"));
    demo.lab.delete("AuthorizationPolicy", "shop", "payments-only-from-orders").await?;
    let back = demo
        .within(Duration::from_secs(1), async || {
            Ok(client::get(&demo.lab, "shop", "web", "http://payments/").await?.ok())
        })
        .await?;
    demo.claim(back.is_some(), format!("policy deleted: web → payments works again after {}", show(back)));
    Ok(())
}
