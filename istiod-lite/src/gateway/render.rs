//! The objects that a waypoint consists of.

use std::collections::BTreeMap;

use aquifer_objects::Kind;
use aquifer_objects::crds::gateway_api::Gateway;
use aquifer_objects::crds::gateway_api::gateway::Listener;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Map, Value, json};

use super::merge::strategic;
use super::{MANAGED, Settings, Told};

/// The label of everything that belongs to a Gateway.
pub(super) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";
const SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
const SERVICE_TYPE: &str = "networking.istio.io/service-type";
const NETWORK: &str = "topology.istio.io/network";
const PROXY_IMAGE: &str = "sidecar.istio.io/proxyImage";
/// Annotations that are meant for the Gateway itself.
const NOT_COPIED: [&str; 4] =
    ["kubectl.kubernetes.io/last-applied-configuration", NAME_OVERRIDE, SERVICE_ACCOUNT, super::CONTROLLER_VERSION];
/// What the label `gateway.istio.io/managed` says on a waypoint's objects.
pub(super) const MANAGED_BY: &str = "istio.io-mesh-controller";

/// Keys of an overlay ConfigMap, and the kinds that they lie over. The last two are made only if one is there.
const OVERLAYS: [(&str, Kind); 5] = [
    ("serviceAccount", Kind::ServiceAccount),
    ("deployment", Kind::Deployment),
    ("service", Kind::Service),
    ("horizontalPodAutoscaler", Kind::HorizontalPodAutoscaler),
    ("podDisruptionBudget", Kind::PodDisruptionBudget),
];
const OPTIONAL: [Kind; 2] = [Kind::HorizontalPodAutoscaler, Kind::PodDisruptionBudget];

/// What the Gateway says about names.
pub(super) struct Names {
    /// Of Deployment, Service, HorizontalPodAutoscaler and PodDisruptionBudget.
    pub(super) deployment: String,
    /// Of the ServiceAccount.
    pub(super) service_account: String,
    /// Whether the user named the ServiceAccount, so that it may be one of theirs.
    pub(super) own_account: bool,
}

impl Names {
    /// The names of a Gateway's objects.
    pub(super) fn of(gateway: &Gateway) -> Self {
        let name = gateway.metadata.name.clone().unwrap_or_default();
        let account = annotation(gateway, SERVICE_ACCOUNT);
        Self {
            deployment: annotation(gateway, NAME_OVERRIDE).unwrap_or_else(|| name.clone()),
            own_account: account.is_some(),
            service_account: account.unwrap_or(name),
        }
    }
}

/// The objects, each with the kind, in the order in which they are to be made. The error is for the user.
pub(super) fn objects(
    gateway: &Gateway,
    overlays: &[&ConfigMap],
    settings: &Settings,
    told: &Told,
) -> Result<Vec<(Kind, Value)>, String> {
    let frame = Frame::new(gateway, settings, told);
    let plain = [
        (Kind::ServiceAccount, frame.service_account()),
        (Kind::Deployment, frame.deployment()),
        (Kind::Service, frame.service()),
        (Kind::HorizontalPodAutoscaler, frame.autoscaler()),
        (Kind::PodDisruptionBudget, frame.disruption_budget()),
    ];
    let mut objects = Vec::new();
    for (kind, mut object) in plain {
        let identity = identity(&object);
        let mut overlaid = false;
        for config in overlays {
            overlaid |= overlay(kind, &mut object, config)?;
        }
        if identity != self::identity(&object) {
            return Err(format!(
                "the overlay of {kind} changes its name, namespace, owner or finalizers, which are not free"
            ));
        }
        if overlaid || !OPTIONAL.contains(&kind) {
            objects.push((kind, object));
        }
    }
    Ok(objects)
}

/// Whether the waypoint's container knows what to run.
pub(super) fn has_image(deployment: &Value) -> bool {
    let containers = deployment.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    let image = |container: &Value| container["image"].as_str().is_some_and(|image| !image.is_empty());
    containers.is_some_and(|containers| containers.iter().all(image))
}

fn overlay(kind: Kind, object: &mut Value, config: &ConfigMap) -> Result<bool, String> {
    let source = format!(
        "ConfigMap {}/{}",
        config.metadata.namespace.as_deref().unwrap_or_default(),
        config.metadata.name.as_deref().unwrap_or_default()
    );
    let data = config.data.iter().flatten();
    if let Some((unknown, _)) = data.clone().find(|(key, _)| !OVERLAYS.iter().any(|(known, _)| known == key)) {
        let known: Vec<&str> = OVERLAYS.iter().map(|(key, _)| *key).collect();
        return Err(format!("{source}: unknown key {unknown:?}; known are {}", known.join(", ")));
    }
    let mut overlaid = false;
    for (key, text) in data.filter(|(key, _)| OVERLAYS.contains(&(key.as_str(), kind))) {
        let patch: Value =
            aquifer_objects::parse::yaml(text).map_err(|error| format!("{source}, key {key}: {error}"))?;
        strategic(object, &patch).map_err(|error| format!("{source}, key {key}: {error}"))?;
        overlaid = true;
    }
    Ok(overlaid)
}

/// What an overlay must leave alone.
fn identity(object: &Value) -> Vec<Value> {
    let fields = ["name", "generateName", "namespace", "uid", "resourceVersion", "ownerReferences", "finalizers"];
    let of = |field: &str| object["metadata"].get(field).cloned().unwrap_or_default();
    fields.iter().map(|field| of(field)).chain([object["kind"].clone(), object["apiVersion"].clone()]).collect()
}

fn annotation(gateway: &Gateway, key: &str) -> Option<String> {
    gateway.metadata.annotations.as_ref()?.get(key).cloned()
}

type Strings = BTreeMap<String, String>;

/// What all objects of one Gateway share.
struct Frame<'a> {
    gateway: &'a Gateway,
    settings: &'a Settings,
    told: &'a Told,
    names: Names,
    namespace: String,
    labels: Strings,
    annotations: Strings,
}

impl<'a> Frame<'a> {
    fn new(gateway: &'a Gateway, settings: &'a Settings, told: &'a Told) -> Self {
        let infrastructure = gateway.spec.infrastructure.as_ref();
        let not_gateways = |map: &Strings| -> Strings {
            let foreign = map.iter().filter(|(key, _)| !key.starts_with("gateway.networking.k8s.io/"));
            foreign.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        // What the user says for the infrastructure takes the place of what stands on the Gateway.
        let mut labels = match infrastructure.filter(|infrastructure| !infrastructure.labels.is_empty()) {
            Some(infrastructure) => not_gateways(&infrastructure.labels),
            None => gateway.metadata.labels.clone().unwrap_or_default(),
        };
        let mut annotations = match infrastructure.filter(|infrastructure| !infrastructure.annotations.is_empty()) {
            Some(infrastructure) => not_gateways(&infrastructure.annotations),
            None => gateway.metadata.annotations.clone().unwrap_or_default(),
        };
        annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
        if !told.network.is_empty() {
            labels.entry(NETWORK.to_owned()).or_insert_with(|| told.network.clone());
        }
        let name = gateway.metadata.name.clone().unwrap_or_default();
        labels.insert(GATEWAY_NAME.to_owned(), name);
        labels.insert(CLASS_NAME.to_owned(), gateway.spec.gateway_class_name.clone());
        labels.insert(MANAGED.to_owned(), MANAGED_BY.to_owned());
        Self {
            gateway,
            settings,
            told,
            names: Names::of(gateway),
            namespace: gateway.metadata.namespace.clone().unwrap_or_default(),
            labels,
            annotations,
        }
    }

    fn object(&self, kind: Kind, name: &str, annotations: Strings) -> Map<String, Value> {
        let owner = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "name": self.gateway.metadata.name,
            "uid": self.gateway.metadata.uid.as_deref().unwrap_or_default(),
        });
        let mut metadata = json!({
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels,
            "ownerReferences": [owner],
        });
        if !annotations.is_empty() {
            metadata["annotations"] = json!(annotations);
        }
        let mut object = Map::new();
        object.insert("apiVersion".to_owned(), json!(kind.api_version()));
        object.insert("kind".to_owned(), json!(kind.manifest_name()));
        object.insert("metadata".to_owned(), metadata);
        object
    }

    fn with_spec(&self, kind: Kind, annotations: Strings, spec: Value) -> Value {
        let mut object = self.object(kind, &self.names.deployment, annotations);
        object.insert("spec".to_owned(), spec);
        Value::Object(object)
    }

    fn selector(&self) -> Value {
        json!({ GATEWAY_NAME: self.gateway.metadata.name })
    }

    fn service_account(&self) -> Value {
        Value::Object(self.object(Kind::ServiceAccount, &self.names.service_account, self.annotations.clone()))
    }

    fn service(&self) -> Value {
        let mut annotations = self.annotations.clone();
        annotations
            .entry("networking.istio.io/traffic-distribution".to_owned())
            .or_insert_with(|| "PreferClose".into());
        let type_ = annotation(self.gateway, SERVICE_TYPE).unwrap_or_else(|| "ClusterIP".to_owned());
        let mut ports = vec![json!({ "name": "status-port", "port": 15021, "protocol": "TCP", "appProtocol": "tcp" })];
        let mut taken = vec![15021];
        for listener in &self.gateway.spec.listeners {
            if taken.contains(&listener.port) {
                continue;
            }
            taken.push(listener.port);
            ports.push(json!({
                "name": port_name(listener),
                "port": listener.port,
                "protocol": "TCP",
                "appProtocol": listener.protocol.to_ascii_lowercase(),
            }));
        }
        let spec = json!({
            "type": type_,
            "ipFamilyPolicy": "PreferDualStack",
            "ports": ports,
            "selector": self.selector(),
        });
        self.with_spec(Kind::Service, annotations, spec)
    }

    fn autoscaler(&self) -> Value {
        let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": self.names.deployment });
        let spec = json!({ "scaleTargetRef": target, "maxReplicas": 1 });
        self.with_spec(Kind::HorizontalPodAutoscaler, self.annotations.clone(), spec)
    }

    fn disruption_budget(&self) -> Value {
        let spec = json!({ "selector": { "matchLabels": self.selector() } });
        self.with_spec(Kind::PodDisruptionBudget, self.annotations.clone(), spec)
    }

    fn deployment(&self) -> Value {
        let mut labels: Strings = [
            ("sidecar.istio.io/inject", "false"),
            ("istio.io/dataplane-mode", "none"),
            ("service.istio.io/canonical-name", &self.names.deployment),
            ("service.istio.io/canonical-revision", "latest"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        labels.extend(self.labels.clone());
        let mut annotations = self.annotations.clone();
        let fixed = [
            ("istio.io/rev", self.settings.revision.as_str()),
            ("prometheus.io/path", "/stats/prometheus"),
            ("prometheus.io/port", "15020"),
            ("prometheus.io/scrape", "true"),
        ];
        annotations.extend(fixed.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let spec = json!({
            "selector": { "matchLabels": self.selector() },
            "template": {
                "metadata": { "labels": labels, "annotations": annotations },
                "spec": {
                    "serviceAccountName": self.names.service_account,
                    "containers": [self.container()],
                    "volumes": [
                        { "name": "istiod-ca-cert", "configMap": { "name": "istio-ca-root-cert" } },
                        { "name": "istio-token", "projected": { "sources": [{ "serviceAccountToken": {
                            "audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token" } }] } },
                        { "name": "istio-podinfo", "downwardAPI": { "items": [
                            { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                            { "path": "annotations", "fieldRef": { "fieldPath": "metadata.annotations" } },
                        ] } },
                    ],
                },
            },
        });
        self.with_spec(Kind::Deployment, self.annotations.clone(), spec)
    }

    fn container(&self) -> Value {
        let probe = |failures: u32, period: u32, delay: u32| {
            json!({
                "httpGet": { "path": "/healthz/ready", "port": 15021, "scheme": "HTTP" },
                "failureThreshold": failures, "periodSeconds": period, "initialDelaySeconds": delay,
                "successThreshold": 1, "timeoutSeconds": 1,
            })
        };
        let mut container = json!({
            "name": "istio-proxy",
            "ports": [
                { "containerPort": 15008, "name": "hbone", "protocol": "TCP" },
                { "containerPort": 15020, "name": "metrics", "protocol": "TCP" },
                { "containerPort": 15021, "name": "status-port", "protocol": "TCP" },
            ],
            "env": self.env(),
            "resources": {
                "requests": { "cpu": "100m", "memory": "128Mi" },
                "limits": { "cpu": "2", "memory": "1Gi" },
            },
            "startupProbe": probe(30, 1, 1),
            "readinessProbe": probe(4, 15, 0),
            "securityContext": {
                "privileged": false,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "runAsUser": 1337,
                "runAsGroup": 1337,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [
                { "name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio" },
                { "name": "istio-token", "mountPath": "/var/run/secrets/tokens" },
                { "name": "istio-podinfo", "mountPath": "/etc/istio/pod" },
            ],
        });
        let own = annotation(self.gateway, PROXY_IMAGE).filter(|image| image.contains('/'));
        if let Some(image) = own.or_else(|| self.settings.waypoint_image.clone()) {
            container["image"] = json!(image);
        }
        container
    }

    fn env(&self) -> Value {
        let settings = self.settings;
        let field =
            |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
        let plain = |name: &str, value: &str| json!({ "name": name, "value": value });
        let address = format!("https://{}", settings.control_plane());
        let owner =
            format!("kubernetes://apis/apps/v1/namespaces/{}/deployments/{}", self.namespace, self.names.deployment);
        let mut env = vec![
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("INSTANCE_IP", "status.podIP"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            field("NODE_NAME", "spec.nodeName"),
            field("HOST_IP", "status.hostIP"),
            plain("XDS_ADDRESS", &address),
            plain("CA_ADDRESS", &address),
            plain("XDS_ROOT_CA", "/var/run/secrets/istio/root-cert.pem"),
            plain("CA_ROOT_CA", "/var/run/secrets/istio/root-cert.pem"),
            plain("AUTH_TOKEN", "/var/run/secrets/tokens/istio-token"),
            plain("GATEWAY_NAME", self.gateway.metadata.name.as_deref().unwrap_or_default()),
            plain("CLUSTER_ID", &settings.cluster_id),
            plain("TRUST_DOMAIN", &self.told.trust_domain),
            plain("ISTIO_META_CLUSTER_ID", &settings.cluster_id),
            plain("ISTIO_META_WORKLOAD_NAME", &self.names.deployment),
            plain("ISTIO_META_OWNER", &owner),
        ];
        // The name of ours, and of Istio's.
        if let Some(network) = self.labels.get(NETWORK).filter(|network| !network.is_empty()) {
            env.extend([plain("NETWORK", network), plain("ISTIO_META_NETWORK", network)]);
        }
        Value::Array(env)
    }
}

/// A listener's name may have dots and 253 characters, a port's may not.
fn port_name(listener: &Listener) -> String {
    let name: String = listener.name.replace('.', "-").chars().take(63).collect();
    if name.is_empty() { format!("{}-{}", listener.protocol.to_ascii_lowercase(), listener.port) } else { name }
}
