use super::*;
use crate::raw::*;
use aquifer_runtime::Tracker;
use tokio::io::{AsyncReadExt, duplex};
use tokio::task::LocalSet;

/// Three requests of the reference client: asked for the same, ours writes the same bytes.
#[tokio::test(start_paused = true)]
async fn connects_byte_for_byte_like_the_reference() {
    LocalSet::new()
        .run_until(async {
            let entries = recording("hbone-ztunnel-to-server.json");
            let (near, far) = duplex(1 << 20);
            let (client, driver) = handshake(near, &ClientConfig::default()).await.unwrap();
            let tracker = Tracker::new();
            tracker.spawn_local("driver", async move {
                let _ = driver.run().await;
            });
            let mut raw = Raw(far);
            let mut preface = [0; 24];
            raw.0.read_exact(&mut preface).await.unwrap();
            assert_eq!(preface, PREFACE);
            let ours = raw.next().await.unwrap().settings();
            let theirs = &entries.iter().find(|e| e["message"] == "SETTINGS").unwrap()["json"]["settings"];
            let value = |id| ours.iter().find(|(i, _)| *i == id).map(|(_, v)| u64::from(*v));
            assert_eq!(value(2), theirs["ENABLE_PUSH"].as_u64());
            assert_eq!(value(5), theirs["MAX_FRAME_SIZE"].as_u64());
            assert_eq!(value(6), theirs["MAX_HEADER_LIST_SIZE"].as_u64());
            assert_eq!(value(4), Some(256 << 10), "ours: a quarter MiB a stream");
            assert_eq!(ours.len(), 4);
            let connects = entries.iter().filter(|e| e["direction"] == "client->server" && e["message"] == "HEADERS");
            let mut seen = 0;
            for entry in connects {
                let mut request = HboneRequest { authority: String::new(), headers: HeaderMap::new() };
                for (name, value) in fields(entry) {
                    match name {
                        ":method" => assert_eq!(value, "CONNECT"),
                        ":authority" => request.authority = value.to_owned(),
                        name => {
                            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                            request.headers.insert(name, value.parse().unwrap());
                        }
                    }
                }
                let client = client.clone();
                tracker.spawn_local("request", async move {
                    let _ = client.connect(&request).await;
                });
                let frame = raw.answer().await.unwrap();
                let stream = entry["json"]["stream"].as_u64().unwrap() as u32;
                let block = hex(entry["json"]["header_block_hex"].as_str().unwrap());
                assert_eq!(frame, Frame::new(HEADERS, END_HEADERS, stream, &block));
                seen += 1;
            }
            assert_eq!(seen, 3);
        })
        .await;
}

async fn against(answers: Vec<Frame>) -> Result<(), ConnectError> {
    let (near, far) = duplex(1 << 20);
    LocalSet::new()
        .run_until(async {
            let config = ClientConfig::default();
            let (client, driver) = handshake(near, &config).await.unwrap();
            let tracker = Tracker::new();
            tracker.spawn_local("driver", async move {
                let _ = driver.run().await;
            });
            let mut raw = Raw(far);
            let mut preface = [0; 24];
            raw.0.read_exact(&mut preface).await.unwrap();
            raw.send(Frame::new(SETTINGS, 0, 0, &[])).await;
            for answer in answers {
                raw.send(answer).await;
            }
            let request = HboneRequest { authority: "a.b:1".into(), headers: HeaderMap::new() };
            client.connect(&request).await.map(drop)
        })
        .await
}

#[tokio::test(start_paused = true)]
async fn only_200_is_a_stream() {
    use aquifer_core::reason::Reason as Why;
    for (status, why) in [("401", Why::PeerDenied), ("503", Why::PeerRefused), ("204", Why::PeerRefused)] {
        // The stream does not exist yet when the answer is read, so it is asked for first.
        let (near, far) = duplex(1 << 20);
        LocalSet::new()
            .run_until(async {
                let (client, driver) = handshake(near, &ClientConfig::default()).await.unwrap();
                let tracker = Tracker::new();
                tracker.spawn_local("driver", async move {
                    let _ = driver.run().await;
                });
                let mut raw = Raw(far);
                let mut preface = [0; 24];
                raw.0.read_exact(&mut preface).await.unwrap();
                raw.send(Frame::new(SETTINGS, 0, 0, &[])).await;
                let request = HboneRequest { authority: "a.b:1".into(), headers: HeaderMap::new() };
                let answer = async {
                    raw.answer().await.unwrap();
                    raw.send(Frame::headers(1, END_STREAM, &[(":status", status)])).await;
                };
                let (result, ()) = tokio::join!(client.connect(&request), answer);
                let Err(e) = result else { panic!("{status} gave a stream") };
                assert!(matches!(&e, ConnectError::Status { status: s, .. } if s.as_str() == status));
                assert_eq!(e.reason(), why);
                assert!(!e.is_unprocessed() && !e.is_connection_lost() && client.is_open());
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn silence_times_out() {
    let start = tokio::time::Instant::now();
    let e = against(vec![]).await.unwrap_err();
    // The PING is not answered either; it comes to the same moment.
    assert_eq!(start.elapsed().as_secs(), 30);
    assert!(matches!(e, ConnectError::Timeout(_)) || e.is_connection_lost(), "{e}");
}

#[tokio::test(start_paused = true)]
async fn goaway_before_the_request_is_unprocessed() {
    let e = against(vec![Frame::new(GOAWAY, 0, 0, &[0; 8])]).await.unwrap_err();
    assert!(e.is_unprocessed(), "{e}");
}

#[test]
fn malformed_authorities_never_reach_the_wire() {
    for bad in ["", "a b:1", "a:1/path", "u@", "[::1", "a\r\n:1"] {
        let request = HboneRequest { authority: bad.into(), headers: HeaderMap::new() };
        let result = head(&request);
        assert!(result.is_err(), "{bad:?} became {:?}", result.unwrap().uri());
    }
    for good in ["10.0.0.1:80", "[fd00::1]:80", "web.shop.svc.cluster.local:8080"] {
        let request = HboneRequest { authority: good.into(), headers: HeaderMap::new() };
        let head = head(&request).unwrap();
        assert_eq!(head.uri().authority().unwrap(), good);
        assert_eq!((head.uri().scheme(), head.uri().path_and_query()), (None, None));
    }
}
