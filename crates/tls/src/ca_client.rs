//! The CA: `istio.v1.auth.IstioCertificateService`, as istiod serves it.

use crate::bundle::{BundleError, CertBundle};
use crate::csr::{self, CsrError};
use crate::provider::{self, TlsPolicy};
use aquifer_core::identity::Identity;
use aquifer_proto::ca::IstioCertificateRequest;
use aquifer_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use parking_lot::Mutex;
use prost_types::{Struct, Value, value::Kind};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};
use zeroize::Zeroizing;

#[cfg(test)]
mod tests;

/// Where certificates come from.
pub trait CaClient: Send + Sync + 'static {
    /// One certificate for `identity`, with a new key.
    fn fetch(&self, identity: &Identity) -> impl Future<Output = Result<CertBundle, CaError>> + Send;
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file that we need cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A setting is of no use.
    #[error("{0}")]
    Setting(String),
    /// The request could not be made.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The CA refused, or was not reached.
    #[error("{}: {}", .0.code(), .0.message())]
    Call(#[source] Box<tonic::Status>),
    /// The CA's answer is of no use.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// No TLS configuration can be made of the answer.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
}

/// A secret or certificate that lies in a file, or is given as it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// Read anew at each use: the kubelet replaces such files.
    Path(PathBuf),
    /// The value itself.
    Inline(String),
}

impl Source {
    fn read(&self) -> Result<String, CaError> {
        match self {
            Self::Inline(text) => Ok(text.clone()),
            Self::Path(path) => {
                std::fs::read_to_string(path).map_err(|source| CaError::File { path: path.clone(), source })
            }
        }
    }
}

/// Whose signature on a server's certificate counts.
#[derive(Clone, PartialEq, Eq)]
pub enum Roots {
    /// That of the authorities in this PEM text.
    Given(Source),
    /// That of those which the operating system trusts.
    System,
}

impl From<Source> for Roots {
    fn from(source: Source) -> Self {
        Self::Given(source)
    }
}

/// How to reach the CA and as whom. No `Debug`: it may hold a token.
#[derive(Clone)]
pub struct CaConfig {
    /// `https://host:port`; `http://` is plaintext, for tests and for peers on the same host.
    pub address: String,
    /// The roots that the CA's own certificate must chain to (CA_ROOT_CA).
    pub root: Roots,
    /// The name to verify instead of the address's host (ALT_CA_HOSTNAME).
    pub alt_hostname: Option<String>,
    /// The bearer token (AUTH_TOKEN); none, no header.
    pub token: Option<Source>,
    /// Value of the `clusterid` header.
    pub cluster_id: String,
    /// More headers (CA_HEADER_*).
    pub headers: Vec<(String, String)>,
    /// Validity to ask for (SECRET_TTL).
    pub ttl: Duration,
    /// Whether to name the identity in `ImpersonatedIdentity`: a node's proxy asks for its pods. Otherwise the
    /// certificate is for the caller itself.
    pub impersonate: bool,
    /// Limit of one call, the connect included.
    pub timeout: Duration,
}

/// [`CaClient`] over gRPC.
pub struct IstioCaClient {
    config: CaConfig,
    /// The channel and the root text it was made with.
    channel: Mutex<Option<(String, Channel)>>,
}

impl IstioCaClient {
    /// A client; connects at the first fetch, with the cryptography that [`provider::install`] was told.
    pub fn new(config: CaConfig) -> Self {
        // The channel takes the process's provider and panics without: who installed none gets the usual one.
        provider::install(TlsPolicy::default());
        Self { config, channel: Mutex::new(None) }
    }

    /// The channel, made anew when the roots have changed: fetches are rare, so reading the file each time is
    /// simpler than watching it, and misses nothing.
    fn channel(&self) -> Result<Channel, CaError> {
        let plaintext = self.config.address.starts_with("http://");
        let root = match &self.config.root {
            Roots::Given(source) if !plaintext => source.read()?,
            // The system's roots change with its packages; a container is made anew then.
            Roots::Given(_) | Roots::System => String::new(),
        };
        let mut cached = self.channel.lock();
        if let Some((made_with, channel)) = &*cached
            && *made_with == root
        {
            return Ok(channel.clone());
        }
        let tls = match &self.config.root {
            _ if plaintext => None,
            Roots::Given(_) => Some(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&root))),
            Roots::System => Some(ClientTlsConfig::new().with_native_roots()),
        };
        let channel = self.endpoint(tls)?.connect_lazy();
        *cached = Some((root, channel.clone()));
        Ok(channel)
    }

    fn endpoint(&self, tls: Option<ClientTlsConfig>) -> Result<Endpoint, CaError> {
        let setting =
            |e: &dyn std::fmt::Display| CaError::Setting(format!("CA address {:?}: {e}", self.config.address));
        let uri: Uri = self.config.address.parse().map_err(|e| setting(&e))?;
        let endpoint = Endpoint::from(uri)
            .connect_timeout(self.config.timeout)
            .timeout(self.config.timeout)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        let Some(mut tls) = tls else { return Ok(endpoint) };
        if let Some(name) = &self.config.alt_hostname {
            tls = tls.domain_name(name);
        }
        endpoint.tls_config(tls).map_err(|e| match &self.config.root {
            Roots::Given(_) => setting(&e),
            Roots::System => CaError::Setting(format!(
                "CA_ROOT_CA=SYSTEM: {}: install ca-certificates, or name a PEM file by SSL_CERT_FILE or CA_ROOT_CA",
                std::error::Error::source(&e).unwrap_or(&e)
            )),
        })
    }

    fn request(&self, identity: &Identity, csr: String) -> Result<tonic::Request<IstioCertificateRequest>, CaError> {
        let mut request = tonic::Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.config.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: self.config.impersonate.then(|| impersonate(identity)),
        });
        let metadata = request.metadata_mut();
        if let Some(token) = &self.config.token {
            let mut value = ascii("AUTH_TOKEN", &format!("Bearer {}", token.read()?.trim()))?;
            value.set_sensitive(true);
            metadata.insert("authorization", value);
        }
        metadata.insert("clusterid", ascii("clusterid", &self.config.cluster_id)?);
        for (name, value) in &self.config.headers {
            let key = AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
                .map_err(|_| CaError::Setting(format!("CA_HEADER_{name}: no header name")))?;
            metadata.insert(key, ascii(name, value)?);
        }
        Ok(request)
    }
}

/// The value stays out of the message: it may be a token.
fn ascii(what: &str, value: &str) -> Result<AsciiMetadataValue, CaError> {
    value.parse().map_err(|_| CaError::Setting(format!("the value of {what} cannot be a header")))
}

fn impersonate(identity: &Identity) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
    Struct { fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]) }
}

impl CaClient for IstioCaClient {
    async fn fetch(&self, identity: &Identity) -> Result<CertBundle, CaError> {
        let csr = csr::generate(identity)?;
        let key = Zeroizing::new(csr.key);
        let request = self.request(identity, csr.pem)?;
        let mut client = IstioCertificateServiceClient::new(self.channel()?);
        let response = client.create_certificate(request).await.map_err(|e| CaError::Call(Box::new(e)))?;
        let chain = response.into_inner().cert_chain;
        Ok(CertBundle::from_chain(identity, key.clone_key(), &chain, SystemTime::now().into())?)
    }
}
