//! Encodes response bodies in a content coding, with bounded memory and without blocking other requests.
//!
//! This module does not decide which responses are encoded.

use crate::base::content_coding::ContentCoding;
use crate::base::memory_budget::{MemoryShare, Reservation, without_spare};
use crate::base::metrics::CompressionMetrics;
use crate::base::request_reply::Body;
use brotli::CompressorWriter;
use brotli::enc::BrotliEncoderParams;
use bytes::Bytes;
use flate2::write::GzEncoder;
use std::io::{self, Write};
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// The longest body that is encoded by the thread of its connection, in bytes: that takes about a millisecond. Longer ones
/// are encoded by other threads.
const MAX_INLINE: usize = 128 << 10;
/// The bytes that an encoder gets at a time. Whatever parts a body has, the same body becomes the same bytes.
const PIECE: usize = 32 << 10;

// On a page of a list, the next level of each takes at least a third more time, and saves less than a tenth.
const ZSTD_LEVEL: i32 = 1;
const BROTLI_QUALITY: i32 = 4;
/// The logarithm of the window. A larger one takes more memory, and makes a page of a list no shorter.
const BROTLI_WINDOW: i32 = 18;
const GZIP_LEVEL: u32 = 5;

/// Encodes bodies.
pub(crate) struct Compressor {
    /// Counts its work.
    pub(crate) metrics: CompressionMetrics,
    /// Long bodies that may be encoded at the same time: one for each core.
    slots: Arc<Semaphore>,
}

/// An encoded body, and its memory.
pub(crate) struct Encoded {
    /// The bytes.
    pub bytes: Bytes,
    /// The memory of the bytes.
    pub memory: Reservation,
}

/// Why a body is not encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotEncoded {
    /// The encoder would exceed the client's share of the memory.
    Memory,
    /// The encoder failed.
    Failed,
}

impl Compressor {
    /// Makes a compressor.
    #[must_use]
    pub(crate) fn new(metrics: CompressionMetrics) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self { metrics, slots: Arc::new(Semaphore::new(cores)) }
    }

    /// Encodes a body. The memory for it is reserved before it is used.
    ///
    /// # Errors
    /// The body is not encoded.
    pub(crate) async fn encode(
        &self,
        body: &Body,
        coding: ContentCoding,
        share: &MemoryShare,
    ) -> Result<Encoded, NotEncoded> {
        let length = body.len();
        // The semaphore is never closed.
        let slot = if length > MAX_INLINE { self.slots.clone().acquire_owned().await.ok() } else { None };
        let memory = share.reserve(working_memory(coding, length)).map_err(|_| NotEncoded::Memory)?;
        let (parts, metrics) = (body.parts().to_vec(), self.metrics.clone());
        let is_long = slot.is_some();
        // The closure has the slot and the memory, because the work goes on if the request ends.
        let encode = move || {
            let _slot = slot;
            #[allow(clippy::disallowed_methods)] // measures the work
            let started = Instant::now();
            let encoded = encode(&parts, coding, length);
            metrics.duration.with_label_values(&[coding.as_str()]).observe(started.elapsed().as_secs_f64());
            (encoded, memory)
        };
        let (encoded, mut memory) = match is_long {
            true => spawn_blocking(encode).await.map_err(|_| NotEncoded::Failed)?,
            false => encode(),
        };
        let bytes = without_spare(encoded.map_err(|_| NotEncoded::Failed)?);
        memory.resize(bytes.len()).map_err(|_| NotEncoded::Memory)?;
        Ok(Encoded { bytes, memory })
    }
}

/// Returns the memory for encoding a body of this length, in bytes: that of the encoder, as measured, and as much as the
/// body for its output.
fn working_memory(coding: ContentCoding, length: usize) -> usize {
    let encoder = match coding {
        ContentCoding::Zstd => (128 << 10) + (8 * length).min(1536 << 10),
        ContentCoding::Br => (640 << 10) + (26 * length).min(8 << 20),
        ContentCoding::Gzip => 400 << 10,
    };
    encoder + length
}

/// Encodes a body of this length.
fn encode(parts: &[Bytes], coding: ContentCoding, length: usize) -> io::Result<Vec<u8>> {
    match coding {
        ContentCoding::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
            // Some clients need the length in the frame's header.
            encoder.set_pledged_src_size(Some(length as u64))?;
            write_pieces(parts, &mut encoder)?;
            encoder.finish()
        }
        ContentCoding::Br => {
            let params = BrotliEncoderParams {
                quality: BROTLI_QUALITY,
                lgwin: BROTLI_WINDOW,
                size_hint: length,
                ..BrotliEncoderParams::default()
            };
            let mut encoder = CompressorWriter::with_params(Vec::new(), 4096, &params);
            write_pieces(parts, &mut encoder)?;
            Ok(encoder.into_inner())
        }
        ContentCoding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL));
            write_pieces(parts, &mut encoder)?;
            encoder.finish()
        }
    }
}

/// Writes the parts of a body in pieces of one length.
fn write_pieces(parts: &[Bytes], encoder: &mut impl Write) -> io::Result<()> {
    if let [whole] = parts {
        return whole.chunks(PIECE).try_for_each(|piece| encoder.write_all(piece));
    }
    let mut piece = Vec::with_capacity(PIECE);
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PIECE - piece.len()));
            piece.extend_from_slice(now);
            rest = later;
            if piece.len() == PIECE {
                encoder.write_all(&piece)?;
                piece.clear();
            }
        }
    }
    encoder.write_all(&piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::memory_budget::MemoryBudget;
    use crate::base::metrics::Metrics;
    use std::io::Read;

    fn decoded(coding: ContentCoding, encoded: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match coding {
            ContentCoding::Zstd => zstd::Decoder::new(encoded).unwrap().read_to_end(&mut plain),
            ContentCoding::Br => brotli::Decompressor::new(encoded, 4096).read_to_end(&mut plain),
            ContentCoding::Gzip => flate2::read::GzDecoder::new(encoded).read_to_end(&mut plain),
        }
        .unwrap();
        plain
    }

    /// Returns bytes that compress as well as JSON, without being periodic.
    fn text(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let next = std::iter::from_fn(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(b"abcdefgh"[(state >> 29) as usize])
        });
        next.take(length).collect()
    }

    #[tokio::test]
    async fn a_body_of_any_length_and_of_any_parts_is_encoded_to_the_same_bytes() {
        let compressor = Compressor::new(Metrics::new().unwrap().compression);
        let share = MemoryBudget::new(1 << 30).own_share();
        for length in [1, 1000, PIECE - 1, PIECE, 3 * PIECE + 7, MAX_INLINE + 1, 1 << 20] {
            let plain = Bytes::from(text(length));
            let cut = |at: usize| plain.slice(at.min(length)..(at + PIECE / 3).min(length));
            let parts = (0..length.div_ceil(PIECE / 3)).map(|part| cut(part * (PIECE / 3))).collect();
            for coding in ContentCoding::ALL {
                let whole =
                    compressor.encode(&plain.clone().into(), coding, &share).await.map_err(|e| format!("{e:?}"));
                let bytes = whole.unwrap().bytes;
                assert_eq!(decoded(coding, &bytes), plain, "{coding:?} {length}");
                let of_parts = compressor.encode(&Body::of(Vec::clone(&parts)), coding, &share).await;
                assert!(of_parts.is_ok_and(|encoded| encoded.bytes == bytes), "{coding:?} {length}");
            }
        }
    }

    #[tokio::test]
    async fn memory_is_reserved_for_the_work_and_then_for_the_result() {
        let compressor = Compressor::new(Metrics::new().unwrap().compression);
        let plain = Body::from(Bytes::from(text(50_000)));
        for coding in ContentCoding::ALL {
            let needed = working_memory(coding, plain.len());
            let small = MemoryBudget::new(needed as u64 - 1);
            let refused = compressor.encode(&plain, coding, &small.own_share()).await;
            assert_eq!((refused.err(), small.used()), (Some(NotEncoded::Memory), 0));
            let enough = MemoryBudget::new(needed as u64);
            let encoded = compressor.encode(&plain, coding, &enough.own_share()).await.ok().unwrap();
            assert_eq!(enough.used(), encoded.bytes.len() as u64);
            drop(encoded);
            assert_eq!(enough.used(), 0);
        }
    }
}
