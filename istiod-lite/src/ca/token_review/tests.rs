use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use serde_json::json;
use tokio::sync::Notify;

use super::*;
use crate::test_support::base64url;

type Answer = Result<TokenReviewStatus, String>;

/// Answers in turn; the last answer stays.
#[derive(Debug, Default)]
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    asked: AtomicUsize,
    /// Reviews wait for this, if there is one.
    hold: Option<Notify>,
}

#[tonic::async_trait]
impl Reviewer for Arc<Script> {
    async fn review(&self, review: TokenReview) -> Result<TokenReview, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert_eq!(review.spec.audiences, Some(vec!["istio-ca".to_owned()]));
        if let Some(hold) = &self.hold {
            hold.notified().await;
        }
        let mut answers = self.answers.lock();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        let status = answer.unwrap()?;
        Ok(TokenReview { status: Some(status), ..review })
    }
}

fn script(answers: impl IntoIterator<Item = Answer>) -> Arc<Script> {
    Arc::new(Script { answers: Mutex::new(answers.into_iter().collect()), ..Script::default() })
}

fn reviewer(script: &Arc<Script>) -> TokenReviewer {
    TokenReviewer::new(Arc::clone(script), vec!["istio-ca".into()])
}

fn good() -> TokenReviewStatus {
    let extra = [(POD_NAME, "zt-1"), (POD_UID, "u1")].map(|(k, v)| (k.to_owned(), vec![v.to_owned()]));
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec!["istio-ca".into()]),
        user: Some(UserInfo {
            username: Some("system:serviceaccount:istio-system:ztunnel".into()),
            groups: Some(vec![SERVICE_ACCOUNTS.into(), "system:authenticated".into()]),
            extra: Some(BTreeMap::from(extra)),
            ..UserInfo::default()
        }),
        error: None,
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn token_with(aud: serde_json::Value, exp: i64, salt: usize) -> String {
    let claims = json!({ "aud": aud, "exp": exp, "jti": salt });
    format!("e30.{}.sig", base64url(claims.to_string().as_bytes()))
}

fn token(salt: usize) -> String {
    token_with(json!(["istio-ca"]), now().unix_timestamp() + 3600, salt)
}

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 1));

#[tokio::test]
async fn a_good_token_is_reviewed_once_a_while() {
    let script = script([Ok(good())]);
    let reviewer = reviewer(&script);
    for _ in 0..3 {
        let subject = reviewer.subject(&token(1), Some(PEER), now()).await.unwrap();
        assert_eq!((subject.namespace.as_str(), subject.service_account.as_str()), ("istio-system", "ztunnel"));
        assert_eq!(subject.pod, Some(("zt-1".into(), "u1".into())));
    }
    assert_eq!(script.asked.load(Ordering::SeqCst), 1);
    // Its end ends what is remembered of it, by the clock of the caller.
    let ended = reviewer.subject(&token(1), Some(PEER), now() + Duration::from_secs(4000)).await;
    assert_eq!(ended, Err(ReviewError::Expired));
    assert!(reviewer.remembered.lock().values().all(|r| r.until <= Instant::now() + GOOD_FOR));
}

#[tokio::test]
async fn what_cannot_be_good_is_not_asked_about() {
    let script = script([Ok(good())]);
    let reviewer = reviewer(&script);
    let later = now().unix_timestamp() + 60;
    let long = format!("{}{}", token(1), "x".repeat(MAX_TOKEN));
    let table = [
        (String::new(), "malformed"),
        ("a.b".into(), "malformed"),
        ("a.b.c.d".into(), "malformed"),
        ("a.!!.c".into(), "malformed"),
        (long, "malformed"),
        (token_with(json!(["https://kubernetes.default.svc"]), later, 0), "audience"),
        (token_with(json!([]), later, 0), "audience"),
        (token_with(json!("vault"), later, 0), "audience"),
        (token_with(json!("istio-ca"), now().unix_timestamp() - 1, 0), "expired"),
    ];
    for (token, text) in table {
        let error = reviewer.subject(&token, Some(PEER), now()).await.unwrap_err().to_string();
        assert!(error.contains(text), "{token}: {error}");
    }
    assert_eq!(script.asked.load(Ordering::SeqCst), 0);
    assert!(reviewer.subject(&token_with(json!("istio-ca"), later, 0), None, now()).await.is_ok());
}

#[tokio::test]
async fn answers_table() {
    let edit = |edit: fn(&mut TokenReviewStatus)| {
        let mut status = good();
        edit(&mut status);
        status
    };
    fn user(status: &mut TokenReviewStatus) -> &mut UserInfo {
        status.user.as_mut().unwrap()
    }
    let table = [
        (edit(|s| s.authenticated = Some(false)), "refuses the token"),
        (edit(|s| (s.authenticated, s.error) = (None, Some("pod is gone".into()))), "pod is gone"),
        (edit(|s| s.audiences = None), "does not confirm our audience"),
        (edit(|s| s.audiences = Some(vec!["other".into()])), "does not confirm our audience"),
        (edit(|s| s.user = None), "is not a service account"),
        (edit(|s| user(s).groups = None), "is not a service account"),
        (edit(|s| user(s).username = Some("system:node:n1".into())), "is not a service account"),
        (edit(|s| user(s).username = Some("system:serviceaccount::x".into())), "is not a service account"),
        (edit(|s| user(s).username = Some("system:serviceaccount:a:b:c".into())), "is not a service account"),
    ];
    for (status, text) in table {
        let reviewer = reviewer(&script([Ok(status)]));
        let error = reviewer.subject(&token(1), Some(PEER), now()).await.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let unbound = reviewer(&script([Ok(edit(|s| user(s).extra = None))]));
    assert_eq!(unbound.subject(&token(1), Some(PEER), now()).await.unwrap().pod, None);
}

#[tokio::test]
async fn an_absent_api_server_is_not_the_tokens_fault() {
    let script = script([Err("connection refused".into()), Ok(good())]);
    let reviewer = reviewer(&script);
    let error = reviewer.subject(&token(1), Some(PEER), now()).await.unwrap_err();
    assert!(matches!(&error, ReviewError::Unavailable(why) if why == "connection refused"), "{error}");
    // Nothing was remembered.
    assert!(reviewer.subject(&token(1), Some(PEER), now()).await.is_ok());
}

#[tokio::test]
async fn a_flood_of_bad_tokens_harms_only_itself() {
    let bad = TokenReviewStatus { authenticated: Some(false), ..TokenReviewStatus::default() };
    let script = script([Ok(bad)]);
    let reviewer = reviewer(&script);
    let mut too_many = 0;
    for salt in 0..200 {
        let error = reviewer.subject(&token(salt), Some(PEER), now()).await.unwrap_err();
        too_many += usize::from(error == ReviewError::TooMany(PEER));
    }
    let asked = script.asked.load(Ordering::SeqCst);
    assert!((20..=30).contains(&asked) && too_many == 200 - asked, "{asked} {too_many}");
    // The same bad token again and again costs one review.
    let before = script.asked.load(Ordering::SeqCst);
    let other = IpAddr::from([198, 18, 0, 2]);
    for _ in 0..10 {
        assert!(matches!(reviewer.subject(&token(1000), Some(other), now()).await, Err(ReviewError::Refused(_))));
    }
    assert_eq!(script.asked.load(Ordering::SeqCst), before + 1);
    // Others are served as ever.
    *script.answers.lock() = [Ok(good())].into();
    assert!(reviewer.subject(&token(2000), Some(other), now()).await.is_ok());
    // A good token that is known is good from everywhere.
    assert!(reviewer.subject(&token(2000), Some(PEER), now()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn one_address_cannot_take_all_places_and_nobody_waits_for_ever() {
    let held =
        Arc::new(Script { answers: Mutex::new([Ok(good())].into()), hold: Some(Notify::new()), ..Script::default() });
    let reviewer = Arc::new(reviewer(&held));
    let tokens: Vec<String> = (0..CONCURRENT_EACH + 1).map(token).collect();
    let time = now();
    let calls = tokens.iter().map(|token| reviewer.subject(token, Some(PEER), time));
    let answers = futures_join(calls).await;
    let told = |text: &str| answers.iter().filter(|a| a.as_ref().unwrap_err().to_string().contains(text)).count();
    assert_eq!((told("too many reviews under way"), told("not answered in time")), (1, CONCURRENT_EACH));
}

#[tokio::test]
async fn a_node_proxy_that_starts_costs_one_review() {
    let held =
        Arc::new(Script { answers: Mutex::new([Ok(good())].into()), hold: Some(Notify::new()), ..Script::default() });
    let reviewer = Arc::new(reviewer(&held));
    let (token, time) = (token(1), now());
    // Its stream, and certificates for eight identities.
    let calls = (0..9).map(|_| reviewer.subject(&token, Some(PEER), time));
    // The API server answers when all of them are waiting.
    let answer = async {
        tokio::task::yield_now().await;
        held.hold.as_ref().unwrap().notify_one();
        Vec::new()
    };
    let both: [std::pin::Pin<Box<dyn Future<Output = Vec<_>>>>; 2] = [Box::pin(futures_join(calls)), Box::pin(answer)];
    let answers: Vec<_> = futures_join(both.into_iter()).await.concat();
    assert_eq!(answers.len(), 9);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(held.asked.load(Ordering::SeqCst), 1);
}

/// All of them at once.
async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in &mut pending {
            if output.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(cx)
            {
                *output = Some(done);
            }
        }
        if pending.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, output)| output).collect()
}
