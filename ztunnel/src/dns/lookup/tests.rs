use std::collections::VecDeque;
use std::io::Write;

use futures_util::future::join_all;
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::{A, AAAA, CNAME};

use super::*;

/// Answers from a script, and notes what it was asked.
#[derive(Default)]
struct Script {
    /// For `<type> <transport>`, in order; the last one goes on.
    answers: Mutex<HashMap<&'static str, VecDeque<Reply>>>,
    asked: Mutex<Vec<String>>,
}

/// Records as text, `<owner> <ttl> <address or name>`, or what else happens.
#[derive(Clone)]
enum Reply {
    Records(&'static [&'static str]),
    Truncated,
    Code(ResponseCode),
    Silence,
}

use Reply::*;

impl Ask for &Script {
    async fn ask(&self, question: &Question, query: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        // A round trip.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let query = Message::from_vec(query).unwrap();
        assert!(query.metadata.recursion_desired && query.edns.is_some());
        let asked = format!("{} {}", question.record_type(), question.transport().as_str());
        self.asked.lock().push(format!("{asked} {}", query.queries[0].name()));
        let reply = match self.answers.lock().get_mut(&*asked) {
            Some(replies) if replies.len() > 1 => replies.pop_front().unwrap(),
            Some(replies) => replies[0].clone(),
            None => Records(&[]),
        };
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.add_query(query.queries[0].clone());
        match reply {
            Records(records) => records.iter().for_each(|text| {
                answer.add_answer(record(text));
            }),
            Truncated => answer.metadata.truncation = true,
            Code(code) => answer.metadata.response_code = code,
            Silence => return Err(UpstreamError::Timeout),
        }
        Ok(answer.to_vec().unwrap())
    }
}

fn record(text: &str) -> Record {
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap();
    let (owner, ttl, data) = (Name::from_ascii(word()).unwrap(), word().parse().unwrap(), word());
    let data = match data.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => RData::A(A(ip)),
        Ok(IpAddr::V6(ip)) => RData::AAAA(AAAA(ip)),
        Err(_) => RData::CNAME(CNAME(Name::from_ascii(data).unwrap())),
    };
    Record::from_rdata(owner, ttl, data)
}

fn script(answers: &[(&'static str, &[Reply])]) -> Script {
    let answers = answers.iter().map(|(question, replies)| (*question, replies.iter().cloned().collect())).collect();
    Script { answers: Mutex::new(answers), asked: Mutex::default() }
}

async fn lookup(resolver: &Resolver<&Script>, name: &str) -> String {
    let found: Vec<String> = resolver.lookup(name).await.iter().map(ToString::to_string).collect();
    found.join(" ")
}

fn asked(script: &Script) -> usize {
    std::mem::take(&mut *script.asked.lock()).len()
}

#[tokio::test(start_paused = true)]
async fn both_families_are_asked_for_and_kept_as_long_as_the_shorter_lived() {
    let script = script(&[
        (
            "A udp",
            &[Records(&["db.example. 30 10.0.0.1", "db.example. 60 10.0.0.2"]), Records(&["db.example. 30 10.0.0.3"])],
        ),
        ("AAAA udp", &[Records(&["db.example. 20 fd00::1"])]),
    ]);
    let resolver = Resolver::new(&script, None, true);
    assert_eq!(lookup(&resolver, "DB.example.").await, "10.0.0.1 10.0.0.2 fd00::1");
    assert_eq!(*script.asked.lock(), ["A udp db.example.", "AAAA udp db.example."]);
    asked(&script);
    tokio::time::advance(Duration::from_secs(19)).await;
    assert_eq!(lookup(&resolver, "db.example").await, "10.0.0.1 10.0.0.2 fd00::1");
    assert_eq!(asked(&script), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(lookup(&resolver, "db.example").await, "10.0.0.3 fd00::1");
    assert_eq!(asked(&script), 2);
}

#[tokio::test(start_paused = true)]
async fn of_many_one_asks() {
    let script = script(&[("A udp", &[Records(&["db.example. 30 10.0.0.1"])])]);
    let resolver = Resolver::new(&script, None, false);
    let all = join_all((0..50).map(|_| resolver.lookup("db.example"))).await;
    assert!(all.iter().all(|found| found.len() == 1));
    assert_eq!(asked(&script), 1);
    // Who gives up doesn't take the others with it.
    let waiting = async {
        let first = tokio::time::timeout(Duration::from_millis(1), resolver.lookup("other.example"));
        let (first, second) = tokio::join!(first, resolver.lookup("other.example"));
        assert!(first.is_err() && second.is_empty());
    };
    waiting.await;
    assert_eq!(asked(&script), 1, "the first one's question was lost before it was noted");
}

#[tokio::test(start_paused = true)]
async fn answers_are_read_along_their_aliases() {
    for (records, expected, keep) in [
        (&["db.example. 30 a.example.", "a.example. 7 b.example.", "b.example. 60 10.0.0.1"][..], "10.0.0.1", 7),
        (&["b.example. 60 10.0.0.1", "DB.example. 30 B.example."], "10.0.0.1", 30),
        // Somebody else's records.
        (&["evil.example. 60 10.6.6.6", "db.example. 60 10.0.0.1"], "10.0.0.1", 60),
        (&["evil.example. 60 10.6.6.6"], "", 5),
        (&["db.example. 30 a.example.", "a.example. 30 db.example."], "", 5),
        (&["db.example. 30 fd00::1"], "", 5),
        (&[], "", 5),
    ] {
        let script = script(&[("A udp", &[Records(records)])]);
        let resolver = Resolver::new(&script, None, false);
        assert_eq!(lookup(&resolver, "db.example").await, expected, "{records:?}");
        tokio::time::advance(Duration::from_millis(keep * 1000 - 1)).await;
        lookup(&resolver, "db.example").await;
        assert_eq!(asked(&script), 1, "{records:?}");
        tokio::time::advance(Duration::from_millis(1)).await;
        lookup(&resolver, "db.example").await;
        assert_eq!(asked(&script), 1, "{records:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_cut_comes_by_connection() {
    let script = script(&[("A udp", &[Truncated]), ("A tcp", &[Records(&["db.example. 30 10.0.0.1"])])]);
    let resolver = Resolver::new(&script, None, false);
    assert_eq!(lookup(&resolver, "db.example").await, "10.0.0.1");
    assert_eq!(*script.asked.lock(), ["A udp db.example.", "A tcp db.example."]);
}

#[tokio::test(start_paused = true)]
async fn trouble_with_one_family_or_both() {
    let good = Records(&["db.example. 30 10.0.0.1"]);
    for (a, aaaa, expected, keep) in [
        (good.clone(), Silence, "10.0.0.1", 30),
        (good.clone(), Code(ResponseCode::ServFail), "10.0.0.1", 30),
        (Silence, Silence, "", 1),
        (Code(ResponseCode::ServFail), Records(&[]), "", 1),
        (Code(ResponseCode::NXDomain), Code(ResponseCode::NXDomain), "", 5),
    ] {
        let script = script(&[("A udp", &[a]), ("AAAA udp", &[aaaa])]);
        let resolver = Resolver::new(&script, None, true);
        assert_eq!(lookup(&resolver, "db.example").await, expected);
        tokio::time::advance(Duration::from_secs(keep) - Duration::from_millis(1)).await;
        lookup(&resolver, "db.example").await;
        assert_eq!(asked(&script), 2);
        tokio::time::advance(Duration::from_millis(1)).await;
        lookup(&resolver, "db.example").await;
        assert_eq!(asked(&script), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn hosts_come_first_and_nonsense_is_not_asked_for() {
    let mut hosts = tempfile::NamedTempFile::new().unwrap();
    writeln!(hosts, "10.0.0.7 db.example").unwrap();
    let script = script(&[("A udp", &[Records(&["web.example. 30 10.0.0.1"])])]);
    let resolver = Resolver::new(&script, Some(hosts.path().into()), false);
    assert_eq!(lookup(&resolver, "db.example").await, "10.0.0.7");
    assert_eq!(lookup(&resolver, &"a".repeat(70)).await, "");
    assert_eq!(asked(&script), 0);
    assert_eq!(lookup(&resolver, "web.example").await, "10.0.0.1");
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded() {
    let script = script(&[("A udp", &[Code(ResponseCode::NXDomain)])]);
    let resolver = Resolver::new(&script, None, false);
    for n in 0..KEPT + 10 {
        resolver.lookup(&format!("n{n}.example")).await;
    }
    assert!(resolver.names.lock().len() <= KEPT);
}
