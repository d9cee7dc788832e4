//! How the two ends of a connection describe themselves: W3C baggage with OpenTelemetry's attribute names.
//! <https://www.w3.org/TR/baggage/>

use std::{
    fmt::{self, Write as _},
    str::FromStr,
};

use super::HeaderError;
use crate::{
    identity::Identity,
    workload::{Common, HealthStatus, Locality, NetworkMode, ServicePorts, TunnelProtocol, Workload, WorkloadType},
};

/// The standard asks for 8192 and 64 to be carried; a description of a workload needs far less than that.
const MAX_LEN: usize = 8192;
const MAX_MEMBERS: usize = 64;

/// The longest name that Kubernetes knows.
const MAX_NAME: usize = 253;

/// A description of a workload. Only telemetry may believe it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Baggage {
    pub cluster: Option<String>,
    pub namespace: Option<String>,
    pub workload: Option<(WorkloadType, String)>,
    pub service_name: Option<String>,
    pub service_version: Option<String>,
    pub region: Option<String>,
    pub zone: Option<String>,
}

impl Baggage {
    /// A workload's own; what is empty is left out.
    pub fn of(workload: &Workload) -> Self {
        let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        Self {
            cluster: text(&workload.cluster_id),
            namespace: text(&workload.namespace),
            workload: text(&workload.workload_name).map(|name| (workload.workload_type, name)),
            service_name: text(&workload.canonical_name),
            service_version: text(&workload.canonical_revision),
            region: text(&workload.locality.region),
            zone: text(&workload.locality.zone),
        }
    }

    /// Who says this of itself, as telemetry names it: the counterpart of [`Baggage::of`] for a workload that is not
    /// known otherwise. Its identity is what its certificate says. `None` if that is of another namespace, if there is
    /// no name, or if a value could be none of Kubernetes'.
    pub fn speaker(&self, identity: &Identity) -> Option<Workload> {
        let workload_name = self.workload.as_ref().map(|(_, name)| name);
        let own_name = self.service_name.as_ref().or(workload_name)?;
        let texts =
            [&self.cluster, &self.namespace, &self.service_name, &self.service_version, &self.region, &self.zone];
        if self.namespace.as_ref().is_some_and(|said| **said != *identity.namespace)
            || !texts.into_iter().flatten().chain(workload_name).all(|text| is_name(text))
        {
            return None;
        }
        let text = |said: Option<&String>| said.map(String::as_str).unwrap_or_default().into();
        let common = Common {
            own_name: Some(own_name.as_str().into()),
            capacity: 0,
            status: HealthStatus::Unhealthy,
            namespace: identity.namespace.clone(),
            hostname: None,
            network: "".into(),
            network_mode: NetworkMode::Standard,
            network_gateway: None,
            tunnel_protocol: TunnelProtocol::None,
            native_tunnel: false,
            same_node: false,
            application_tunnel: None,
            trust_domain: identity.trust_domain.clone(),
            service_account: identity.service_account.clone(),
            waypoint: None,
            cluster_id: text(self.cluster.as_ref()),
            locality: Locality {
                region: text(self.region.as_ref()),
                zone: text(self.zone.as_ref()),
                subzone: "".into(),
            },
            canonical_name: text(self.service_name.as_ref()),
            canonical_revision: text(self.service_version.as_ref()),
            workload_type: self.workload.as_ref().map(|(kind, _)| *kind).unwrap_or_default(),
            workload_name: text(workload_name),
            authorization_policies: Vec::new(),
            services: ServicePorts::default(),
        };
        Some(Workload { uid: "".into(), addresses: Vec::new().into(), node: "".into(), common: common.into() })
    }

    fn set(&mut self, key: &str, value: String) {
        let workload_type = |kind: &str| match kind {
            "deployment" => Some(WorkloadType::Deployment),
            "cronjob" => Some(WorkloadType::CronJob),
            "pod" => Some(WorkloadType::Pod),
            "job" => Some(WorkloadType::Job),
            _ => None,
        };
        match key {
            "k8s.cluster.name" => self.cluster = Some(value),
            "k8s.namespace.name" => self.namespace = Some(value),
            "service.name" => self.service_name = Some(value),
            "service.version" => self.service_version = Some(value),
            "cloud.region" => self.region = Some(value),
            "cloud.availability_zone" => self.zone = Some(value),
            _ => {
                let kind = key.strip_prefix("k8s.").and_then(|rest| rest.strip_suffix(".name"));
                if let Some(kind) = kind.and_then(workload_type) {
                    self.workload = Some((kind, value));
                }
            }
        }
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload_key = self.workload.as_ref().map(|(kind, _)| format!("k8s.{}.name", kind.as_str()));
        let members = [
            ("k8s.cluster.name", self.cluster.as_ref()),
            ("k8s.namespace.name", self.namespace.as_ref()),
            (workload_key.as_deref().unwrap_or_default(), self.workload.as_ref().map(|(_, name)| name)),
            ("service.name", self.service_name.as_ref()),
            ("service.version", self.service_version.as_ref()),
            ("cloud.region", self.region.as_ref()),
            ("cloud.availability_zone", self.zone.as_ref()),
        ];
        let mut separator = "";
        for (key, value) in members {
            let Some(value) = value else { continue };
            write!(f, "{separator}{key}=")?;
            encode(value, f)?;
            separator = ",";
        }
        Ok(())
    }
}

/// Unknown members are skipped; a malformed or oversized header is refused as a whole.
impl FromStr for Baggage {
    type Err = HeaderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err(HeaderError::TooLong(MAX_LEN));
        }
        let mut baggage = Self::default();
        for (count, member) in text.split(',').enumerate() {
            if count == MAX_MEMBERS {
                return Err(HeaderError::Malformed);
            }
            // Properties come after a semicolon; none of ours has any.
            let member = member.split(';').next().unwrap_or_default().trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=').ok_or(HeaderError::Malformed)?;
            let value = decode(value.trim_matches([' ', '\t'])).ok_or(HeaderError::Malformed)?;
            if !value.is_empty() {
                baggage.set(key.trim_matches([' ', '\t']), value);
            }
        }
        Ok(baggage)
    }
}

/// `baggage-octet`: printable ASCII but for space, `"`, `,`, `;`, `\`; and `%` begins an encoded byte.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%')
}

/// Names, versions, and what clouds call clusters: no spaces, nothing that a label or a line would have to escape.
fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
}

fn encode(value: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in value.bytes() {
        if is_plain(byte) {
            f.write_char(char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

fn decode(value: &str) -> Option<String> {
    let mut bytes = value.bytes();
    let mut decoded = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            // A control character has no business in a log line.
            byte if byte.is_ascii_control() => return None,
            byte => byte,
        });
    }
    let text = String::from_utf8(decoded).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_reference_proxy_writes() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=amb,k8s.pod.name=client,service.name=client,\
                    service.version=latest,cloud.region=eu,cloud.availability_zone=eu-1";
        let baggage: Baggage = text.parse().unwrap();
        assert_eq!(baggage.workload, Some((WorkloadType::Pod, "client".into())));
        assert_eq!(baggage.zone.as_deref(), Some("eu-1"));
        assert_eq!(baggage.to_string(), text);
    }

    #[test]
    fn skips_the_unknown_and_refuses_the_malformed() {
        let parse = |text: &str| text.parse::<Baggage>();
        assert_eq!(parse(""), Ok(Baggage::default()));
        assert_eq!(parse(" a=b , service.name = x ;p=1,,").unwrap().service_name.as_deref(), Some("x"));
        assert_eq!(parse("service.name=").unwrap(), Baggage::default());
        assert_eq!(parse("k8s.replicaset.name=x,k8s..name=y").unwrap().workload, None);
        for bad in
            ["service.name", "service.name=%4", "service.name=%zz", "service.name=%0a", "service.name=a\nb", "a=%FF"]
        {
            assert_eq!(parse(bad), Err(HeaderError::Malformed), "{bad}");
        }
        assert!(parse(&"a=b,".repeat(65)).is_err());
        assert!(parse(&format!("a={}", "b".repeat(MAX_LEN))).is_err());
    }

    #[test]
    fn a_speaker_has_the_identity_and_namespace_of_its_certificate() {
        let identity = Identity::new("far.example", "amb", "client");
        let speaker = |text: &str| text.parse::<Baggage>().unwrap().speaker(&identity);
        let text = "k8s.cluster.name=far,k8s.namespace.name=amb,k8s.deployment.name=client,service.name=client-app,\
                    service.version=v7,cloud.region=eu,cloud.availability_zone=eu-1";
        let client = speaker(text).unwrap();
        assert_eq!(Baggage::of(&client).to_string(), text);
        assert_eq!(client.name(), *"client-app");
        assert!(client.has_identity(&identity) && client.addresses.is_empty());
        let bare = speaker("k8s.pod.name=client-1").unwrap();
        assert_eq!((bare.name().to_string(), &*bare.namespace, &*bare.cluster_id), ("client-1".into(), "amb", ""));

        let long = format!("service.name={}", "x".repeat(254));
        for text in [
            "k8s.namespace.name=other,service.name=client",
            "k8s.namespace.name=amb,cloud.region=eu",
            "service.name=a%22b",
            "service.name=client,service.version=1%5C",
            "service.name=client,cloud.region=my region",
            "service.name=%C3%A4",
            &long,
        ] {
            assert_eq!(speaker(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,200}") {
            let _ = text.parse::<Baggage>();
        }

        #[test]
        fn round_trips(values in proptest::collection::vec(proptest::option::of("[^\\p{Cc}]{1,12}"), 6), kind in 0usize..4) {
            let kinds = [WorkloadType::Deployment, WorkloadType::CronJob, WorkloadType::Pod, WorkloadType::Job];
            let baggage = Baggage {
                cluster: values[0].clone(),
                namespace: values[1].clone(),
                workload: values[2].clone().map(|name| (kinds[kind], name)),
                service_name: values[3].clone(),
                service_version: values[4].clone(),
                region: values[5].clone(),
                zone: None,
            };
            prop_assert_eq!(baggage.to_string().parse::<Baggage>(), Ok(baggage));
        }
    }
}
