//! Reads the header blocks of an HTTP/2 connection before the HTTP/2 library, which drops parts of them.
//!
//! The library forgets the fragment of a `:path`, and pseudo-header fields in trailers. This module passes every byte on
//! and writes none; `http2_stream` asks it about a stream.

use crate::rules::hpack::{FieldName, HeaderReader};
use pingora::protocols::Stream;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The length of the connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// The length of the header of a frame.
const FRAME_HEADER: usize = 9;
/// The most bytes of a frame with headers. Weir announces no other limit (RFC 9113, section 4.2).
const MAX_FRAME: usize = 16_384;
/// The most streams with a fault that are remembered at the same time.
const MAX_FAULTS: usize = 256;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// What the HTTP/2 library does not notice in a header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// The `:path` has a fragment.
    Fragment,
    /// The trailers have a pseudo-header field (RFC 9113, section 8.1).
    PseudoHeaderInTrailers,
}

/// The faults of a connection's streams.
#[derive(Debug, Default)]
pub struct HeaderFaults {
    count: AtomicUsize,
    faults: Mutex<Vec<(u32, HeaderFault)>>,
}

impl HeaderFaults {
    /// Remembers a fault. Of too many faults in trailers it forgets the oldest: trailers are not passed on in any case.
    ///
    /// # Errors
    /// There are too many requests with a fragment that nobody has asked about.
    fn add(&self, stream: u32, fault: HeaderFault) -> io::Result<()> {
        let mut faults = self.lock();
        if faults.contains(&(stream, fault)) {
            return Ok(());
        }
        let same = || faults.iter().filter(|(_, known)| *known == fault);
        if same().count() >= MAX_FAULTS {
            if fault == HeaderFault::Fragment {
                return malformed("too many requests with a fragment");
            }
            let oldest = same().next().copied();
            faults.retain(|known| Some(*known) != oldest);
        }
        faults.push((stream, fault));
        self.count.store(faults.len(), Ordering::Release);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u32, HeaderFault)>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the faults for which `keep` returns `true`. Nearly always there are none, so no request waits for another.
    fn retain(&self, keep: impl Fn(u32, HeaderFault) -> bool) {
        if self.count.load(Ordering::Acquire) > 0 {
            let mut faults = self.lock();
            faults.retain(|(stream, fault)| keep(*stream, *fault));
            self.count.store(faults.len(), Ordering::Release);
        }
    }

    /// Returns whether a stream has this fault.
    pub(crate) fn has(&self, stream: u32, fault: HeaderFault) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().contains(&(stream, fault))
    }

    /// Forgets the fragments of this request and of the ones before it. Requests are accepted in their order, so the
    /// library has refused those that are still here.
    pub(crate) fn forget_fragments_until(&self, accepted: u32) {
        self.retain(|stream, fault| fault != HeaderFault::Fragment || stream > accepted);
    }

    /// Forgets the faults of a stream that has ended.
    pub(crate) fn forget(&self, ended: u32) {
        self.retain(|stream, _| stream != ended);
    }
}

/// The position in the bytes from the client.
#[derive(Debug)]
enum Position {
    /// In the preface, of which this many bytes are left.
    Preface(usize),
    /// In the header of a frame.
    FrameHeader,
    /// In a frame with headers.
    Block,
    /// In another frame, of which this many bytes are left.
    Skip(usize),
}

/// Follows the frames that a client sends.
pub struct HeaderBlocks {
    position: Position,
    /// The bytes of the current frame's header, or of its payload.
    frame: Vec<u8>,
    /// Of the current frame: its kind, its flags, its stream, its length.
    current: (u8, u8, u32, usize),
    /// The header block so far.
    block: Vec<u8>,
    /// The most bytes of a header block.
    max_block: usize,
    /// The highest stream with a request.
    highest: u32,
    reader: HeaderReader,
    faults: Arc<HeaderFaults>,
}

impl HeaderBlocks {
    /// Begins at the connection preface. Longer header blocks than `max_block` end the connection.
    #[must_use]
    pub fn new(max_block: usize, faults: Arc<HeaderFaults>) -> Self {
        Self {
            position: Position::Preface(PREFACE),
            frame: Vec::new(),
            current: (0, 0, 0, 0),
            block: Vec::new(),
            max_block,
            highest: 0,
            reader: HeaderReader::new(),
            faults,
        }
    }

    /// Reads the next bytes.
    ///
    /// # Errors
    /// A header block is malformed or too long, so no later one can be read either.
    pub fn read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.position {
                Position::Preface(left) => {
                    let length = left.min(rest.len());
                    rest = &rest[length..];
                    self.position =
                        if left > length { Position::Preface(left - length) } else { Position::FrameHeader };
                }
                Position::Skip(left) => {
                    let length = left.min(rest.len());
                    rest = &rest[length..];
                    self.position = if left > length { Position::Skip(left - length) } else { Position::FrameHeader };
                }
                Position::FrameHeader => {
                    rest = self.fill(rest, FRAME_HEADER);
                    if self.frame.len() == FRAME_HEADER {
                        self.begin_frame()?;
                    }
                }
                Position::Block => {
                    rest = self.fill(rest, self.current.3);
                    if self.frame.len() == self.current.3 {
                        self.end_frame()?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves bytes to `frame` until it has `length` bytes. Returns the rest.
    fn fill<'b>(&mut self, bytes: &'b [u8], length: usize) -> &'b [u8] {
        let (part, rest) = bytes.split_at(bytes.len().min(length - self.frame.len()));
        self.frame.extend_from_slice(part);
        rest
    }

    fn begin_frame(&mut self) -> io::Result<()> {
        let &[a, b, c, kind, flags, d, e, f, g] = self.frame.as_slice() else { return Ok(()) };
        self.frame.clear();
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        self.current = (kind, flags, u32::from_be_bytes([d & 0x7f, e, f, g]), length);
        self.position = match kind {
            HEADERS | CONTINUATION if length > MAX_FRAME => return malformed("a frame is too long"),
            HEADERS | CONTINUATION => Position::Block,
            _ if length == 0 => Position::FrameHeader,
            _ => Position::Skip(length),
        };
        if matches!(self.position, Position::Block) && length == 0 { self.end_frame() } else { Ok(()) }
    }

    /// Reads a complete frame with headers.
    fn end_frame(&mut self) -> io::Result<()> {
        let (kind, flags, stream, _) = self.current;
        let mut fragment = self.frame.as_slice();
        if kind == HEADERS {
            let padding = match fragment {
                [padding, rest @ ..] if flags & PADDED != 0 => {
                    fragment = rest;
                    usize::from(*padding)
                }
                _ => 0,
            };
            let priority = if flags & PRIORITY != 0 { 5 } else { 0 };
            let Some(length) = fragment.len().checked_sub(padding) else { return malformed("a padding is too long") };
            fragment = fragment.get(priority..length).unwrap_or_default();
            self.block.clear();
        }
        if self.block.len() + fragment.len() > self.max_block {
            return malformed("a header block is too long");
        }
        self.block.extend_from_slice(fragment);
        self.frame.clear();
        self.position = Position::FrameHeader;
        if flags & END_HEADERS != 0 { self.end_block(stream) } else { Ok(()) }
    }

    /// Reads a complete header block.
    fn end_block(&mut self, stream: u32) -> io::Result<()> {
        let is_trailers = stream <= self.highest;
        self.highest = self.highest.max(stream);
        let mut fault = None;
        let read = self.reader.read(&self.block, |field| match field.name {
            FieldName::Path | FieldName::OtherPseudo if is_trailers => {
                fault = Some(HeaderFault::PseudoHeaderInTrailers);
            }
            FieldName::Path if field.has_number_sign => fault = Some(HeaderFault::Fragment),
            _ => {}
        });
        if read.is_err() {
            return malformed("a header block is malformed");
        }
        fault.map_or(Ok(()), |fault| self.faults.add(stream, fault))
    }
}

fn malformed(why: &'static str) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// A client's connection whose header blocks are read on their way to the HTTP/2 library.
pub(crate) struct FollowedStream {
    inner: Stream,
    blocks: HeaderBlocks,
}

impl FollowedStream {
    /// Wraps a connection on which no byte was read.
    #[must_use]
    pub(crate) fn new(inner: Stream, blocks: HeaderBlocks) -> Self {
        Self { inner, blocks }
    }
}

impl AsyncRead for FollowedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        Poll::Ready(self.blocks.read(&buffer.filled()[before..]))
    }
}

impl AsyncWrite for FollowedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE_BYTES: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A literal field without indexing and with a new name.
    fn literal(name: &str, value: &str) -> Vec<u8> {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    }

    /// Reads frames in parts of `step` bytes. Returns the faults, or `None` if the connection ends.
    fn faults(frames: &[Vec<u8>], step: usize) -> Option<Vec<(u32, HeaderFault)>> {
        let faults = Arc::<HeaderFaults>::default();
        let mut blocks = HeaderBlocks::new(1000, faults.clone());
        let bytes = [PREFACE_BYTES, &frames.concat()].concat();
        for part in bytes.chunks(step) {
            blocks.read(part).ok()?;
        }
        let found = faults.faults.lock().unwrap().clone();
        Some(found)
    }

    fn on_every_step(frames: &[Vec<u8>]) -> Option<Vec<(u32, HeaderFault)>> {
        let results: Vec<_> = [1, 2, 7, 1 << 20].map(|step| faults(frames, step)).to_vec();
        assert!(results.iter().all(|result| *result == results[0]), "{results:?}");
        results[0].clone()
    }

    #[test]
    fn a_fragment_is_found_however_the_path_is_encoded() {
        use HeaderFault::Fragment;
        let request = |block: &[u8]| frame(HEADERS, 5, 1, &[&[0x82, 0x86], block].concat());
        // `/#` in the Huffman code of RFC 7541, appendix B.
        let huffman = [0x83, 0x63, 0xfe, 0xbf];
        let indexed = [&[0x44], huffman.as_slice()].concat();
        for block in [
            literal(":path", "/a#b"),
            literal(":path", "#"),
            [&[0x04, 4], b"/a#b".as_slice()].concat(),
            [&[0x14], huffman.as_slice()].concat(),
            indexed.clone(),
        ] {
            assert_eq!(on_every_step(&[request(&block)]), Some(vec![(1, Fragment)]), "{block:?}");
        }
        // A later request repeats the path by its index.
        let again = frame(HEADERS, 5, 3, &[0x82, 0x86, 0xbe]);
        assert_eq!(on_every_step(&[request(&indexed), again]), Some(vec![(1, Fragment), (3, Fragment)]));
        for block in [literal(":path", "/a%23b"), literal("referer", "/a#b"), vec![0x84]] {
            assert_eq!(on_every_step(&[request(&block)]), Some(vec![]), "{block:?}");
        }
    }

    #[test]
    fn blocks_are_put_together_from_padded_and_continued_frames() {
        let block = [vec![0x82, 0x86], literal(":path", "/a#b")].concat();
        let padded = [&[3], block.as_slice(), &[0; 3]].concat();
        let with_priority = [&[2], [0; 5].as_slice(), &block, &[0; 2]].concat();
        let (first, second) = block.split_at(5);
        let other = frame(0, 0, 1, b"data#");
        for frames in [
            vec![frame(HEADERS, END_HEADERS | PADDED, 1, &padded)],
            vec![frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &with_priority)],
            vec![frame(HEADERS, 1, 1, first), frame(CONTINUATION, 0, 1, &[]), frame(CONTINUATION, 4, 1, second)],
            vec![frame(4, 0, 0, &[]), other.clone(), frame(HEADERS, 4, 1, &block), other],
        ] {
            assert_eq!(on_every_step(&frames), Some(vec![(1, HeaderFault::Fragment)]), "{frames:?}");
        }
    }

    #[test]
    fn a_pseudo_header_field_in_trailers_is_found() {
        let request = |stream| frame(HEADERS, 4, stream, &[0x83, 0x86, 0x84]);
        let trailers = |stream, block: &[u8]| frame(HEADERS, 5, stream, block);
        let found = |block: &[u8]| on_every_step(&[request(1), trailers(1, block), request(3), trailers(3, &[])]);
        for block in [literal(":path", "/"), literal(":status", "200"), vec![0x84], literal(":", "")] {
            assert_eq!(found(&block), Some(vec![(1, HeaderFault::PseudoHeaderInTrailers)]), "{block:?}");
        }
        assert_eq!(found(&literal("x-sum", ":1")), Some(vec![]));
    }

    #[test]
    fn what_cannot_be_followed_ends_the_connection() {
        let long = literal("a", &"x".repeat(100)).repeat(11);
        let half = &long[..600];
        for frames in [
            vec![frame(HEADERS, 4, 1, &[0xff; 30])],
            vec![frame(HEADERS, 4, 1, &[0xbe])],
            vec![frame(HEADERS, 4 | PADDED, 1, &[9, 0x82])],
            vec![frame(HEADERS, 4, 1, &long)],
            vec![frame(HEADERS, 0, 1, half), frame(CONTINUATION, 4, 1, half)],
            vec![frame(HEADERS, 4, 1, &vec![0; MAX_FRAME + 1])],
        ] {
            assert_eq!(on_every_step(&frames), None, "{frames:?}");
        }
        let faulty = |stream: usize| frame(HEADERS, 5, u32::try_from(stream).unwrap(), &literal(":path", "#"));
        let many: Vec<_> = (0..=MAX_FAULTS).map(|number| faulty(2 * number + 1)).collect();
        assert_eq!(on_every_step(&many[..MAX_FAULTS]).map(|faults| faults.len()), Some(MAX_FAULTS));
        assert_eq!(on_every_step(&many), None, "faults that nobody asks about are bounded");
    }

    #[test]
    fn faults_in_trailers_are_bounded_and_end_no_connection() {
        let open = |stream| frame(HEADERS, 4, stream, &[0x83, 0x86, 0x84]);
        let trailers = |stream| frame(HEADERS, 5, stream, &literal(":path", "/"));
        let streams: Vec<u32> = (0..300).map(|number| 2 * number + 1).collect();
        let frames: Vec<_> = streams.iter().flat_map(|stream| [open(*stream), trailers(*stream)]).collect();
        let kept = on_every_step(&frames).unwrap();
        let expected = streams[300 - MAX_FAULTS..].iter().map(|stream| (*stream, HeaderFault::PseudoHeaderInTrailers));
        assert_eq!(kept, expected.collect::<Vec<_>>());
        let repeated = [vec![open(1)], vec![trailers(1); 300]].concat();
        assert_eq!(on_every_step(&repeated).unwrap().len(), 1, "one stream has one entry");
    }

    #[test]
    fn faults_of_ended_and_refused_streams_are_forgotten() {
        use HeaderFault::{Fragment, PseudoHeaderInTrailers};
        let faults = HeaderFaults::default();
        for (stream, fault) in [(1, PseudoHeaderInTrailers), (3, Fragment), (5, Fragment), (7, Fragment)] {
            faults.add(stream, fault).unwrap();
        }
        assert!(faults.has(5, Fragment) && !faults.has(5, PseudoHeaderInTrailers));
        faults.forget_fragments_until(5);
        assert!(!faults.has(3, Fragment) && !faults.has(5, Fragment) && faults.has(7, Fragment));
        assert!(faults.has(1, PseudoHeaderInTrailers));
        faults.forget(1);
        faults.forget_fragments_until(7);
        assert!(!faults.has(1, PseudoHeaderInTrailers) && faults.count.load(Ordering::Acquire) == 0);
    }
}
