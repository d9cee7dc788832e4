//! `aquifer analyze`: what is wrong with manifests, or with what a cluster holds. The page of codes is docs/analyze.md.

mod manifests;
mod print;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aquifer_istiod_lite::analyze::{Code, Finding, Level, Origin, analyze};
use aquifer_istiod_lite::index;
use aquifer_istiod_lite::translate::Mesh;
use aquifer_objects::{Kind, ObjectKey, Selection, source};
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

/// The exit code: see docs/analyze.md.
pub(crate) fn run(command: &Command) -> Result<u8> {
    let mesh = Mesh {
        root_namespace: command.root_namespace.clone(),
        system_namespace: command.root_namespace.clone(),
        ..Mesh::default()
    };
    let mut lines = if command.files.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
        runtime.block_on(of_cluster(command, mesh))?
    } else {
        of_files(&command.files, mesh)?
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

fn of_files(files: &[PathBuf], mesh: Mesh) -> Result<Vec<Line>> {
    let read = manifests::read(files)?;
    for (kind, count) in &read.foreign {
        eprintln!("note: {count} of kind {kind} not looked at");
    }
    let line = |finding: Finding| Line {
        code: finding.code,
        place: read.places.get(&finding.object).cloned(),
        object: Some(finding.object),
        message: finding.message,
    };
    let found = analyze(read.objects.clone(), mesh, Origin::Manifests);
    Ok(read.wrong.iter().cloned().chain(found.into_iter().map(line)).collect())
}

async fn of_cluster(command: &Command, mesh: Mesh) -> Result<Vec<Line>> {
    let settings = match (&command.manifests, &command.kubeconfig) {
        (Some(folder), _) => source::Settings::Folder(folder.clone()),
        (None, Some(file)) => source::Settings::Kubeconfig(file.clone()),
        (None, None) => source::Settings::Kubeconfig(
            cluster::home_kubeconfig().context("say -f with manifests, or --kubeconfig with a cluster")?,
        ),
    };
    let source = settings.open().await.with_context(|| format!("cannot use the {settings}"))?;
    let (objects, problems) = source.read(&selections(&mesh)).await?;
    let wrong =
        problems.into_iter().map(|message| Line { code: Code::manifest_invalid(), object: None, place: None, message });
    let line = |finding: Finding| Line {
        code: finding.code,
        object: Some(finding.object),
        place: None,
        message: finding.message,
    };
    let found = analyze(objects, mesh, Origin::Cluster);
    Ok(wrong.chain(found.into_iter().map(line)).collect())
}

/// What the index reads, and the grants that routes need. Of ConfigMaps only those beside the mesh's.
fn selections(mesh: &Mesh) -> Vec<Selection> {
    let select = |kind: &Kind| match kind {
        Kind::ConfigMap => Selection::from(Kind::ConfigMap).in_namespace(&mesh.system_namespace),
        kind => Selection::from(*kind),
    };
    index::KINDS.iter().chain(&[Kind::ReferenceGrant]).map(select).collect()
}
