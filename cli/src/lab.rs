//! `aquifer lab …`: starts a lab, and speaks with one as kubectl speaks with a cluster.

mod label;
mod logs;
mod manifests;
mod status;

use std::path::PathBuf;

use anyhow::{Result, bail};
use aquifer_lab::{Lab, LabOptions};
use aquifer_objects::Kind;
use clap::{Args, Subcommand};

/// A person's lab, if it gets no other name.
const DEFAULT_NAME: &str = "lab";

/// What to type next, shown when a lab is up.
const NEXT: [&str; 3] = ["status", "apply -f examples/shop", "down"];

/// A lab and what to do with it.
#[derive(Debug, Args)]
pub(crate) struct Command {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    verb: Verb,
}

impl Command {
    /// Whether this is pid 1 of a lab.
    pub(crate) fn is_init(&self) -> bool {
        matches!(self.verb, Verb::Init { .. })
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a lab and leave it up
    Up(Up),
    /// Run a command in a pod (`x`, `pod/x`), or in a deployment's (`deploy/x`)
    Exec {
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
        #[arg(short, long = "filename", required = true)]
        files: Vec<PathBuf>,
    },
    /// Delete objects, gracefully if they are pods
    Delete(manifests::Delete),
    /// Set (`key=value`) or remove (`key-`) labels of a namespace, or of another object
    Label(label::Label),
    /// Set a deployment's replicas
    Scale {
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// `x` or `deployment/x`
        deployment: String,
        #[arg(long)]
        replicas: u32,
    },
    /// Print a pod's output; `istiod`, or `ztunnel` and `agent` with `--node`, for the mesh's own
    Logs(logs::Logs),
    /// Show nodes, pods, who is in the mesh, and the mesh's own processes
    Status,
    /// Run kubectl against the API server of a lab that has one: `aquifer lab kubectl get pods -A`
    Kubectl {
        /// What kubectl is told
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// End a lab: nothing of it stays
    Down,
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
struct Up {
    /// How many nodes
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Without IPv6
    #[arg(long)]
    no_ipv6: bool,
    /// Without a resolver: Services' names stand in each pod's /etc/hosts
    #[arg(long)]
    no_dns: bool,
    /// Plain nodes and pods, without the mesh
    #[arg(long)]
    no_mesh: bool,
    /// Objects lie in a real Kubernetes API server (`make kube` builds it) instead of a folder of manifests
    #[arg(long)]
    api_server: bool,
    /// Manifests to apply at once
    #[arg(short, long = "filename")]
    files: Vec<PathBuf>,
    /// Stay until Ctrl-C, and end the lab then
    #[arg(long)]
    foreground: bool,
}

/// Which lab is meant.
#[derive(Debug, Args)]
struct Which {
    /// The lab's name; not needed while only one is up
    #[arg(long = "name", id = "lab", env = "AQUIFER_LAB", global = true)]
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
    if let Verb::Init { state } = &command.verb {
        // Before any thread: it forks.
        aquifer_lab::init::main(state);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(dispatch(command))
}

async fn dispatch(Command { which, verb }: Command) -> Result<u8> {
    match verb {
        Verb::Up(up) => self::up(which.name, up).await?,
        Verb::Exec { namespace, pod, command } => {
            let code = which.attach()?.exec_attached(&namespace, &pod, &command).await?;
            return Ok(u8::try_from(code).unwrap_or(1));
        }
        Verb::Apply { files } => manifests::apply(&which.attach()?, &files).await?,
        Verb::Delete(delete) => return manifests::delete(&which.attach()?, &delete).await,
        Verb::Label(label) => label::run(&which.attach()?, &label).await?,
        Verb::Scale { namespace, deployment, replicas } => {
            let name = deployment_name(&deployment)?;
            which.attach()?.scale(&namespace, name, replicas).await?;
            println!("deployment/{name} scaled to {replicas}");
        }
        Verb::Logs(logs) => logs::run(&which.attach()?, &logs).await?,
        Verb::Status => print!("{}", status::render(&which.attach()?.status().await?)),
        Verb::Kubectl { args } => {
            let code = which.attach()?.kubectl(&args).await?;
            return Ok(u8::try_from(code).unwrap_or(1));
        }
        Verb::Down => {
            let lab = which.attach()?;
            let name = lab.name().to_owned();
            lab.down().await?;
            println!("lab `{name}` is gone");
        }
        Verb::List => Lab::list().iter().for_each(|name| println!("{name}")),
        Verb::Init { .. } => unreachable!("handled before the runtime"),
    }
    Ok(0)
}

fn deployment_name(text: &str) -> Result<&str> {
    match text.split_once('/') {
        None => Ok(text),
        Some((kind, name)) if kind.parse() == Ok(Kind::Deployment) => Ok(name),
        Some(_) => bail!("`{text}` is no deployment: only `deployment/…` can be scaled"),
    }
}

async fn up(name: Option<String>, up: Up) -> Result<()> {
    let options = LabOptions {
        name: Some(name.unwrap_or_else(|| DEFAULT_NAME.to_owned())),
        nodes: up.nodes,
        ipv6: !up.no_ipv6,
        dns: !up.no_dns,
        mesh: !up.no_mesh,
        api_server: up.api_server,
        keep: !up.foreground,
        ..LabOptions::default()
    };
    let lab = Lab::start(options).await?;
    let mesh = if up.no_mesh { "without mesh" } else { "with the mesh" };
    println!("lab `{}` is up, {} nodes {mesh}, in {:.2} s", lab.name(), up.nodes, lab.start_took().as_secs_f64());
    if !up.files.is_empty() {
        manifests::apply(&lab, &up.files).await?;
    }
    if up.foreground {
        println!("Ctrl-C ends it");
        tokio::signal::ctrl_c().await?;
        lab.down().await?;
    } else {
        println!("try: {}", next(lab.name(), &Lab::list()).join(" · "));
    }
    Ok(())
}

/// What to type next, for the lab: without its name where that is not needed.
pub(crate) fn next(name: &str, all: &[String]) -> Vec<String> {
    let which = if all.iter().any(|other| other != name) { format!("--name {name} ") } else { String::new() };
    NEXT.iter().map(|verb| format!("aquifer lab {which}{verb}")).collect()
}
