//! HTTP/2 framed by hand: everything that arrives is kept, in order, for tests to look at.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::hpack::{self, Decoder, Headers};
use super::{DEADLINE, within};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Anything that bytes go through.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// A frame as it stood on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let length = self.payload.len();
        let mut out = vec![(length >> 16) as u8, (length >> 8) as u8, length as u8, self.kind, self.flags];
        out.extend_from_slice(&self.stream.to_be_bytes());
        out.extend_from_slice(&self.payload);
        out
    }

    pub(crate) fn is_ack(&self) -> bool {
        self.flags & ACK != 0
    }

    pub(crate) fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The first 32 bits of the payload: an error code, an increment.
    pub(crate) fn number(&self) -> u32 {
        self.payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    /// The pairs of a SETTINGS frame.
    pub(crate) fn settings(&self) -> Vec<(u16, u32)> {
        let pairs = self.payload.chunks_exact(6);
        pairs.map(|p| (u16::from_be_bytes([p[0], p[1]]), u32::from_be_bytes([p[2], p[3], p[4], p[5]]))).collect()
    }
}

/// What a stream's owner is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Headers { headers: Headers, end: bool },
    Data { bytes: Vec<u8>, end: bool },
    Reset(u32),
}

#[derive(Debug, Default)]
struct Shared {
    frames: Mutex<Vec<Frame>>,
    streams: Mutex<HashMap<u32, mpsc::UnboundedSender<Event>>>,
    /// PINGs are not answered while set.
    mute: AtomicBool,
    /// Nothing more will be read.
    ended: AtomicBool,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    out: mpsc::UnboundedSender<Out>,
    shared: Arc<Shared>,
    incoming: mpsc::UnboundedReceiver<(Stream, Headers, bool)>,
    count: watch::Receiver<usize>,
    next: AtomicU32,
    _tasks: JoinSet<()>,
}

impl Connection {
    /// The dialling end: preface and empty SETTINGS go first.
    pub(crate) fn client(io: impl Io) -> Self {
        let mut first = PREFACE.to_vec();
        first.extend(Frame { kind: SETTINGS, flags: 0, stream: 0, payload: Vec::new() }.bytes());
        Self::start(io, first, 1, false)
    }

    /// The accepting end with these SETTINGS.
    pub(crate) fn server(io: impl Io, settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend_from_slice(&name.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        Self::start(io, Frame { kind: SETTINGS, flags: 0, stream: 0, payload }.bytes(), 2, true)
    }

    fn start(io: impl Io, first: Vec<u8>, next: u32, expect_preface: bool) -> Self {
        let (read, write) = tokio::io::split(io);
        let (out, queue) = mpsc::unbounded_channel();
        let _ = out.send(Out::Bytes(first));
        let (accept, incoming) = mpsc::unbounded_channel();
        let (counted, count) = watch::channel(0);
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(write_all(write, queue));
        let reader =
            Reader { read, out: out.clone(), shared: Arc::clone(&shared), accept, counted, decoder: Decoder::new() };
        tasks.spawn(async move {
            let shared = Arc::clone(&reader.shared);
            // How it ended shows in what the streams get: nothing more.
            let _ = reader.run(expect_preface).await;
            shared.ended.store(true, Ordering::SeqCst);
            shared.streams.lock().clear();
        });
        Self { out, shared, incoming, count, next: AtomicU32::new(next), _tasks: tasks }
    }

    /// Opens a stream with these headers.
    pub(crate) fn open(&self, headers: &[(&str, &str)], end: bool) -> Stream {
        let id = self.next.fetch_add(2, Ordering::Relaxed);
        let stream = new_stream(id, &self.out, &self.shared);
        stream.headers(headers, end);
        stream
    }

    /// The next stream that the other end opens, with its headers and whether they ended it.
    pub(crate) async fn accept(&mut self) -> Result<(Stream, Headers)> {
        let (stream, headers, _) = within("a stream", self.incoming.recv()).await?.context("the connection ended")?;
        Ok((stream, headers))
    }

    /// The same without a deadline; `None` at the connection's end.
    pub(crate) async fn accept_any(&mut self) -> Option<(Stream, Headers)> {
        self.incoming.recv().await.map(|(stream, headers, _)| (stream, headers))
    }

    pub(crate) fn send(&self, frame: &Frame) {
        let _ = self.out.send(Out::Bytes(frame.bytes()));
    }

    /// Stops answering PINGs.
    pub(crate) fn mute(&self) {
        self.shared.mute.store(true, Ordering::Relaxed);
    }

    /// Everything that arrived so far.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.shared.frames.lock().clone()
    }

    /// Waits for a frame that `wanted` takes, among what arrived and what will.
    pub(crate) async fn frame(&self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        let mut count = self.count.clone();
        let search = async {
            loop {
                if let Some(frame) = self.shared.frames.lock().iter().find(|frame| wanted(frame)) {
                    return Ok(frame.clone());
                }
                if count.changed().await.is_err() {
                    bail!("the connection ended before {what}; frames: {:?}", self.shared.frames.lock());
                }
            }
        };
        tokio::time::timeout(DEADLINE, search).await.with_context(|| format!("no {what}"))?
    }

    /// Waits until the other end has closed the connection.
    pub(crate) async fn closed(&self) -> Result<()> {
        let mut count = self.count.clone();
        within("the connection's end", async move { while count.changed().await.is_ok() {} }).await
    }
}

/// What the writing task is told.
#[derive(Debug)]
enum Out {
    /// Goes out as it is.
    Bytes(Vec<u8>),
    /// A stream's frame, in the stream's order; DATA waits for credit.
    Frame(Frame),
    /// The other end gave credit.
    Credit(u32, u32),
    /// The other end's INITIAL_WINDOW_SIZE.
    Initial(u32),
}

async fn write_all(mut write: WriteHalf<impl Io>, mut queue: mpsc::UnboundedReceiver<Out>) {
    let mut waiting = Waiting { initial: 65_535, connection: 65_535, streams: BTreeMap::new() };
    while let Some(out) = queue.recv().await {
        let bytes = waiting.take(out);
        if !bytes.is_empty() && (write.write_all(&bytes).await.is_err() || write.flush().await.is_err()) {
            return;
        }
    }
    let _ = write.shutdown().await;
}

/// Frames that wait for credit (RFC 9113, 5.2).
#[derive(Debug)]
struct Waiting {
    initial: i64,
    connection: i64,
    streams: BTreeMap<u32, (i64, VecDeque<Frame>)>,
}

impl Waiting {
    /// The bytes that may go out now.
    fn take(&mut self, out: Out) -> Vec<u8> {
        let initial = self.initial;
        match out {
            Out::Bytes(bytes) => return bytes,
            Out::Frame(frame) => {
                self.streams.entry(frame.stream).or_insert_with(|| (initial, VecDeque::new())).1.push_back(frame);
            }
            Out::Credit(0, credit) => self.connection += i64::from(credit),
            Out::Credit(stream, credit) => {
                self.streams.entry(stream).or_insert_with(|| (initial, VecDeque::new())).0 += i64::from(credit);
            }
            Out::Initial(size) => {
                let change = i64::from(size) - self.initial;
                self.initial = size.into();
                self.streams.values_mut().for_each(|(window, _)| *window += change);
            }
        }
        let mut bytes = Vec::new();
        for (window, frames) in self.streams.values_mut() {
            while let Some(frame) = frames.front() {
                let length = if frame.kind == DATA { frame.payload.len() as i64 } else { 0 };
                if length > 0 && (length > *window || length > self.connection) {
                    break;
                }
                *window -= length;
                self.connection -= length;
                bytes.extend(frame.bytes());
                frames.pop_front();
            }
        }
        bytes
    }
}

struct Reader<T> {
    read: ReadHalf<T>,
    out: mpsc::UnboundedSender<Out>,
    shared: Arc<Shared>,
    accept: mpsc::UnboundedSender<(Stream, Headers, bool)>,
    counted: watch::Sender<usize>,
    decoder: Decoder,
}

impl<T: Io> Reader<T> {
    async fn run(mut self, expect_preface: bool) -> Result<()> {
        if expect_preface {
            let mut preface = [0; PREFACE.len()];
            self.read.read_exact(&mut preface).await?;
            ensure!(preface == PREFACE, "no HTTP/2 preface");
        }
        loop {
            let frame = self.next().await?;
            self.shared.frames.lock().push(frame.clone());
            let handled = self.handle(frame).await;
            self.counted.send_modify(|count| *count += 1);
            handled?;
        }
    }

    async fn next(&mut self) -> Result<Frame> {
        let mut head = [0; 9];
        self.read.read_exact(&mut head).await?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        self.read.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    async fn handle(&mut self, frame: Frame) -> Result<()> {
        match frame.kind {
            SETTINGS if !frame.is_ack() => {
                if let Some((_, size)) = frame.settings().into_iter().find(|(name, _)| *name == 4) {
                    let _ = self.out.send(Out::Initial(size));
                }
                self.answer(SETTINGS, ACK, Vec::new());
            }
            WINDOW_UPDATE => {
                let _ = self.out.send(Out::Credit(frame.stream, frame.number()));
            }
            PING if !frame.is_ack() && !self.shared.mute.load(Ordering::Relaxed) => {
                self.answer(PING, ACK, frame.payload)
            }
            DATA => {
                ensure!(frame.flags & 8 == 0, "padding is not read");
                let end = frame.ends_stream();
                if !frame.payload.is_empty() {
                    let credit = (frame.payload.len() as u32).to_be_bytes().to_vec();
                    for stream in [0, frame.stream] {
                        let update = Frame { kind: WINDOW_UPDATE, flags: 0, stream, payload: credit.clone() };
                        let _ = self.out.send(Out::Bytes(update.bytes()));
                    }
                }
                self.tell(frame.stream, Event::Data { bytes: frame.payload, end });
            }
            HEADERS => {
                ensure!(frame.flags & 0x28 == 0, "padding and priorities are not read");
                let mut block = frame.payload.clone();
                let mut last = frame.flags;
                while last & END_HEADERS == 0 {
                    let more = self.next().await?;
                    ensure!(more.kind == CONTINUATION, "a header block that is not continued");
                    block.extend_from_slice(&more.payload);
                    last = more.flags;
                }
                let headers = self.decoder.decode(&block)?;
                let end = frame.ends_stream();
                if self.shared.streams.lock().contains_key(&frame.stream) {
                    self.tell(frame.stream, Event::Headers { headers, end });
                } else {
                    let stream = new_stream(frame.stream, &self.out, &self.shared);
                    let _ = self.accept.send((stream, headers, end));
                }
            }
            RST_STREAM => {
                self.tell(frame.stream, Event::Reset(frame.number()));
            }
            _ => {}
        }
        Ok(())
    }

    fn answer(&self, kind: u8, flags: u8, payload: Vec<u8>) {
        let _ = self.out.send(Out::Bytes(Frame { kind, flags, stream: 0, payload }.bytes()));
    }

    fn tell(&self, stream: u32, event: Event) {
        if let Some(owner) = self.shared.streams.lock().get(&stream) {
            let _ = owner.send(event);
        }
    }
}

fn new_stream(id: u32, out: &mpsc::UnboundedSender<Out>, shared: &Arc<Shared>) -> Stream {
    let (owner, events) = mpsc::unbounded_channel();
    let mut streams = shared.streams.lock();
    // On a connection that has ended the stream reads as ended at once.
    if !shared.ended.load(Ordering::SeqCst) {
        streams.insert(id, owner);
    }
    drop(streams);
    Stream { sender: Sender { id, out: out.clone() }, events }
}

/// The sending half of a stream's end.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    id: u32,
    out: mpsc::UnboundedSender<Out>,
}

/// One stream's end.
#[derive(Debug)]
pub(crate) struct Stream {
    sender: Sender,
    events: mpsc::UnboundedReceiver<Event>,
}

impl std::ops::Deref for Stream {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

impl Sender {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn headers(&self, headers: &[(&str, &str)], end: bool) {
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        self.send(HEADERS, flags, hpack::encode(headers));
    }

    /// Sends bytes in frames of a size that every peer takes, as credit allows.
    pub(crate) fn data(&self, bytes: &[u8], end: bool) {
        let mut chunks = bytes.chunks(8_192).peekable();
        if chunks.peek().is_none() {
            self.send(DATA, if end { END_STREAM } else { 0 }, Vec::new());
        }
        while let Some(chunk) = chunks.next() {
            let flags = if end && chunks.peek().is_none() { END_STREAM } else { 0 };
            self.send(DATA, flags, chunk.to_vec());
        }
    }

    pub(crate) fn reset(&self, code: u32) {
        self.send(RST_STREAM, 0, code.to_be_bytes().to_vec());
    }

    fn send(&self, kind: u8, flags: u8, payload: Vec<u8>) {
        let _ = self.out.send(Out::Frame(Frame { kind, flags, stream: self.id, payload }));
    }
}

impl Stream {
    pub(crate) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// What comes next; `None` when the connection ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        within("an event of the stream", self.events.recv()).await
    }

    /// The same without a deadline.
    pub(crate) async fn next_any(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The answer's headers.
    pub(crate) async fn response(&mut self) -> Result<(Headers, bool)> {
        match self.next().await? {
            Some(Event::Headers { headers, end }) => Ok((headers, end)),
            other => bail!("headers expected, got {other:?}"),
        }
    }

    /// Reads data until `length` bytes came.
    pub(crate) async fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut read = Vec::new();
        while read.len() < length {
            match self.next().await? {
                Some(Event::Data { bytes, .. }) => read.extend(bytes),
                other => bail!("data expected after {} bytes, got {other:?}", read.len()),
            }
        }
        Ok(read)
    }

    /// Reads to the stream's end: the bytes, and the error code if it was reset.
    pub(crate) async fn read_to_end(&mut self) -> Result<(Vec<u8>, Option<u32>)> {
        let mut read = Vec::new();
        loop {
            match self.next().await? {
                Some(Event::Data { bytes, end }) => {
                    read.extend(bytes);
                    if end {
                        return Ok((read, None));
                    }
                }
                Some(Event::Headers { end: true, .. }) => return Ok((read, None)),
                Some(Event::Headers { .. }) => {}
                Some(Event::Reset(code)) => return Ok((read, Some(code))),
                None => bail!("the connection ended after {} bytes", read.len()),
            }
        }
    }
}
