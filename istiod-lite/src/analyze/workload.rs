//! Kinds of which pods are made: read to say something about manifests, and by nobody else.

use aquifer_objects::parse::shaped_as;
use aquifer_objects::validate::FieldError;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job, JobSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Something that makes pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    kind: &'static str,
    namespace: String,
    name: String,
    /// Whether it has any pods now.
    running: bool,
    template: PodTemplateSpec,
}

impl Workload {
    /// A StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job or CronJob; `None` for whatever is none of these.
    pub fn read(value: &Value) -> Option<Result<Self, FieldError>> {
        let text = |key: &str| value[key].as_str().unwrap_or_default();
        let read = match (text("apiVersion"), text("kind")) {
            ("apps/v1", "StatefulSet") => shaped(value, Self::of_stateful_set),
            ("apps/v1", "DaemonSet") => shaped(value, Self::of_daemon_set),
            ("apps/v1", "ReplicaSet") => shaped(value, Self::of_replica_set),
            ("v1", "ReplicationController") => shaped(value, Self::of_replication_controller),
            ("batch/v1", "Job") => shaped(value, Self::of_job),
            ("batch/v1", "CronJob") => shaped(value, Self::of_cron_job),
            _ => return None,
        };
        Some(read.and_then(Self::named))
    }

    pub(super) fn of_deployment(deployment: &Deployment) -> Self {
        let spec = &deployment.spec;
        Self::new("Deployment", &deployment.metadata, scaled(spec.replicas), spec.template.clone())
    }

    /// A pod that stands by itself.
    pub(super) fn of_pod(pod: &Pod) -> Self {
        let template = PodTemplateSpec { metadata: Some(pod.metadata.clone()), spec: pod.spec.clone() };
        Self::new("Pod", &pod.metadata, true, template)
    }

    /// What tells it from others.
    pub fn key(&self) -> (&'static str, &str, &str) {
        (self.kind, &self.namespace, &self.name)
    }

    /// The namespace of its pods.
    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    pub(super) fn template(&self) -> &PodTemplateSpec {
        &self.template
    }

    /// Names for its pod, the likeliest first: another workload may have the first one.
    pub(super) fn pod_names(&self) -> [String; 2] {
        let first = match self.kind {
            "StatefulSet" => format!("{}-0", self.name),
            _ => self.name.clone(),
        };
        [first, format!("{}-{}", self.name, self.kind.to_ascii_lowercase())]
    }

    fn of_stateful_set(set: StatefulSet) -> Self {
        let spec = set.spec;
        Self::new("StatefulSet", &set.metadata, scaled(spec.replicas), spec.template)
    }

    fn of_daemon_set(set: DaemonSet) -> Self {
        Self::new("DaemonSet", &set.metadata, true, set.spec.template)
    }

    fn of_replica_set(set: ReplicaSet) -> Self {
        let spec = set.spec;
        Self::new("ReplicaSet", &set.metadata, scaled(spec.replicas), spec.template.unwrap_or_default())
    }

    fn of_replication_controller(controller: ReplicationController) -> Self {
        let spec = controller.spec.unwrap_or_default();
        let template = spec.template.unwrap_or_default();
        Self::new("ReplicationController", &controller.metadata, scaled(spec.replicas), template)
    }

    fn of_job(job: Job) -> Self {
        let spec = job.spec.unwrap_or_default();
        Self::new("Job", &job.metadata, runs(&spec), spec.template)
    }

    fn of_cron_job(cron: CronJob) -> Self {
        let job = cron.spec.job_template.spec.unwrap_or_default();
        let running = cron.spec.suspend != Some(true) && runs(&job);
        Self::new("CronJob", &cron.metadata, running, job.template)
    }

    fn new(kind: &'static str, meta: &ObjectMeta, running: bool, template: PodTemplateSpec) -> Self {
        // As kubectl applies it.
        let namespace = meta.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default");
        let name = meta.name.clone().unwrap_or_default();
        Self { kind, namespace: namespace.to_owned(), name, running, template }
    }

    fn named(self) -> Result<Self, FieldError> {
        if self.name.is_empty() {
            return Err(FieldError { path: "metadata.name".to_owned(), message: "is missing".to_owned() });
        }
        Ok(self)
    }
}

fn shaped<T: DeserializeOwned>(value: &Value, make: fn(T) -> Workload) -> Result<Workload, FieldError> {
    shaped_as(value).map(make)
}

fn scaled(replicas: Option<i32>) -> bool {
    replicas != Some(0)
}

fn runs(job: &JobSpec) -> bool {
    job.suspend != Some(true) && job.parallelism != Some(0)
}
