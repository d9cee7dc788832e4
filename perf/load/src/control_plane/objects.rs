//! The objects, made up from numbers: a pod is never stored.

use std::fmt::Write as _;

/// How many there are.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Services, each with an EndpointSlice.
    pub services: u32,
    /// Pods, spread over the services and the nodes.
    pub pods: u32,
    /// Nodes, each with a proxy's pod besides.
    pub nodes: u32,
}

/// Services of a namespace.
const SERVICES_EACH: u32 = 20;
/// What the namespace of the control plane is called.
const SYSTEM: &str = "istio-system";

/// The kinds of which there are objects, by their path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Namespace,
    Node,
    Service,
    EndpointSlice,
    Pod,
}

impl Kind {
    pub(super) fn at(path: &str) -> Option<Self> {
        match path {
            "/api/v1/namespaces" => Some(Self::Namespace),
            "/api/v1/nodes" => Some(Self::Node),
            "/api/v1/services" => Some(Self::Service),
            "/api/v1/pods" => Some(Self::Pod),
            "/apis/discovery.k8s.io/v1/endpointslices" => Some(Self::EndpointSlice),
            _ => None,
        }
    }
}

impl Size {
    fn namespaces(&self) -> u32 {
        self.services.div_ceil(SERVICES_EACH)
    }

    pub(super) fn count(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Namespace => self.namespaces() + 1,
            Kind::Node => self.nodes,
            Kind::Service | Kind::EndpointSlice => self.services,
            Kind::Pod => self.pods + self.nodes,
        }
    }

    /// The object of that number, as it stands after so many changes.
    pub(super) fn object(&self, kind: Kind, number: u32, version: u64) -> String {
        match kind {
            Kind::Namespace => self.namespace(number),
            Kind::Node => node(number),
            Kind::Service => self.service(number),
            Kind::EndpointSlice => self.slice(number),
            Kind::Pod if number < self.pods => self.pod(number, version),
            Kind::Pod => proxy_pod(number - self.pods),
        }
    }

    fn namespace(&self, number: u32) -> String {
        let (name, labels) = match number.checked_sub(1) {
            Some(number) => (namespace_name(number), "\"istio.io/dataplane-mode\":\"ambient\","),
            None => (SYSTEM.to_owned(), ""),
        };
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{{\"name\":\"{name}\",\"uid\":\"ns-{number}\",\"resourceVersion\":\"1\",\
             \"labels\":{{{labels}\"kubernetes.io/metadata.name\":\"{name}\"}}}},\"status\":{{\"phase\":\"Active\"}}}}"
        )
    }

    fn service(&self, number: u32) -> String {
        let (name, namespace) = (service_name(number), namespace_name(number / SERVICES_EACH));
        let ip = service_ip(number);
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"{namespace}\",\"uid\":\"svc-{number}\",\
             \"resourceVersion\":\"1\",\"creationTimestamp\":\"2026-01-01T00:00:00Z\",\"labels\":{{\"app\":\"{name}\"}}}},\
             \"spec\":{{\"clusterIP\":\"{ip}\",\"clusterIPs\":[\"{ip}\"],\"ipFamilies\":[\"IPv4\"],\"ipFamilyPolicy\":\"SingleStack\",\
             \"selector\":{{\"app\":\"{name}\"}},\"sessionAffinity\":\"None\",\"type\":\"ClusterIP\",\
             \"ports\":[{{\"name\":\"http\",\"port\":80,\"protocol\":\"TCP\",\"targetPort\":8080}},\
             {{\"name\":\"grpc\",\"port\":9090,\"protocol\":\"TCP\",\"targetPort\":\"grpc\"}}]}},\"status\":{{\"loadBalancer\":{{}}}}}}"
        )
    }

    fn slice(&self, number: u32) -> String {
        let (name, namespace) = (service_name(number), namespace_name(number / SERVICES_EACH));
        let mut endpoints = String::new();
        let pods = (number..self.pods).step_by(self.services.max(1) as usize);
        for (n, pod) in pods.take(100).enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let _ = write!(
                endpoints,
                "{comma}{{\"addresses\":[\"{}\"],\"conditions\":{{\"ready\":true,\"serving\":true,\"terminating\":false}},\
                 \"nodeName\":\"{}\",\"targetRef\":{{\"kind\":\"Pod\",\"name\":\"{}\",\"namespace\":\"{namespace}\",\"uid\":\"{}\"}}}}",
                pod_ip(pod),
                self.node_of(pod),
                self.pod_name(pod),
                pod_uid(pod)
            );
        }
        format!(
            "{{\"apiVersion\":\"discovery.k8s.io/v1\",\"kind\":\"EndpointSlice\",\"addressType\":\"IPv4\",\"metadata\":{{\"name\":\"{name}-x7k2p\",\
             \"namespace\":\"{namespace}\",\"uid\":\"eps-{number}\",\"resourceVersion\":\"1\",\"labels\":{{\"kubernetes.io/service-name\":\"{name}\",\
             \"endpointslice.kubernetes.io/managed-by\":\"endpointslice-controller.k8s.io\"}}}},\"endpoints\":[{endpoints}],\
             \"ports\":[{{\"name\":\"http\",\"port\":8080,\"protocol\":\"TCP\"}},{{\"name\":\"grpc\",\"port\":9090,\"protocol\":\"TCP\"}}]}}"
        )
    }

    fn service_of(&self, pod: u32) -> u32 {
        pod % self.services.max(1)
    }

    fn pod_name(&self, pod: u32) -> String {
        format!("{}-6d4cf56db6-{pod:05x}", service_name(self.service_of(pod)))
    }

    fn node_of(&self, pod: u32) -> String {
        node_name(pod % self.nodes.max(1))
    }

    /// As a kubelet and a Deployment leave a pod, with what nobody in the mesh reads.
    fn pod(&self, number: u32, version: u64) -> String {
        let service = self.service_of(number);
        let (app, namespace) = (service_name(service), namespace_name(service / SERVICES_EACH));
        let (name, node, ip, uid) = (self.pod_name(number), self.node_of(number), pod_ip(number), pod_uid(number));
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\",\"generateName\":\"{app}-6d4cf56db6-\",\"namespace\":\"{namespace}\",\
             \"uid\":\"{uid}\",\"resourceVersion\":\"{rv}\",\"creationTimestamp\":\"2026-01-01T00:00:00Z\",\
             \"labels\":{{\"app\":\"{app}\",\"pod-template-hash\":\"6d4cf56db6\",\"version\":\"{marker}\"}},\
             \"annotations\":{{\"ambient.istio.io/redirection\":\"enabled\",\"kubectl.kubernetes.io/restartedAt\":\"2026-01-01T00:00:00Z\"}},\
             \"ownerReferences\":[{{\"apiVersion\":\"apps/v1\",\"blockOwnerDeletion\":true,\"controller\":true,\"kind\":\"ReplicaSet\",\
             \"name\":\"{app}-6d4cf56db6\",\"uid\":\"rs-{service}\"}}],{MANAGED}}},\
             \"spec\":{{\"containers\":[{{\"name\":\"app\",\"image\":\"registry.example/{app}:1.0\",\"imagePullPolicy\":\"IfNotPresent\",\
             \"ports\":[{{\"containerPort\":8080,\"name\":\"http\",\"protocol\":\"TCP\"}},{{\"containerPort\":9090,\"name\":\"grpc\",\"protocol\":\"TCP\"}}],\
             {CONTAINER}}}],\"nodeName\":\"{node}\",\"serviceAccountName\":\"{app}\",\"serviceAccount\":\"{app}\",{SPEC}}},\
             \"status\":{{\"phase\":\"Running\",\"podIP\":\"{ip}\",\"podIPs\":[{{\"ip\":\"{ip}\"}}],\"hostIP\":\"192.168.0.1\",\"qosClass\":\"Burstable\",\
             \"conditions\":[{{\"type\":\"Ready\",\"status\":\"True\",\"lastProbeTime\":null,\"lastTransitionTime\":\"2026-01-01T00:00:05Z\"}},\
             {{\"type\":\"ContainersReady\",\"status\":\"True\",\"lastProbeTime\":null,\"lastTransitionTime\":\"2026-01-01T00:00:05Z\"}},\
             {{\"type\":\"PodScheduled\",\"status\":\"True\",\"lastProbeTime\":null,\"lastTransitionTime\":\"2026-01-01T00:00:00Z\"}}],\
             \"containerStatuses\":[{{\"name\":\"app\",\"ready\":true,\"restartCount\":0,\"started\":true,\"image\":\"registry.example/{app}:1.0\",\
             \"imageID\":\"registry.example/{app}@sha256:3f6c\",\"containerID\":\"containerd://{uid}\",\
             \"state\":{{\"running\":{{\"startedAt\":\"2026-01-01T00:00:04Z\"}}}},\"lastState\":{{}}}}]}}}}",
            rv = version + 1,
            marker = marker(version),
        )
    }
}

/// What a pod's change shows to proxies: its revision.
pub(super) fn marker(version: u64) -> String {
    format!("rev-{version:07}")
}

const MANAGED: &str = "\"managedFields\":[{\"manager\":\"kube-controller-manager\",\"operation\":\"Update\",\"apiVersion\":\"v1\",\
    \"time\":\"2026-01-01T00:00:00Z\",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":{\"f:metadata\":{\"f:generateName\":{},\"f:labels\":{\".\":{},\"f:app\":{},\
    \"f:pod-template-hash\":{},\"f:version\":{}},\"f:ownerReferences\":{\".\":{}}},\"f:spec\":{\"f:containers\":{\"k:{\\\"name\\\":\\\"app\\\"}\":{\".\":{},\
    \"f:image\":{},\"f:imagePullPolicy\":{},\"f:name\":{},\"f:ports\":{\".\":{}},\"f:resources\":{}}},\"f:dnsPolicy\":{},\"f:restartPolicy\":{}}}}]";
const CONTAINER: &str = "\"env\":[{\"name\":\"LOG_LEVEL\",\"value\":\"info\"},{\"name\":\"POD_NAME\",\"valueFrom\":{\"fieldRef\":{\"apiVersion\":\"v1\",\
    \"fieldPath\":\"metadata.name\"}}}],\"resources\":{\"limits\":{\"memory\":\"256Mi\"},\"requests\":{\"cpu\":\"100m\",\"memory\":\"128Mi\"}},\
    \"readinessProbe\":{\"httpGet\":{\"path\":\"/ready\",\"port\":8080,\"scheme\":\"HTTP\"},\"periodSeconds\":10},\
    \"volumeMounts\":[{\"mountPath\":\"/var/run/secrets/kubernetes.io/serviceaccount\",\"name\":\"kube-api-access\",\"readOnly\":true}]";
const SPEC: &str = "\"dnsPolicy\":\"ClusterFirst\",\"enableServiceLinks\":true,\"restartPolicy\":\"Always\",\"schedulerName\":\"default-scheduler\",\
    \"securityContext\":{},\"terminationGracePeriodSeconds\":30,\"tolerations\":[{\"effect\":\"NoExecute\",\"key\":\"node.kubernetes.io/not-ready\",\
    \"operator\":\"Exists\",\"tolerationSeconds\":300}],\"volumes\":[{\"name\":\"kube-api-access\",\"projected\":{\"defaultMode\":420,\
    \"sources\":[{\"serviceAccountToken\":{\"expirationSeconds\":3607,\"path\":\"token\"}}]}}]";

fn node(number: u32) -> String {
    let name = node_name(number);
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{{\"name\":\"{name}\",\"uid\":\"node-{number}\",\"resourceVersion\":\"1\",\
         \"labels\":{{\"kubernetes.io/hostname\":\"{name}\",\"topology.kubernetes.io/region\":\"r1\",\"topology.kubernetes.io/zone\":\"z{}\"}}}}}}",
        number % 3
    )
}

/// The pod of a node's proxy, whose token the proxies show.
fn proxy_pod(node: u32) -> String {
    let (name, ip) = (proxy_name(node), proxy_ip(node));
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"{name}\",\"namespace\":\"{SYSTEM}\",\"uid\":\"{}\",\"resourceVersion\":\"1\",\
         \"labels\":{{\"app\":\"ztunnel\"}}}},\"spec\":{{\"nodeName\":\"{}\",\"serviceAccountName\":\"ztunnel\",\"containers\":[{{\"name\":\"istio-proxy\"}}]}},\
         \"status\":{{\"phase\":\"Running\",\"podIP\":\"{ip}\",\"podIPs\":[{{\"ip\":\"{ip}\"}}],\"conditions\":[{{\"type\":\"Ready\",\"status\":\"True\"}}]}}}}",
        proxy_uid(node),
        node_name(node)
    )
}

pub(super) fn proxy_name(node: u32) -> String {
    format!("ztunnel-{node:05}")
}

pub(super) fn proxy_uid(node: u32) -> String {
    format!("00000000-0000-4000-9000-{node:012}")
}

pub(super) fn proxy_ip(node: u32) -> String {
    format!("10.255.{}.{}", node / 250, node % 250 + 1)
}

pub(super) fn node_name(number: u32) -> String {
    format!("node-{number:05}")
}

fn namespace_name(number: u32) -> String {
    format!("team-{number:04}")
}

fn service_name(number: u32) -> String {
    format!("service-{number:05}")
}

fn service_ip(number: u32) -> String {
    format!("10.96.{}.{}", number / 250, number % 250 + 1)
}

fn pod_ip(number: u32) -> String {
    format!("10.{}.{}.{}", 128 + number / 62_500, number / 250 % 250, number % 250 + 1)
}

fn pod_uid(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}
