//! `aquifer waypoint`: make, show and remove waypoints, with the words of `istioctl waypoint`.

mod apply;
mod show;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use aquifer_objects::crds::gateway_api::Gateway;
use aquifer_objects::{Kind, Object, ObjectKey, Selection, Source, WriteError};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::cluster;

/// The class of waypoints.
const CLASS: &str = "istio-waypoint";
/// The field manager of what we write; `istioctl`'s, since one takes up what the other has begun.
const MANAGER: &str = "istioctl";
const REVISION: &str = "istio.io/rev";
const TRAFFIC: &str = "istio.io/waypoint-for";
const USE_WAYPOINT: &str = "istio.io/use-waypoint";

/// Waypoints of a cluster
#[derive(Debug, Args)]
pub(crate) struct Command {
    /// The namespace
    #[arg(short, long, global = true, default_value = "default")]
    namespace: String,
    /// Name of the waypoint
    #[arg(long, global = true, default_value = "waypoint")]
    name: String,
    /// The cluster's kubeconfig; ~/.kube/config if neither this nor KUBECONFIG is set
    #[arg(short = 'c', long, global = true, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// A folder of manifests in place of a cluster
    #[arg(long, global = true, env = "AQUIFER_MANIFESTS")]
    manifests: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a waypoint, or change it
    Apply(Apply),
    /// Print a waypoint as YAML
    Generate(Wish),
    /// List waypoints
    List {
        /// Of all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Show what became of waypoints
    Status {
        /// Of all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// Wait until they are ready
        #[arg(short, long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
        wait: bool,
        /// For so long (30s, 2m)
        #[arg(long, default_value = "90s", value_parser = duration)]
        waypoint_timeout: Duration,
    },
    /// Delete waypoints
    Delete {
        /// Names of waypoints
        names: Vec<String>,
        /// All of the namespace
        #[arg(long)]
        all: bool,
        /// Those of this revision
        #[arg(short, long)]
        revision: Option<String>,
    },
}

/// What the waypoint shall be like.
#[derive(Debug, Clone, Args)]
struct Wish {
    /// The traffic that it takes; the class's, or that of services, if not set
    #[arg(long = "for")]
    traffic: Option<Traffic>,
    /// The revision of the control plane that looks after it
    #[arg(short, long)]
    revision: Option<String>,
}

#[derive(Debug, Args)]
struct Apply {
    #[command(flatten)]
    wish: Wish,
    /// Label the namespace, so that all of it uses the waypoint
    #[arg(long)]
    enroll_namespace: bool,
    /// Do so although it uses another
    #[arg(long)]
    overwrite: bool,
    /// Wait until it is ready
    #[arg(short, long)]
    wait: bool,
    /// For so long (30s, 2m)
    #[arg(long, default_value = "90s", value_parser = duration)]
    waypoint_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Traffic {
    Service,
    Workload,
    All,
    None,
}

pub(crate) fn run(command: &Command) -> Result<u8> {
    cluster::block_on(dispatch(command))
}

async fn dispatch(command: &Command) -> Result<u8> {
    let namespace = &command.namespace;
    match &command.action {
        Action::Generate(wish) => {
            print!("{}", generated(namespace, &command.name, wish)?);
        }
        Action::Apply(options) => apply::run(&source(command).await?, namespace, &command.name, options).await?,
        Action::List { all_namespaces } => {
            let waypoints = waypoints(&source(command).await?, (!all_namespaces).then_some(namespace)).await?;
            print!("{}", show::list(&waypoints, *all_namespaces));
        }
        Action::Status { all_namespaces, wait, waypoint_timeout } => {
            let source = source(command).await?;
            let scope = (!all_namespaces).then_some(namespace.as_str());
            return show::status(&source, scope, wait.then_some(*waypoint_timeout)).await;
        }
        Action::Delete { names, all, revision } => {
            if (*all || revision.is_some()) != names.is_empty() {
                bail!("say which: names, or --all, or --revision");
            }
            return delete(&source(command).await?, namespace, names, revision.as_deref()).await;
        }
    }
    Ok(0)
}

/// Where the waypoints are.
async fn source(command: &Command) -> Result<Source> {
    cluster::source(command.manifests.as_deref(), command.kubeconfig.as_deref()).await
}

/// The Gateway to apply.
fn gateway(namespace: &str, name: &str, wish: &Wish) -> Result<Value> {
    if name == "none" {
        bail!("`none` cannot be a waypoint's name: as a label's value it means to use no waypoint");
    }
    let mut labels = serde_json::Map::new();
    if let Some(traffic) = wish.traffic.and_then(|traffic| traffic.to_possible_value()) {
        labels.insert(TRAFFIC.to_owned(), json!(traffic.get_name()));
    }
    if let Some(revision) = &wish.revision {
        labels.insert(REVISION.to_owned(), json!(revision));
    }
    let mut gateway = json!({
        "apiVersion": Kind::Gateway.api_version(),
        "kind": "Gateway",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "gatewayClassName": CLASS,
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        },
    });
    if !labels.is_empty() {
        gateway["metadata"]["labels"] = Value::Object(labels);
    }
    Ok(gateway)
}

fn generated(namespace: &str, name: &str, wish: &Wish) -> Result<String> {
    let gateway = gateway(namespace, name, wish)?;
    let mut text =
        format!("apiVersion: {}\nkind: Gateway\nmetadata:\n", gateway["apiVersion"].as_str().unwrap_or_default());
    if let Some(labels) = gateway["metadata"]["labels"].as_object() {
        text.push_str("  labels:\n");
        for (key, value) in labels {
            // A word such as `1.30` or `true` must stay text.
            text.push_str(&format!("    {key}: {value}\n"));
        }
    }
    text.push_str(&format!(
        "  name: {}\n  namespace: {}\nspec:\n  gatewayClassName: {CLASS}\n  listeners:\n  - name: mesh\n    port: 15008\n    protocol: HBONE\n",
        gateway["metadata"]["name"], gateway["metadata"]["namespace"]
    ));
    Ok(text)
}

/// The waypoints of a namespace, or all, by namespace and name.
async fn waypoints(source: &Source, namespace: Option<&str>) -> Result<Vec<Gateway>> {
    let mut selection = Selection::from(Kind::Gateway);
    if let Some(namespace) = namespace {
        selection = selection.in_namespace(namespace);
    }
    let (objects, problems) = source.read(&[selection]).await?;
    for problem in problems {
        eprintln!("warning: {problem}");
    }
    let gateways = objects.into_iter().filter_map(|object| match object {
        Object::Gateway(gateway) if gateway.spec.gateway_class_name == CLASS => Some((*gateway).clone()),
        _ => None,
    });
    let mut gateways: Vec<Gateway> = gateways.collect();
    gateways.sort_by(|a, b| (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name)));
    Ok(gateways)
}

async fn delete(source: &Source, namespace: &str, names: &[String], revision: Option<&str>) -> Result<u8> {
    let there = waypoints(source, Some(namespace)).await?;
    let label = |gateway: &Gateway| gateway.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION)).cloned();
    let mut failed = 0;
    let wanted: Vec<String> = if names.is_empty() {
        let of_revision = there.iter().filter(|one| revision.is_none() || label(one).as_deref() == revision);
        of_revision.filter_map(|gateway| gateway.metadata.name.clone()).collect()
    } else {
        names.to_vec()
    };
    // In a folder the manifests are the user's.
    let writer = source.writer(if matches!(source, Source::Folder(_)) { "user" } else { MANAGER });
    for name in wanted {
        let exists = there.iter().any(|gateway| gateway.metadata.name.as_deref() == Some(&*name));
        let key = ObjectKey::new(Kind::Gateway, namespace, &name);
        match if exists { writer.delete(&key, None).await } else { Err(WriteError::NotFound(key)) } {
            Ok(()) => println!("waypoint {namespace}/{name} deleted"),
            Err(WriteError::NotFound(_)) => {
                println!("waypoint {namespace}/{name} not found");
                failed = 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(failed)
}

/// What its Programmed condition says: status, reason, message.
fn programmed(gateway: &Gateway) -> (String, String, String) {
    let conditions = gateway.status.iter().flat_map(|status| &status.conditions);
    match conditions.into_iter().find(|condition| condition.type_ == "Programmed") {
        Some(condition) => (condition.status.clone(), condition.reason.clone(), condition.message.clone()),
        None => ("Unknown".to_owned(), "Pending".to_owned(), "no control plane has looked at it yet".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?} is no duration such as 30s or 2m")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no duration such as 30s or 2m"))?;
    Ok(Duration::from_secs(number * seconds))
}
