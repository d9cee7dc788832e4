//! The resources of sections 5.6 and 5.7, by field number.

use std::net::IpAddr;

use super::protobuf::Message;

pub(crate) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
pub(crate) const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// A resource as a response carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) type_url: &'static str,
    pub(crate) body: Message,
}

impl Resource {
    pub(crate) fn message(&self) -> Message {
        let any = Message::new().string(1, self.type_url).bytes(2, &self.body.0);
        let resource = Message::new().string(1, &self.version).message(2, &any).string(3, &self.name);
        resource.strings(4, &self.aliases)
    }
}

pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A GatewayAddress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gateway {
    Ip(IpAddr, u16),
    Hostname(&'static str, &'static str, u16),
}

impl Gateway {
    fn message(&self) -> Message {
        match self {
            Self::Ip(ip, port) => {
                Message::new().message(2, &Message::new().bytes(2, &octets(*ip))).uint(3, u64::from(*port))
            }
            Self::Hostname(namespace, hostname, port) => {
                let name = Message::new().string(1, namespace).string(2, hostname);
                Message::new().message(1, &name).uint(3, u64::from(*port))
            }
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) node: String,
    pub(crate) network: String,
    pub(crate) trust_domain: String,
    /// 0 NONE, 1 HBONE, 2 LEGACY_ISTIO_MTLS.
    pub(crate) tunnel_protocol: u64,
    pub(crate) policies: Vec<String>,
    /// `<ns>/<hostname>` to pairs of service and target port.
    pub(crate) services: Vec<(String, Vec<(u16, u16)>)>,
    pub(crate) waypoint: Option<Gateway>,
    pub(crate) network_gateway: Option<Gateway>,
    pub(crate) unhealthy: bool,
    /// region, zone, subzone
    pub(crate) locality: [&'static str; 3],
    pub(crate) capacity: Option<u64>,
    pub(crate) hostname: String,
    /// protocol, port
    pub(crate) application_tunnel: Option<(u64, u16)>,
    pub(crate) host_network: bool,
    pub(crate) cluster: String,
}

impl Workload {
    pub(crate) fn uid(&self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace, self.name)
    }

    pub(crate) fn body(&self) -> Message {
        let services = self.services.iter().map(|(name, ports)| {
            let ports = ports.iter().map(|(from, to)| Message::new().uint(1, u64::from(*from)).uint(2, u64::from(*to)));
            Message::new().string(1, name).message(2, &Message::new().messages(1, ports))
        });
        let mut body = Message::new()
            .string(1, &self.name)
            .string(2, &self.namespace)
            .strings_raw(3, self.addresses.iter().map(|ip| octets(*ip)))
            .string(4, &self.network)
            .uint(5, self.tunnel_protocol)
            .string(6, &self.trust_domain)
            .string(7, &self.service_account);
        if let Some(waypoint) = &self.waypoint {
            body = body.message(8, &waypoint.message());
        }
        body = body
            .string(9, &self.node)
            .string(10, &format!("{}-app", self.name))
            .string(11, "v7")
            .uint(12, 2)
            .string(13, &self.name)
            .strings(16, &self.policies)
            .uint(17, u64::from(self.unhealthy))
            .string(18, &self.cluster);
        if let Some(gateway) = &self.network_gateway {
            body = body.message(19, &gateway.message());
        }
        body = body.string(20, &self.uid()).string(21, &self.hostname).messages(22, services);
        if let Some((protocol, port)) = self.application_tunnel {
            body = body.message(23, &Message::new().uint(1, protocol).uint(2, u64::from(port)));
        }
        let [region, zone, subzone] = self.locality;
        if !region.is_empty() {
            body = body.message(24, &Message::new().string(1, region).string(2, zone).string(3, subzone));
        }
        body = body.uint(25, u64::from(self.host_network));
        if let Some(capacity) = self.capacity {
            body = body.message(27, &Message::new().uint(1, capacity));
        }
        body
    }

    pub(crate) fn resource(&self) -> Resource {
        let body = Message::new().message(1, &self.body());
        Resource { name: self.uid(), version: "1".into(), aliases: Vec::new(), type_url: ADDRESS, body }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) hostname: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// Prefix lengths of the addresses, where one is given.
    pub(crate) lengths: Vec<u64>,
    pub(crate) ports: Vec<(u16, u16)>,
    pub(crate) subject_alt_names: Vec<String>,
    pub(crate) waypoint: Option<Gateway>,
    pub(crate) weighted: Vec<(Gateway, u64)>,
    pub(crate) routing_preference: Vec<u64>,
    /// 1 STRICT, 2 FAILOVER, 3 PASSTHROUGH
    pub(crate) mode: u64,
    pub(crate) allow_all: bool,
    pub(crate) ip_families: u64,
    pub(crate) not_canonical: bool,
    pub(crate) visibility: u64,
}

impl Service {
    pub(crate) fn resource(&self) -> Resource {
        let addresses = self.addresses.iter().enumerate().map(|(index, ip)| {
            let address = Message::new().bytes(2, &octets(*ip));
            match self.lengths.get(index) {
                Some(length) => address.uint_always(3, *length),
                None => address,
            }
        });
        let ports =
            self.ports.iter().map(|(from, to)| Message::new().uint(1, u64::from(*from)).uint(2, u64::from(*to)));
        let mut body = Message::new()
            .string(1, &self.name)
            .string(2, &self.namespace)
            .string(3, &self.hostname)
            .messages(4, addresses)
            .messages(5, ports)
            .strings(6, &self.subject_alt_names);
        if let Some(waypoint) = &self.waypoint {
            body = body.message(7, &waypoint.message());
        }
        if self.mode != 0 || self.allow_all || !self.routing_preference.is_empty() {
            let balancing = Message::new().packed(1, &self.routing_preference).uint(2, self.mode);
            body = body.message(8, &balancing.uint(3, u64::from(self.allow_all)));
        }
        body = body.uint(9, self.ip_families).uint(11, u64::from(!self.not_canonical));
        let weighted =
            self.weighted.iter().map(|(to, weight)| Message::new().message(1, &to.message()).uint(2, *weight));
        body = body.messages(13, weighted).uint(14, self.visibility);
        let name = format!("{}/{}", self.namespace, self.hostname);
        let body = Message::new().message(2, &body);
        Resource { name, version: "1".into(), aliases: Vec::new(), type_url: ADDRESS, body }
    }
}

/// How a StringMatch matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Text {
    Exact(&'static str),
    Prefix(&'static str),
    Suffix(&'static str),
    Presence,
    /// A StringMatch without a variant.
    Nothing,
}

impl Text {
    fn message(&self) -> Message {
        match self {
            Self::Exact(text) => Message::new().bytes(1, text.as_bytes()),
            Self::Prefix(text) => Message::new().bytes(2, text.as_bytes()),
            Self::Suffix(text) => Message::new().bytes(3, text.as_bytes()),
            Self::Presence => Message::new().message(4, &Message::new()),
            Self::Nothing => Message::new(),
        }
    }
}

/// A Match, its fields by name; those left out are empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct Match {
    pub(crate) namespaces: Vec<Text>,
    pub(crate) not_namespaces: Vec<Text>,
    pub(crate) principals: Vec<Text>,
    pub(crate) not_principals: Vec<Text>,
    pub(crate) source_ips: Vec<(IpAddr, u64)>,
    pub(crate) not_source_ips: Vec<(IpAddr, u64)>,
    pub(crate) destination_ips: Vec<(IpAddr, u64)>,
    pub(crate) not_destination_ips: Vec<(IpAddr, u64)>,
    pub(crate) destination_ports: Vec<u64>,
    pub(crate) not_destination_ports: Vec<u64>,
    pub(crate) service_accounts: Vec<(&'static str, &'static str)>,
    pub(crate) not_service_accounts: Vec<(&'static str, &'static str)>,
}

impl Match {
    fn message(&self) -> Message {
        let texts = |texts: &[Text]| texts.iter().map(Text::message).collect::<Vec<_>>();
        let ips = |ips: &[(IpAddr, u64)]| {
            ips.iter().map(|(ip, length)| Message::new().bytes(1, &octets(*ip)).uint(2, *length)).collect::<Vec<_>>()
        };
        let accounts = |accounts: &[(&str, &str)]| {
            accounts.iter().map(|(ns, sa)| Message::new().string(1, ns).string(2, sa)).collect::<Vec<_>>()
        };
        Message::new()
            .messages(1, texts(&self.namespaces))
            .messages(2, texts(&self.not_namespaces))
            .messages(3, texts(&self.principals))
            .messages(4, texts(&self.not_principals))
            .messages(5, ips(&self.source_ips))
            .messages(6, ips(&self.not_source_ips))
            .messages(7, ips(&self.destination_ips))
            .messages(8, ips(&self.not_destination_ips))
            .packed(9, &self.destination_ports)
            .packed(10, &self.not_destination_ports)
            .messages(11, accounts(&self.service_accounts))
            .messages(12, accounts(&self.not_service_accounts))
    }
}

/// A clause: any of its matches.
pub(crate) type Clause = Vec<Match>;
/// A rule: all of its clauses.
pub(crate) type Rule = Vec<Clause>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// 0 GLOBAL, 1 NAMESPACE, 2 WORKLOAD_SELECTOR
    pub(crate) scope: u64,
    pub(crate) deny: bool,
    pub(crate) rules: Vec<Rule>,
    pub(crate) dry_run: bool,
}

impl Policy {
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(crate) fn resource(&self) -> Resource {
        let clause = |clause: &Clause| Message::new().messages(2, clause.iter().map(Match::message));
        let rules = self.rules.iter().map(|rule| Message::new().messages(1, rule.iter().map(clause)));
        let body = Message::new()
            .string(1, &self.name)
            .string(2, &self.namespace)
            .uint(3, self.scope)
            .uint(4, u64::from(self.deny))
            .messages(5, rules)
            .uint(6, u64::from(self.dry_run));
        Resource { name: self.key(), version: String::new(), aliases: Vec::new(), type_url: AUTHORIZATION, body }
    }
}
