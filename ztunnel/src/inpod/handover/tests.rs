//! Both ends over a real socket, with files for sockets.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;

use nix::sys::stat::fstat;
use tokio::time::Instant;

use super::*;

const NETNS: NetnsId = NetnsId::new(4, 7);

/// Has one pod's sockets, under the names of files.
struct List {
    folder: PathBuf,
    kinds: Vec<Kind>,
}

impl Holder for List {
    async fn sockets(&self, uid: &PodUid, netns: NetnsId) -> Handed {
        if uid.as_str() != "a" || netns != NETNS {
            return Vec::new();
        }
        let file = |number: usize| File::open(self.folder.join(number.to_string())).unwrap().into();
        self.kinds.iter().enumerate().map(|(number, kind)| (*kind, file(number))).collect()
    }
}

struct Bench {
    folder: tempfile::TempDir,
    path: PathBuf,
    tasks: Tracker,
    cancel: Cancel,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder.path().join("ztunnel.sock"));
        Self { folder, path, tasks: Tracker::new(), cancel: Cancel::new() }
    }

    /// A running proxy with this many sockets, which are files.
    fn holder(&self, sockets: usize) {
        let folder = self.folder.path().to_owned();
        for number in 0..sockets {
            File::create(folder.join(number.to_string())).unwrap();
        }
        let kinds = [Kind::Outbound, Kind::Plaintext, Kind::Hbone, Kind::DnsUdp, Kind::DnsTcp];
        let list = List { folder, kinds: kinds.into_iter().cycle().take(sockets).collect() };
        let listener = PacketListener::bind(&self.path).unwrap();
        self.tasks.spawn("hand-over", serve(listener, list, self.tasks.clone(), self.cancel.clone()));
    }

    fn inode(&self, number: usize) -> u64 {
        fstat(File::open(self.folder.path().join(number.to_string())).unwrap()).unwrap().st_ino
    }

    async fn end(self) {
        self.cancel.drain();
        self.tasks.close();
        self.tasks.wait().await;
        assert_eq!(self.tasks.panics(), 0);
    }
}

#[tokio::test]
async fn a_pods_sockets_come_whole_and_in_order_and_to_our_user_alone() {
    for sockets in [0, 3, IN_A_PACKET, IN_A_PACKET + 1, 3 * IN_A_PACKET - 1] {
        let bench = Bench::new();
        bench.holder(sockets);
        assert_eq!(std::fs::metadata(&bench.path).unwrap().permissions().mode() & 0o777, 0o600);
        let predecessor = Predecessor::find(&bench.path);
        for _ in 0..2 {
            let handed = predecessor.ask(&PodUid::new("a"), NETNS).await;
            assert_eq!(handed.len(), sockets);
            for (number, (kind, fd)) in handed.iter().enumerate() {
                assert_eq!(fstat(fd).unwrap().st_ino, bench.inode(number), "{number} of {sockets}");
                assert_eq!(*kind == Kind::DnsTcp, number % 5 == 4);
            }
            // Neither another pod's, nor those of another sandbox of this one.
            assert!(predecessor.ask(&PodUid::new("b"), NETNS).await.is_empty());
            assert!(predecessor.ask(&PodUid::new("a"), NetnsId::new(4, 8)).await.is_empty());
        }
        bench.end().await;
    }
}

#[tokio::test]
async fn the_next_process_takes_the_path_and_whoever_was_connected_stays_so() {
    let bench = Bench::new();
    assert!(Predecessor::find(&bench.path).ask(&PodUid::new("a"), NETNS).await.is_empty(), "nobody is there");
    bench.holder(1);
    let second = Predecessor::find(&bench.path);
    bench.holder(2);
    let third = Predecessor::find(&bench.path);
    assert_eq!(second.ask(&PodUid::new("a"), NETNS).await.len(), 1);
    assert_eq!(third.ask(&PodUid::new("a"), NETNS).await.len(), 2);
    // The processes end: so does what can be asked.
    bench.cancel.drain();
    bench.tasks.close();
    bench.tasks.wait().await;
    assert!(second.ask(&PodUid::new("a"), NETNS).await.is_empty());
    assert!(Predecessor::find(&bench.path).ask(&PodUid::new("a"), NETNS).await.is_empty());
    bench.end().await;
}

/// What the other side says, and whether it is listened to after that.
#[tokio::test]
async fn whoever_speaks_otherwise_is_left_alone() {
    for answer in [
        &br#"{"version":2,"sockets":[],"more":false}"#[..],
        br#"{"version":1,"sockets":["outbound"],"more":false}"#,
        br#"{"version":1,"sockets":["waypoint"],"more":false}"#,
        b"\xff",
    ] {
        let bench = Bench::new();
        let listener = PacketListener::bind(&bench.path).unwrap();
        let predecessor = Predecessor::find(&bench.path);
        let other = listener.accept().await.unwrap();
        let uid = PodUid::new("a");
        let (handed, ()) = tokio::join!(predecessor.ask(&uid, NETNS), async {
            let (asked, _) = other.recv_many(&mut [0; 256]).await.unwrap();
            assert_eq!(asked, br#"{"version":1,"uid":"a","device":4,"inode":7}"#);
            other.send(answer).await.unwrap();
        });
        assert!(handed.is_empty());
        assert!(matches!(other.recv_many(&mut [0; 256]).await, Err(PacketError::Closed)));
    }
    // We to others: the version that we speak, and nothing else.
    let bench = Bench::new();
    bench.holder(3);
    let other = PacketSocket::connect(&bench.path).unwrap();
    for question in [&br#"{"version":2,"uid":"a","device":4,"inode":7}"#[..], b"?"] {
        other.send(question).await.unwrap();
        let (answer, descriptors) = other.recv_many(&mut [0; 256]).await.unwrap();
        assert_eq!((&*answer, descriptors.len()), (&br#"{"version":1,"sockets":[],"more":false}"#[..], 0));
    }
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_waited_for_once_and_not_long() {
    let bench = Bench::new();
    let _silent = PacketListener::bind(&bench.path).unwrap();
    let predecessor = Predecessor::find(&bench.path);
    let begin = Instant::now();
    for _ in 0..100 {
        assert!(predecessor.ask(&PodUid::new("a"), NETNS).await.is_empty());
    }
    assert_eq!(begin.elapsed(), PATIENCE);
}
