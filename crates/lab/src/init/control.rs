//! The control socket: what callers ask of pid 1.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_objects::{Kind, Object, ObjectKey};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::cluster::Event;
use super::pod::{Order, PodState};
use super::reaper::{Place, Running};
use super::sandbox::{self, Namespaces};
use super::shared::Shared;
use super::store::Remote;
use super::{components, http, procfs};
use crate::error::{During, LabError, Result};
use crate::options::Netns;
use crate::start::find_program;
use crate::wire::{self, Named, Reply, Request, Target};

/// How long a caller's command waits for a pod that is being made.
const SANDBOX_PATIENCE: Duration = Duration::from_secs(5);

/// Starts serving. Each caller gets a thread: most of what they ask blocks.
pub(super) fn serve(shared: Arc<Shared>) -> Result<()> {
    let path = shared.paths.control();
    let listener = UnixListener::bind(&path).during(|| format!("listening on {}", path.display()))?;
    let handle = Handle::current();
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors: those in use will come back.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            let (shared, handle) = (Arc::clone(&shared), handle.clone());
            std::thread::spawn(move || {
                let _runtime = handle.enter();
                if let Err(error) = answer(&shared, &stream) {
                    tracing::debug!(%error, "a caller went away");
                }
            });
        }
    };
    std::thread::Builder::new().name("control".into()).spawn(accept).during(|| "starting the control thread".into())?;
    Ok(())
}

fn answer(shared: &Arc<Shared>, stream: &UnixStream) -> std::io::Result<()> {
    let Some((request, fds)) = wire::receive::<Request>(stream)? else { return Ok(()) };
    let reply = match request {
        Request::Exec { target, args, env } => return exec(shared, stream, &target, &args, env, fds),
        other => handle(shared, other).unwrap_or_else(|error| Reply::Error(error.to_string())),
    };
    wire::send(stream, &reply, &[])
}

fn handle(shared: &Arc<Shared>, request: Request) -> Result<Reply> {
    Ok(match request {
        Request::Status => {
            let (question, status) = oneshot::channel();
            shared.send(Event::Status(question));
            let status = Handle::current().block_on(status);
            Reply::Status(Box::new(status.map_err(|_| LabError::Refused("the cluster is gone".into()))?))
        }
        Request::DeletePod { namespace, name, grace_seconds } => {
            let pod = shared.pods.lock().get(&(namespace.clone(), name.clone())).cloned();
            let missing = || LabError::Refused(format!("no pod `{name}` in namespace `{namespace}`"));
            pod.ok_or_else(missing)?.delete(grace_seconds);
            Reply::Done
        }
        Request::SignalComponent { component, signal } => {
            components::order(shared, &component, Order::Signal(signal))?;
            if signal == libc::SIGKILL {
                // So that whoever looks next sees it gone.
                let pod = shared.component(&component)?;
                wait_until(|| components::pid(&pod).is_none());
            }
            Reply::Done
        }
        Request::StartComponent { component, env } => {
            let pod = shared.component(&component)?;
            wait_until(|| components::pid(&pod).is_none());
            components::order(shared, &component, Order::Start(env))?;
            wait_until(|| components::pid(&pod).is_some());
            Reply::Done
        }
        Request::ReplaceIstiod => Reply::Text(Handle::current().block_on(components::replace_istiod(shared))?),
        Request::ReplaceZtunnel { node, env } => {
            Reply::Text(Handle::current().block_on(components::replace_ztunnel(shared, &node, &env))?)
        }
        Request::Stats { component } => {
            let pid = components::pid(&*shared.component(&component)?);
            Reply::Stats(procfs::stats(pid.ok_or_else(|| LabError::Refused(format!("{component} is not running")))?)?)
        }
        Request::Http { netns, method, port, path } => {
            let net = netns_of(shared, &netns)?.net;
            let (status, body) = sandbox::in_netns(net, move || http::local(&method, port, &path))?;
            Reply::Http { status, body }
        }
        Request::Token { namespace, pod, ttl_seconds } => {
            let pod = shared.find_pod(&namespace, &pod)?;
            let token = components::token(shared, &pod, Duration::from_secs(ttl_seconds));
            Reply::Text(Handle::current().block_on(token)?)
        }
        Request::Apply { object } => {
            Handle::current().block_on(remote(shared)?.apply_users(object))?;
            Reply::Done
        }
        Request::Delete { object } => {
            Handle::current().block_on(remote(shared)?.delete(&known(&object)?, None, None))?;
            Reply::Done
        }
        Request::Patch { object, patch } => {
            Handle::current().block_on(remote(shared)?.patch(&known(&object)?, &patch))?;
            Reply::Done
        }
        Request::Objects { kinds } => {
            let kinds: Vec<Kind> = kinds.iter().filter_map(|kind| wire::kind(kind)).collect();
            let objects = Handle::current().block_on(shared.store().read(&kinds))?;
            Reply::Objects(objects.iter().map(Object::to_json).collect())
        }
        Request::Down => super::ending::end(&shared.paths),
        Request::Exec { .. } | Request::Signal(_) => Reply::Error("not a request of its own".into()),
    })
}

/// The API server, for what a caller cannot write to files itself.
fn remote(shared: &Shared) -> Result<&Remote> {
    shared.store().remote().ok_or_else(|| LabError::Refused("this lab's objects are files".into()))
}

fn known(object: &Named) -> Result<ObjectKey> {
    object.key().ok_or_else(|| LabError::Refused(format!("the lab does not know {object:?}")))
}

/// Runs a command on the caller's descriptors; a caller that hangs up takes it along.
fn exec(
    shared: &Arc<Shared>,
    stream: &UnixStream,
    target: &Target,
    args: &[String],
    env: Vec<(String, String)>,
    fds: Vec<OwnedFd>,
) -> std::io::Result<()> {
    let mut running = match start(shared, target, args, env, fds) {
        Ok(running) => running,
        Err(error) => return wire::send(stream, &Reply::Error(error.to_string()), &[]),
    };
    wire::send(stream, &Reply::Started { pid: running.pid }, &[])?;
    let (listening, process) = (stream.try_clone()?, running.clone());
    std::thread::spawn(move || {
        loop {
            match wire::receive::<Request>(&listening) {
                Ok(Some((Request::Signal(signal), _))) => process.signal_group(signal),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    if !process.has_exited() {
                        process.signal_group(libc::SIGKILL);
                    }
                    return;
                }
            }
        }
    });
    let code = running.wait_blocking();
    let told = wire::send(stream, &Reply::Exited { code }, &[]);
    // Ends the listening thread too.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    told
}

fn start(
    shared: &Shared,
    target: &Target,
    args: &[String],
    env: Vec<(String, String)>,
    fds: Vec<OwnedFd>,
) -> Result<Running> {
    let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
        return Err(LabError::Refused("a command needs three descriptors".into()));
    };
    let Some((program, rest)) = args.split_first() else {
        return Err(LabError::Refused("no command was given".into()));
    };
    let mut command = Command::new(program);
    let (namespaces, own) = match target {
        Target::Pod { namespace, name } => {
            let (pod, namespaces) = sandbox_of(shared, namespace, name)?;
            let live = pod.live.lock();
            let first =
                live.containers.values().find(|container| !container.init).map(|container| container.env.clone());
            (namespaces, first.unwrap_or_default())
        }
        Target::Netns(netns) => (netns_of(shared, netns)?, Vec::new()),
    };
    command.env_clear().envs(base_env()).envs(own).envs(env);
    command.args(rest).stdin(stdin).stdout(stdout).stderr(stderr);
    let place = Place { namespaces, user: None, group: None };
    shared.reaper.start(command, &place).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound if find_program(program).is_none() => {
            LabError::Refused(format!("`{program}` is not on this machine"))
        }
        _ => LabError::io(format!("starting `{program}`"), error),
    })
}

fn base_env() -> [(String, String); 3] {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    [
        pair("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        pair("HOME", "/root"),
        pair("LANG", "C.UTF-8"),
    ]
}

/// A pod and its namespaces. One that was applied a moment ago gets them a moment later.
fn sandbox_of(shared: &Shared, namespace: &str, name: &str) -> Result<(Arc<PodState>, Namespaces)> {
    let begin = Instant::now();
    loop {
        let (wait, error) = match shared.find_pod(namespace, name) {
            Err(error) => (is_applied(shared, namespace, name), error),
            Ok(pod) => {
                let live = pod.live.lock();
                if let Some(namespaces) = live.namespaces.clone() {
                    drop(live);
                    return Ok((pod, namespaces));
                }
                let why = if live.message.is_empty() { String::new() } else { format!(": {}", live.message) };
                let gone = pod.is_terminating();
                let state = if gone { "has no sandbox any more" } else { "has no sandbox yet" };
                (!gone, LabError::Refused(format!("pod `{}` {state}{why}", pod.name)))
            }
        };
        if !wait || begin.elapsed() > SANDBOX_PATIENCE {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a manifest says that there is to be such a pod.
fn is_applied(shared: &Shared, namespace: &str, name: &str) -> bool {
    let store = shared.store();
    let wants_pods = |object| match object {
        Object::Deployment(deployment) => deployment.spec.replicas != Some(0),
        _ => true,
    };
    [Kind::Deployment, Kind::Pod].iter().any(|kind| {
        let found = Handle::current().block_on(store.get(&ObjectKey::new(*kind, namespace, name)));
        found.ok().flatten().is_some_and(wants_pods)
    })
}

/// The network alone; files stay the machine's.
fn netns_of(shared: &Shared, netns: &Netns) -> Result<Namespaces> {
    let of_pod = |pod: Arc<PodState>| {
        let net = pod.live.lock().namespaces.as_ref().and_then(|namespaces| namespaces.net.clone());
        let net = net.ok_or_else(|| LabError::Refused(format!("pod `{}` has no sandbox yet", pod.name)))?;
        Ok(Namespaces::net_only(net))
    };
    match netns {
        Netns::Wire => Ok(Namespaces::default()),
        Netns::Node(name) => {
            let node =
                shared.node_named(name).ok_or_else(|| LabError::Refused(format!("there is no node `{name}`")))?;
            Ok(Namespaces::net_only(Arc::clone(&node.net)))
        }
        Netns::Pod { namespace, name } => of_pod(sandbox_of(shared, namespace, name)?.0),
        Netns::Component(component) => of_pod(shared.component(component)?),
    }
}

/// For what takes milliseconds; gives up silently, and the caller sees the state as it is.
fn wait_until(done: impl Fn() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
