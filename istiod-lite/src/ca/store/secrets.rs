//! Signers in Secrets of the root namespace.
//!
//! They are read one by one, by name: no right to list or watch Secrets is needed.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use time::OffsetDateTime;

use super::{CACERTS, CACERTS_NEXT, Place, ROTATION, SELF_SIGNED, Signing, State, StoreError, Stored};
use crate::ca::material::Material;
use crate::ca::root::LIFETIME;

/// The key of the rotation's state in its Secret.
const STATE: &str = "state.json";
/// Istio's type of the Secret with its self-signed root.
const SELF_SIGNED_TYPE: &str = "istio.io/ca-root";
/// Replicas that start together meet here; one of them makes the root.
const CREATE_ATTEMPTS: usize = 5;

/// The Secrets. Cloning is cheap.
#[derive(Clone)]
pub struct SecretStore {
    api: Api<Secret>,
    namespace: String,
}

impl std::fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretStore").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl SecretStore {
    /// The Secrets of `namespace`.
    pub fn new(client: kube::Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), namespace: namespace.to_owned() }
    }

    pub(super) async fn load(&self, trust_domain: &str, now: OffsetDateTime) -> Result<Stored, StoreError> {
        let secret = self.get(ROTATION).await?;
        let version = secret.as_ref().and_then(|s| s.metadata.resource_version.clone());
        let state = match secret.map(|secret| entries(&secret)).and_then(|mut entries| entries.remove(STATE)) {
            Some(bytes) => {
                let text = zeroize::Zeroizing::new(bytes);
                let text = std::str::from_utf8(&text).map_err(|_| self.wrong(ROTATION, "state.json is not text"))?;
                State::from_json(text).map_err(|reason| self.wrong(ROTATION, reason))?
            }
            None => None,
        };
        let next = self.material(CACERTS_NEXT, now).await?;
        let (signing, done) = match state {
            Some(State::Rotating(kept)) => (Signing::Rotating(kept), None),
            Some(State::Done(done)) => (self.plain(trust_domain, now).await?, Some(done)),
            None => (self.plain(trust_domain, now).await?, None),
        };
        Ok(Stored { signing, next, done, version })
    }

    /// Plugged in, adopted or made.
    async fn plain(&self, trust_domain: &str, now: OffsetDateTime) -> Result<Signing, StoreError> {
        if let Some(material) = self.material(CACERTS, now).await? {
            return Ok(Signing::Plain(material, Place::PluggedIn));
        }
        for _ in 0..CREATE_ATTEMPTS {
            if let Some(material) = self.material(SELF_SIGNED, now).await? {
                return Ok(Signing::Plain(material, Place::SelfSigned));
            }
            let made = Material::self_signed(trust_domain, LIFETIME, now)
                .map_err(|e| self.wrong(SELF_SIGNED, format!("cannot make a root: {e}")))?;
            let created =
                self.api.create(&PostParams::default(), &self.secret(SELF_SIGNED, made.entries(), None)).await;
            match created {
                Ok(_) => {
                    tracing::info!(secret = %format_args!("{}/{SELF_SIGNED}", self.namespace), "root made");
                    return Ok(Signing::Plain(made, Place::SelfSigned));
                }
                // Another replica was first: its root is ours.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(self.unavailable("create", SELF_SIGNED, &error)),
            }
        }
        Err(StoreError::Conflict(SELF_SIGNED))
    }

    pub(super) async fn keep(&self, text: &str, expected: Option<&str>) -> Result<(), StoreError> {
        let entries = BTreeMap::from([(STATE.to_owned(), text.as_bytes().to_vec())]);
        let secret = self.secret(ROTATION, entries, expected);
        let params = PostParams::default();
        let (verb, kept) = match expected {
            None => ("create", self.api.create(&params, &secret).await),
            Some(_) => ("update", self.api.replace(ROTATION, &params, &secret).await),
        };
        match kept {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(StoreError::Conflict(ROTATION)),
            Err(error) => Err(self.unavailable(verb, ROTATION, &error)),
        }
    }

    pub(super) async fn settle(&self, material: &Material, place: Place) -> Result<(), StoreError> {
        let name = match place {
            Place::PluggedIn => CACERTS,
            Place::SelfSigned => SELF_SIGNED,
        };
        let present = self.get(name).await?;
        let version = present.and_then(|s| s.metadata.resource_version);
        let secret = self.secret(name, material.entries(), version.as_deref());
        let params = PostParams::default();
        let written = match version {
            None => self.api.create(&params, &secret).await,
            Some(_) => self.api.replace(name, &params, &secret).await,
        };
        match written {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => return Err(StoreError::Conflict(name)),
            Err(error) => return Err(self.unavailable("update", name, &error)),
        }
        if place == Place::PluggedIn {
            match self.api.delete(CACERTS_NEXT, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(self.unavailable("delete", CACERTS_NEXT, &error)),
            }
        }
        Ok(())
    }

    async fn material(&self, name: &'static str, now: OffsetDateTime) -> Result<Option<Material>, StoreError> {
        let Some(secret) = self.get(name).await? else { return Ok(None) };
        let checked = Material::from_entries(&entries(&secret)).and_then(|m| m.signer(now).map(|_| m));
        checked.map(Some).map_err(|error| self.wrong(name, error.to_string()))
    }

    async fn get(&self, name: &'static str) -> Result<Option<Secret>, StoreError> {
        self.api.get_opt(name).await.map_err(|error| self.unavailable("get", name, &error))
    }

    fn secret(&self, name: &str, entries: BTreeMap<String, Vec<u8>>, version: Option<&str>) -> Secret {
        let kind = if name == SELF_SIGNED { SELF_SIGNED_TYPE } else { "Opaque" };
        Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(self.namespace.clone()),
                resource_version: version.map(str::to_owned),
                ..ObjectMeta::default()
            },
            data: Some(entries.into_iter().map(|(key, value)| (key, ByteString(value))).collect()),
            type_: Some(kind.to_owned()),
            ..Secret::default()
        }
    }

    fn wrong(&self, name: &'static str, reason: impl Into<String>) -> StoreError {
        StoreError::Secret { namespace: self.namespace.clone(), name, reason: reason.into() }
    }

    fn unavailable(&self, verb: &str, name: &str, error: &kube::Error) -> StoreError {
        let namespace = &self.namespace;
        StoreError::Unavailable(match error {
            kube::Error::Api(status) if status.code == 403 => format!(
                "cannot {verb} Secret {namespace}/{name}: the Role in {namespace} must allow `{verb}` on secrets ({})",
                status.message
            ),
            other => format!("cannot {verb} Secret {namespace}/{name}: {other}"),
        })
    }
}

fn entries(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    let data = secret.data.clone().unwrap_or_default();
    data.into_iter().map(|(key, value)| (key, value.0)).collect()
}
