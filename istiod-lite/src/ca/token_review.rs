//! Bearer tokens judged by the API server: TokenReview, with the audiences that we accept.
//!
//! What a flood of bad tokens can cost: what is no token, or one of another audience or time, is refused by its own
//! words, before anybody is asked; a token that was refused is remembered; one address has few reviews under way and few
//! refusals a second. All others go on. A good token is asked about once in a while only, and by one call: a node proxy
//! that starts opens its stream and asks for eight certificates at once, all with one token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use parking_lot::Mutex;
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use super::fingerprint::sha256;
use super::jwt::TokenSubject;
use super::limits::RateLimit;

/// A good token is asked about again after this time, or when it ends: its pod or account may have gone.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// A bad one is refused without asking for this long: clocks differ, and keys of an API server may be new.
const BAD_FOR: Duration = Duration::from_secs(10);
/// Answers that are remembered. A proxy has one token.
const MAX_REMEMBERED: usize = 10_000;
/// Longer ones are no tokens of Kubernetes.
const MAX_TOKEN: usize = 16 * 1024;
/// Reviews under way, together and for one address.
const CONCURRENT: usize = 32;
const CONCURRENT_EACH: usize = 4;
/// Refusals of one address, at once and per second.
const REFUSALS: (f64, f64) = (20.0, 1.0);
/// A review takes milliseconds. Callers wait some ten seconds, and for more than this.
const TIMEOUT: Duration = Duration::from_secs(4);

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// The group of all service accounts.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// Why a token is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// It cannot be one.
    #[error("the token is malformed")]
    Malformed,
    /// By its own words it has ended.
    #[error("the token has expired")]
    Expired,
    /// By its own words it is for somebody else.
    #[error("the token's audience is {0:?}")]
    Audience(Vec<String>),
    /// The API server says no.
    #[error("the API server refuses the token: {0}")]
    Refused(String),
    /// It says yes, but not for an audience of ours.
    #[error("the API server does not confirm our audience, but {0:?}")]
    NotOurAudience(Vec<String>),
    /// Not a service account.
    #[error("{0:?} is not a service account")]
    Subject(String),
    /// Too many bad ones from there.
    #[error("too many bad tokens from {0}")]
    TooMany(IpAddr),
    /// The API server was not asked, or did not answer: nothing is known of the token.
    #[error("the token could not be reviewed: {0}")]
    Unavailable(String),
}

/// Whoever answers reviews.
#[tonic::async_trait]
pub trait Reviewer: Send + Sync + std::fmt::Debug {
    /// The review with its status; an error means that there was none.
    async fn review(&self, review: TokenReview) -> Result<TokenReview, String>;
}

/// The API server.
pub struct ApiServer(pub kube::Client);

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiServer")
    }
}

#[tonic::async_trait]
impl Reviewer for ApiServer {
    async fn review(&self, review: TokenReview) -> Result<TokenReview, String> {
        let api: kube::Api<TokenReview> = kube::Api::all(self.0.clone());
        let answer = api.create(&kube::api::PostParams::default(), &review).await;
        answer.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 403 => format!(
                "the ClusterRole of istiod-lite must allow `create` on tokenreviews of authentication.k8s.io ({})",
                status.message
            ),
            other => other.to_string(),
        })
    }
}

/// Has tokens reviewed.
#[derive(Debug)]
pub struct TokenReviewer {
    reviewer: Box<dyn Reviewer>,
    audiences: Vec<String>,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    /// Who has the turn to ask about a token; the others wait for what is remembered then.
    turns: Mutex<HashMap<[u8; 32], Arc<Turn>>>,
    all: Semaphore,
    each: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
    refusals: RateLimit<IpAddr>,
}

/// Held while the API server is asked.
type Turn = tokio::sync::Mutex<()>;

#[derive(Debug, Clone)]
struct Remembered {
    answer: Result<TokenSubject, ReviewError>,
    until: Instant,
}

/// What a token says of itself. Not a proof of anything.
#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    #[serde(default)]
    aud: Audiences,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl TokenReviewer {
    /// For tokens that are meant for one of `audiences`.
    pub fn new(reviewer: impl Reviewer + 'static, audiences: Vec<String>) -> Self {
        Self {
            reviewer: Box::new(reviewer),
            audiences,
            remembered: Mutex::default(),
            turns: Mutex::default(),
            all: Semaphore::new(CONCURRENT),
            each: Mutex::default(),
            refusals: RateLimit::new(REFUSALS.0, REFUSALS.1),
        }
    }

    /// Whose token this is, sent by `peer`.
    pub async fn subject(
        &self,
        token: &str,
        peer: Option<IpAddr>,
        now: OffsetDateTime,
    ) -> Result<TokenSubject, ReviewError> {
        let left = self.own_words(token, now)?;
        let hash: [u8; 32] = sha256(token.as_bytes()).try_into().unwrap_or_default();
        if let Some(known) = self.remembered(&hash) {
            return known;
        }
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        let turn = self.turn_of(hash);
        let Ok(_turn) = tokio::time::timeout_at(deadline, turn.lock()).await else { return Err(late()) };
        if let Some(known) = self.remembered(&hash) {
            return known;
        }
        let peer = peer.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        if !self.refusals.has(&peer, Instant::now()) {
            return Err(ReviewError::TooMany(peer));
        }
        let answer = self.ask(token, peer, deadline).await;
        let keep = match &answer {
            Ok(_) => GOOD_FOR.min(left),
            // That nothing is known is not worth remembering.
            Err(ReviewError::Unavailable(_)) => return answer,
            Err(_) => {
                self.refusals.take(&peer, Instant::now());
                BAD_FOR
            }
        };
        self.remember(hash, Remembered { answer: answer.clone(), until: Instant::now() + keep });
        answer
    }

    /// How long it is good for, if it may be good at all.
    fn own_words(&self, token: &str, now: OffsetDateTime) -> Result<Duration, ReviewError> {
        let mut parts = token.split('.');
        let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(ReviewError::Malformed);
        };
        if token.len() > MAX_TOKEN {
            return Err(ReviewError::Malformed);
        }
        let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).map_err(|_| ReviewError::Malformed)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| ReviewError::Malformed)?;
        let audiences = match claims.aud {
            Audiences::One(one) => vec![one],
            Audiences::Many(many) => many,
        };
        // A token without any is for the API server itself.
        if !audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(ReviewError::Audience(audiences));
        }
        let left = claims.exp.map_or(GOOD_FOR.as_secs_f64(), |exp| exp - now.unix_timestamp() as f64);
        if left <= 0.0 {
            return Err(ReviewError::Expired);
        }
        Ok(Duration::try_from_secs_f64(left).unwrap_or(GOOD_FOR))
    }

    async fn ask(
        &self,
        token: &str,
        peer: IpAddr,
        deadline: tokio::time::Instant,
    ) -> Result<TokenSubject, ReviewError> {
        let own = self.permits_of(peer);
        // Whoever has too many under way is told so at once: the others' places are not theirs.
        let Ok(_own) = own.try_acquire() else {
            return Err(ReviewError::Unavailable("too many reviews under way for this address".into()));
        };
        let review = async {
            let _place = self.all.acquire().await.map_err(|_| "closed".to_owned())?;
            let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(self.audiences.clone()) };
            self.reviewer.review(TokenReview { spec, ..TokenReview::default() }).await
        };
        let answer = match tokio::time::timeout_at(deadline, review).await {
            Ok(answer) => answer.map_err(ReviewError::Unavailable),
            Err(_) => Err(late()),
        }?;
        self.judge(answer)
    }

    fn judge(&self, answer: TokenReview) -> Result<TokenSubject, ReviewError> {
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(ReviewError::Refused(status.error.unwrap_or_else(|| "not authenticated".into())));
        }
        // An API server that knows nothing of audiences confirms none, and would take any token.
        let confirmed = status.audiences.unwrap_or_default();
        if !confirmed.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(ReviewError::NotOurAudience(confirmed));
        }
        subject(status.user.unwrap_or_default())
    }

    fn permits_of(&self, peer: IpAddr) -> Arc<Semaphore> {
        let mut each = self.each.lock();
        if each.len() >= MAX_REMEMBERED {
            each.retain(|_, permits| Arc::strong_count(permits) > 1);
        }
        Arc::clone(each.entry(peer).or_insert_with(|| Arc::new(Semaphore::new(CONCURRENT_EACH))))
    }

    fn turn_of(&self, hash: [u8; 32]) -> Arc<Turn> {
        let mut turns = self.turns.lock();
        if turns.len() >= MAX_REMEMBERED {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Arc::clone(turns.entry(hash).or_default())
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<Result<TokenSubject, ReviewError>> {
        let mut remembered = self.remembered.lock();
        let known = remembered.get(hash)?;
        if known.until > Instant::now() {
            return Some(known.answer.clone());
        }
        remembered.remove(hash);
        None
    }

    fn remember(&self, hash: [u8; 32], answer: Remembered) {
        let mut remembered = self.remembered.lock();
        if remembered.len() >= MAX_REMEMBERED {
            let now = Instant::now();
            remembered.retain(|_, known| known.until > now);
        }
        if remembered.len() >= MAX_REMEMBERED {
            // Refusals go first: whoever sends many tokens has many of those.
            remembered.retain(|_, known| known.answer.is_ok());
        }
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(hash, answer);
        }
    }
}

fn late() -> ReviewError {
    ReviewError::Unavailable("the API server has not answered in time".into())
}

fn subject(user: UserInfo) -> Result<TokenSubject, ReviewError> {
    let username = user.username.unwrap_or_default();
    let is_account = user.groups.is_some_and(|groups| groups.iter().any(|group| group == SERVICE_ACCOUNTS));
    let parts = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let valid = parts.filter(|(ns, sa)| is_account && !ns.is_empty() && !sa.is_empty() && !sa.contains([':', '/']));
    let Some((namespace, service_account)) = valid else {
        return Err(ReviewError::Subject(username));
    };
    let extra = user.extra.unwrap_or_default();
    let first = |key: &str| extra.get(key).and_then(|values| values.first()).filter(|v| !v.is_empty()).cloned();
    Ok(TokenSubject {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: first(POD_NAME).zip(first(POD_UID)),
    })
}

#[cfg(test)]
mod tests;
