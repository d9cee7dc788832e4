//! `aquifer lab …`: starts a lab, and speaks with one as kubectl speaks with a cluster.

mod logs;
mod status;

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aquifer_lab::{Lab, LabOptions};
use aquifer_objects::Kind;
use clap::{Args, Subcommand};
use serde_json::json;

/// A person's lab, if it gets no other name.
const DEFAULT_NAME: &str = "lab";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a lab and leave it up
    Up(Up),
    /// Run a command in a pod, by its name or its deployment's
    Exec {
        #[command(flatten)]
        which: Which,
        /// The pod's namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// The pod or deployment
        pod: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Apply manifests: a file, a folder, or `-` for standard input
    Apply {
        #[command(flatten)]
        which: Which,
        #[arg(short, long = "filename", required = true)]
        files: Vec<PathBuf>,
    },
    /// Delete an object, gracefully if it is a pod
    Delete {
        #[command(flatten)]
        which: Which,
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// pod, deployment, service, authorizationpolicy, …
        kind: String,
        name: String,
    },
    /// Set (`key=value`) or remove (`key-`) a namespace's labels
    Label {
        #[command(flatten)]
        which: Which,
        /// The namespace
        namespace: String,
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Set a deployment's replicas
    Scale {
        #[command(flatten)]
        which: Which,
        #[arg(short, long, default_value = "default")]
        namespace: String,
        deployment: String,
        #[arg(long)]
        replicas: u32,
    },
    /// Print a pod's output; `istiod`, or `ztunnel` and `agent` with `-n <node>`, for the mesh's own
    Logs(logs::Logs),
    /// Show nodes, pods, who is in the mesh, and the mesh's own processes
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// End a lab: nothing of it stays
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// List the labs that are up
    List,
    /// What a lab's pid 1 runs
    #[command(hide = true)]
    Init {
        #[arg(long)]
        state: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Its name
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// How many nodes
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Without IPv6
    #[arg(long)]
    no_ipv6: bool,
    /// Plain nodes and pods, without the mesh
    #[arg(long)]
    no_mesh: bool,
    /// Manifests to apply at once
    #[arg(short, long = "filename")]
    files: Vec<PathBuf>,
    /// Stay until Ctrl-C, and end the lab then
    #[arg(long)]
    foreground: bool,
}

/// Which lab is meant.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The lab's name; not needed while only one is up
    #[arg(long = "name", id = "lab", env = "AQUIFER_LAB")]
    name: Option<String>,
}

impl Which {
    fn attach(&self) -> Result<Lab> {
        if let Some(name) = &self.name {
            return Ok(Lab::attach(name)?);
        }
        match Lab::list().as_slice() {
            [only] => Ok(Lab::attach(only)?),
            [] => bail!("no lab is up: `aquifer lab up` starts one"),
            several => bail!("several labs are up: say which with --name ({})", several.join(", ")),
        }
    }
}

/// Runs a subcommand; the exit code.
pub(crate) fn run(command: Command) -> Result<u8> {
    if let Command::Init { state } = &command {
        // Before any thread: it forks.
        aquifer_lab::init::main(state);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(dispatch(command))
}

async fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Up(up) => self::up(up).await?,
        Command::Exec { which, namespace, pod, command } => {
            let code = which.attach()?.exec_attached(&namespace, &pod, &command).await?;
            return Ok(u8::try_from(code).unwrap_or(1));
        }
        Command::Apply { which, files } => apply(&which.attach()?, &files).await?,
        Command::Delete { which, namespace, kind, name } => {
            which.attach()?.delete(&kind, &namespace, &name).await?;
            println!("{kind}/{name} deleted");
        }
        Command::Label { which, namespace, labels } => label(&which.attach()?, &namespace, &labels).await?,
        Command::Scale { which, namespace, deployment, replicas } => {
            which.attach()?.scale(&namespace, &deployment, replicas).await?;
            println!("deployment/{deployment} scaled to {replicas}");
        }
        Command::Logs(logs) => logs::run(logs).await?,
        Command::Status { which } => print!("{}", status::render(&which.attach()?.status().await?)),
        Command::Down { which } => {
            let lab = which.attach()?;
            let name = lab.name().to_owned();
            lab.down().await?;
            println!("lab `{name}` is gone");
        }
        Command::List => Lab::list().iter().for_each(|name| println!("{name}")),
        Command::Init { .. } => unreachable!("handled before the runtime"),
    }
    Ok(0)
}

async fn up(up: Up) -> Result<()> {
    let options = LabOptions {
        name: Some(up.name),
        nodes: up.nodes,
        ipv6: !up.no_ipv6,
        mesh: !up.no_mesh,
        keep: !up.foreground,
        ..LabOptions::default()
    };
    let lab = Lab::start(options).await?;
    let mesh = if up.no_mesh { "without mesh" } else { "with the mesh" };
    println!("lab `{}` is up, {} nodes {mesh}, in {:.2} s", lab.name(), up.nodes, lab.start_took().as_secs_f64());
    if !up.files.is_empty() {
        apply(&lab, &up.files).await?;
    }
    if up.foreground {
        println!("Ctrl-C ends it");
        tokio::signal::ctrl_c().await?;
        lab.down().await?;
    } else {
        println!("try: aquifer lab status · aquifer lab apply -f examples/shop · aquifer lab down");
    }
    Ok(())
}

async fn apply(lab: &Lab, files: &[PathBuf]) -> Result<()> {
    for file in files {
        let keys = if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
            lab.apply(&text).await?
        } else {
            lab.apply_path(file).await?
        };
        keys.iter().for_each(|key| println!("{key} applied"));
    }
    Ok(())
}

async fn label(lab: &Lab, namespace: &str, labels: &[String]) -> Result<()> {
    let mut changes = serde_json::Map::new();
    for label in labels {
        let (key, value) = match (label.split_once('='), label.strip_suffix('-')) {
            (Some((key, value)), _) => (key, json!(value)),
            (None, Some(key)) => (key, serde_json::Value::Null),
            (None, None) => bail!("`{label}` is neither `key=value` nor `key-`"),
        };
        changes.insert(key.to_owned(), value);
    }
    lab.patch_user(Kind::Namespace, "", namespace, json!({"metadata": {"labels": changes}})).await?;
    println!("namespace/{namespace} labelled");
    Ok(())
}
