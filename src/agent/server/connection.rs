//! One connection: requests in, replies and messages out.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

use super::clients::Clients;
use super::flow::{Flow, Handler};
use super::handle::{ClientHandle, Phase};
use super::limits::Limits;
use super::mailbox::Ended;
use crate::resp::{Parser, ProtocolError};
use crate::runtime::turn::Turn;

/// Replies are sent when so many bytes of them wait, even if more requests are there: a pipeline is bounded by its bytes.
const BATCH: usize = 64 * 1024;
/// What is read at once, as in Redis; a longer request makes room for itself as it comes.
const READ: usize = 16 * 1024;
/// Below this, room is made before the next read.
const LEAST_ROOM: usize = 2 * 1024;
/// A connection that has no buffer reads so much to begin with.
const FIRST_READ: usize = 4 * 1024;
/// Buffers that change by less are not entered anew: a small request costs the account, which all share, nothing.
const GRAIN: usize = 4 * 1024;
/// Larger buffers are given back as soon as they are empty.
const KEPT: usize = 128 * 1024;
/// How long to wait for the peer to take a last reply, and how much of what it sends meanwhile is thrown away. Without
/// that, bytes that nobody reads would make the system drop the reply.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The client has gone.
    Gone,
    /// It has taken more than it may.
    Ended(Ended),
    /// It asked to, or the server is about to stop.
    Closed,
    /// It sent something that is no request.
    Protocol(ProtocolError),
}

/// What a connection waited for.
enum Woken {
    Input(io::Result<usize>),
    Stirred,
}

/// One connection. What it may take is bounded by its limits; what others want of it comes through its mailbox.
pub(super) struct Connection<S> {
    stream: S,
    handle: Arc<ClientHandle>,
    clients: Arc<Clients>,
    limits: Limits,
    parser: Parser,
    input: BytesMut,
    /// The most that the input's buffer has had room for: what is left of it behind a request keeps all of it alive.
    largest_input: usize,
    output: BytesMut,
    /// So much of the output is sent.
    sent: usize,
    /// Since when a request is half there.
    half_since: Option<u64>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S, handle: Arc<ClientHandle>, clients: Arc<Clients>, limits: Limits) -> Self {
        Self {
            stream,
            handle,
            clients,
            limits,
            parser: Parser::new(limits.request),
            input: BytesMut::new(),
            largest_input: 0,
            output: BytesMut::new(),
            sent: 0,
            half_since: None,
        }
    }

    /// Serves the client until either side has had enough.
    pub(super) async fn run<H: Handler>(mut self, handler: &H, client: &mut H::Client) -> End {
        let end = match self.serve(handler, client).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        match end {
            End::Protocol(error) => {
                self.clients.counters.protocol_errors.fetch_add(1, Ordering::Relaxed);
                if let Some(reply) = error.reply() {
                    reply.encode(self.handle.protocol(), &mut self.output);
                    self.leave().await;
                }
            }
            End::Closed => self.leave().await,
            End::Ended(why) => self.clients.count(why),
            End::Gone => {}
        }
        end
    }

    async fn serve<H: Handler>(
        &mut self,
        handler: &H,
        client: &mut H::Client,
    ) -> Result<std::convert::Infallible, End> {
        loop {
            self.requests(handler, client).await?;
            self.settle().await?;
            self.give_back_large_input();
            self.account();
            self.enter_wait();
            match self.wait().await {
                Woken::Input(Ok(0) | Err(_)) => return Err(End::Gone),
                // What was read stays in memory while it is carried out.
                Woken::Input(Ok(_)) => {
                    self.largest_input = self.largest_input.max(self.input.capacity());
                    self.account();
                }
                Woken::Stirred => {}
            }
        }
    }

    /// Enters what the buffers take. It is done when they have grown, and before a wait.
    #[inline]
    fn account(&self) {
        let bytes = self.input.capacity() + self.output.capacity();
        if bytes == 0 || bytes.abs_diff(self.handle.buffers()) >= GRAIN {
            self.handle.set_buffers(bytes);
        }
    }

    /// Carries out the requests that are there, one after the other.
    async fn requests<H: Handler>(&mut self, handler: &H, client: &mut H::Client) -> Result<(), End> {
        let mut turn = Turn::begin();
        loop {
            // Each time: the request before may have been `AUTH`.
            self.parser.set_trusted(handler.trusts(client));
            let Some(request) = self.parser.next(&mut self.input).map_err(End::Protocol)? else { return Ok(()) };
            self.half_since = None;
            let (spoken, listened) = (self.handle.protocol(), self.handle.subscriptions());
            let heard = self.handle.hears();
            let flow = {
                let mut work = pin!(handler.execute(client, request));
                match poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
                    Poll::Ready(flow) => flow,
                    Poll::Pending => self.meanwhile(work).await,
                }
            };
            if self.handle.mailbox().is_ended() {
                return Err(self.ended());
            }
            let protocol = self.handle.protocol();
            let (channels, patterns) = self.handle.subscriptions();
            if protocol != spoken || channels < listened.0 || patterns < listened.1 {
                // What came before goes out before the answer that ends it, as the client understood it then.
                self.handle.mailbox().take(spoken, heard, &mut self.output);
            }
            match flow {
                Flow::Reply(reply) => reply.encode(protocol, &mut self.output),
                Flow::Replies(replies) => replies.iter().for_each(|reply| reply.encode(protocol, &mut self.output)),
                Flow::None => {}
                Flow::TooLarge => {
                    self.handle.mailbox().end(Ended::Output);
                    return Err(self.ended());
                }
                Flow::Close(last) => {
                    if let Some(reply) = last {
                        reply.encode(protocol, &mut self.output);
                    }
                    return Err(End::Closed);
                }
            }
            if self.handle.mailbox().stirs() {
                self.settle().await?;
            } else if self.output.len() >= BATCH {
                self.flush().await?;
            }
            // Requests that cost much may come together with many like them.
            if !self.input.is_empty() {
                turn.give_way().await;
            }
        }
    }

    /// Does what the mailbox asks for, and sends what is to be sent.
    async fn settle(&mut self) -> Result<(), End> {
        let mailbox = self.handle.mailbox();
        if mailbox.stirs() {
            if mailbox.has_mail() {
                mailbox.take(self.handle.protocol(), self.handle.hears(), &mut self.output);
            }
            if mailbox.take_quiet() {
                self.give_back();
            }
        }
        if !self.output.is_empty() {
            self.flush().await?;
        }
        let mailbox = self.handle.mailbox();
        if mailbox.is_ended() {
            return Err(self.ended());
        }
        if mailbox.is_leaving() {
            return Err(End::Closed);
        }
        Ok(())
    }

    fn ended(&self) -> End {
        self.handle.mailbox().ended().map_or(End::Gone, End::Ended)
    }

    /// Waits for `work`, which does not end at once. Replies to earlier requests and messages that do not wait are sent
    /// meanwhile.
    async fn meanwhile<F: Future<Output = Flow>>(&mut self, mut work: Pin<&mut F>) -> Flow {
        self.handle.enter(Phase::Busy);
        self.give_back_large_input();
        self.account();
        let mut broken = false;
        poll_fn(|cx| {
            let mailbox = self.handle.mailbox();
            mailbox.register(cx.waker());
            // What has begun is finished, whether or not somebody waits for it.
            if mailbox.is_ended() {
                self.drop_buffers();
            } else if !broken {
                broken = matches!(self.poll_urgent(cx), Poll::Ready(Err(_)));
            }
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Sends what waits, and messages that do not wait for the end of a command: no more of them at a time than of replies. The
    /// others stay where they are bounded.
    fn poll_urgent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mailbox = self.handle.mailbox();
            let is_urgent = mailbox.is_urgent() && self.handle.hears();
            if is_urgent {
                mailbox.peek_urgent(self.handle.protocol(), BATCH, &mut self.output);
                self.account();
            }
            ready!(self.poll_flush(cx))?;
            if !is_urgent {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends what waits. Requests wait meanwhile, so that who does not read gets nothing more.
    async fn flush(&mut self) -> Result<(), End> {
        if self.output.len() - self.sent > self.limits.output {
            self.handle.mailbox().end(Ended::Output);
            return Err(self.ended());
        }
        let mut stalled = false;
        let flushed = poll_fn(|cx| {
            if let Poll::Ready(result) = self.poll_flush(cx) {
                return Poll::Ready(result.map_err(|_| End::Gone));
            }
            if !stalled {
                stalled = true;
                self.account();
                self.handle.enter(Phase::Stalled);
            }
            self.handle.set_unsent(self.output.len() - self.sent);
            let mailbox = self.handle.mailbox();
            mailbox.register(cx.waker());
            if mailbox.is_ended() { Poll::Ready(Err(self.ended())) } else { Poll::Pending }
        })
        .await;
        if stalled {
            self.handle.set_unsent(0);
            self.handle.enter(Phase::Busy);
        }
        flushed
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.output.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        if self.sent > 0 {
            self.clients.counters.bytes_written.fetch_add(self.sent as u64, Ordering::Relaxed);
            self.sent = 0;
            if self.output.capacity() > KEPT {
                self.output = BytesMut::new();
            } else {
                self.output.clear();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing more can be done with what is there.
    fn enter_wait(&mut self) {
        let now = self.handle.clock().millis();
        if self.input.is_empty() {
            self.half_since = None;
            self.handle.enter_since(Phase::Idle, now);
        } else {
            let since = *self.half_since.get_or_insert(now);
            self.handle.enter_since(Phase::HalfRequest, since);
        }
    }

    /// Waits for bytes, or for something in the mailbox.
    async fn wait(&mut self) -> Woken {
        poll_fn(|cx| {
            if self.handle.mailbox().stirs() {
                return Poll::Ready(Woken::Stirred);
            }
            if let Poll::Ready(read) = self.poll_read(cx) {
                if let Ok(read) = read {
                    self.clients.counters.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
                }
                return Poll::Ready(Woken::Input(read));
            }
            let mailbox = self.handle.mailbox();
            mailbox.register(cx.waker());
            if mailbox.stirs() { Poll::Ready(Woken::Stirred) } else { Poll::Pending }
        })
        .await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut stream = Pin::new(&mut self.stream);
        if self.input.capacity() == 0 {
            // Who waits needs no buffer: ten thousand may.
            let mut first = [const { MaybeUninit::uninit() }; FIRST_READ];
            let mut first = ReadBuf::uninit(&mut first);
            ready!(stream.poll_read(cx, &mut first))?;
            if !first.filled().is_empty() {
                self.input.reserve(READ);
                self.input.extend_from_slice(first.filled());
            }
            return Poll::Ready(Ok(first.filled().len()));
        }
        if self.input.capacity() - self.input.len() < LEAST_ROOM {
            // As much again as has come: nothing grows by what is only announced.
            self.input.reserve(READ.max(self.input.len()));
        }
        poll_read_buf(stream.as_mut(), cx, &mut self.input)
    }

    /// The connection has been quiet: it needs no buffers.
    fn give_back(&mut self) {
        if self.input.is_empty() && self.output.is_empty() {
            self.drop_buffers();
        }
    }

    /// A large request has been taken out, and nothing is behind it.
    #[inline]
    fn give_back_large_input(&mut self) {
        if self.largest_input > KEPT && self.input.is_empty() {
            self.input = BytesMut::new();
            self.largest_input = 0;
        }
    }

    fn drop_buffers(&mut self) {
        self.input = BytesMut::new();
        self.largest_input = 0;
        self.output = BytesMut::new();
        self.sent = 0;
        self.account();
    }

    /// Sends what waits, says that there is no more, and gives the peer a moment to take it.
    async fn leave(&mut self) {
        let _ = timeout(LINGER, async {
            if self.flush().await.is_err() || self.stream.shutdown().await.is_err() {
                return;
            }
            let mut thrown_away = 0;
            while thrown_away < LINGER_BYTES {
                self.input.clear();
                match poll_fn(|cx| self.poll_read(cx)).await {
                    Ok(read) if read > 0 => thrown_away += read,
                    _ => return,
                }
            }
        })
        .await;
    }
}
