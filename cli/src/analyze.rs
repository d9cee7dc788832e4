//! `aquifer analyze`: what is wrong with manifests, or with what a cluster holds. The page of codes is docs/analyze.md.

mod files;
mod manifests;
mod notes;
mod print;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aquifer_istiod_lite::analyze::{Code, Finding, Level, Origin, analyze};
use aquifer_istiod_lite::index;
use aquifer_istiod_lite::revision::{self, Revision};
use aquifer_istiod_lite::translate::Mesh;
use aquifer_objects::validate::{is_dns_name, labels};
use aquifer_objects::{Kind, Object, ObjectKey, Selection, source};
use clap::{Args, ValueEnum};

use self::manifests::Place;
use crate::cluster;

#[derive(Debug, Args)]
pub(crate) struct Command {
    /// Manifests: files, folders, or `-` for standard input; no cluster is asked
    #[arg(short, long = "filename")]
    files: Vec<PathBuf>,
    /// Only what concerns this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Exit with 2 for warnings as well
    #[arg(long)]
    strict: bool,
    /// The namespace whose policies hold for the whole mesh
    #[arg(long, default_value = "istio-system")]
    root_namespace: String,
    /// The DNS suffix of Service names, as istiod-lite's CLUSTER_DOMAIN
    #[arg(long, default_value = "cluster.local", value_parser = domain)]
    cluster_domain: String,
    /// The control plane whose view is meant: its MeshConfig (`istio-<revision>`), and no object of another's
    #[arg(long, default_value = revision::DEFAULT, value_parser = revision_name)]
    revision: String,
    /// Further names of that control plane in labels istio.io/rev, as its REVISION_TAGS; `default` if it has the objects
    /// without a label
    #[arg(long, value_delimiter = ',', value_parser = tag)]
    revision_tags: Vec<String>,
    /// The cluster's kubeconfig; ~/.kube/config if neither this nor KUBECONFIG is set
    #[arg(short = 'c', long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// A folder of manifests that is a cluster's place
    #[arg(long, env = "AQUIFER_MANIFESTS")]
    manifests: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// A finding, and where its object stands in the manifests.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    code: &'static Code,
    /// None for a manifest of which not even that can be read.
    object: Option<ObjectKey>,
    place: Option<Place>,
    message: String,
}

/// What is looked at: as which control plane.
#[derive(Clone, Debug, Default)]
struct View {
    mesh: Mesh,
    revision: Revision,
}

impl View {
    fn of(command: &Command) -> Self {
        let tags = command.revision_tags.iter().filter(|tag| !tag.is_empty()).cloned();
        let revision = Revision::new(&command.revision, tags, command.revision == revision::DEFAULT);
        let mesh = Mesh {
            root_namespace: command.root_namespace.clone(),
            system_namespace: command.root_namespace.clone(),
            domain: command.cluster_domain.clone(),
            config_map: revision.config_map(),
            ..Mesh::default()
        };
        Self { mesh, revision }
    }
}

fn domain(text: &str) -> Result<String, &'static str> {
    is_dns_name(text).then(|| text.to_owned()).ok_or("must be a DNS domain, such as \"cluster.local\"")
}

fn revision_name(text: &str) -> Result<String, &'static str> {
    revision::check_name(text).map(|()| text.to_owned())
}

fn tag(text: &str) -> Result<String, String> {
    let text = text.trim();
    match labels("", [(revision::LABEL, text)]).into_iter().next() {
        Some(wrong) => Err(wrong.message),
        None => Ok(text.to_owned()),
    }
}

/// The exit code: see docs/analyze.md.
pub(crate) fn run(command: &Command) -> Result<u8> {
    let view = View::of(command);
    let mut lines = if command.files.is_empty() {
        cluster::block_on(of_cluster(command, view))?
    } else {
        of_files(&command.files, view)?
    };
    if let Some(namespace) = &command.namespace {
        lines.retain(|line| line.object.as_ref().is_none_or(|object| concerns(object, namespace)));
    }
    match command.output {
        Output::Text => print!("{}", print::text(&lines)),
        Output::Json => println!("{}", print::json(&lines)),
    }
    Ok(exit_code(&lines, command.strict))
}

fn exit_code(lines: &[Line], strict: bool) -> u8 {
    let bad = lines.iter().any(|line| strict || line.code.level == Level::Error);
    if bad { 2 } else { 0 }
}

fn concerns(object: &ObjectKey, namespace: &str) -> bool {
    *object.namespace == *namespace || (object.kind == Kind::Namespace && *object.name == *namespace)
}

fn of_files(files: &[PathBuf], view: View) -> Result<Vec<Line>> {
    let read = manifests::read(files)?;
    for (kind, count) in &read.foreign {
        eprintln!("note: {count} of kind {kind} not looked at");
    }
    for file in &read.empty {
        eprintln!("note: {} holds no object", file.display());
    }
    let mut lines = judged(read.objects.clone(), view, Origin::Manifests(read.workloads()));
    for line in &mut lines {
        line.place = line.object.as_ref().and_then(|object| read.places.get(object)).cloned();
    }
    Ok(read.wrong.into_iter().chain(lines).collect())
}

/// What the control plane makes of the objects.
fn judged(objects: Vec<Object>, view: View, origin: Origin) -> Vec<Line> {
    for note in notes::of_other_revisions(&objects, &view.revision) {
        eprintln!("note: {note}");
    }
    let found = analyze(objects, view.mesh, &view.revision, origin);
    let line = |Finding { code, object, message }| Line { code, object: Some(object), place: None, message };
    found.into_iter().map(line).collect()
}

async fn of_cluster(command: &Command, view: View) -> Result<Vec<Line>> {
    let settings = match (&command.manifests, &command.kubeconfig) {
        (Some(folder), _) => source::Settings::Folder(folder.clone()),
        (None, Some(file)) => source::Settings::Kubeconfig(file.clone()),
        (None, None) => source::Settings::Kubeconfig(
            cluster::home_kubeconfig().context("say -f with manifests, or --kubeconfig with a cluster")?,
        ),
    };
    let source = settings.open().await.with_context(|| format!("cannot use the {settings}"))?;
    let (objects, problems) = source.read(&selections(&view.mesh)).await?;
    let wrong =
        problems.into_iter().map(|message| Line { code: Code::manifest_invalid(), object: None, place: None, message });
    let has_config = objects.iter().any(|object| object.kind() == Kind::ConfigMap);
    if !has_config && command.revision != revision::DEFAULT {
        let (namespace, name) = (&view.mesh.system_namespace, &view.mesh.config_map);
        eprintln!("note: there is no ConfigMap {namespace}/{name}: the MeshConfig is taken as empty");
    }
    Ok(wrong.chain(judged(objects, view, Origin::Cluster)).collect())
}

/// What the control plane reads, and the grants that routes need.
fn selections(mesh: &Mesh) -> Vec<Selection> {
    let mut selections = index::watched(&mesh.system_namespace, &mesh.config_map);
    selections.push(Selection::from(Kind::ReferenceGrant));
    selections
}
