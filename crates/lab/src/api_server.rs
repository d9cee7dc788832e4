//! A Kubernetes API server and its etcd: which programs, which files, which arguments. Who starts them is another's
//! matter: a test on its own loopback, a lab in its namespace.

mod pki;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aquifer_runtime::env::{Env, ProcessEnv};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use self::pki::Authority;
use crate::error::{During, LabError, Result};
use crate::start::find_program;

/// Where the API server's program is looked for first.
const PROGRAMS_IN: &str = "AQUIFER_KUBE";

/// The issuer of service account tokens, as most clusters have it.
pub const TOKEN_ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The audience of tokens for the mesh's CA.
pub const CA_AUDIENCE: &str = "istio-ca";

/// The programs of a cluster's store.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `etcd`, Debian's package `etcd-server`.
    pub etcd: PathBuf,
    /// `kube-apiserver`, as `make kube` builds it.
    pub api_server: PathBuf,
}

impl Programs {
    /// Finds them: the folder AQUIFER_KUBE, else what `make kube` built last.
    ///
    /// # Errors
    /// The one that is missing, and how to come by it.
    pub fn find() -> Result<Self> {
        let etcd = find_program("etcd")
            .ok_or_else(|| LabError::Missing { program: "etcd".to_owned(), package: "etcd-server".to_owned() })?;
        let api_server = folder().join("kube-apiserver");
        if !api_server.is_file() {
            return Err(LabError::NoApiServer(api_server.display().to_string()));
        }
        Ok(Self { etcd, api_server })
    }
}

/// `kubectl`: beside the API server's program, where `make cluster-up` builds it, or the machine's.
pub(crate) fn kubectl() -> Result<PathBuf> {
    let beside = Some(folder().join("kubectl")).filter(|path| path.is_file());
    let found = beside.or_else(|| find_program("kubectl"));
    found.ok_or_else(|| LabError::Missing { program: "kubectl".to_owned(), package: "kubernetes-client".to_owned() })
}

fn folder() -> PathBuf {
    match ProcessEnv.var(PROGRAMS_IN) {
        Some(folder) => PathBuf::from(folder),
        None => cache().join("aquifer/kube/current"),
    }
}

fn cache() -> PathBuf {
    let home = || ProcessEnv.var("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    ProcessEnv.var("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from)
}

/// Where an API server and its etcd listen.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The API server's address, for clients too.
    pub address: IpAddr,
    /// More addresses that its certificate names.
    pub names: Vec<String>,
    /// The API server's port.
    pub port: u16,
    /// etcd's ports on the loopback: for clients, and the one for peers that it insists on.
    pub etcd: [u16; 2],
    /// The addresses of Services, one range a family.
    pub services: Vec<String>,
}

/// An API server's files and arguments.
#[derive(Debug)]
pub struct ApiServerPlan {
    folder: PathBuf,
    listen: Listen,
    authority: Authority,
}

impl ApiServerPlan {
    /// Makes keys, certificates and the administrator's kubeconfig in the folder.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn prepare(folder: &Path, listen: Listen) -> Result<Self> {
        let folder = folder.to_owned();
        fs::create_dir_all(folder.join("etcd")).during(|| format!("making {}", folder.display()))?;
        let authority = Authority::new()?;
        let plan = Self { folder, listen, authority };
        let mut names: Vec<String> =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).into();
        names.push("kubernetes.default.svc.cluster.local".to_owned());
        names.push(plan.listen.address.to_string());
        names.extend(plan.listen.names.iter().cloned());
        let server = plan.authority.issue("kube-apiserver", None, &names)?;
        plan.write("ca.crt", plan.authority.certificate())?;
        plan.write("apiserver.crt", &server.certificate)?;
        plan.write("apiserver.key", &server.key)?;
        let [signing, checking] = pki::new_key()?;
        plan.write("service-accounts.key", &signing)?;
        plan.write("service-accounts.pub", &checking)?;
        plan.write_kubeconfig("admin.conf", &plan.certificate_user("admin", Some("system:masters"))?)?;
        Ok(plan)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.conf")
    }

    /// Where clients reach it.
    pub fn url(&self) -> String {
        let Listen { address, port, .. } = self.listen;
        format!("https://{}", SocketAddr::new(address, port))
    }

    /// etcd's address for clients.
    pub fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.listen.etcd[0])
    }

    /// Arguments of etcd. Nothing is synced to disk: what outlives a crash of the machine is nobody's interest.
    pub fn etcd_arguments(&self) -> Vec<String> {
        let [clients, peers] = self.listen.etcd.map(|port| format!("http://127.0.0.1:{port}"));
        vec![
            format!("--data-dir={}", self.folder.join("etcd").display()),
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
        ]
    }

    /// Arguments of the API server. It asks for RBAC of everybody, and issues tokens for the mesh's CA too.
    pub fn api_server_arguments(&self) -> Vec<String> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let Listen { address, port, services, .. } = &self.listen;
        vec![
            format!("--etcd-servers={}", self.etcd_url()),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--service-account-key-file={}", file("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            format!("--service-account-issuer={TOKEN_ISSUER}"),
            format!("--api-audiences={TOKEN_ISSUER},{CA_AUDIENCE}"),
            format!("--service-cluster-ip-range={}", services.join(",")),
            "--authorization-mode=Node,RBAC".to_owned(),
            // Pods come without the volumes that it would ask for, and before their accounts do.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--allow-privileged=true".to_owned(),
            // Watches that end often show who cannot go on after the end of one.
            "--min-request-timeout=300".to_owned(),
        ]
    }

    /// Writes a kubeconfig whose user shows this token. It lies in the folder, under this name.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn token_kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.write_kubeconfig(name, &json!({"token": token}))
    }

    /// Writes a kubeconfig whose user shows the token that stands in a file, as it is at the time.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn token_file_kubeconfig(&self, name: &str, token: &Path) -> Result<PathBuf> {
        self.write_kubeconfig(name, &json!({"tokenFile": token}))
    }

    /// Writes a kubeconfig of a user with a certificate, in this group.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn user_kubeconfig(&self, name: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        self.write_kubeconfig(name, &self.certificate_user(user, group)?)
    }

    fn certificate_user(&self, user: &str, group: Option<&str>) -> Result<serde_json::Value> {
        let issued = self.authority.issue(user, group, &[])?;
        Ok(json!({
            "client-certificate-data": STANDARD.encode(issued.certificate),
            "client-key-data": STANDARD.encode(issued.key),
        }))
    }

    /// JSON is YAML too.
    fn write_kubeconfig(&self, name: &str, user: &serde_json::Value) -> Result<PathBuf> {
        let authority = STANDARD.encode(self.authority.certificate());
        let text = json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{"name": "aquifer", "cluster": {"server": self.url(), "certificate-authority-data": authority}}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "aquifer", "context": {"cluster": "aquifer", "user": "user"}}],
            "current-context": "aquifer",
        });
        self.write(name, &text.to_string())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let open = || fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        open()
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .during(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
