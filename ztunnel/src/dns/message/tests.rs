//! Questions, answers and their sizes.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;

fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message
}

fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_version(0).set_max_payload(size).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn read(message: &Message, transport: Transport) -> Question {
    Question::read(&message.to_vec().unwrap(), transport).unwrap()
}

fn parse(bytes: &[u8]) -> Message {
    Message::from_vec(bytes).unwrap()
}

fn known(count: u8) -> Known {
    Known { canonical: None, addresses: (1..=count).map(|n| IpAddr::from([198, 19, 0, n])).collect() }
}

#[test]
fn an_answer_repeats_the_question_and_says_what_it_is() {
    let asked = query("WeB.Shop.svc.cluster.local.", RecordType::A);
    let question = read(&asked, Transport::Udp);
    assert_eq!(question.host(), Some(("web.shop.svc.cluster.local".into(), Family::V4)));
    let answer = parse(&question.answer(&known(2)));
    assert_eq!(
        (answer.id, answer.message_type, answer.response_code),
        (0x1234, MessageType::Response, ResponseCode::NoError)
    );
    assert!(answer.authoritative && answer.recursion_available && answer.recursion_desired && !answer.truncation);
    assert!(answer.queries[0].name().eq_case(asked.queries[0].name()), "letters as they came (0x20)");
    assert_eq!(answer.edns, None);
    let records: Vec<_> = answer.answers.iter().map(|r| (r.name.to_string(), r.ttl, r.data.ip_addr())).collect();
    let of = |n: u8| ("WeB.Shop.svc.cluster.local.".to_owned(), 30, Some(IpAddr::from([198, 19, 0, n])));
    assert_eq!(records, [of(1), of(2)]);
}

#[test]
fn a_name_found_without_its_search_domain_has_a_cname() {
    let question = read(&query("api.example.com.shop.svc.cluster.local.", RecordType::AAAA), Transport::Udp);
    let known = Known { canonical: Some("api.example.com".into()), addresses: vec!["fd00::1".parse().unwrap()] };
    let answer = parse(&question.answer(&known));
    let text: Vec<String> = answer.answers.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        ["api.example.com.shop.svc.cluster.local. 30 IN CNAME api.example.com.", "api.example.com. 30 IN AAAA fd00::1"]
    );
}

#[test]
fn known_and_empty_is_no_error() {
    let answer = parse(&read(&query("web.", RecordType::AAAA), Transport::Udp).answer(&known(0)));
    assert_eq!((answer.response_code, answer.answers.len(), answer.authoritative), (ResponseCode::NoError, 0, true));
}

#[test]
fn edns_comes_back() {
    let question = read(&with_edns(query("web.", RecordType::A), 1400), Transport::Udp);
    for bytes in [question.answer(&known(1)), question.error(ResponseCode::ServFail)] {
        let edns = parse(&bytes).edns.unwrap();
        assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1400, true));
    }
}

#[test]
fn answers_fit_into_what_the_client_takes() {
    let check = |asked: &Message, transport, count: u8, cut: bool| {
        let bytes = read(asked, transport).answer(&known(count));
        let answer = parse(&bytes);
        assert_eq!(answer.truncation, cut, "{count} by {transport:?}: {} bytes", bytes.len());
        assert_eq!(answer.answers.len(), if cut { 0 } else { usize::from(count) });
        bytes.len()
    };
    let plain = query("db.data.svc.cluster.local.", RecordType::A);
    // 29 + 16 each: 29 fit into 512 bytes.
    assert!(check(&plain, Transport::Udp, 29, false) <= 512);
    check(&plain, Transport::Udp, 30, true);
    check(&with_edns(plain.clone(), 1232), Transport::Udp, 70, false);
    check(&with_edns(plain.clone(), 1232), Transport::Udp, 80, true);
    check(&with_edns(plain.clone(), 4096), Transport::Udp, 200, false);
    // A size below the smallest is the smallest (RFC 6891, 6.2.3).
    check(&with_edns(plain.clone(), 100), Transport::Udp, 20, false);
    check(&plain, Transport::Tcp, 255, false);
}

#[test]
fn the_most_addresses_fit_into_a_message() {
    let question = read(
        &with_edns(query(&format!("{}.", vec!["a".repeat(60); 4].join(".")), RecordType::AAAA), 512),
        Transport::Tcp,
    );
    let addresses = vec!["fd00:18::1".parse().unwrap(); 2000];
    let answer = parse(&question.answer(&Known { canonical: None, addresses }));
    assert_eq!((answer.answers.len(), answer.truncation), (2000, false));
}

#[test]
fn only_hosts_addresses_are_looked_up() {
    let host = |message: &Message| read(message, Transport::Udp).host();
    for other in [
        RecordType::TXT,
        RecordType::SRV,
        RecordType::PTR,
        RecordType::MX,
        RecordType::ANY,
        RecordType::HTTPS,
        RecordType::Unknown(4711),
    ] {
        assert_eq!(host(&query("web.", other)), None, "{other}");
    }
    let mut chaos = query("version.bind.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(host(&chaos), None);
    assert_eq!(host(&query(".", RecordType::A)), None);
    assert_eq!(host(&query("_a.x-1.", RecordType::A)), Some(("_a.x-1".into(), Family::V4)));
    let mut dotted = query("x.", RecordType::A);
    dotted.queries[0].set_name(Name::from_labels([b"a.b".as_slice(), b"c"]).unwrap());
    assert_eq!(host(&dotted), None, "a dot inside a label is no separator");
}

#[test]
fn what_is_no_question_is_refused_or_ignored() {
    let refused = |bytes: &[u8]| match Question::read(bytes, Transport::Udp) {
        Ok(_) => panic!("taken"),
        Err(Refusal::Silence) => None,
        Err(Refusal::Reply(bytes)) => {
            let answer = parse(&bytes);
            assert_eq!((answer.id, answer.message_type), (0x1234, MessageType::Response));
            Some(u16::from(answer.response_code))
        }
    };
    let bytes = |message: &Message| message.to_vec().unwrap();
    assert_eq!(refused(&[]), None);
    assert_eq!(refused(&bytes(&query("web.", RecordType::A))[..11]), None);
    let mut response = query("web.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert_eq!(refused(&bytes(&response)), None, "two proxies must not talk to each other for ever");
    let mut update = query("web.", RecordType::SOA);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(refused(&bytes(&update)), Some(ResponseCode::NotImp.into()));
    let mut none = query("web.", RecordType::A);
    none.queries.clear();
    assert_eq!(refused(&bytes(&none)), Some(ResponseCode::FormErr.into()));
    let mut two = query("web.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(refused(&bytes(&two)), Some(ResponseCode::FormErr.into()));
    let whole = bytes(&query("web.", RecordType::A));
    assert_eq!(refused(&whole[..whole.len() - 1]), Some(ResponseCode::FormErr.into()));
    assert_eq!(refused(&bytes(&query("web.", RecordType::AXFR))), Some(ResponseCode::NotImp.into()));
    let mut later = with_edns(query("web.", RecordType::A), 1232);
    later.edns.as_mut().unwrap().set_version(1);
    assert_eq!(refused(&bytes(&later)), Some(ResponseCode::BADVERS.into()));
}

#[test]
fn upstreams_answers_are_those_to_this_question() {
    let asked = query("www.example.com.", RecordType::TXT);
    let question = read(&asked, Transport::Udp);
    let is = |change: fn(&mut Message)| {
        let mut answer = asked.clone().into_response();
        answer.metadata.id = 7;
        change(&mut answer);
        question.is_answer(&answer.to_vec().unwrap(), 7)
    };
    assert!(is(|_| {}));
    assert!(is(|m| _ = m.queries[0].set_name(Name::from_ascii("WWW.example.COM.").unwrap())));
    assert!(!is(|m| m.metadata.id = 8));
    assert!(!is(|m| m.metadata.message_type = MessageType::Query));
    assert!(!is(|m| _ = m.queries[0].set_name(Name::from_ascii("www.example.org.").unwrap())));
    assert!(!is(|m| _ = m.queries[0].set_query_type(RecordType::A)));
    assert!(!is(|m| m.queries.clear()));
    assert!(is(|m| {
        m.queries.clear();
        m.metadata.response_code = ResponseCode::FormErr;
    }));
    assert!(!question.is_answer(&[], 7));
}

#[test]
fn an_upstreams_answer_keeps_its_bytes() {
    let question = read(&query("x.", RecordType::Unknown(4711)), Transport::Udp);
    let answer = vec![9, 9, 0x81, 0x80, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    assert_eq!(question.relay(answer), [0x12, 0x34, 0x81, 0x80, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn an_upstreams_answer_too_long_for_the_client_is_cut() {
    let asked = query("x.", RecordType::TXT);
    let mut answer = asked.clone().into_response();
    answer.add_answer(Record::from_rdata(
        Name::from_ascii("x.").unwrap(),
        1,
        RData::TXT(hickory_proto::rr::rdata::TXT::new(vec!["t".repeat(200); 4])),
    ));
    let bytes = answer.to_vec().unwrap();
    let cut = parse(&read(&asked, Transport::Udp).relay(bytes.clone()));
    assert_eq!(
        (cut.id, cut.truncation, cut.answers.len(), cut.response_code),
        (0x1234, true, 0, ResponseCode::NoError)
    );
    let large = read(&with_edns(asked.clone(), 1232), Transport::Udp).relay(bytes.clone());
    assert_eq!(parse(&large).answers.len(), 1);
    assert_eq!(parse(&read(&asked, Transport::Tcp).relay(bytes)).answers.len(), 1);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        match Question::read(&bytes, transport) {
            Ok(question) => {
                let _ = question.host();
                parse(&question.answer(&known(3)));
                parse(&question.error(ResponseCode::ServFail));
                let _ = (question.is_answer(&bytes, 0), question.relay(bytes.clone()));
            }
            Err(Refusal::Reply(answer)) => { parse(&answer); }
            Err(Refusal::Silence) => {}
        }
    }

    /// Close to a question, so that the parts behind the header are reached.
    #[test]
    fn no_damaged_question_panics(name in "([a-zA-Z0-9]{1,20}\\.){1,6}", kind: u16, at in 0usize..80, byte: u8, edns in proptest::option::of(any::<u16>())) {
        let mut message = query(&name, RecordType::from(kind));
        if let Some(size) = edns {
            message = with_edns(message, size);
        }
        let mut bytes = message.to_vec().unwrap();
        if let Ok(question) = Question::read(&bytes, Transport::Udp) {
            let answer = parse(&question.answer(&known(9)));
            prop_assert_eq!(&answer.queries, &message.queries);
            prop_assert!(question.is_answer(&question.answer(&known(9)), 0x1234));
        }
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        if let Ok(question) = Question::read(&bytes, Transport::Udp) {
            parse(&question.answer(&known(1)));
        }
    }
}
