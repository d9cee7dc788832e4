//! `aquifer rotate-root`: another root for the mesh, without a failed handshake.
//!
//! It asks by the ConfigMap `aquifer-root-rotation` and follows what the leading replica of the control plane says there.
//! The rotation goes on by itself when this command ends; the next call takes it up where it is.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aquifer_istiod_lite::ca::rotation::Goal;
use aquifer_istiod_lite::ca::rotation::request::{self, Request, Status};
use aquifer_objects::Source;
use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::cluster;

/// The field manager of the request.
const MANAGER: &str = "aquifer-cli";
const LOOK: Duration = Duration::from_millis(500);
/// A leader answers within some five seconds.
const ANSWER: Duration = Duration::from_secs(30);
/// Who lags is told again after this time.
const REMIND: Duration = Duration::from_secs(30);
/// The exit code when the rotation has not come to its end: somebody lags.
const LAGGING: u8 = 2;

/// Change the root of the mesh: both are trusted until every proxy has followed, then the old one goes
#[derive(Debug, Args)]
pub(crate) struct Command {
    /// Only show how far a rotation is
    #[arg(long, conflicts_with_all = ["finish", "abort"])]
    status: bool,
    /// Go on with a rotation, don't begin one; says who lags
    #[arg(long, conflicts_with = "abort")]
    finish: bool,
    /// Go back to the old root, by a way as safe as the one forward
    #[arg(long)]
    abort: bool,
    /// Follow it for so long (30s, 15m); it goes on afterwards
    #[arg(long, default_value = "15m", value_parser = duration)]
    timeout: Duration,
    /// Where the control plane is
    #[arg(short = 'n', long, default_value = "istio-system")]
    namespace: String,
    /// The cluster's kubeconfig; ~/.kube/config if neither this nor KUBECONFIG is set
    #[arg(short = 'c', long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// A folder of manifests in place of a cluster
    #[arg(long, env = "AQUIFER_MANIFESTS")]
    manifests: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is not a duration such as 90s or 15m"))?;
    match unit {
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        _ => Err(format!("{text:?} is not a duration such as 90s or 15m")),
    }
}

pub(crate) fn run(command: &Command) -> Result<u8> {
    cluster::block_on(async {
        let source = cluster::source(command.manifests.as_deref(), command.kubeconfig.as_deref()).await?;
        follow(command, &source).await
    })
}

async fn follow(command: &Command, source: &Source) -> Result<u8> {
    let (present, status) = read(command, source).await?;
    let open = status.as_ref().filter(|status| !status.is_final());
    if command.status {
        match &status {
            Some(status) => print!("{}", text(status)),
            None => println!("no rotation has been asked for"),
        }
        return Ok(if open.is_some_and(|status| !status.lagging.is_empty()) { LAGGING } else { 0 });
    }
    let id = match (open, present) {
        (Some(status), _) => status.request.clone(),
        // Asked for, and not answered yet.
        (None, Some(request)) if status.as_ref().is_none_or(|status| status.request != request.id) => request.id,
        _ if command.finish || command.abort => bail!("no rotation is under way"),
        _ => OffsetDateTime::now_utc().format(&Rfc3339).context("the time")?,
    };
    let goal = if command.abort { Goal::Abort } else { Goal::Complete };
    let request = Request { id: id.clone(), goal };
    source.writer(MANAGER).apply(request::request_object(&command.namespace, &request)).await?;
    watch(command, source, &id).await
}

/// Prints what is said of the request until its end, or the time's.
async fn watch(command: &Command, source: &Source, id: &str) -> Result<u8> {
    let asked = OffsetDateTime::now_utc().unix_timestamp();
    let (started, mut printed, mut reminded) = (Instant::now(), None::<Status>, Instant::now());
    loop {
        let (_, status) = read(command, source).await?;
        let answer = status.filter(|status| status.request == id && (status.is_final() || status.at >= asked));
        match &answer {
            None if started.elapsed() > ANSWER => bail!(
                "no replica of the control plane has answered within {} s: is one running in {}, with a leader?",
                ANSWER.as_secs(),
                command.namespace
            ),
            None => {}
            Some(status) => {
                let news =
                    printed.as_ref().is_none_or(|last| last.phase != status.phase || last.message != status.message);
                if news || reminded.elapsed() > REMIND {
                    print!("{}", text(status));
                    reminded = Instant::now();
                }
                if status.is_final() {
                    return Ok(u8::from(status.phase == "refused"));
                }
                // One look at who lags, for whoever wants it done now.
                if command.finish && !status.lagging.is_empty() {
                    return Ok(LAGGING);
                }
            }
        }
        printed = answer.or(printed);
        if started.elapsed() > command.timeout {
            println!("not at its end yet; it goes on. Call again to follow it, or with --abort to go back.");
            return Ok(LAGGING);
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn read(command: &Command, source: &Source) -> Result<(Option<Request>, Option<Status>)> {
    let object = source.get(&request::key(&command.namespace)).await?;
    let wanted = object.as_ref().and_then(|object| request::request(object).ok().flatten());
    Ok((wanted, object.as_ref().and_then(request::status)))
}

/// A status for people.
fn text(status: &Status) -> String {
    let mut text = format!("{}: {} (since {})\n", status.phase, status.message, when(status.since));
    for lag in &status.lagging {
        text += &format!("  {} since {}: {}\n", lag.who, when(lag.since), lag.why);
    }
    text
}

fn when(seconds: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
}

#[cfg(test)]
mod tests {
    use aquifer_istiod_lite::ca::rotation::Lag;
    use aquifer_objects::Folder;

    use super::*;

    fn command(manifests: &std::path::Path) -> Command {
        Command {
            status: false,
            finish: false,
            abort: false,
            timeout: Duration::ZERO,
            namespace: "istio-system".into(),
            kubeconfig: None,
            manifests: Some(manifests.to_owned()),
        }
    }

    fn status(request: &str, phase: &str, lagging: Vec<Lag>) -> Status {
        // Later than any call of the test.
        let at = OffsetDateTime::now_utc().unix_timestamp() + 3600;
        Status { request: request.into(), phase: phase.into(), message: "m".into(), at, lagging, ..Status::default() }
    }

    #[test]
    fn who_lags_and_since_when_is_told() {
        let lag = Lag { who: "istio-system/ztunnel-a".into(), since: 0, why: "is not connected".into() };
        let said = text(&status("r", "overlap", vec![lag]));
        assert!(said.contains("overlap: m"), "{said}");
        assert!(said.contains("  istio-system/ztunnel-a since 1970-01-01T00:00:00Z: is not connected"), "{said}");
    }

    #[test]
    fn durations() {
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(duration("soon").is_err() && duration("5").is_err());
    }

    #[tokio::test]
    async fn requests_and_exit_codes() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::Folder(Folder::new(dir.path()));
        let base = || command(dir.path());
        let answer = async |status: &Status| {
            let object = request::status_object("istio-system", status);
            source.writer("istiod-lite").apply(object).await.unwrap();
        };
        // Nothing yet.
        assert_eq!(follow(&Command { status: true, ..base() }, &source).await.unwrap(), 0);
        let error = follow(&Command { abort: true, ..base() }, &source).await.unwrap_err().to_string();
        assert!(error.contains("no rotation is under way"), "{error}");

        // A request is made once, and taken up by the next call.
        assert_eq!(follow(&base(), &source).await.unwrap(), LAGGING);
        let (first, _) = read(&base(), &source).await.unwrap();
        let first = first.unwrap();
        assert_eq!(first.goal, Goal::Complete);
        assert_eq!(follow(&base(), &source).await.unwrap(), LAGGING);
        assert_eq!(read(&base(), &source).await.unwrap().0, Some(first.clone()));

        let lag = Lag { who: "zt".into(), since: 0, why: "w".into() };
        answer(&status(&first.id, "overlap", vec![lag])).await;
        assert_eq!(follow(&Command { status: true, ..base() }, &source).await.unwrap(), LAGGING);
        let hour = Duration::from_secs(3600);
        assert_eq!(follow(&Command { finish: true, timeout: hour, ..base() }, &source).await.unwrap(), LAGGING);
        follow(&Command { abort: true, ..base() }, &source).await.unwrap();
        assert_eq!(read(&base(), &source).await.unwrap().0, Some(Request { goal: Goal::Abort, ..first.clone() }));

        for (phase, code) in [("completed", 0), ("aborted", 0), ("refused", 1)] {
            answer(&status(&first.id, phase, Vec::new())).await;
            assert_eq!(watch(&base(), &source, &first.id).await.unwrap(), code, "{phase}");
        }
        // The next is another.
        follow(&base(), &source).await.unwrap();
        assert_ne!(read(&base(), &source).await.unwrap().0.unwrap().id, first.id);
    }
}
