//! From a container's spec to what is run: arguments, environment, probes, how to stop it. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Lifecycle, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use nix::sys::signal::Signal;

/// Where programs are looked for, as in most images.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is run for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerPlan {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) args: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) working_dir: Option<String>,
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
    pub(super) readiness: Option<ProbePlan>,
    pub(super) liveness: Option<ProbePlan>,
    pub(super) pre_stop: Option<Check>,
    pub(super) stop_signal: i32,
}

/// When to probe, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbePlan {
    pub(super) check: Check,
    pub(super) initial_delay: Duration,
    pub(super) period: Duration,
    pub(super) timeout: Duration,
    pub(super) failures: u32,
    pub(super) successes: u32,
}

/// Something done to see whether a container answers, or to make it ready for its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Check {
    HttpGet { host: Option<String>, port: u16, path: String, headers: Vec<(String, String)> },
    TcpSocket { host: Option<String>, port: u16 },
    Exec(Vec<String>),
    Sleep(Duration),
}

/// What a container's environment may refer to.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) node: String,
    pub(super) service_account: String,
    pub(super) pod_ip: String,
    pub(super) pod_ips: String,
    pub(super) host_ip: String,
}

/// The plan, or one line on why there is none.
pub(super) fn plan(container: &Container, pod: &Pod, facts: &Facts) -> Result<ContainerPlan, String> {
    let name = &container.name;
    let env = environment(container, pod, facts).map_err(|why| format!("container {name}: {why}"))?;
    let words = container.command.iter().flatten().chain(container.args.iter().flatten());
    let args: Vec<String> = words.map(|word| expand(word, &env)).collect();
    if container.command.as_ref().is_none_or(Vec::is_empty) {
        return Err(format!("container {name}: no `command`; the lab has no images and runs programs of this machine"));
    }
    let probe = |probe: &Option<Probe>| probe.as_ref().map(|probe| probe_plan(probe, container)).transpose();
    let security = container.security_context.as_ref();
    let pod_security = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let user = security.and_then(|s| s.run_as_user).or(pod_security.and_then(|s| s.run_as_user));
    let group = security.and_then(|s| s.run_as_group).or(pod_security.and_then(|s| s.run_as_group));
    let lifecycle = container.lifecycle.clone().unwrap_or_default();
    Ok(ContainerPlan {
        name: name.clone(),
        image: container.image.clone().unwrap_or_default(),
        args,
        working_dir: container.working_dir.clone(),
        user: user.and_then(|id| u32::try_from(id).ok()),
        group: group.and_then(|id| u32::try_from(id).ok()),
        readiness: probe(&container.readiness_probe)
            .map_err(|why| format!("container {name}: readinessProbe: {why}"))?,
        liveness: probe(&container.liveness_probe).map_err(|why| format!("container {name}: livenessProbe: {why}"))?,
        pre_stop: pre_stop(&lifecycle, container).map_err(|why| format!("container {name}: preStop: {why}"))?,
        stop_signal: stop_signal(&lifecycle).map_err(|why| format!("container {name}: {why}"))?,
        env,
    })
}

fn environment(container: &Container, pod: &Pod, facts: &Facts) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), "/root".to_owned()),
        ("HOSTNAME".to_owned(), facts.name.clone()),
    ]);
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => expand(value, &env),
            (None, Some(from)) => {
                let field = from.field_ref.as_ref().map(|field| field.field_path.as_str());
                let field = field
                    .ok_or_else(|| format!("env {}: only `value` and `fieldRef` are known here", variable.name))?;
                facts.field(field, pod).ok_or_else(|| format!("env {}: unknown field {field}", variable.name))?
            }
            (None, None) => String::new(),
        };
        env.insert(variable.name.clone(), value);
    }
    Ok(env)
}

impl Facts {
    fn field(&self, path: &str, pod: &Pod) -> Option<String> {
        let own = match path {
            "metadata.name" => &self.name,
            "metadata.namespace" => &self.namespace,
            "metadata.uid" => &self.uid,
            "spec.nodeName" => &self.node,
            "spec.serviceAccountName" => &self.service_account,
            "status.podIP" => &self.pod_ip,
            "status.podIPs" => &self.pod_ips,
            "status.hostIP" => &self.host_ip,
            _ => {
                let (map, key) = path.strip_suffix("']")?.split_once("['")?;
                let map = match map {
                    "metadata.labels" => &pod.metadata.labels,
                    "metadata.annotations" => &pod.metadata.annotations,
                    _ => return None,
                };
                return Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
            }
        };
        Some(own.clone())
    }
}

/// Replaces `$(NAME)` of known variables; `$$` is one `$`. What isn't known stays as written, as in Kubernetes.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
            // `$$(NAME)` is the text `$(NAME)`.
            continue;
        }
        let known = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match known.and_then(|(name, after)| Some((env.get(name)?, after))) {
            Some((value, after)) => {
                result.push_str(value);
                rest = after;
            }
            None => result.push('$'),
        }
    }
    result.push_str(rest);
    result
}

fn probe_plan(probe: &Probe, container: &Container) -> Result<ProbePlan, String> {
    let handler = LifecycleHandler {
        exec: probe.exec.clone(),
        http_get: probe.http_get.clone(),
        tcp_socket: probe.tcp_socket.clone(),
        sleep: None,
    };
    let check = check(&handler, container)?.ok_or("only httpGet, tcpSocket and exec are known here")?;
    let seconds =
        |value: Option<i32>, default: u64| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default);
    let count =
        |value: Option<i32>, default: u32| value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default).max(1);
    Ok(ProbePlan {
        check,
        initial_delay: Duration::from_secs(seconds(probe.initial_delay_seconds, 0)),
        period: Duration::from_secs(seconds(probe.period_seconds, 10).max(1)),
        timeout: Duration::from_secs(seconds(probe.timeout_seconds, 1).max(1)),
        failures: count(probe.failure_threshold, 3),
        successes: count(probe.success_threshold, 1),
    })
}

fn pre_stop(lifecycle: &Lifecycle, container: &Container) -> Result<Option<Check>, String> {
    lifecycle.pre_stop.as_ref().map_or(Ok(None), |handler| check(handler, container))
}

fn check(handler: &LifecycleHandler, container: &Container) -> Result<Option<Check>, String> {
    if let Some(get) = &handler.http_get {
        let headers = get.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
        return Ok(Some(Check::HttpGet {
            host: get.host.clone(),
            port: port(&get.port, container)?,
            path: get.path.clone().unwrap_or_else(|| "/".to_owned()),
            headers: headers.collect(),
        }));
    }
    if let Some(socket) = &handler.tcp_socket {
        return Ok(Some(Check::TcpSocket { host: socket.host.clone(), port: port(&socket.port, container)? }));
    }
    if let Some(exec) = &handler.exec {
        return Ok(Some(Check::Exec(exec.command.clone().unwrap_or_default())));
    }
    let seconds = handler.sleep.as_ref().map(|sleep| u64::try_from(sleep.seconds).unwrap_or(0));
    Ok(seconds.map(|seconds| Check::Sleep(Duration::from_secs(seconds))))
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let found = ports.find(|port| port.name.as_ref() == Some(name));
            found.map(|port| port.container_port).ok_or_else(|| format!("the container has no port `{name}`"))?
        }
    };
    u16::try_from(number).map_err(|_| format!("{number} is no port"))
}

fn stop_signal(lifecycle: &Lifecycle) -> Result<i32, String> {
    let Some(name) = &lifecycle.stop_signal else { return Ok(libc::SIGTERM) };
    name.parse::<Signal>().map(|signal| signal as i32).map_err(|_| format!("stopSignal: `{name}` is no signal"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan_of(container: serde_json::Value) -> Result<ContainerPlan, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [container], "securityContext": {"runAsUser": 1000}},
        }))
        .unwrap();
        let facts =
            Facts { name: "web-1".into(), namespace: "shop".into(), pod_ip: "198.18.17.2".into(), ..Facts::default() };
        plan(&pod.spec.as_ref().unwrap().containers[0], &pod, &facts)
    }

    #[test]
    fn commands_and_environment() {
        let plan = plan_of(json!({
            "name": "c",
            "command": ["server", "--ip=$(IP)"],
            "args": ["$(MISSING)", "$$(IP)", "100$"],
            "env": [
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "URL", "value": "http://$(IP)/"},
            ],
        }))
        .unwrap();
        assert_eq!(plan.args, ["server", "--ip=198.18.17.2", "$(MISSING)", "$(IP)", "100$"]);
        assert_eq!(
            [&plan.env["APP"], &plan.env["URL"], &plan.env["HOSTNAME"]],
            ["web", "http://198.18.17.2/", "web-1"]
        );
        assert_eq!((plan.user, plan.group, plan.stop_signal), (Some(1000), None, libc::SIGTERM));
    }

    #[test]
    fn probes_and_the_way_to_stop() {
        let plan = plan_of(json!({
            "name": "c",
            "command": ["nginx"],
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 2},
            "livenessProbe": {"tcpSocket": {"port": 8080}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 2}}, "stopSignal": "SIGQUIT"},
        }))
        .unwrap();
        let readiness = plan.readiness.unwrap();
        assert_eq!(readiness.check, Check::HttpGet { host: None, port: 8080, path: "/ready".into(), headers: vec![] });
        assert_eq!((readiness.period, readiness.failures), (Duration::from_secs(2), 3));
        assert_eq!(plan.liveness.unwrap().check, Check::TcpSocket { host: None, port: 8080 });
        assert_eq!(plan.pre_stop, Some(Check::Sleep(Duration::from_secs(2))));
        assert_eq!(plan.stop_signal, libc::SIGQUIT);
    }

    #[test]
    fn what_cannot_run_is_told() {
        let cases = [
            (json!({"name": "c", "image": "nginx"}), "no `command`"),
            (json!({"name": "c", "command": ["x"], "readinessProbe": {"tcpSocket": {"port": "web"}}}), "no port `web`"),
            (json!({"name": "c", "command": ["x"], "readinessProbe": {"grpc": {"port": 1}}}), "only httpGet"),
            (json!({"name": "c", "command": ["x"], "lifecycle": {"stopSignal": "SIGNONE"}}), "`SIGNONE` is no signal"),
            (
                json!({"name": "c", "command": ["x"], "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]}),
                "unknown field spec.x",
            ),
        ];
        for (container, expect) in cases {
            let error = plan_of(container.clone()).unwrap_err();
            assert!(error.contains(expect), "{container}: {error}");
        }
    }
}
