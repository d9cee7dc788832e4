//! Sections 5.1-5.3 and 9: how the proxy introduces itself to the control plane.

use anyhow::{Result, ensure};

use crate::peer::hpack;
use crate::peer::wds::{ADDRESS, AUTHORIZATION};
use crate::peer::world::{Stage, TOKEN, World};

/// 5.2, 5.3: two requests, Address then Authorization, each with the node, without names, without versions.
#[tokio::test(flavor = "multi_thread")]
async fn first_requests() -> Result<()> {
    let mut stage = Stage::set()?;
    let _ztunnel = stage.start()?;
    let mut ads = stage.istiod.ads().await?;
    for type_url in [ADDRESS, AUTHORIZATION] {
        let request = ads.request().await?;
        assert_eq!(request.type_url, type_url);
        assert_eq!(request.fields.numbers(), [1, 2], "node and type only");
        let node = request.fields.message(1)?;
        assert_eq!(node.string(1), "ztunnel~198.18.1.1~ztunnel-abc.istio-system~istio-system.svc.cluster.local");
        let metadata = node.message(3)?.json()?;
        assert_eq!(metadata["NAME"], "ztunnel-abc");
        assert_eq!(metadata["NAMESPACE"], "istio-system");
        assert_eq!(metadata["INSTANCE_IPS"], "198.18.1.1");
        assert_eq!(metadata["NODE_NAME"], "node-a");
    }
    Ok(())
}
