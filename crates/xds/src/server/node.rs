//! Who a client says that it is, checked as istiod does.

use std::net::IpAddr;

use aquifer_proto::xds::Node;
use prost_types::Struct;
use prost_types::value::Kind;
use tonic::Status;

use super::Caller;

/// What the server needs to know of a client's node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// The whole node id.
    pub id: String,
    /// The proxy's kind: `ztunnel`, `waypoint`.
    pub kind: String,
    /// The namespace it claims.
    pub namespace: String,
    /// The Kubernetes node it runs on, for on-demand clients.
    pub node_name: Option<String>,
    /// ISTIO_VERSION, for metrics and debug pages.
    pub version: Option<String>,
    /// CLUSTER_ID.
    pub cluster_id: Option<String>,
}

impl NodeInfo {
    /// `<name>.<namespace>`, as the id has it.
    pub fn name(&self) -> &str {
        self.id.split('~').nth(2).unwrap_or_default()
    }
}

/// Reads the node of a first request and holds it against who the caller proved to be.
pub fn check(node: Option<&Node>, caller: &Caller) -> Result<NodeInfo, Status> {
    let Some(node) = node.filter(|node| !node.id.is_empty()) else {
        return Err(Status::invalid_argument("missing node information"));
    };
    // kind~ip~name.namespace~namespace.svc.domain
    let parts: Vec<&str> = node.id.split('~').collect();
    let &[kind, ip, _name, domain] = parts.as_slice() else {
        let text = format!("missing parts in the service node {:?}", node.id);
        return Err(Status::invalid_argument(text));
    };
    if ip.parse::<IpAddr>().is_err() {
        let text = format!("invalid IP address {ip:?} in the service node {:?}", node.id);
        return Err(Status::invalid_argument(text));
    }
    let field = |name: &str| node.metadata.as_ref().and_then(|m| text_field(m, name));
    let from_domain = || domain.split('.').next().unwrap_or_default().to_owned();
    let namespace = field("NAMESPACE").unwrap_or_else(from_domain);
    if let Caller::Workload { namespace: proven, service_account, .. } = caller {
        if *proven != namespace {
            let text = format!("the caller is of namespace {proven:?}, the node claims {namespace:?}");
            return Err(Status::unauthenticated(text));
        }
        if let Some(claimed) = field("SERVICE_ACCOUNT").filter(|c| c != service_account) {
            let text = format!("the caller is {service_account:?}, the node claims {claimed:?}");
            return Err(Status::unauthenticated(text));
        }
    }
    Ok(NodeInfo {
        id: node.id.clone(),
        kind: kind.to_owned(),
        namespace,
        node_name: field("NODE_NAME"),
        version: field("ISTIO_VERSION"),
        cluster_id: field("CLUSTER_ID"),
    })
}

fn text_field(metadata: &Struct, name: &str) -> Option<String> {
    match &metadata.fields.get(name)?.kind {
        Some(Kind::StringValue(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn node(id: &str, metadata: &[(&str, &str)]) -> Node {
        let fields = metadata.iter().map(|(key, value)| {
            let kind = Some(Kind::StringValue((*value).to_owned()));
            ((*key).to_owned(), prost_types::Value { kind })
        });
        let metadata = Some(Struct { fields: fields.collect() });
        Node { id: id.to_owned(), metadata, ..Node::default() }
    }

    const ID: &str = "ztunnel~10.0.0.1~ztunnel-a.istio-system~istio-system.svc.cluster.local";

    #[test]
    fn nodes_are_checked_against_callers() {
        let ztunnel = Caller::workload("istio-system", "ztunnel");
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a Caller, Result<(), Code>);
        let table: &[Case<'_>] = &[
            (ID, &[("NAMESPACE", "istio-system")], &ztunnel, Ok(())),
            (ID, &[], &ztunnel, Ok(())),
            (ID, &[("SERVICE_ACCOUNT", "ztunnel")], &ztunnel, Ok(())),
            (ID, &[("SERVICE_ACCOUNT", "other")], &ztunnel, Err(Code::Unauthenticated)),
            (ID, &[("NAMESPACE", "kube-system")], &ztunnel, Err(Code::Unauthenticated)),
            (ID, &[("NAMESPACE", "kube-system")], &Caller::Anonymous, Ok(())),
            (ID, &[], &Caller::workload("shop", "ztunnel"), Err(Code::Unauthenticated)),
            ("", &[], &ztunnel, Err(Code::InvalidArgument)),
            ("ztunnel-without-tildes", &[], &ztunnel, Err(Code::InvalidArgument)),
            ("a~b~c~d", &[], &ztunnel, Err(Code::InvalidArgument)),
            ("a~10.0.0.1~c~d~e", &[], &ztunnel, Err(Code::InvalidArgument)),
            ("a~fd00::1~c~istio-system.svc", &[], &ztunnel, Ok(())),
        ];
        for (id, metadata, caller, expect) in table {
            let got = check(Some(&node(id, metadata)), caller).map(|_| ()).map_err(|s| s.code());
            assert_eq!(got, *expect, "{id} {metadata:?} {caller:?}");
        }
        assert_eq!(check(None, &ztunnel).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn what_the_server_needs_is_read() {
        let metadata = &[("NODE_NAME", "node1"), ("ISTIO_VERSION", "1.32"), ("CLUSTER_ID", "c1")];
        let got = check(Some(&node(ID, metadata)), &Caller::Anonymous).unwrap();
        let expect = NodeInfo {
            id: ID.to_owned(),
            kind: "ztunnel".to_owned(),
            namespace: "istio-system".to_owned(),
            node_name: Some("node1".to_owned()),
            version: Some("1.32".to_owned()),
            cluster_id: Some("c1".to_owned()),
        };
        assert_eq!(got, expect);
    }
}
