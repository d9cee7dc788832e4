//! Section 5.5: resources asked for one by one.

use anyhow::Result;

use crate::peer::wds::{ADDRESS, AUTHORIZATION};
use crate::peer::world::Stage;

/// 5.5: on demand, the first Address request subscribes and unsubscribes `*`; Authorization stays wildcard.
#[tokio::test(flavor = "multi_thread")]
async fn on_demand_first_requests() -> Result<()> {
    let mut stage = Stage::set()?;
    stage.var("XDS_ON_DEMAND", "true");
    stage.var("ISTIO_META_DNS_CAPTURE", "false");
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    let address = ads.request().await?;
    assert_eq!(address.type_url, ADDRESS);
    assert_eq!((address.subscribe, address.unsubscribe), (vec!["*".to_owned()], vec!["*".to_owned()]));
    let authorization = ads.request().await?;
    assert_eq!(authorization.type_url, AUTHORIZATION);
    assert_eq!(authorization.fields.numbers(), [1, 2]);
    Ok(())
}
